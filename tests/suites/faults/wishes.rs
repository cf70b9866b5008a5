//! The limits set in a request for a move are kept: its share of the link, and the stages it may
//! use.

use std::time::{Duration, Instant};

use towpath_migrator::api::{MigrationMode, MigrationRequest, Phase};
use towpath_protocol::fault::Code;
use towpath_tests::killed::SLOW;
use towpath_tests::lab::{Guest, Lab};
use towpath_tests::scene::{LINK, REST_WAIT, SOURCE, Scene, TARGET};
use towpath_tests::verdict::wait_until;

/// A move's own rate cap: far below what the link carries.
const RATE_BITS: u64 = 40_000_000;

/// Attempts, because a machine may be too busy to use up the rate.
const TRY_COUNT: usize = 4;

/// How long its bytes are counted.
const SPAN: Duration = Duration::from_secs(2);

fn begin(scene: &Scene, request: &MigrationRequest) {
    let begun = scene.lab.site(SOURCE).migrate(request);
    assert!(begun.is_ok(), "{begun:?}");
}

/// Moves a guest under its rate cap; returns its bytes on the link as a percentage of the cap.
fn share_of_rate(scene: &Scene, guest: &Guest) -> u64 {
    let mut console = scene.guest(guest);
    begin(
        scene,
        &MigrationRequest {
            rate_bits_per_second: Some(RATE_BITS),
            ..Lab::request(guest, SOURCE, MigrationMode::Auto)
        },
    );
    scene.reaches(guest, Phase::Copying).unwrap();
    let sent = || {
        let view = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        let view = view.into_iter().next()?;
        let wire_bytes = view.wire_bytes.filter(|bytes| *bytes > 0)?;
        Some((Instant::now(), wire_bytes, view.raw_bytes))
    };
    let first = wait_until(REST_WAIT, sent).expect("something is sent");
    let last = wait_until(REST_WAIT, || {
        sent().filter(|(at, ..)| at.duration_since(first.0) >= SPAN)
    });
    let last = last.expect("it goes on");
    let [wire_bytes, raw_bytes] = [last.1 - first.1, last.2 - first.2];
    assert!(
        raw_bytes > wire_bytes + wire_bytes / 3,
        "{raw_bytes} bytes do not pack into {wire_bytes}"
    );
    let allowed = RATE_BITS / 8 * u64::try_from((last.0 - first.0).as_millis()).unwrap() / 1000;
    scene.arrives(guest, &mut console).unwrap();
    scene.lab.forget_guest(&guest.name);
    wire_bytes * 100 / allowed
}

#[test]
fn the_rate_of_a_move_is_that_of_its_bytes_on_the_link() {
    let scene = Scene::new(LINK);
    // Half of its pages compress well, so that about half as many bytes go over the link.
    let guest = Guest::new("thrifty", 48);
    let mut shares = Vec::new();
    for _ in 0..TRY_COUNT {
        let share = share_of_rate(&scene, &guest);
        // The excess is what is in flight between two readings.
        assert!(share <= 105, "{share} hundredths of the rate");
        shares.push(share);
        if share >= 80 {
            return;
        }
    }
    // A busy machine may not reach the rate.
    panic!("hundredths of the rate: {shares:?}");
}

#[test]
fn a_guest_that_pre_copy_alone_cannot_move_is_copied_once() {
    let scene = Scene::new(LINK);
    let guest = Guest {
        dirty_pages_per_second: 200_000,
        ..Guest::new("restless", 8)
    };
    let mut console = scene.guest(&guest);
    begin(
        &scene,
        &MigrationRequest {
            // Less than a freeze takes: even if a busy machine lets the guest write little, it does
            // not converge.
            max_pause_ms: 5,
            ..Lab::request(&guest, SOURCE, MigrationMode::Pre)
        },
    );
    let rest = scene.rest(&guest, &mut console).unwrap();
    assert_eq!(rest.place, SOURCE);
    let view = rest.moves.first().expect("a move");
    assert_eq!(view.phase, Phase::Failed, "{view:?}");
    let error = view.error.as_ref().expect("why it stayed");
    assert_eq!(error.code, Code::NotConverging.as_str(), "{view:?}");
    assert_eq!(error.host, None, "{view:?}");
    assert_eq!(view.attempts, Some(1), "{view:?}");
}

#[test]
fn a_move_that_its_target_refuses_says_which_host_that_was() {
    let scene = Scene::new(LINK);
    let guest = Guest::new("twice", 8);
    let _console = scene.guest(&guest);
    scene.lab.start_guest(TARGET, &guest);
    begin(&scene, &Lab::request(&guest, SOURCE, MigrationMode::Auto));
    let ended = wait_until(REST_WAIT, || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        moves.into_iter().find(|view| view.phase.is_finished())
    });
    let error = ended.expect("it ends").error.expect("why it stayed");
    assert_eq!(error.code, Code::GuestExists.as_str(), "{error:?}");
    let target = scene.lab.site(TARGET).identity().to_string();
    assert_eq!(error.host, Some(target));
}

/// Half of a guest's pages compress well. What is pushed after the switch is packed like the rest.
#[test]
fn what_follows_a_guest_by_post_copy_is_packed_for_its_link() {
    let scene = Scene::new(SLOW);
    let guest = Guest::new("thrifty", 32);
    let mut console = scene.guest(&guest);
    begin(&scene, &Lab::request(&guest, SOURCE, MigrationMode::Post));
    let rest = scene.arrives(&guest, &mut console).unwrap();
    let view = rest.moves.first().expect("a move");
    let wire_bytes = view.wire_bytes.expect("its source counts them");
    let percent = wire_bytes * 100 / view.raw_bytes;
    assert!(percent < 80, "{percent} % of the bytes: {view:?}");
}
