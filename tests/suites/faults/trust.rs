//! Hosts that are revoked, and revocation lists that end, in the middle of a move.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use towpath_certs::renewal::LIST_VALIDITY;
use towpath_migrator::api::{GuestState, MigrationMode, Ownership, Phase};
use towpath_protocol::fault::Code;
use towpath_tests::lab::{Guest, Lab, Link};
use towpath_tests::scene::{SOURCE, Scene, TARGET};
use towpath_tests::site::Place;
use towpath_tests::verdict::wait_until;

/// A link so slow that a move outlasts a list that is signed in its middle.
const SLOW: Link = Link {
    megabits_per_second: 60,
    round_trip: Duration::from_millis(10),
};

/// How long a tunnel may take to read its list, and a move to show the effect, on a busy machine.
const SHOWN_WAIT: Duration = Duration::from_secs(20);

/// Validity of a list that is to end in the middle of a move.
const SHORT: Duration = Duration::from_secs(1);

/// Whether a tunnel reports revoked hosts.
fn knows_revoked(scene: &Scene, place: Place) -> bool {
    let status = scene.lab.site(place).tunnel_status();
    status.is_ok_and(|status| {
        let lists = &status.certificate.revocation_lists;
        lists.iter().any(|list| list.revoked_count > 0)
    })
}

/// Waits until a site's newest list has ended.
fn list_ends(scene: &Scene, place: Place, number: u64) {
    let has_ended = wait_until(SHOWN_WAIT, || {
        let status = scene.lab.site(place).tunnel_status().ok()?;
        let list = status.certificate.revocation_lists.first()?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let is_over = list.number == number && list.next_update_unix_seconds < now.as_secs();
        is_over.then_some(())
    });
    assert!(has_ended.is_some(), "{place:?} does not take list {number}");
}

/// Replaces the list in use by a new one with this validity; returns its number.
fn next_list(lab: &Lab, place: Place, lasting: Duration) -> u64 {
    let lists = lab.site(place).tunnel_status().unwrap().certificate;
    lab.sign_list(None, lasting);
    lab.carry_list(place);
    lists.revocation_lists[0].number + 1
}

#[test]
fn t10_a_move_to_a_host_that_is_revoked_ends_and_its_guest_runs_on() {
    // A live link that is closed, and a link that is not made again.
    for is_away in [false, true] {
        let mut scene = Scene::new(SLOW);
        let guest = Guest::new("victim", 64);
        let mut console = scene.guest(&guest);
        scene.begin(&guest, MigrationMode::Auto).unwrap();
        scene.reaches(&guest, Phase::Copying).unwrap();
        if is_away {
            scene.lab.site_mut(TARGET).stop_daemons();
        }
        scene.lab.revoke(TARGET);
        let is_known = wait_until(SHOWN_WAIT, || knows_revoked(&scene, SOURCE).then_some(()));
        assert!(is_known.is_some(), "the list is not read");
        if is_away {
            scene.lab.site_mut(TARGET).start_tunnel();
            scene.lab.site_mut(TARGET).start_migrator();
        }
        let view = scene.reaches(&guest, Phase::Failed).unwrap();
        let error = view.error.expect("a failed move says why");
        println!(
            "target away {is_away}: {} after {} ms",
            error.message, view.total_ms
        );
        assert_eq!(error.code, Code::Denied.as_str(), "{error:?}");
        assert!(
            error.message.to_lowercase().contains("revoked"),
            "{error:?}"
        );

        assert_eq!(console.wait_for_more(20, SHOWN_WAIT), Ok(SOURCE));
        console.is_whole().unwrap();
        let shown = scene.lab.site(SOURCE).guest(&guest.name).unwrap();
        let shown = shown.expect("it is known here");
        assert_eq!(
            (shown.state, shown.ownership),
            (GuestState::Running, Ownership::Owned)
        );
        assert!(scene.lab.site(SOURCE).verify(&guest.name).unwrap().verified);
        scene.watch.check().unwrap();
        // No new move begins towards the host either, and the refusal gives the reason.
        let again = scene.begin(&guest, MigrationMode::Auto).unwrap_err();
        assert!(again.contains(Code::Denied.as_str()), "{again}");
        assert!(again.to_lowercase().contains("revoked"), "{again}");
        assert_eq!(console.wait_for_more(5, SHOWN_WAIT), Ok(SOURCE));
    }
}

#[test]
fn t12_a_list_that_has_ended_stops_new_moves_and_none_that_is_under_way() {
    let stale = Code::CrlStale.as_str();
    for place in [SOURCE, TARGET] {
        let scene = Scene::new(SLOW);
        let [under_way, other] =
            [("first", 96), ("second", 16)].map(|(name, memory_mib)| Guest::new(name, memory_mib));
        let mut consoles = [&under_way, &other].map(|guest| scene.guest(guest));
        scene.begin(&under_way, MigrationMode::Auto).unwrap();
        scene.reaches(&under_way, Phase::Copying).unwrap();
        let number = next_list(&scene.lab, place, SHORT);
        list_ends(&scene, place, number);

        if place == SOURCE {
            let refused = scene.begin(&other, MigrationMode::Auto).unwrap_err();
            assert!(refused.contains(stale), "{refused}");
        } else {
            scene.begin(&other, MigrationMode::Auto).unwrap();
            let view = scene.reaches(&other, Phase::Failed).unwrap();
            assert_eq!(view.error.expect("it says why").code, stale);
        }
        let moves = scene.lab.site(SOURCE).moves(&under_way.name).unwrap();
        assert!(!moves[0].phase.is_finished(), "it was to be met: {moves:?}");
        assert_eq!(consoles[1].wait_for_more(5, SHOWN_WAIT), Ok(SOURCE));
        let rest = scene.arrives(&under_way, &mut consoles[0]).unwrap();
        println!(
            "list of {place:?} ended: done after {} ms",
            rest.moves[0].total_ms
        );

        // The next list resolves it.
        let number = next_list(&scene.lab, place, LIST_VALIDITY);
        let is_read = wait_until(SHOWN_WAIT, || {
            let status = scene.lab.site(place).tunnel_status().ok()?;
            (status.certificate.revocation_lists.first()?.number == number).then_some(())
        });
        assert!(is_read.is_some(), "{place:?} does not take list {number}");
        scene.begin(&other, MigrationMode::Auto).unwrap();
        scene.arrives(&other, &mut consoles[1]).unwrap();
    }
}

/// How long after its revocation a host may still receive parts of a guest.
const REVOKED_WAIT: Duration = Duration::from_secs(5);

#[test]
fn t10_a_target_that_is_revoked_in_post_copy_gets_no_more_and_the_guest_runs_nowhere_else() {
    let mut scene = Scene::new(SLOW);
    let guest = Guest::new("victim", 64);
    let mut console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Post).unwrap();
    scene.reaches(&guest, Phase::Serving).unwrap();
    console.wait_for_more(1, SHOWN_WAIT).unwrap();
    scene.lab.revoke(TARGET);
    let source = scene.lab.site(SOURCE);
    let is_out = wait_until(SHOWN_WAIT, || {
        (knows_revoked(&scene, SOURCE) && !source.has_link()).then_some(())
    });
    assert!(is_out.is_some(), "the link of a revoked host lives on");
    let left = || {
        let view = source.moves(&guest.name).unwrap().remove(0);
        assert_eq!(view.phase, Phase::Serving, "{view:?}");
        view.blocks_left
    };
    // Not a wait for an event: nothing should happen, however often the source tries.
    std::thread::sleep(REVOKED_WAIT);
    let before = left();
    std::thread::sleep(REVOKED_WAIT);
    assert_eq!(left(), before, "it is still served");
    assert!(before > 0, "it was to be met in post-copy");
    // The target still owns the guest: the source keeps its copy without running it, even after a
    // restart.
    for _ in 0..2 {
        let kept = scene.lab.site(SOURCE).guest(&guest.name).unwrap();
        let kept = kept.expect("it is known here");
        assert_eq!(kept.state, GuestState::Frozen, "{kept:?}");
        assert_eq!(kept.ownership, Ownership::Relinquished, "{kept:?}");
        assert!(kept.process_id.is_some(), "{kept:?}");
        scene.lab.site_mut(SOURCE).kill_migrator();
        scene.lab.site_mut(SOURCE).start_migrator();
    }
    let owner = scene.lab.site(TARGET).guest(&guest.name).unwrap();
    assert_eq!(owner.expect("it is there").ownership, Ownership::Owned);
    scene.watch.check().unwrap();

    // With a new certificate the host is admitted again, and nothing of the guest is lost.
    scene.lab.certify(TARGET);
    scene.arrives(&guest, &mut console).unwrap();
}
