//! Daemons that are killed, upgraded, or started twice in the middle of a move.

use std::time::{Duration, Instant};

use rustix::process::Signal;
use towpath_migrator::api::{LinkState, MigrationMode, Phase};
use towpath_protocol::source::SILENCE_MAX;
use towpath_tests::away::{self, MIDDLES, SLOW};
use towpath_tests::console::Console;
use towpath_tests::lab::{Guest, Link, check_kvm};
use towpath_tests::scene::{LINK, SOURCE, Scene, TARGET};
use towpath_tests::site::Place;
use towpath_tests::verdict::wait_until;

/// How long it may take until an effect is visible.
const SHOWN_WAIT: Duration = Duration::from_secs(10);

/// The exit status of a daemon that is already running elsewhere.
const EXIT_ALREADY_RUNNING: i32 = 69;

/// Does something in the middle of a phase of a process guest's move.
fn disturb(
    scene: &mut Scene,
    middle: (MigrationMode, Phase),
    what: &str,
    act: impl Fn(&mut Scene),
) {
    let told = away::disturb(scene, middle, Guest::new, act);
    let told = told.unwrap_or_else(|why| panic!("{what} {middle:?}: {why}"));
    println!("{what} {told}");
}

#[test]
fn an_undisturbed_move_arrives() {
    let scene = Scene::new(LINK);
    for mode in [MigrationMode::Auto, MigrationMode::Post] {
        let guest = Guest::new("calm", 32);
        let mut console = scene.guest(&guest);
        scene.begin(&guest, mode).unwrap();
        let rest = scene.arrives(&guest, &mut console).unwrap();
        println!("{mode:?}: {} ms", rest.moves[0].total_ms);
        knows_only_its_own(&scene, &guest);
        scene.lab.forget_guest(&guest.name);
    }
}

/// A target does not report values that only a source measures.
fn knows_only_its_own(scene: &Scene, guest: &Guest) {
    let there = scene.lab.site(TARGET).moves(&guest.name).unwrap();
    let shown = serde_json::to_value(&there[0]).unwrap();
    assert!(there[0].raw_bytes > 0, "{shown}");
    assert_eq!(there[0].blocks_left, 0, "{shown}");
    for figure in [
        "mode",
        "max_pause_ms",
        "attempts",
        "round",
        "rounds",
        "wire_bytes",
        "goodput_bytes_per_second",
        "dirty_bytes_per_second",
    ] {
        assert!(shown[figure].is_null(), "{figure}: {shown}");
    }
}

#[test]
fn a_move_survives_the_end_of_either_tunnel() {
    tunnels_end(SLOW, &MIDDLES);
}

#[test]
fn a_begin_and_a_switch_survive_the_end_of_either_tunnel() {
    tunnels_end(away::LONG, &away::BRIEF);
}

fn tunnels_end(link: Link, middles: &[(MigrationMode, Phase)]) {
    let mut scene = Scene::new(link);
    for &middle in middles {
        for place in Place::ALL {
            disturb(
                &mut scene,
                middle,
                &format!("{place:?}'s tunnel"),
                |scene| away::kill_tunnel(scene, place),
            );
        }
    }
}

#[test]
fn a_move_that_is_cancelled_while_a_tunnel_is_away_leaves_nothing_at_its_target() {
    let mut scene = Scene::new(SLOW);
    let (guest, mut console) = half_copied(&scene, "kept");
    let moves = scene.lab.site(SOURCE).moves(&guest.name).unwrap();
    scene.lab.site_mut(SOURCE).kill_tunnel();
    let is_down = || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        (moves.first()?.link == LinkState::Down).then_some(())
    };
    wait_until(SHOWN_WAIT, is_down).expect("its lanes end with the tunnel");
    scene.lab.site(SOURCE).cancel(&moves[0]).unwrap();
    scene.lab.site_mut(SOURCE).start_tunnel();
    let rest = scene.rest(&guest, &mut console).unwrap();
    assert_eq!(rest.place, SOURCE);
    assert_eq!(rest.moves[0].phase, Phase::Cancelled);
}

#[test]
fn fault_01_both_migrators_killed_at_once() {
    let mut scene = Scene::new(SLOW);
    for middle in MIDDLES {
        disturb(&mut scene, middle, "both migrators", |scene| {
            for place in Place::ALL {
                scene.lab.site_mut(place).kill_migrator();
            }
            for place in Place::ALL {
                scene.lab.site_mut(place).start_migrator();
            }
        });
    }
}

/// How long a move may take to continue, or to end, after its source was killed before the freeze,
/// counted from the restart.
const GOES_ON_WAIT: Duration = Duration::from_secs(5);

/// Kills a guest's source in a phase; returns the time until blocks are sent again or the move is
/// over.
fn goes_on(scene: &mut Scene, guest: &Guest, phase: Phase) -> Duration {
    let mut console = scene.guest(guest);
    scene.begin(guest, MigrationMode::Auto).unwrap();
    scene.reaches(guest, phase).unwrap();
    let site = scene.lab.site_mut(SOURCE);
    site.kill_migrator();
    let begun = Instant::now();
    site.spawn_migrator(None);
    let went_on = wait_until(SHOWN_WAIT, || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        let newest = moves.first()?;
        (newest.raw_bytes > 0 || newest.phase.is_finished()).then(|| begun.elapsed())
    });
    let took = went_on.expect("it neither goes on nor ends");
    assert!(took <= GOES_ON_WAIT, "{phase:?}: {took:?}");
    scene.arrives(guest, &mut console).unwrap();
    scene.lab.forget_guest(&guest.name);
    took
}

#[test]
fn fault_01_a_killed_source_goes_on_within_five_seconds() {
    let guest = Guest::new("killed", 16);
    let machine = check_kvm().is_ok().then(|| guest.clone().virtual_machine());
    for (link, phase) in [(away::LONG, Phase::Preparing), (SLOW, Phase::Copying)] {
        let mut scene = Scene::new(link);
        for guest in std::iter::once(&guest).chain(&machine) {
            let took = goes_on(&mut scene, guest, phase);
            println!("{:?} while {phase:?}: {took:?}", guest.kind);
        }
    }
}

#[test]
fn fault_44_daemons_upgraded_in_the_middle_of_a_move() {
    let mut scene = Scene::new(SLOW);
    for middle in MIDDLES {
        disturb(&mut scene, middle, "both sites' daemons", away::upgrade);
    }
}

#[test]
fn fault_44_daemons_upgraded_where_a_move_begins_or_switches() {
    let mut scene = Scene::new(away::LONG);
    for middle in away::BRIEF {
        disturb(&mut scene, middle, "both sites' daemons", away::upgrade);
    }
}

/// A guest that is at least half copied and changes little in the meantime.
fn half_copied(scene: &Scene, name: &str) -> (Guest, Console) {
    let mut guest = Guest::new(name, 32);
    guest.dirty_pages_per_second = 50;
    let console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.reaches(&guest, Phase::Copying).unwrap();
    let half = wait_until(SHOWN_WAIT, || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        let view = moves.into_iter().next()?;
        let is_half = view.phase == Phase::Copying && view.blocks_left * 2 < view.blocks_total;
        is_half.then_some(())
    });
    half.expect("it is copied to the half");
    (guest, console)
}

#[test]
fn fault_04_what_a_killed_target_has_received_is_not_sent_again() {
    let mut scene = Scene::new(SLOW);
    let (guest, mut console) = half_copied(&scene, "kept");
    let site = scene.lab.site_mut(TARGET);
    site.kill_migrator();
    site.start_migrator();
    let rest = scene.arrives(&guest, &mut console).unwrap();
    // The byte count is that of one attempt; if it had started over, it would be at least half as
    // much again.
    assert_eq!(rest.moves[0].attempts, Some(1));
    let (sent, whole) = (rest.moves[0].raw_bytes, guest.memory_mib << 20);
    assert!(sent * 4 < whole * 5, "{sent} bytes were sent for {whole}");
}

#[test]
fn t17_a_migrator_that_stops_reading_holds_a_move_up_and_not_its_guest() {
    let scene = Scene::new(SLOW);
    let (guest, mut console) = half_copied(&scene, "unread");
    let stopped = scene.lab.site(TARGET);
    stopped.signal_migrator(Signal::STOP);
    let newest = || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        moves.into_iter().next()
    };
    let is_silent = || newest()?.silent_ms.map(drop);
    wait_until(SHOWN_WAIT, is_silent).expect("it is shown that nobody answers");
    let beats = console.wait_for_more(5, SHOWN_WAIT);
    assert_eq!(beats, Ok(SOURCE));
    let held = newest().unwrap();
    assert_eq!(held.phase, Phase::Copying, "{held:?}");
    stopped.signal_migrator(Signal::CONT);
    let rest = scene.arrives(&guest, &mut console).unwrap();
    assert_eq!(rest.moves[0].attempts, Some(1), "it goes on where it stood");
}

/// How long a source may take to give up lanes whose other end does not answer, and to show it.
const GIVEN_UP_WAIT: Duration = SILENCE_MAX.saturating_add(SHOWN_WAIT);

/// The most that a source may grow, in KiB, while its data is not read: less than the guest, which
/// it would otherwise buffer.
const UNREAD_KIB_MAX: u64 = 16 << 10;

#[test]
fn t17_a_migrator_that_reads_nothing_for_longer_than_its_silence_costs_its_lanes_and_no_memory() {
    let scene = Scene::new(SLOW);
    let (guest, mut console) = half_copied(&scene, "unread");
    let stopped = scene.lab.site(TARGET);
    let peaks = || Place::ALL.map(|place| scene.lab.site(place).peaks_kib());
    let before = peaks();
    stopped.signal_migrator(Signal::STOP);
    let newest = || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        moves.into_iter().next()
    };
    let is_given_up = || newest().filter(|view| view.link == LinkState::Down);
    let held = wait_until(GIVEN_UP_WAIT, is_given_up).expect("its lanes are given up");
    assert_eq!(held.phase, Phase::Copying, "{held:?}");
    let beats = console.wait_for_more(5, SHOWN_WAIT);
    assert_eq!(beats, Ok(SOURCE));
    let after = peaks();
    println!("peaks of migrators and tunnels: {before:?} KiB, then {after:?} KiB");
    for (before, after) in before.iter().flatten().zip(after.iter().flatten()) {
        let grown = after.saturating_sub(*before);
        assert!(grown <= UNREAD_KIB_MAX, "{before} to {after} KiB");
    }
    stopped.signal_migrator(Signal::CONT);
    let rest = scene.arrives(&guest, &mut console).unwrap();
    assert_eq!(rest.moves[0].attempts, Some(1), "it goes on where it stood");
}

/// A link so long that a switch lasts until it is cut in the middle.
const LONG: Link = Link {
    megabits_per_second: 80,
    round_trip: Duration::from_millis(500),
};

/// Attempts to catch a guest that is held for a switch which has not been committed.
const TRY_COUNT: u32 = 5;

#[test]
fn fault_44_a_guest_held_for_a_switch_goes_on_when_its_migrator_is_stopped() {
    let mut scene = Scene::new(LONG);
    for number in 0..TRY_COUNT {
        let guest = Guest::new(&format!("held-{number}"), 16);
        let mut console = scene.guest(&guest);
        scene.begin(&guest, MigrationMode::Auto).unwrap();
        scene.reaches(&guest, Phase::Switching).unwrap();
        scene.lab.cut();
        let moves = scene.lab.site(SOURCE).moves(&guest.name).unwrap();
        let is_held = moves[0].phase == Phase::Switching;
        if is_held {
            scene.lab.site_mut(SOURCE).stop_daemons();
            console.read().unwrap();
            let beating = console.wait_for_more(5, Duration::from_secs(10));
            assert_eq!(beating, Ok(SOURCE), "it stands while nobody is there");
            scene.lab.site_mut(SOURCE).start_tunnel();
            scene.lab.site_mut(SOURCE).start_migrator();
        }
        scene.lab.heal();
        scene.arrives(&guest, &mut console).unwrap();
        scene.lab.forget_guest(&guest.name);
        if is_held {
            return;
        }
    }
    panic!("{TRY_COUNT} switches were over before they were met");
}

#[test]
fn fault_46_a_second_migrator_on_one_host_ends_at_once() {
    let mut scene = Scene::new(LINK);
    let guest = Guest::new("alone", 16);
    let mut console = scene.guest(&guest);
    let second = scene.lab.site(SOURCE).second_migrator();
    let second = second.expect("the second does not stay");
    assert_eq!(second.code(), Some(EXIT_ALREADY_RUNNING));
    assert!(scene.lab.site_mut(SOURCE).has_migrator());
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
}
