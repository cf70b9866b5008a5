//! The link cut in every phase of a move, in both directions or in one; a move goes on by itself.

use std::time::{Duration, Instant};

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_tests::console::monotonic_ns;
use towpath_tests::lab::{Guest, Lab, Link};
use towpath_tests::scene::{LINK, SOURCE, Scene};
use towpath_tests::trial::Side;
use towpath_tests::verdict::wait_until;

/// Slow enough that a cut finds most of the guest on one side.
const SLOW: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(40),
};

/// So long that the phases which last a round trip can be met.
const LONG: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(200),
};

/// A guest's memory.
const MEMORY_MIB: u64 = 32;

/// What an outage may cost on top of itself.
const EXTRA: Duration = Duration::from_secs(1);

/// How long a guest may stay frozen before the commit.
const FREEZE_MAX: Duration = Duration::from_secs(2);

/// How long a migrator may live until it dies at its step, and a scraper may wait for what is so.
const STEP_WAIT: Duration = Duration::from_secs(20);

/// One cut.
#[derive(Debug, Clone, Copy)]
struct Cut {
    phase: Phase,
    /// Whose packets are lost; everybody's if none is named.
    from: Option<Side>,
    outage: Duration,
}

impl Cut {
    const fn new(phase: Phase, from: Option<Side>, seconds: u64) -> Self {
        Self {
            phase,
            from,
            outage: Duration::from_secs(seconds),
        }
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

    /// How long the guest may be silent if the outage lasted so long.
    fn silence_max(self, outage: Duration) -> Duration {
        match self.phase {
            // It runs on at its source; later the switch takes its own pause.
            Phase::Preparing | Phase::Copying => EXTRA,
            Phase::Switching => FREEZE_MAX + EXTRA,
            // It cannot run before the link is back. The long link needs six round trips to carry a
            // word again: two for the tunnel, two for the lanes, the commit and its answer.
            Phase::Committed => outage + EXTRA + LONG.round_trip * 6,
            _ => outage + EXTRA,
        }
    }

    fn run(self) -> Result<String, String> {
        let scene = Scene::new(self.link());
        let ended = self.play(&scene);
        if ended.is_err() {
            scene.lab.show_logs();
        }
        ended
    }

    fn play(self, scene: &Scene) -> Result<String, String> {
        let mut guest = Guest::new("cut", MEMORY_MIB);
        // Little enough that what is sent again because of the outage can be told.
        guest.dirty_pages_per_second = 50;
        let mut console = scene.guest(&guest);
        let begun_ns = monotonic_ns();
        let mut request = Lab::request(&guest, SOURCE, self.mode());
        request.max_pause_ms = 1000;
        let begun = scene.lab.site(SOURCE).migrate(&request);
        begun.map_err(|problem| format!("not begun: {problem:?}"))?;
        scene.reaches(&guest, self.phase)?;
        if matches!(self.phase, Phase::Copying | Phase::Serving) {
            // Not waiting for anything: in the middle of the phase, not at its begin.
            std::thread::sleep(Duration::from_millis(600));
        }
        let cut = Instant::now();
        match self.from {
            None => scene.lab.cut(),
            Some(side) => scene.lab.cut_from(side.place(SOURCE)),
        }
        std::thread::sleep(self.outage);
        scene.lab.heal();
        let (outage, healed_ns) = (cut.elapsed(), monotonic_ns());
        let rest = scene.arrives(&guest, &mut console)?;
        // In an outage nobody misses a processor.
        let excused_from_ns = match self.phase {
            Phase::Committed | Phase::Serving => healed_ns,
            _ => begun_ns,
        };
        let silence = console.longest_silence(begun_ns, monotonic_ns(), excused_from_ns);
        let silence_max = self.silence_max(outage);
        if silence > silence_max {
            return Err(format!("silent for {silence:?}, at most {silence_max:?}"));
        }
        let view = rest.moves.first().ok_or("the move is not shown")?;
        let raw_mib = view.raw_bytes >> 20;
        if self.phase == Phase::Copying && raw_mib > MEMORY_MIB * 7 / 4 {
            return Err(format!(
                "{raw_mib} MiB were sent for {MEMORY_MIB}: it began anew"
            ));
        }
        let (outage_ms, silence_ms) = (outage.as_millis(), silence.as_millis());
        let (total_ms, attempts) = (view.total_ms, view.attempts);
        Ok(format!(
            "cut for {outage_ms} ms, silent for {silence_ms} ms, done after {total_ms} ms, \
             attempts {attempts}, {raw_mib} MiB sent"
        ))
    }
}

/// Plays cuts side by side, each in a lab of its own.
fn check(cuts: &[Cut]) {
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = cuts.iter().map(|cut| scope.spawn(|| cut.run())).collect();
        let ended = cuts.iter().zip(workers);
        let failed = ended.filter_map(|(cut, worker)| match worker.join().expect("reported") {
            Ok(told) => {
                println!("{cut:?}: {told}");
                None
            }
            Err(why) => Some(format!("{cut:?}: {why}")),
        });
        failed.collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn fault_15_link_cut_before_the_freeze() {
    check(&[
        Cut::new(Phase::Preparing, None, 1),
        Cut::new(Phase::Preparing, None, 10),
        Cut::new(Phase::Copying, None, 1),
        Cut::new(Phase::Copying, None, 10),
    ]);
}

#[test]
fn fault_16_link_cut_while_the_guest_is_frozen() {
    check(&[
        Cut::new(Phase::Switching, None, 1),
        Cut::new(Phase::Switching, None, 10),
    ]);
}

#[test]
fn fault_17_link_cut_behind_the_commit() {
    check(&[
        Cut::new(Phase::Committed, None, 1),
        Cut::new(Phase::Committed, None, 10),
    ]);
}

/// The longest time a guest is held, as a scraper is told it.
fn blocked_seconds(scene: &Scene) -> Option<u64> {
    let [_, metrics] = scene.lab.site(SOURCE).metrics().ok()?;
    let line = metrics
        .lines()
        .find_map(|line| line.strip_prefix("towpath_handover_blocked_seconds "));
    line?.parse().ok()
}

#[test]
fn fault_17_a_restarted_source_says_since_when_its_guest_is_held() {
    let mut scene = Scene::new(LINK);
    let site = scene.lab.site_mut(SOURCE);
    site.kill_migrator();
    site.start_migrator_with(Some("source:relinquished"));
    let guest = Guest::new("held", MEMORY_MIB);
    let mut console = scene.guest(&guest);
    // One that dies at once does not answer.
    let asked = scene.begin(&guest, MigrationMode::Auto);
    assert!(
        scene.lab.site_mut(SOURCE).migrator_ends(STEP_WAIT),
        "{asked:?}"
    );
    let died = Instant::now();
    scene.lab.cut();
    // Not waiting for anything: so long it is held before anybody can say so.
    std::thread::sleep(Duration::from_secs(1));
    let away_ms = died.elapsed().as_millis();
    scene.lab.site_mut(SOURCE).start_migrator();
    let held = scene.reaches(&guest, Phase::Committed).unwrap();
    let is_said = |blocked_ms| u128::from(blocked_ms) >= away_ms;
    assert!(
        held.blocked_ms.is_some_and(is_said),
        "{away_ms} ms: {held:?}"
    );
    let scraped = wait_until(STEP_WAIT, || {
        blocked_seconds(&scene).filter(|seconds| *seconds > 0)
    });
    assert!(scraped.is_some(), "no scraper hears of it");
    scene.lab.heal();
    scene.arrives(&guest, &mut console).unwrap();
}

#[test]
fn fault_18_link_cut_while_blocks_are_fetched() {
    check(&[
        Cut::new(Phase::Serving, None, 1),
        Cut::new(Phase::Serving, None, 10),
    ]);
}

#[test]
fn fault_19_one_direction_lost() {
    let phases = [
        Phase::Preparing,
        Phase::Copying,
        Phase::Switching,
        Phase::Committed,
        Phase::Serving,
    ];
    for side in [Side::Source, Side::Target] {
        let mut cuts = phases.map(|phase| Cut::new(phase, Some(side), 1)).to_vec();
        cuts.push(Cut::new(Phase::Serving, Some(side), 10));
        check(&cuts);
    }
}
