//! A move as its target shows it.

use towpath_protocol::amounts::millis;
use towpath_protocol::fault::Code;
use towpath_protocol::target::{Outcome, Stage};

use super::TargetMove;
use crate::api::{ErrorView, LinkState, MigrationView, Phase, Role};
use crate::engine::ground::{Ground, now, unix_ms};

impl TargetMove {
    /// The move as the API shows it; `None` until the source has said what moves.
    pub(in crate::engine) fn view(&self, ground: &Ground) -> Option<MigrationView> {
        let prepare = self.machine.prepare()?;
        let setup = self.machine.setup();
        let progress = self.machine.progress();
        let (phase, error) = self.phase();
        let total: u64 = prepare.spaces.iter().map(|space| space.block_count).sum();
        let sites = (setup.source.site.clone(), ground.shared.host.site.clone());
        let guest = prepare.name.clone();
        Some(MigrationView {
            link: if self.machine.is_link_up() {
                LinkState::Up
            } else {
                LinkState::Down
            },
            blocks_total: total,
            blocks_left: match phase {
                Phase::Done => 0,
                _ => total - self.machine.present_count().min(total),
            },
            raw_bytes: self.raw_bytes,
            total_ms: millis(now().since(self.begun_at)),
            demand_fetches: progress.demand_count,
            demand_p50_ms: quantile_ms(&self.latencies_us, 50),
            demand_p99_ms: quantile_ms(&self.latencies_us, 99),
            error,
            started_unix_ms: self.begun_unix_ms,
            finished_unix_ms: phase.is_finished().then(unix_ms),
            ..MigrationView::begun((setup.migration, guest), Role::Target, sites, phase)
        })
    }

    fn phase(&self) -> (Phase, Option<ErrorView>) {
        match &self.outcome {
            Some(Outcome::Arrived) => (Phase::Done, None),
            Some(Outcome::Refused(fault)) if fault.code == Code::Cancelled => {
                let source = &self.machine.setup().source;
                (Phase::Cancelled, Some(ErrorView::said_by(source, fault)))
            }
            Some(Outcome::Refused(fault) | Outcome::Lost(fault)) => {
                (Phase::Failed, Some(ErrorView::from(fault)))
            }
            None => {
                let phase = match self.machine.stage() {
                    Stage::Admitting => Phase::Preparing,
                    Stage::Receiving => Phase::Receiving,
                    Stage::Ready => Phase::Ready,
                    Stage::Running => Phase::Fetching,
                    Stage::Over => Phase::Done,
                };
                (phase, None)
            }
        }
    }
}

/// The latency within which `percent` of the demands were answered, in milliseconds, rounded up.
fn quantile_ms(latencies_us: &[u32], percent: usize) -> Option<u64> {
    if latencies_us.is_empty() {
        return None;
    }
    let mut sorted = latencies_us.to_vec();
    sorted.sort_unstable();
    let index = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    Some(u64::from(sorted[index]).div_ceil(1000))
}
