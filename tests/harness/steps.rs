//! Cases in which a migrator dies right after a step of a move, in each way a move can reach that
//! step.

use std::time::{Duration, Instant};

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_protocol::source::FREEZE_DEADLINE;

use crate::console::{Console, Silence, monotonic_ns};
use crate::killed::SHOWN_WAIT;
use crate::lab::Guest;
use crate::scene::{SILENCE_EXTRA, SOURCE, Scene, TARGET};
use crate::trial::Side;
use crate::verdict::check_no_alarm;

/// How long a migrator may live until it reaches the step at which it is to die.
pub const STEP_WAIT: Duration = Duration::from_secs(20);

/// After this step of the target the source commits; only then do the answers of a restarted target
/// matter.
const SAY_READY: &str = "say-ready";

/// Attempts to catch a phase that may be over at once.
const TRY_COUNT: u32 = 5;

/// How a move reaches a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// On the normal way to the target.
    Onward,
    /// The operator cancels the move while it copies: the guest stays, and moves the next time.
    Cancelled,
    /// The link is cut during the freeze for longer than the freeze may last. Needs a long link.
    Overdue,
    /// The target's migrator dies after this earlier step.
    Behind(&'static str),
}

/// A step after which a migrator dies.
#[derive(Debug, Clone, Copy)]
pub struct Stop {
    /// Whose migrator.
    pub side: Side,
    /// The step's name in the migrator.
    pub step: &'static str,
    /// How the move reaches it.
    pub way: Way,
}

impl Stop {
    /// A step that every move passes.
    #[must_use]
    pub const fn onward(side: Side, step: &'static str) -> Self {
        let way = Way::Onward;
        Self { side, step, way }
    }

    fn failpoint(self) -> String {
        failpoint(self.side, self.step)
    }
}

/// The step as a failpoint of the migrator.
#[must_use]
pub fn failpoint(side: Side, step: &str) -> String {
    format!("{}:{step}", side.as_str())
}

/// Since when, and for how long, migrators were away, which may have held up the guest.
struct Away {
    span: Duration,
    back_ns: u64,
}

impl Scene {
    /// Moves a guest while a migrator dies right after a step and is restarted. Returns the guest's
    /// longest silence.
    ///
    /// # Errors
    ///
    /// The expectation that failed.
    pub fn kill_at(
        &mut self,
        stop: Stop,
        case: (MigrationMode, &Guest),
    ) -> Result<Duration, String> {
        self.play(|scene| scene.kill_once_at(stop, case))
    }

    fn kill_once_at(
        &mut self,
        stop: Stop,
        (mode, guest): (MigrationMode, &Guest),
    ) -> Result<Silence, String> {
        self.restart_to_die(stop.side, &stop.failpoint());
        if let Way::Behind(first) = stop.way {
            self.restart_to_die(Side::Target, &failpoint(Side::Target, first));
        }
        let mut console = self.guest(guest);
        let begun_ns = monotonic_ns();
        let away = match stop.way {
            Way::Onward => self.dies_onward(stop, (mode, guest))?,
            Way::Cancelled => self.dies_cancelled(stop, (mode, guest), &mut console)?,
            Way::Overdue => self.dies_overdue(stop, (mode, guest), &mut console)?,
            Way::Behind(_) => self.dies_behind(stop, (mode, guest))?,
        };
        self.arrives(guest, &mut console)?;
        check_no_alarm(&self.lab)?;
        let silence = console
            .check_silence(
                (begun_ns, monotonic_ns(), away.back_ns),
                away.span + SILENCE_EXTRA,
            )
            .map_err(|why| {
                let span = away.span;
                format!("{why}; what held the guest lasted for {span:?}")
            })?;
        self.lab.forget_guest(&guest.name);
        Ok(silence)
    }

    /// Restarts a side's migrator so that it dies after a future step.
    pub fn restart_to_die(&mut self, side: Side, failpoint: &str) {
        let site = self.lab.site_mut(side.place(SOURCE));
        site.kill_migrator();
        site.start_migrator_with(Some(failpoint));
    }

    /// Waits until a side's migrator has died after its step.
    ///
    /// # Errors
    ///
    /// If it survives, or ended in any other way.
    pub fn died(&mut self, side: Side) -> Result<(), String> {
        let site = self.lab.site_mut(side.place(SOURCE));
        if site.migrator_dies(STEP_WAIT)? {
            return Ok(());
        }
        Err(format!("{}: the step was not reached", side.as_str()))
    }

    /// Restarts a side's dead migrator, as the service manager does. The time it needs to become
    /// ready counts towards the time that its guest may be silent.
    fn back(&mut self, side: Side, died: Instant) -> Away {
        let away = Away {
            span: died.elapsed(),
            back_ns: monotonic_ns(),
        };
        self.lab.site_mut(side.place(SOURCE)).start_migrator();
        away
    }

    /// Starts a move during which a side's migrator dies; returns when it died.
    fn begin_to_die(
        &mut self,
        side: Side,
        (mode, guest): (MigrationMode, &Guest),
    ) -> Result<Instant, String> {
        // A migrator that dies at once does not answer.
        let asked = self.begin(guest, mode);
        let died = self.died(side);
        died.map_err(|why| format!("{why}; the move: {asked:?}"))?;
        Ok(Instant::now())
    }

    fn dies_onward(
        &mut self,
        stop: Stop,
        (mode, guest): (MigrationMode, &Guest),
    ) -> Result<Away, String> {
        let died = self.begin_to_die(stop.side, (mode, guest))?;
        if stop.step == SAY_READY {
            self.reaches(guest, Phase::Committed)?;
        }
        Ok(self.back(stop.side, died))
    }

    /// The guest stays, nothing of its move is left on either side, and it is moved again.
    fn dies_cancelled(
        &mut self,
        stop: Stop,
        (mode, guest): (MigrationMode, &Guest),
        console: &mut Console,
    ) -> Result<Away, String> {
        let view = self.begin(guest, mode)?;
        self.reaches(guest, Phase::Copying)?;
        // A migrator that dies of it does not answer.
        let asked = self.lab.site(SOURCE).cancel(&view);
        let died = self.died(stop.side);
        died.map_err(|why| format!("{why}; the cancel: {asked:?}"))?;
        self.lab.site_mut(stop.side.place(SOURCE)).start_migrator();
        let rest = self.rest(guest, console)?;
        if rest.place != SOURCE {
            return Err(format!("it was cancelled and moved: {:?}", rest.moves));
        }
        self.begin(guest, mode)?;
        // The guest was never stopped, except for the switch of its next move.
        Ok(Away {
            span: Duration::ZERO,
            back_ns: monotonic_ns(),
        })
    }

    /// The guest continues at its source before the link is back.
    fn dies_overdue(
        &mut self,
        stop: Stop,
        (mode, guest): (MigrationMode, &Guest),
        console: &mut Console,
    ) -> Result<Away, String> {
        for _ in 0..TRY_COUNT {
            self.begin(guest, mode)?;
            self.reaches(guest, Phase::Switching)?;
            self.lab.cut();
            let frozen = Instant::now();
            let moves = self.lab.site(SOURCE).moves(&guest.name);
            let is_held = moves.is_ok_and(|moves| moves[0].phase == Phase::Switching);
            if is_held {
                self.died(stop.side)?;
                let away = self.back(stop.side, frozen);
                let beating = console.wait_for_more(1, SHOWN_WAIT);
                self.lab.heal();
                if beating != Ok(SOURCE) {
                    return Err(format!("it stands while the link is away: {beating:?}"));
                }
                // It was frozen a little before that was noticed. If lanes end, the freeze is given
                // up at once, and the attempt is repeated.
                if away.span >= FREEZE_DEADLINE / 2 {
                    return Ok(away);
                }
            }
            self.lab.heal();
            self.arrives(guest, console)?;
            self.lab.forget_guest(&guest.name);
            if is_held {
                self.restart_to_die(stop.side, &stop.failpoint());
            }
            *console = self.guest(guest);
        }
        Err(format!(
            "{TRY_COUNT} switches were over, or given up, before they were met"
        ))
    }

    /// The target's migrator is back before the one under test dies.
    fn dies_behind(
        &mut self,
        stop: Stop,
        (mode, guest): (MigrationMode, &Guest),
    ) -> Result<Away, String> {
        let first_died = self.begin_to_die(Side::Target, (mode, guest))?;
        if stop.way == Way::Behind(SAY_READY) {
            self.reaches(guest, Phase::Committed)?;
        }
        let again = (stop.side == Side::Target).then(|| stop.failpoint());
        // A migrator that is to die at its start may be dead before it is ready.
        self.lab.site_mut(TARGET).spawn_migrator(again.as_deref());
        self.died(stop.side)?;
        Ok(self.back(stop.side, first_died))
    }
}
