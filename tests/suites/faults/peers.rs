//! Peers that lie: what a host that may offer guests can do to guests that are not its own.

use std::time::Duration;

use towpath_migrator::api::{
    GuestState, GuestView, MigrationMode, MigrationView, Ownership, Phase,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{GuestConfig, GuestKind, Workload};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity};
use towpath_protocol::image::{CHAIN_START, Image};
use towpath_protocol::message::{
    ChunkHeader, Codec, FinalEnd, Lane, Message, Prepare, Reason, Received, SpaceInfo,
    ZERO_CHUNK_DIGEST, chain_after,
};
use towpath_protocol::ownership::Root;
use towpath_protocol::space::{BlockRun, BlockSet, MEMORY, MEMORY_BLOCK_BYTES};
use towpath_tests::lab::Guest;
use towpath_tests::meddler::{Altered, Meddler};
use towpath_tests::peer::Peer;
use towpath_tests::scene::{LINK, SOURCE, Scene, TARGET};
use towpath_tests::site::Site;
use towpath_tests::verdict::wait_until;

/// How long it may take until an effect is visible.
pub(crate) const SHOWN_WAIT: Duration = Duration::from_secs(20);

/// How long a commit may take to be obeyed before it is repeated.
const COMMIT_WAIT: Duration = Duration::from_secs(2);

/// A host of the other site.
pub(crate) fn host(name: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "lab.towpath".parse().unwrap(),
        site: "edge".parse().unwrap(),
        host: name.parse().unwrap(),
    }
}

pub(crate) fn open(site: &Site, from: &str, guest: GuestId, attempt: u128) -> Peer {
    Peer::open(
        &site.service_socket(),
        &host(from),
        guest,
        AttemptId(attempt),
    )
    .unwrap()
}

/// A guest's description as a peer sends it.
pub(crate) fn described(id: GuestId, name: &str, memory_mib: u64) -> GuestConfig {
    GuestConfig {
        id,
        name: name.parse().unwrap(),
        kind: GuestKind::Process,
        memory_bytes: memory_mib << 20,
        vcpu_count: 1,
        workload: Workload {
            dirty_pages_per_second: 0,
            working_set_bytes: 1 << 20,
            incompressible_percent: 0,
            key: 1,
            heartbeat_interval_us: 2000,
        },
    }
}

pub(crate) fn offer(config: &GuestConfig, epoch: u64) -> Message {
    Message::Prepare(Prepare {
        name: config.name.clone(),
        epoch: Epoch(epoch),
        spaces: spaces(config).to_vec(),
        config: config.to_bytes(),
    })
}

fn spaces(config: &GuestConfig) -> [SpaceInfo; 1] {
    [SpaceInfo {
        id: MEMORY,
        block_bytes: MEMORY_BLOCK_BYTES,
        block_count: config.block_count(),
    }]
}

/// Number of a site's refusals with this code, from the metric that alerts use; at least one.
pub(crate) fn alarms(site: &Site, code: Code) -> u64 {
    let series = format!(
        "towpath_handover_rejected_total{{code=\"{}\"}} ",
        code.as_str()
    );
    let counted = wait_until(SHOWN_WAIT, || {
        let [_, metrics] = site.metrics().ok()?;
        let count = metrics
            .lines()
            .find_map(|line| line.strip_prefix(&series))?;
        let count: u64 = count.parse().ok()?;
        (count > 0).then_some(count)
    });
    counted.unwrap_or_else(|| panic!("nobody is alarmed by {code:?}"))
}

pub(crate) fn code(reason: &Reason) -> &str {
    &reason.code
}

pub(crate) fn shown(site: &Site, guest: &Guest) -> GuestView {
    site.guest(&guest.name).unwrap().expect("it is shown")
}

#[test]
fn h07_an_offer_of_a_guest_that_lives_here_changes_nothing_of_it() {
    let scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    let site = scene.lab.site(SOURCE);
    let before = shown(site, &guest);
    // Another name and another size; then its own name with another size.
    for (attempt, (name, memory_mib)) in (1..).zip([("evil", 32), ("till", 8)]) {
        let mut liar = open(site, "box-7", before.id, attempt);
        let config = described(before.id, name, memory_mib);
        liar.say(Lane::Control, &offer(&config, 100)).unwrap();
        match liar.hear() {
            Some(Message::Refused(reason)) => {
                assert_eq!(code(&reason), Code::GuestExists.as_str());
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(alarms(site, Code::GuestExists), 2);
    let after = shown(site, &guest);
    assert_eq!(
        (after.name, after.memory_bytes, after.process_id),
        (before.name, before.memory_bytes, before.process_id)
    );
    assert!(site.guest(&"evil".parse().unwrap()).unwrap().is_none());
    // The guest is intact, and moves with its true description.
    assert!(site.verify(&guest.name).unwrap().verified);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
    // Once it has left, it may come back with its true description only.
    let mut liar = open(site, "box-7", before.id, 3);
    let config = described(before.id, "evil", 16);
    liar.say(Lane::Control, &offer(&config, 100)).unwrap();
    match liar.hear() {
        Some(Message::Refused(reason)) => assert_eq!(code(&reason), Code::Meta.as_str()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn h06_a_second_source_is_told_that_it_is_the_second() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let id = GuestId(77);
    let mut first = open(site, "box-7", id, 1);
    let config = described(id, "till", 16);
    first.say(Lane::Control, &offer(&config, 2)).unwrap();
    assert!(matches!(first.hear(), Some(Message::Prepared(_))));
    let second = Peer::open(&site.service_socket(), &host("box-8"), id, AttemptId(2));
    let heard = second.map(|mut second| second.hear());
    match heard {
        Ok(Some(Message::Refused(reason))) => {
            assert_eq!(code(&reason), Code::DoubleOffer.as_str());
        }
        Err(fault) => assert_eq!(fault.code, Code::DoubleOffer),
        other => panic!("{other:?}"),
    }
    alarms(site, Code::DoubleOffer);
}

/// The message is about an ownership below epoch 5, and is refused with that mark.
fn hears_of_a_newer_owner(stale: &mut Peer) {
    let told = stale.hear();
    assert!(matches!(told, Some(Message::Mark(Epoch(5)))), "{told:?}");
    match stale.hear() {
        Some(Message::Refused(reason) | Message::Nack(reason)) => {
            assert_eq!(code(&reason), Code::StaleEpoch.as_str());
        }
        word => panic!("{word:?}"),
    }
}

#[test]
fn h02_an_offer_below_the_mark_is_refused_and_alarms() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let id = GuestId(83);
    let config = described(id, "till", 16);
    let mut source = open(site, "box-7", id, 1);
    source.say(Lane::Control, &offer(&config, 5)).unwrap();
    assert!(matches!(source.hear(), Some(Message::Prepared(_))));
    let abort = Message::Abort(Reason::from(&Fault::new(Code::Cancelled, "it stays")));
    source.say(Lane::Control, &abort).unwrap();
    assert!(source.hear().is_none(), "the lanes end");
    for (attempt, epoch) in (2..).zip([5, 4]) {
        let mut stale = open(site, "box-7", id, attempt);
        stale.say(Lane::Control, &offer(&config, epoch)).unwrap();
        hears_of_a_newer_owner(&mut stale);
    }
    assert_eq!(alarms(site, Code::StaleEpoch), 2);
    // A commit under a newer epoch is not obeyed either if there was no offer under it.
    for (attempt, epoch) in (4..).zip([5, 4]) {
        let mut stale = open(site, "box-7", id, attempt);
        let commit = Message::Commit(Epoch(epoch), Root([1; 32]));
        stale.say(Lane::Control, &commit).unwrap();
        hears_of_a_newer_owner(&mut stale);
    }
    assert_eq!(alarms(site, Code::StaleEpoch), 4);
}

#[test]
fn h04_a_commit_of_another_host_is_refused_and_alarms() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let id = GuestId(84);
    let config = described(id, "till", 16);
    let mut source = open(site, "box-7", id, 1);
    source.say(Lane::Control, &offer(&config, 2)).unwrap();
    assert!(matches!(source.hear(), Some(Message::Prepared(_))));
    let commit = Message::Commit(Epoch(2), Root([1; 32]));
    match Peer::open(&site.service_socket(), &host("box-8"), id, AttemptId(1)) {
        Err(fault) => assert_eq!(fault.code, Code::DoubleOffer),
        Ok(mut liar) => {
            // The lanes may already be closed, with or without a final message.
            drop(liar.say(Lane::Control, &commit));
            match liar.hear() {
                Some(Message::Refused(reason) | Message::Nack(reason)) => {
                    assert_eq!(code(&reason), Code::DoubleOffer.as_str());
                }
                None => {}
                other => panic!("{other:?}"),
            }
        }
    }
    alarms(site, Code::DoubleOffer);
    // The attempt of the first offer continues.
    source.say(Lane::Control, &Message::Ping(1)).unwrap();
    assert!(matches!(source.hear(), Some(Message::Pong(1))));
}

/// Alters a commit to name another image than the one agreed on.
fn with_another_root(word: Message) -> Message {
    match word {
        Message::Commit(epoch, _) => Message::Commit(epoch, Root([1; 32])),
        word => word,
    }
}

#[test]
fn h04_a_commit_whose_root_is_altered_on_its_way_starts_nothing_and_alarms() {
    let scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    let service = scene.lab.site(TARGET).service_socket();
    let meddler = Meddler::before(service, Altered::Said(with_another_root));
    scene.begin(&guest, MigrationMode::Pre).unwrap();
    // The target refuses it for good in each attempt, so the guest continues at its source.
    let rest = scene.rest(&guest, &mut console).unwrap();
    assert_eq!(rest.place, SOURCE);
    let ended = rest.moves.first().expect("the move is shown");
    assert_eq!(ended.phase, Phase::Failed);
    let error = ended.error.as_ref().expect("it says why");
    assert_eq!(error.code, Code::RootMismatch.as_str());
    let target = scene.lab.site(TARGET);
    let attempts = ended.attempts.map(u64::from);
    assert_eq!(Some(alarms(target, Code::RootMismatch)), attempts);
    drop(meddler);
    scene.begin(&guest, MigrationMode::Pre).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
}

#[test]
fn h03_a_commit_of_what_was_never_offered_is_refused_for_ever() {
    let mut scene = Scene::new(LINK);
    let id = GuestId(78);
    for _ in 0..2 {
        let mut source = open(scene.lab.site(TARGET), "box-7", id, 1);
        let commit = Message::Commit(Epoch(2), Root([1; 32]));
        source.say(Lane::Control, &commit).unwrap();
        match source.hear() {
            Some(Message::Nack(_)) => {}
            other => panic!("{other:?}"),
        }
        // The source has been told that the guest may continue there; this must not be forgotten.
        let site = scene.lab.site_mut(TARGET);
        site.kill_migrator();
        site.start_migrator();
    }
    let mut source = open(scene.lab.site(TARGET), "box-7", id, 1);
    let config = described(id, "till", 16);
    source.say(Lane::Control, &offer(&config, 2)).unwrap();
    match source.hear() {
        Some(Message::Refused(_) | Message::Nack(_)) => {}
        other => panic!("{other:?}"),
    }
    // A new attempt under a new epoch is accepted.
    let mut source = open(scene.lab.site(TARGET), "box-7", id, 2);
    source.say(Lane::Control, &offer(&config, 3)).unwrap();
    assert!(matches!(source.hear(), Some(Message::Prepared(_))));
}

/// Whether a host answers, to a source that commits a guest, who has it.
fn answers_a_commit(site: &Site, guest: GuestId) -> bool {
    let opened = Peer::open(&site.service_socket(), &host("box-7"), guest, AttemptId(1));
    let Ok(mut source) = opened else {
        return false;
    };
    let commit = Message::Commit(Epoch(9), Root([1; 32]));
    // The lanes may already be closed; earlier messages still count.
    drop(source.say(Lane::Control, &commit));
    match source.hear() {
        Some(Message::Ack(_) | Message::Nack(_)) => true,
        Some(Message::Refused(reason)) => {
            assert_eq!(code(&reason), Code::Quarantine.as_str());
            false
        }
        None => false,
        other => panic!("{other:?}"),
    }
}

/// Starts a guest at the target and corrupts some of its files while its migrator is down; returns
/// its ID.
fn quarantine(scene: &mut Scene, guest: &Guest, files: &[&str]) -> GuestId {
    scene.lab.start_guest(TARGET, guest);
    let site = scene.lab.site_mut(TARGET);
    let id = shown(site, guest).id;
    let folder = site.guest_folder(&guest.name);
    site.kill_migrator();
    for file in files {
        let path = folder.join(file);
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, vec![0xa5; bytes.len()]).unwrap();
    }
    site.start_migrator();
    id
}

#[test]
fn h03_h08_nothing_is_said_of_a_guest_whose_folder_is_spoilt() {
    let mut scene = Scene::new(LINK);
    // It runs at the target, and its source might not have heard of that.
    let guest = Guest::new("scale", 16);
    let id = quarantine(&mut scene, &guest, &["journal"]);
    let (site, name) = (scene.lab.site(TARGET), guest.name);
    let view = site.guest(&name).unwrap().unwrap();
    assert_eq!(view.state, GuestState::Quarantined);
    // The intact files say whose folder it is.
    assert!(!answers_a_commit(site, id), "it runs here");
    assert!(answers_a_commit(site, GuestId(98)), "others are answered");
    // Its process is left alone: another guest of the same name does not end it.
    let processes = || scene.lab.guest_processes(TARGET, &name);
    let before = processes();
    assert_eq!(before.len(), 1);
    let mut liar = open(site, "box-7", GuestId(97), 1);
    let config = described(GuestId(97), "scale", 16);
    liar.say(Lane::Control, &offer(&config, 2)).unwrap();
    match liar.hear() {
        Some(Message::Refused(reason)) => assert_eq!(code(&reason), Code::GuestExists.as_str()),
        other => panic!("{other:?}"),
    }
    assert_eq!(processes(), before);
}

#[test]
fn h03_h08_nothing_is_said_of_any_guest_while_a_folder_may_be_anybodys() {
    let mut scene = Scene::new(LINK);
    let files = ["journal", "guest.json"];
    let id = quarantine(&mut scene, &Guest::new("scale", 16), &files);
    let site = scene.lab.site(TARGET);
    for guest in [id, GuestId(99)] {
        assert!(!answers_a_commit(site, guest), "it may be this one's");
    }
    // An honest source gets the reason, and its guest continues.
    let guest = Guest::new("till", 16);
    let _console = scene.guest(&guest);
    scene.begin(&guest, MigrationMode::Auto).unwrap();
    let failed = wait_until(SHOWN_WAIT, || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        let view: MigrationView = moves.into_iter().next()?;
        view.phase.is_finished().then_some(view)
    });
    let error = failed.expect("it ends").error.expect("and says why");
    assert_eq!(error.code, Code::Quarantine.as_str());
    let view = shown(scene.lab.site(SOURCE), &guest);
    assert_eq!(view.state, GuestState::Running);
}

#[test]
fn h06_a_source_that_was_refused_hears_it_again_beside_another_offer() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let id = GuestId(81);
    let config = described(id, "till", 16);
    let commit = Message::Commit(Epoch(2), Root([1; 32]));
    let mut source = open(site, "box-7", id, 1);
    source.say(Lane::Control, &offer(&config, 2)).unwrap();
    assert!(matches!(source.hear(), Some(Message::Prepared(_))));
    source.say(Lane::Control, &commit).unwrap();
    assert!(matches!(source.hear(), Some(Message::Nack(_))));
    let mut other = open(site, "box-8", id, 2);
    other.say(Lane::Control, &offer(&config, 3)).unwrap();
    assert!(matches!(other.hear(), Some(Message::Prepared(_))));
    // The source has missed that, and its guest stays stopped until it hears it.
    for _ in 0..2 {
        let mut source = open(site, "box-7", id, 1);
        source.say(Lane::Control, &commit).unwrap();
        match source.hear() {
            Some(Message::Nack(_)) => {}
            word => panic!("{word:?}"),
        }
    }
    other.say(Lane::Control, &Message::Ping(1)).unwrap();
    assert!(matches!(other.hear(), Some(Message::Pong(1))));
}

/// Whether a site keeps nothing of refused guests: no folder, no worker, no name.
pub(crate) fn has_nothing(site: &Site) -> bool {
    let folders = std::fs::read_dir(site.folder().join("state/guests")).unwrap();
    folders.count() == 0 && site.guest(&"till-1000".parse().unwrap()).unwrap().is_none()
}

#[test]
fn h03_guests_that_are_offered_and_taken_back_leave_nothing_but_an_answer() {
    let mut scene = Scene::new(LINK);
    let ids = || (1000..1050).map(GuestId);
    let commit = Message::Commit(Epoch(2), Root([1; 32]));
    let abort = Message::Abort(Reason::from(&Fault::new(Code::Cancelled, "it stays")));
    for id in ids() {
        let mut source = open(scene.lab.site(TARGET), "box-7", id, id.0);
        let config = described(id, &format!("till-{}", id.0), 16);
        source.say(Lane::Control, &offer(&config, 2)).unwrap();
        assert!(matches!(source.hear(), Some(Message::Prepared(_))));
        source.say(Lane::Control, &abort).unwrap();
        assert!(source.hear().is_none(), "the lanes end");
    }
    let gone = wait_until(SHOWN_WAIT, || {
        has_nothing(scene.lab.site(TARGET)).then_some(())
    });
    gone.expect("nothing is left of them");
    for _ in 0..2 {
        for id in ids() {
            let mut source = open(scene.lab.site(TARGET), "box-7", id, id.0);
            source.say(Lane::Control, &commit).unwrap();
            match source.hear() {
                Some(Message::Nack(_)) => {}
                word => panic!("{id}: {word:?}"),
            }
        }
        let site = scene.lab.site_mut(TARGET);
        site.kill_migrator();
        site.start_migrator();
    }
    assert!(has_nothing(scene.lab.site(TARGET)));
    // The names are free.
    let mut source = open(scene.lab.site(TARGET), "box-8", GuestId(1), 1);
    let config = described(GuestId(1), "till-1000", 16);
    source.say(Lane::Control, &offer(&config, 2)).unwrap();
    assert!(matches!(source.hear(), Some(Message::Prepared(_))));
}

#[test]
fn h03_late_lanes_of_an_older_attempt_leave_the_open_one_alone() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let id = GuestId(82);
    let config = described(id, "till", 16);
    let mut attempts = (1..=2_u64).map(|attempt| {
        let mut source = open(site, "box-7", id, attempt.into());
        let word = offer(&config, 1 + attempt);
        source.say(Lane::Control, &word).unwrap();
        assert!(matches!(source.hear(), Some(Message::Prepared(_))));
        source
    });
    let (_older, mut newer) = (attempts.next().unwrap(), attempts.next().unwrap());
    let mut late = open(site, "box-7", id, 1);
    late.say(Lane::Control, &offer(&config, 2)).unwrap();
    match late.hear() {
        Some(Message::Nack(_)) => {}
        word => panic!("{word:?}"),
    }
    newer.say(Lane::Control, &Message::Ping(1)).unwrap();
    match newer.hear() {
        Some(Message::Pong(1)) => {}
        word => panic!("{word:?}"),
    }
}

#[test]
fn h03_a_guest_that_was_ended_where_it_went_is_let_go_by_its_source() {
    let mut scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    scene.lab.site_mut(SOURCE).kill_migrator();
    // A commit may be lost with the migrator that dies right after sending it; the next one repeats
    // it.
    let mut commits = 0;
    let arrived = wait_until(SHOWN_WAIT, || {
        let source = scene.lab.site_mut(SOURCE);
        source.start_migrator_with(Some("source:say-commit"));
        if commits == 0 {
            scene.begin(&guest, MigrationMode::Pre).unwrap();
        }
        commits += 1;
        let died = scene.lab.site_mut(SOURCE).migrator_dies(SHOWN_WAIT);
        assert_eq!(died, Ok(true));
        wait_until(COMMIT_WAIT, || {
            let view = scene.lab.site(TARGET).guest(&guest.name).ok()??;
            (view.state == GuestState::Running && view.ownership == Ownership::Owned).then_some(())
        })
    });
    arrived.expect("the target took the guest");
    let target = scene.lab.site(TARGET);
    target.stop_guest(&guest.name).unwrap();
    console.read().unwrap();
    let last = console.last();
    scene.lab.site_mut(SOURCE).start_migrator();
    let released = wait_until(SHOWN_WAIT, || {
        let view = scene.lab.site(SOURCE).guest(&guest.name).ok()??;
        (view.ownership == Ownership::Released).then_some(())
    });
    assert!(
        released.is_some(),
        "{:?}",
        shown(scene.lab.site(SOURCE), &guest)
    );
    console.read().unwrap();
    assert_eq!(console.last(), last, "it ran on at the source");
}

#[test]
fn f08_f09_a_chunk_outside_of_memory_ends_the_attempt() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let id = GuestId(79);
    let config = described(id, "till", 16);
    for (attempt, block) in (1..).zip([config.block_count(), u64::MAX - 1]) {
        let mut source = open(site, "box-7", id, attempt);
        let epoch = 1 + u64::try_from(attempt).unwrap();
        source.say(Lane::Control, &offer(&config, epoch)).unwrap();
        assert!(matches!(source.hear(), Some(Message::Prepared(_))));
        source
            .put(Lane::Bulk, &crate::chunks::chunk(1, block))
            .unwrap();
        match source.hear() {
            Some(Message::Nack(reason)) => assert_eq!(code(&reason), Code::Range.as_str()),
            other => panic!("block {block}: {other:?}"),
        }
    }
    let failed = wait_until(SHOWN_WAIT, || {
        let moves = site.moves(&config.name).ok()?;
        let is_failed = |view: &MigrationView| view.phase == Phase::Failed;
        (moves.len() == 2 && moves.iter().all(is_failed)).then_some(())
    });
    failed.expect("both are shown as failed");
    assert_eq!(alarms(site, Code::Range), 2);
}

#[test]
fn f10_spaces_other_than_the_guests_are_refused_with_what_differs() {
    let scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    let config = described(GuestId(85), "till", 16);
    let mut source = open(site, "box-7", config.id, 1);
    let Message::Prepare(mut prepare) = offer(&config, 2) else {
        unreachable!("an offer is one");
    };
    prepare.spaces[0].block_count += 1;
    source
        .say(Lane::Control, &Message::Prepare(prepare))
        .unwrap();
    match source.hear() {
        Some(Message::Refused(reason)) => {
            assert_eq!(code(&reason), Code::Layout.as_str());
            let detail = &reason.detail;
            assert!(detail.contains("4097 blocks instead of 4096"), "{detail}");
        }
        other => panic!("{other:?}"),
    }
    assert!(has_nothing(site));
}

/// Sends a guest of zero blocks whose saved state differs from the one that the source announced.
/// Returns the root and the answer.
pub(crate) fn send_with_other_state(
    source: &mut Peer,
    config: &GuestConfig,
    attempt: u128,
) -> (Root, Reason) {
    source.say(Lane::Control, &offer(config, 2)).unwrap();
    let prepared = source.hear();
    assert!(
        matches!(prepared, Some(Message::Prepared(_))),
        "{prepared:?}"
    );
    let header = ChunkHeader {
        space: MEMORY,
        sequence: 1,
        generation: 1,
        codec: Codec::Zero,
        runs: vec![BlockRun {
            start: 0,
            count: u32::try_from(config.block_count()).unwrap(),
        }],
        digest: ZERO_CHUNK_DIGEST,
    };
    let mut frame = Vec::new();
    header.encode(&[], &mut frame);
    source.put(Lane::Bulk, &frame).unwrap();
    let image = Image {
        guest: config.id,
        attempt: AttemptId(attempt),
        epoch: Epoch(2),
        spaces: &spaces(config),
        config: &config.to_bytes(),
        position: Received {
            through_sequence: 1,
            chain: chain_after(&CHAIN_START, &header),
        },
        missing: &[BlockSet::empty(config.block_count())],
        state: b"what was saved",
    };
    let (root, manifest) = (image.root(), image.manifest());
    let end = FinalEnd {
        through_sequence: 1,
        state_bytes: u32::try_from(image.state.len()).unwrap(),
        missing_count: 0,
        root,
    };
    for message in [
        Message::FinalBegin,
        Message::StatePart(b"what was Saved".to_vec()),
        Message::Manifest(manifest),
        Message::FinalEnd(end),
    ] {
        source.say(Lane::Switch, &message).unwrap();
    }
    loop {
        match source.hear() {
            Some(Message::Received(_)) => {}
            Some(Message::Nack(reason)) => return (root, reason),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn f27_an_image_that_differs_is_refused_for_ever_and_both_manifests_are_kept() {
    let mut scene = Scene::new(LINK);
    let id = GuestId(81);
    let config = described(id, "till", 16);
    let site = scene.lab.site(TARGET);
    let (root, reason) = send_with_other_state(&mut open(site, "box-7", id, 1), &config, 1);
    assert_eq!(code(&reason), Code::RootMismatch.as_str());
    assert!(reason.detail.ends_with("what differs: state"), "{reason:?}");
    assert_eq!(alarms(site, Code::RootMismatch), 1);
    let folder = site.folder().join("state/incidents");
    let kept = wait_until(SHOWN_WAIT, || {
        let mut files = std::fs::read_dir(&folder).ok()?;
        let is_whole = |path: &std::path::PathBuf| path.extension().is_some_and(|it| it == "json");
        files.find_map(|file| Some(file.ok()?.path()).filter(is_whole))
    });
    let kept = kept.expect("what is known of it is kept");
    let name = kept.file_name().unwrap().to_str().unwrap();
    assert!(
        name.ends_with(&format!("-{id}-{}.json", AttemptId(1))),
        "{name}"
    );
    let text = std::fs::read(&kept).unwrap();
    let incident: serde_json::Value = serde_json::from_slice(&text).unwrap();
    assert_eq!(incident["schema"], "towpath.v1.incident");
    assert_eq!(incident["code"], code(&reason));
    assert_eq!(incident["detail"], reason.detail.as_str());
    assert_eq!(incident["source"]["host"], "box-7");
    assert_eq!(incident["differs"], serde_json::json!(["state"]));
    let (ours, theirs) = (&incident["ours"], &incident["theirs"]);
    for (part, is_same) in [
        ("chain", true),
        ("missing_blocks_digest", true),
        ("state_bytes", true),
        ("state_digest", false),
        ("description_digest", true),
        ("geometry_digest", true),
    ] {
        assert!(!ours[part].is_null(), "{part}: {incident}");
        assert_eq!(ours[part] == theirs[part], is_same, "{part}: {incident}");
    }
    let shown: String = root.0.iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(incident["announced"]["root"], shown.as_str());
    assert_ne!(ours["root"], shown.as_str());
    let told = wait_until(SHOWN_WAIT, || {
        let log = std::fs::read_to_string(site.migrator_log()).ok()?;
        log.contains(name).then_some(())
    });
    told.expect("the log says where it is");

    // If the state cannot be written to disk, the refusal is the same.
    std::fs::remove_dir_all(&folder).unwrap();
    let (_, reason) = send_with_other_state(
        &mut open(site, "box-7", GuestId(82), 2),
        &described(GuestId(82), "other", 16),
        2,
    );
    assert_eq!(code(&reason), Code::RootMismatch.as_str());

    let site = scene.lab.site_mut(TARGET);
    site.kill_migrator();
    site.start_migrator();
    for (guest, attempt, name) in [(id, 1, "till"), (GuestId(82), 2, "other")] {
        let mut source = open(site, "box-7", guest, attempt);
        let config = described(guest, name, 16);
        source.say(Lane::Control, &offer(&config, 2)).unwrap();
        let heard = source.hear();
        assert!(
            matches!(heard, Some(Message::Refused(_) | Message::Nack(_))),
            "{heard:?}"
        );
    }
}
