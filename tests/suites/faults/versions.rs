//! Migrators of other releases: hosts that have no protocol version in common.

use towpath_migrator::api::{GuestState, MigrationMode, Ownership, Phase};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::message::{Message, Reason, Welcome};
use towpath_protocol::version::{self, VersionRange};
use towpath_tests::answerer::Answerer;
use towpath_tests::lab::Guest;
use towpath_tests::peer::Peer;
use towpath_tests::scene::{LINK, SOURCE, Scene, TARGET};
use towpath_tests::site::Site;
use towpath_tests::verdict::wait_until;

use crate::peers::{SHOWN_WAIT, code, host, shown};

/// The versions of a release that is two ahead of this one.
const THEIRS: VersionRange = VersionRange {
    min: version::OURS.max + 2,
    max: version::OURS.max + 3,
};

/// Waits until the site's migrator has logged a line with all of these parts.
fn logs(site: &Site, parts: &[&str]) {
    let told = wait_until(SHOWN_WAIT, || {
        let log = std::fs::read_to_string(site.migrator_log()).ok()?;
        let is_it = |line: &str| parts.iter().all(|part| line.contains(part));
        log.lines().any(is_it).then_some(())
    });
    assert!(told.is_some(), "no line with {parts:?}");
}

#[test]
fn f29_a_source_that_speaks_no_version_of_ours_is_told_both_ranges() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let older = VersionRange { min: 0, max: 0 };
    // Two hosts, because refusals of one host for the same reason are logged only once a minute.
    for (box_name, theirs, upgrade) in [
        ("box-7", THEIRS, "region/host-1"),
        ("box-8", older, "edge/box-8"),
    ] {
        let answer = Peer::greeting(&site.service_socket(), &host(box_name), theirs).unwrap();
        let Some(Message::Refused(reason)) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(code(&reason), Code::Version.as_str());
        let told = format!(
            "the migrator of region/host-1 speaks versions {} and the migrator of edge/{box_name} {theirs}: \
             upgrade the migrator of {upgrade}",
            version::OURS
        );
        assert_eq!(reason.detail, told);
        logs(site, &["E_VERSION", &told]);
    }
}

#[test]
fn f29_a_move_to_a_target_that_speaks_no_version_of_ours_ends_and_says_both_ranges() {
    let mut scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    scene.lab.site_mut(TARGET).kill_migrator();
    let other = Answerer::at(scene.lab.site(TARGET));
    let ours = version::OURS;
    // A refusal as an older release words it, one without detail, and a choice that was not
    // offered.
    let refused = |detail: &str| {
        let fault = Fault::new(Code::Version, detail);
        Message::Refused(Reason::from(&fault))
    };
    let in_words =
        format!("we speak versions {THEIRS} and the peer {ours}; upgrade the older side");
    let version = THEIRS.max;
    for (answer, parts) in [
        (refused(&in_words), ["region/host-1 refuses", &in_words]),
        (
            refused("no"),
            ["region/host-1 refuses: no", "edge/host-1 speaks versions"],
        ),
        (
            Message::Welcome(Welcome { version }),
            ["region/host-1 chose", "upgrade the migrator of edge/host-1"],
        ),
    ] {
        scene.begin(&guest, MigrationMode::Auto).unwrap();
        drop(other.greet(&answer));
        let failed = wait_until(SHOWN_WAIT, || {
            let view = scene
                .lab
                .site(SOURCE)
                .moves(&guest.name)
                .ok()?
                .into_iter()
                .next()?;
            (view.phase == Phase::Failed).then_some(view)
        });
        let error = failed.expect("no waiting mends that").error.unwrap();
        assert_eq!(error.code, Code::Version.as_str());
        for part in parts.into_iter().chain([&*ours.to_string()]) {
            assert!(error.message.contains(part), "{part}: {error:?}");
        }
        logs(scene.lab.site(SOURCE), &["E_VERSION", parts[0]]);
        let view = shown(scene.lab.site(SOURCE), &guest);
        assert_eq!(view.state, GuestState::Running);
        assert_eq!(view.ownership, Ownership::Owned);
    }
    // It is upgraded, and accepts the guest.
    drop(other);
    scene.lab.site_mut(TARGET).start_migrator();
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
}
