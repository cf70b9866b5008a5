//! A move as its source shows it.

use towpath_protocol::amounts::millis;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::plan::Decision;
use towpath_protocol::source::{Outcome, Stage};
use towpath_protocol::time::Instant;

use super::SourceMove;
use crate::api::{DecisionInputs, DecisionView, ErrorView, LinkState, MigrationView, Phase};
use crate::engine::ground::{Ground, now};

impl SourceMove {
    /// The move as the API shows it.
    pub(in crate::engine) fn view(&self, ground: &Ground) -> MigrationView {
        let progress = self.machine.progress();
        let before = &self.order.spent;
        let spent = before.with(progress);
        let (phase, error) = self.phase(ground);
        let to_ms = |at: Instant| self.begun_after_ms + millis(at.since(self.begun_at));
        let is_held = phase == Phase::Committed;
        let silence = self.machine.silence(now());
        let is_flowing = self.machine.is_link_up() && silence.is_none();
        let decisions = self.machine.decisions().iter().map(|record| DecisionView {
            at_ms: to_ms(record.at),
            decision: decision_text(&record.judgement.decision).to_owned(),
            reason: reason_text(&record.judgement.decision).to_owned(),
            predicted_pause_ms: millis(record.judgement.pause_predicted),
            inputs: DecisionInputs {
                rounds: record.facts.rounds_done,
                residual_bytes: record.facts.residual_bytes,
                round_bytes: record.facts.round_bytes,
                goodput_bytes_per_second: record.facts.goodput_bytes_per_second,
                dirty_bytes_per_second: record.facts.dirty_bytes_per_second,
                round_trip_us: u64::try_from(record.facts.round_trip.as_micros())
                    .unwrap_or(u64::MAX),
            },
        });
        MigrationView {
            link: if self.machine.is_link_up() {
                LinkState::Up
            } else {
                LinkState::Down
            },
            silent_ms: silence.map(millis),
            blocked_ms: is_held
                .then(|| self.switched_at.map(|at| millis(now().since(at))))
                .flatten(),
            round: Some(before.round_count + progress.round_count),
            rounds: Some(spent.round_count),
            blocks_total: progress.block_count,
            blocks_left: progress.blocks_left,
            raw_bytes: spent.raw_bytes,
            wire_bytes: Some(spent.wire_bytes),
            goodput_bytes_per_second: match progress.goodput_bytes_per_second {
                0 => None,
                measured => Some(if is_flowing { measured } else { 0 }),
            },
            dirty_bytes_per_second: (!self.machine.decisions().is_empty())
                .then_some(progress.dirty_bytes_per_second),
            eta_ms: progress.eta.filter(|_| is_flowing).map(millis),
            predicted_pause_ms: progress.pause_predicted.map(millis),
            pause_reported_ms: progress.pause_reported.map(millis),
            demand_fetches: spent.demand_count,
            switch_reason: self
                .machine
                .switch_reason()
                .map(|reason| reason.as_str().to_owned()),
            decisions: decisions.collect(),
            error,
            ..self.order.view(ground, phase)
        }
    }

    /// A fault that ended the attempt, attributed to the side that reported it.
    fn said(&self, fault: &Fault) -> ErrorView {
        match self.machine.is_refused() {
            true => ErrorView::said_by(&self.order.target, fault),
            false => ErrorView::from(fault),
        }
    }

    fn phase(&self, ground: &Ground) -> (Phase, Option<ErrorView>) {
        match &self.outcome {
            Some(Outcome::Moved) => (Phase::Done, None),
            Some(Outcome::Stayed(fault)) if fault.code == Code::Cancelled => {
                (Phase::Cancelled, Some(ErrorView::from(fault)))
            }
            Some(Outcome::Stuck(fault)) if self.is_commit_said => {
                (Phase::Committed, Some(ErrorView::from(fault)))
            }
            Some(Outcome::Stayed(fault)) if self.order.is_tried_again(ground, fault) => {
                (Phase::Preparing, Some(self.said(fault)))
            }
            Some(Outcome::Stayed(fault) | Outcome::Stuck(fault)) => {
                (Phase::Failed, Some(self.said(fault)))
            }
            None => {
                let phase = match self.machine.stage() {
                    Stage::Preparing => Phase::Preparing,
                    Stage::Copying => Phase::Copying,
                    Stage::Switching => Phase::Switching,
                    Stage::Committed => Phase::Committed,
                    Stage::Serving => Phase::Serving,
                    Stage::Over => Phase::Failed,
                };
                let lost = self.machine.is_image_lost().then(|| {
                    let detail = "what the guest left here is gone: if its target misses blocks of it, it has \
                                  to be booted there";
                    ErrorView::from(&Fault::new(Code::ImageLost, detail))
                });
                let unread = || self.unread.fault().map(ErrorView::from);
                let is_up = self.machine.is_link_up();
                let no_lanes = || self.no_lanes.as_ref().filter(|_| !is_up);
                let unreached = || no_lanes().map(ErrorView::from);
                (phase, lost.or_else(unread).or_else(unreached))
            }
        }
    }
}

const fn decision_text(decision: &Decision) -> &'static str {
    match decision {
        Decision::AnotherRound(_) => "another round",
        Decision::SwitchWhole(_) => "switch whole",
        Decision::SwitchAndFetch { .. } => "switch and fetch",
        Decision::GiveUp(_) => "give up",
    }
}

const fn reason_text(decision: &Decision) -> &'static str {
    match decision {
        Decision::AnotherRound(None) => "the rest shrinks and does not fit the pause",
        Decision::AnotherRound(Some(reason))
        | Decision::SwitchWhole(reason)
        | Decision::SwitchAndFetch { reason, .. }
        | Decision::GiveUp(reason) => reason.as_str(),
    }
}
