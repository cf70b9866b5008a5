//! Faults, and the operator who wants the guest on the other host.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::ownership::{self, State};
use towpath_protocol::plan::{Mode, Policy};
use towpath_protocol::source;
use towpath_protocol::target;

use super::link::{MILLISECOND, Nanos, SECOND};
use super::scenario::{Mishap, draw_mishap};
use super::world::{Engine, Happening, Input, World};

/// Interval between the operator's checks.
const LOOK_INTERVAL: Nanos = SECOND / 2;

impl World {
    /// Decides whether to crash before the next action, if the seed has crashes left.
    pub(super) fn crashes_now(&mut self, host: usize) -> bool {
        if self.crashes_left == 0 || self.is_quiet() {
            return false;
        }
        if self.random.below(self.scenario.crash_odds) != 0 {
            return false;
        }
        self.crashes_left -= 1;
        let loses_power = self.random.chance(40);
        self.crash(host, loses_power);
        true
    }

    /// Whether a journal write fails; after one failure all of them fail.
    pub(super) fn write_fails(&mut self, host: usize) -> bool {
        if self.hosts[host].is_poisoned {
            return true;
        }
        if self.bad_writes_left == 0 || self.is_quiet() || self.random.below(8) != 0 {
            return false;
        }
        self.bad_writes_left -= 1;
        self.summary.bad_write_count += 1;
        self.hosts[host].is_poisoned = true;
        true
    }

    fn crash(&mut self, host: usize, loses_power: bool) {
        if matches!(self.hosts[host].engine, Engine::Down) && !loses_power {
            return;
        }
        self.summary.crash_count += 1;
        self.note(host, || format!("crashes, power: {loses_power}"));
        let was_down = matches!(self.hosts[host].engine, Engine::Down);
        let session = self.hosts[host].session.take();
        self.set_engine(host, Engine::Down);
        let here = &mut self.hosts[host];
        here.incarnation += 1;
        here.inbox.clear();
        here.busy_until = 0;
        here.tick_at = Nanos::MAX;
        here.frozen_at = None;
        here.is_poisoned = false;
        if loses_power {
            here.guest = None;
        }
        let (low, high) = if loses_power {
            (SECOND, 4 * SECOND)
        } else {
            (20 * MILLISECOND, SECOND)
        };
        let down = self.random.between(low, high);
        if !was_down {
            self.agenda
                .add(self.now + down, Happening::Restart { host });
        }
        if let Some(session) = session {
            // A dead host sends nothing: the other one notices when its tunnel's idle deadline
            // passes.
            let noticed = if loses_power {
                self.random.below(3 * SECOND)
            } else {
                self.link.latency
            };
            self.break_session(session, 1 - host, noticed);
        }
    }

    pub(super) fn break_session(&mut self, session: u64, host: usize, delay: Nanos) {
        let are_open = false;
        let broken = Happening::Lanes {
            session,
            host,
            are_open,
        };
        self.agenda.add(self.now + delay, broken);
    }

    pub(super) fn go_wrong(&mut self, mishap: Mishap) {
        self.note(usize::MAX, || format!("{mishap:?}"));
        match mishap {
            Mishap::Cut {
                directions,
                span,
                is_bridged,
            } => self.cut(directions, span, is_bridged),
            Mishap::Rate(bytes_per_second) => self.link.bytes_per_second = bytes_per_second,
            Mishap::Kill(host) => self.crash(host, false),
            Mishap::PowerLoss(host) => self.crash(host, true),
            Mishap::GuestDies(host) => self.kill_guest(host),
            Mishap::Cancel => {
                for host in 0..2 {
                    self.tell(host, Input::Cancel);
                }
            }
        }
    }

    /// A move has entered a stage: something may go wrong right then.
    pub(super) fn strike(&mut self, stage: source::Stage) {
        let is_delicate = matches!(
            stage,
            source::Stage::Switching | source::Stage::Committed | source::Stage::Serving
        );
        if !is_delicate || self.strikes_left == 0 || self.is_quiet() || self.random.chance(40) {
            return;
        }
        self.strikes_left -= 1;
        let mishap = draw_mishap(&mut self.random);
        let span = self.random.pick(&[1, 4, 40]) * (self.link.latency + MILLISECOND) / 4;
        let at = (self.now + self.random.below(span)).min(self.scenario.quiet_at);
        self.agenda.add(at, Happening::Mishap(mishap));
    }

    fn cut(&mut self, directions: [bool; 2], span: Nanos, is_bridged: bool) {
        let until = (self.now + span).min(self.scenario.quiet_at);
        self.link.cut(directions, until, is_bridged);
        if is_bridged || directions != [true, true] {
            // No host is notified; one that hears nothing for too long drops the lanes.
            return;
        }
        for host in 0..2 {
            if let Some(session) = self.hosts[host].session {
                let delay = self.random.below(3 * SECOND);
                self.break_session(session, host, delay);
            }
        }
    }

    fn kill_guest(&mut self, host: usize) {
        if self.hosts[host].guest.take().is_none() {
            return;
        }
        let number = self.hosts[host].engine_number;
        match &self.hosts[host].engine {
            Engine::Source(_) => {
                self.tell(host, Input::Source(number, source::Event::GuestGone));
            }
            Engine::Target(_) => {
                self.tell(host, Input::Target(number, target::Event::GuestGone));
            }
            Engine::Idle(_) | Engine::Down => {}
        }
    }

    /// The operator checks the state, and does what a real operator would.
    pub(super) fn operate(&mut self) {
        if self.is_quiet() {
            self.link.bytes_per_second = self.scenario.bytes_per_second;
            self.end_endless_moves();
        }
        for host in 0..2 {
            self.care_for(host);
        }
        if self.is_settled() && self.scenario.has_return && !self.is_quiet() {
            self.goal = 1 - self.goal;
        }
        let from = 1 - self.goal;
        if self.is_movable(from) && self.random.chance(70) {
            let attempt = u128::from(self.number());
            let mut policy = self.scenario.policy;
            if self.is_quiet() && policy.mode == Mode::Pre {
                policy = Policy {
                    mode: Mode::Auto,
                    ..policy
                };
            }
            self.tell(from, Input::Move(attempt, policy));
        }
        self.agenda
            .add(self.now + LOOK_INTERVAL, Happening::Operate);
    }

    /// A move in pre-copy mode may run for its maximum number of rounds: minutes on a slow link.
    fn end_endless_moves(&mut self) {
        for host in 0..2 {
            let is_endless = match &self.hosts[host].engine {
                Engine::Source(source) => source.setup().policy.mode == Mode::Pre,
                _ => false,
            };
            if is_endless {
                self.tell(host, Input::Cancel);
            }
        }
    }

    /// Boots a guest that cannot continue where it is owned.
    fn care_for(&mut self, host: usize) {
        let State::Owned { missing_from, .. } = &self.hosts[host].journal.state else {
            return;
        };
        let misses_blocks = missing_from.is_some();
        let source_has_it = self.hosts[1 - host].guest.is_some();
        let is_up = !matches!(self.hosts[host].engine, Engine::Down);
        let is_over = match &self.hosts[host].engine {
            Engine::Idle(_) => true,
            Engine::Target(target) => target.stage() == target::Stage::Over,
            Engine::Source(_) | Engine::Down => false,
        };
        let is_lost = misses_blocks && (!source_has_it || is_over);
        let is_dead = self.hosts[host].guest.is_none() && is_up;
        if is_lost || is_dead {
            self.tell(host, Input::Boot);
        }
    }

    /// The missing blocks cannot come any more, or the process died: the guest boots where it is
    /// owned.
    pub(super) fn boot_anew(&mut self, host: usize) {
        let State::Owned { missing_from, .. } = self.hosts[host].journal.state.clone() else {
            return;
        };
        if self.hosts[host].is_poisoned {
            return;
        }
        let number = self.hosts[host].engine_number;
        if matches!(self.hosts[host].engine, Engine::Source(_)) {
            let gone = Fault::new(Code::Guest, "the guest process is gone".to_owned());
            self.feed_source(host, source::Event::Failed(gone));
            return;
        }
        if missing_from.is_none() && self.hosts[host].guest.is_some() {
            return;
        }
        self.note(host, || format!("engine {number} gives way to a boot"));
        let Some(mut law) = self.take_law(host) else {
            return;
        };
        self.drop_link(host);
        self.hosts[host].guest = None;
        self.boot(host);
        if let Err(fault) = law.handle(ownership::Event::ImageComplete) {
            self.note(host, || format!("{fault}"));
        }
        self.set_engine(host, Engine::Idle(Box::new(law)));
    }

    fn is_movable(&self, host: usize) -> bool {
        let is_free = match &self.hosts[host].engine {
            Engine::Idle(_) => true,
            // It has taken the guest, or only repeats what was decided.
            Engine::Target(target) => target.ownership().is_idle(),
            Engine::Source(_) | Engine::Down => false,
        };
        let is_owned = matches!(
            self.hosts[host].journal.state,
            State::Owned {
                missing_from: None,
                ..
            }
        );
        is_free && is_owned && self.is_running(host)
    }

    /// Whether the guest has arrived at its goal, and neither host has anything left to do.
    #[must_use]
    pub(super) fn is_settled(&self) -> bool {
        let [there, from] = [self.goal, 1 - self.goal].map(|host| &self.hosts[host].journal.state);
        let is_there = matches!(
            there,
            State::Owned {
                missing_from: None,
                ..
            }
        );
        let has_left = matches!(
            from,
            State::Released { .. } | State::Vacant | State::Refused { .. }
        );
        is_there && has_left && self.is_running(self.goal)
    }
}
