//! One randomised trial: a move with a disturbance, all drawn from a seed.

use std::time::{Duration, Instant};

use towpath_migrator::api::{GuestKind, MigrationMode, MigrationView, Phase};
use towpath_protocol::fault::Code;
use towpath_protocol::plan::Reason;

use crate::console::Console;
use crate::crash;
use crate::lab::{Guest, Lab};
use crate::random::Random;
use crate::site::{LOOK_PAUSE, Place};
use crate::verdict::{Rest, check_no_alarm, come_to_rest};
use crate::watch::Watch;

/// How long a disturbed move may take to come to rest, on a busy machine.
const REST_WAIT: Duration = Duration::from_secs(40);

/// How long a new guest may take until it runs.
const RUN_WAIT: Duration = Duration::from_secs(20);

/// When the last disturbance may begin: most moves over a lab's link are over by then.
const BEGIN_MS_MAX: u64 = 900;

/// Duration of each wait for a migrator that may die.
const STEP_LOOK: Duration = Duration::from_millis(20);

/// How long what was killed or cut stays away, in milliseconds.
const AWAY_MS: (u64, u64) = (0, 700);

/// Steps at which a migrator may die, by their names in it; some are reached by few moves only.
const STEPS: [(Side, &str); 24] = [
    (Side::Source, "offering"),
    (Side::Source, "say-prepare"),
    (Side::Source, "send-chunk"),
    (Side::Source, "harvest"),
    (Side::Source, "freeze"),
    (Side::Source, "save-state"),
    (Side::Source, "say-final-end"),
    (Side::Source, "relinquished"),
    (Side::Source, "say-commit"),
    (Side::Source, "released"),
    (Side::Source, "say-released"),
    (Side::Source, "finished"),
    (Side::Target, "prepared"),
    (Side::Target, "build-guest"),
    (Side::Target, "say-prepared"),
    (Side::Target, "write"),
    (Side::Target, "save-position"),
    (Side::Target, "load-state"),
    (Side::Target, "say-ready"),
    (Side::Target, "owned"),
    (Side::Target, "run"),
    (Side::Target, "say-ack"),
    (Side::Target, "install"),
    (Side::Target, "say-complete"),
];

/// A side of the move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Where the guest comes from.
    Source,
    /// Where it goes.
    Target,
}

impl Side {
    /// The side as a failpoint names it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }

    /// The site on this side of a move that leaves `from`.
    #[must_use]
    pub const fn place(self, from: Place) -> Place {
        match self {
            Self::Source => from,
            Self::Target => from.other(),
        }
    }
}

/// What is done to the move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbance {
    /// Nothing.
    None,
    /// `kill -9` of a migrator.
    Migrator(Side),
    /// `kill -9` of both migrators.
    BothMigrators,
    /// `kill -9` of a tunnel.
    Tunnel(Side),
    /// `kill -9` of the process that receives the guest. Nothing if there is none, or if the guest
    /// is about to run there.
    ReceivingProcess,
    /// `kill -9` of the process that the guest leaves, before the commit or after it. Nothing once
    /// it is gone.
    LeavingProcess,
    /// The link carries nothing.
    Cut,
    /// The link does not carry what this side sends.
    CutFrom(Side),
    /// A migrator dies right after a step.
    Step(Side, &'static str),
    /// Both daemons of a site are stopped and started again.
    Upgrade(Side),
}

/// The result of a trial.
#[derive(Debug)]
pub struct Outcome {
    /// The state at rest.
    pub rest: Rest,
    /// Whether the move was still in progress when it was disturbed.
    pub has_hit: bool,
}

/// Everything that the seed determines.
#[derive(Debug, Clone)]
pub struct Trial {
    /// The seed.
    pub seed: u64,
    /// The guest.
    pub guest: Guest,
    /// Where it starts.
    pub from: Place,
    /// How it moves.
    pub mode: MigrationMode,
    /// What is done to it.
    pub disturbance: Disturbance,
    /// When that is done.
    pub begins_after: Duration,
    /// How long the disturbed part stays away.
    pub away: Duration,
}

impl Trial {
    /// Draws a trial.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut guest = Guest::new(&format!("trial-{seed}"), random.between(8, 16) * 2);
        guest.dirty_pages_per_second = random.pick(&[0, 200, 1000, 4000]);
        let side = random.pick(&[Side::Source, Side::Target]);
        let (step_side, step) = random.pick(&STEPS);
        let disturbance = match random.below(20) {
            0 => Disturbance::None,
            1..=5 => Disturbance::Migrator(side),
            6 => Disturbance::BothMigrators,
            7..=8 => Disturbance::Tunnel(side),
            9 => Disturbance::ReceivingProcess,
            10 => Disturbance::Cut,
            11 => Disturbance::LeavingProcess,
            12 => Disturbance::CutFrom(side),
            13 => Disturbance::Upgrade(side),
            _ => Disturbance::Step(step_side, step),
        };
        let mut trial = Self {
            seed,
            guest,
            from: random.pick(&Place::ALL),
            mode: random.pick(&[MigrationMode::Auto, MigrationMode::Pre, MigrationMode::Post]),
            disturbance,
            begins_after: Duration::from_millis(random.below(BEGIN_MS_MAX)),
            away: Duration::from_millis(random.between(AWAY_MS.0, AWAY_MS.1)),
        };
        // Drawn last, so that existing seeds keep their meaning.
        trial.guest.kind = random.pick(&[GuestKind::Process, GuestKind::Kvm]);
        trial
    }

    /// Runs the trial, in a lab that may have been used before.
    ///
    /// # Errors
    ///
    /// The expectation that failed.
    pub fn run(&self, lab: &mut Lab, watch: &Watch) -> Result<Outcome, String> {
        lab.share().give_way();
        if let Disturbance::Step(side, step) = self.disturbance {
            let site = lab.site_mut(side.place(self.from));
            site.kill_migrator();
            site.start_migrator_with(Some(&format!("{}:{step}", side.as_str())));
        }
        lab.start_guest(self.from, &self.guest);
        let mut console = Console::of(lab, &self.guest.name);
        console.wait_for_more(3, RUN_WAIT)?;
        self.ask(lab)?;
        let has_hit = self.disturb(lab)?;
        let rest = match self.disturbance {
            Disturbance::LeavingProcess if has_hit => self.left((lab, watch), &mut console)?,
            _ => {
                let rest = come_to_rest(lab, &self.guest.name, &mut console, watch, REST_WAIT)?;
                self.check_place(lab, &rest)?;
                rest
            }
        };
        check_no_alarm(lab)?;
        lab.forget_guest(&self.guest.name);
        Ok(Outcome { rest, has_hit })
    }

    /// The process that the guest left has died: the guest has crashed there, or no longer needed
    /// it.
    fn left(&self, seen: (&Lab, &Watch), console: &mut Console) -> Result<Rest, String> {
        let (lab, watch) = seen;
        match crash::ended(lab, &self.guest, self.from.other(), REST_WAIT)? {
            None => come_to_rest(lab, &self.guest.name, console, watch, REST_WAIT),
            Some(place) if place == self.from => {
                crash::boot_again(seen, &self.guest, console, place, REST_WAIT)
            }
            Some(place) => Err(format!("it crashed at {place:?}, where nothing was killed")),
        }
    }

    /// Requests the move, and repeats the request while the link recovers from an earlier trial, as
    /// an operator would.
    fn ask(&self, lab: &mut Lab) -> Result<(), String> {
        let request = Lab::request(&self.guest, self.from, self.mode);
        let deadline = Instant::now() + RUN_WAIT;
        loop {
            match lab.site(self.from).migrate(&request) {
                Ok(_) => return Ok(()),
                // It died at the step it was told to.
                Err(_) if !lab.site_mut(self.from).has_migrator() => return Ok(()),
                Err(problem)
                    if problem.known_code() != Some(Code::Unreachable)
                        || Instant::now() > deadline =>
                {
                    return Err(format!("not begun: {problem:?}"));
                }
                Err(_) => std::thread::sleep(LOOK_PAUSE),
            }
        }
    }

    /// A guest that is asked to move does move, whatever happens to the daemons and the link. It
    /// may stay only if it changes faster than the link carries and its mode has no post-copy.
    fn check_place(&self, lab: &Lab, rest: &Rest) -> Result<(), String> {
        if rest.place == self.from.other() {
            return Ok(());
        }
        let is_too_busy = |view: &MigrationView| {
            let last = view.decisions.last();
            let exhausted = Reason::RoundsExhausted.as_str();
            view.phase == Phase::Failed && last.is_some_and(|last| last.reason == exhausted)
        };
        if self.mode == MigrationMode::Pre && rest.moves.first().is_some_and(is_too_busy) {
            return Ok(());
        }
        let guest = lab.site(self.from).guest(&self.guest.name);
        Err(format!("it stayed: {:?} {guest:?}", rest.moves.first()))
    }

    /// Disturbs the move; returns whether it was in progress then.
    fn disturb(&self, lab: &mut Lab) -> Result<bool, String> {
        if let Disturbance::Step(side, _) = self.disturbance {
            let place = side.place(self.from);
            let has_hit = self.dies_at_step(lab, place)?;
            lab.site_mut(place).kill_migrator();
            lab.site_mut(place).start_migrator();
            return Ok(has_hit);
        }
        // Not a wait for an event: this is the time of the disturbance.
        std::thread::sleep(self.begins_after);
        let moves = lab.site(self.from).moves(&self.guest.name);
        let is_open = moves.is_ok_and(|moves| moves.iter().any(|view| !view.phase.is_finished()));
        let begun = Instant::now();
        let has_begun = self.begin(lab);
        std::thread::sleep(self.away.saturating_sub(begun.elapsed()));
        lab.heal();
        for place in Place::ALL {
            lab.site_mut(place).start_tunnel();
            lab.site_mut(place).start_migrator();
        }
        Ok(is_open && has_begun)
    }

    /// Waits until the migrator dies at its step; if the move does not reach the step, nothing
    /// dies.
    fn dies_at_step(&self, lab: &mut Lab, place: Place) -> Result<bool, String> {
        let until = Instant::now() + Duration::from_millis(BEGIN_MS_MAX);
        loop {
            let moves = lab.site(self.from).moves(&self.guest.name);
            let is_over = moves.is_ok_and(|moves| {
                !moves.is_empty() && moves.iter().all(|view| view.phase.is_finished())
            });
            // The last step may come after the move's end as its source shows it.
            if lab.site_mut(place).migrator_dies(STEP_LOOK)? {
                return Ok(true);
            }
            if is_over || Instant::now() > until {
                return Ok(false);
            }
        }
    }

    /// Starts the disturbance; returns whether there was anything to disturb.
    fn begin(&self, lab: &mut Lab) -> bool {
        let place = |side: Side| side.place(self.from);
        match self.disturbance {
            Disturbance::None | Disturbance::Step(..) => return false,
            Disturbance::Migrator(side) => lab.site_mut(place(side)).kill_migrator(),
            Disturbance::BothMigrators => {
                lab.site_mut(Place::Edge).kill_migrator();
                lab.site_mut(Place::Region).kill_migrator();
            }
            Disturbance::Tunnel(side) => lab.site_mut(place(side)).kill_tunnel(),
            Disturbance::ReceivingProcess => return self.kill_receiving(lab),
            Disturbance::LeavingProcess => {
                return lab.kill_guest(self.from, &self.guest.name) == 1;
            }
            Disturbance::Cut => lab.cut(),
            Disturbance::CutFrom(side) => lab.cut_from(place(side)),
            Disturbance::Upgrade(side) => lab.site_mut(place(side)).stop_daemons(),
        }
        true
    }

    /// Kills the receiving process; returns whether there was one.
    fn kill_receiving(&self, lab: &Lab) -> bool {
        use towpath_migrator::api::Ownership;
        let target = self.from.other();
        let seen = lab.site(target).guest(&self.guest.name);
        let is_receiving = seen.is_ok_and(|seen| {
            // Together with the check below that more than a third of the blocks is left: it will
            // not start to run within the next millisecond.
            seen.is_some_and(|view| view.ownership == Ownership::Prepared)
        });
        let moves = lab.site(self.from).moves(&self.guest.name);
        let is_copying = moves.is_ok_and(|moves| {
            let newest = moves.first();
            newest.is_some_and(|view| {
                view.phase == Phase::Copying && view.blocks_left * 3 > view.blocks_total
            })
        });
        is_receiving && is_copying && lab.kill_guest(target, &self.guest.name) == 1
    }
}
