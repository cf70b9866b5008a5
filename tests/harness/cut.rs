//! Cases in which the link is cut in one phase of a move, for any kind of guest.

use std::time::{Duration, Instant};

use towpath_migrator::api::{GuestKind, MigrationMode, Phase};

use crate::console::{Silence, monotonic_ns};
use crate::lab::{Guest, Lab, Link};
use crate::scene::{SOURCE, Scene};
use crate::trial::Side;
use crate::verdict::check_no_alarm;

/// A link so slow that at the cut most of the guest is still on one side.
const SLOW: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(40),
};

/// A link long enough to catch phases that last one round trip.
const LONG: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(200),
};

/// A guest's memory.
const MEMORY_MIB: u64 = 32;

/// Attempts to catch a phase that may be over at once.
const TRY_COUNT: u32 = 5;

/// Allowed silence on top of the outage.
const EXTRA: Duration = Duration::from_secs(1);

/// How long a guest may stay frozen before the commit.
const FREEZE_MAX: Duration = Duration::from_secs(2);

/// One cut.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    phase: Phase,
    /// The side whose packets are lost; both if `None`.
    from: Option<Side>,
    outage: Duration,
    kind: GuestKind,
}

impl Cut {
    /// A cut of this many seconds, of one side's packets or of all.
    #[must_use]
    pub const fn new(phase: Phase, from: Option<Side>, seconds: u64) -> Self {
        Self {
            phase,
            from,
            outage: Duration::from_secs(seconds),
            kind: GuestKind::Process,
        }
    }

    /// The same, in the move of a virtual machine.
    #[must_use]
    pub const fn of_virtual_machine(mut self) -> Self {
        self.kind = GuestKind::Kvm;
        self
    }

    const fn link(self) -> Link {
        match self.phase {
            Phase::Copying | Phase::Serving => SLOW,
            _ => LONG,
        }
    }

    const fn mode(self) -> MigrationMode {
        match self.phase {
            Phase::Serving => MigrationMode::Post,
            _ => MigrationMode::Auto,
        }
    }

    /// How long the guest may be silent after an outage of this duration.
    fn silence_max(self, outage: Duration) -> Duration {
        match self.phase {
            // The guest continues at its source; the switch has its own pause later.
            Phase::Preparing | Phase::Copying => EXTRA,
            Phase::Switching => FREEZE_MAX + EXTRA,
            // The guest cannot run before the link is back. The long link needs six round trips to
            // carry a message again: two for the tunnel, two for the lanes, and two for the commit
            // and its answer.
            Phase::Committed => outage + EXTRA + LONG.round_trip * 6,
            _ => outage + EXTRA,
        }
    }

    fn run(self) -> Result<String, String> {
        let mut scene = Scene::new(self.link());
        let mut told = String::new();
        let ended = scene.play(|scene| {
            for _ in 0..TRY_COUNT {
                if let Some((silence, what)) = self.play(scene)? {
                    told = what;
                    return Ok(silence);
                }
            }
            Err(format!("the phase was over before {TRY_COUNT} cuts"))
        });
        if ended.is_err() {
            scene.lab.show_logs();
        }
        ended.map(|silence| format!("{told}, silent for {} ms", silence.as_millis()))
    }

    /// Plays the cut; `None` if the phase was over before it.
    fn play(self, scene: &Scene) -> Result<Option<(Silence, String)>, String> {
        let mut guest = Guest::new("cut", MEMORY_MIB);
        guest.kind = self.kind;
        // Few enough that bytes sent again because of the outage can be distinguished.
        guest.dirty_pages_per_second = 50;
        let mut console = scene.guest(&guest);
        let begun_ns = monotonic_ns();
        let mut request = Lab::request(&guest, SOURCE, self.mode());
        request.max_pause_ms = 1000;
        let begun = scene.lab.site(SOURCE).migrate(&request);
        begun.map_err(|problem| format!("not begun: {problem:?}"))?;
        scene.reaches(&guest, self.phase)?;
        if matches!(self.phase, Phase::Copying | Phase::Serving) {
            // Not a wait for an event: the cut should come in the middle of the phase, not at its
            // start.
            std::thread::sleep(Duration::from_millis(600));
        }
        let cut = Instant::now();
        match self.from {
            None => scene.lab.cut(),
            Some(side) => scene.lab.cut_from(side.place(SOURCE)),
        }
        let moves = scene.lab.site(SOURCE).moves(&guest.name);
        let moves = moves.map_err(|problem| problem.cause)?;
        if moves.first().is_none_or(|view| view.phase != self.phase) {
            scene.lab.heal();
            scene.arrives(&guest, &mut console)?;
            scene.lab.forget_guest(&guest.name);
            return Ok(None);
        }
        std::thread::sleep(self.outage);
        scene.lab.heal();
        let (outage, healed_ns) = (cut.elapsed(), monotonic_ns());
        let rest = scene.arrives(&guest, &mut console)?;
        check_no_alarm(&scene.lab)?;
        // During an outage a busy machine is no excuse.
        let excused_from_ns = match self.phase {
            Phase::Committed | Phase::Serving => healed_ns,
            _ => begun_ns,
        };
        let silence = console.check_silence(
            (begun_ns, monotonic_ns(), excused_from_ns),
            self.silence_max(outage),
        )?;
        let view = rest.moves.first().ok_or("the move is not shown")?;
        let raw_mib = view.raw_bytes >> 20;
        let is_anew = view.attempts > Some(1) || raw_mib > MEMORY_MIB * 7 / 4;
        if self.phase == Phase::Copying && is_anew {
            return Err(format!("it began anew: {view:?}"));
        }
        let outage_ms = outage.as_millis();
        let (total_ms, attempts) = (view.total_ms, view.attempts.unwrap_or_default());
        scene.lab.forget_guest(&guest.name);
        let told = format!(
            "cut for {outage_ms} ms, done after {total_ms} ms, attempts {attempts}, {raw_mib} MiB sent"
        );
        Ok(Some((silence, told)))
    }
}

/// Plays cuts concurrently, each in a lab of its own.
///
/// # Errors
///
/// The expectations that failed, and in which cut.
///
/// # Panics
///
/// If one of them panics.
pub fn check(cuts: &[Cut]) -> Result<Vec<String>, String> {
    let (mut told, mut failures) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        let workers: Vec<_> = cuts.iter().map(|cut| scope.spawn(|| cut.run())).collect();
        for (cut, worker) in cuts.iter().zip(workers) {
            match worker.join().expect("reported") {
                Ok(what) => told.push(format!("{cut:?}: {what}")),
                Err(why) => failures.push(format!("{cut:?}: {why}")),
            }
        }
    });
    match failures.is_empty() {
        true => Ok(told),
        false => Err(failures.join("\n")),
    }
}
