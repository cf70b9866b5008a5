//! Forged and replayed answers: hosts that were not asked make claims about who has a guest.

use towpath_migrator::api::{GuestState, MigrationMode, Ownership, Phase};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, Epoch, HostIdentity};
use towpath_protocol::message::{Lane, Message, Reason, Welcome};
use towpath_protocol::ownership::{Root, State};
use towpath_protocol::version;
use towpath_tests::answerer::Answerer;
use towpath_tests::journals::records;
use towpath_tests::lab::Guest;
use towpath_tests::peer::Peer;
use towpath_tests::scene::{LINK, SOURCE, Scene, TARGET};
use towpath_tests::site::Site;
use towpath_tests::verdict::{check_no_alarm, wait_until};

use crate::peers::{SHOWN_WAIT, alarms, code, host, shown};

/// Answers that, if believed, would leave a guest with no owner or with two.
fn answers() -> [Message; 4] {
    let refused = Reason::from(&Fault::new(Code::Cancelled, "it stays"));
    [
        Message::Ack(1),
        Message::Nack(refused),
        Message::Complete,
        Message::Ready(Root([1; 32])),
    ]
}

/// Sends each of the answers from a host about an attempt: all are ignored, and each raises an
/// alarm.
fn lies(site: &Site, from: &HostIdentity, guest: &Guest, attempt: AttemptId) {
    let before = shown(site, guest);
    let alarmed = alarms_so_far(site);
    for answer in answers() {
        let mut liar = Peer::open(&site.service_socket(), from, before.id, attempt).unwrap();
        liar.say(Lane::Control, &answer).unwrap();
        match liar.hear() {
            Some(Message::Refused(reason)) => {
                assert_eq!(code(&reason), Code::Denied.as_str(), "{answer:?}");
            }
            other => panic!("{answer:?}: {other:?}"),
        }
    }
    let count = alarms_so_far(site) - alarmed;
    assert_eq!(count, answers().len() as u64, "each alarms");
    let after = shown(site, guest);
    assert_eq!(
        (after.state, after.ownership, after.process_id),
        (before.state, before.ownership, before.process_id)
    );
}

/// The number of alarms about forged answers at a site.
fn alarms_so_far(site: &Site) -> u64 {
    let [_, metrics] = site.metrics().unwrap();
    let series = "towpath_handover_rejected_total{code=\"E_DENIED\"} ";
    let count = metrics.lines().find_map(|line| line.strip_prefix(series));
    count.expect("it is there from the start").parse().unwrap()
}

/// The attempt in the journal of the guest's source.
fn journaled_attempt(scene: &Scene, guest: &Guest) -> AttemptId {
    let records = records(&scene.lab, &guest.name).unwrap();
    match &records[SOURCE as usize].as_ref().unwrap().state {
        State::Relinquished { attempt, .. } | State::Released { attempt, .. } => *attempt,
        state => panic!("{state:?}"),
    }
}

#[test]
fn h05_answers_of_a_third_host_and_of_older_attempts_are_ignored_and_alarm() {
    let mut scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    let (third, target) = (host("box-9"), scene.lab.site(TARGET).identity().clone());
    // While the guest lives here and no question is pending.
    lies(scene.lab.site(SOURCE), &third, &guest, AttemptId(1));
    // The source has committed and waits for the one answer that counts.
    let site = scene.lab.site_mut(TARGET);
    site.kill_migrator();
    site.start_migrator_with(Some("target:owned"));
    scene.begin(&guest, MigrationMode::Pre).unwrap();
    let died = scene.lab.site_mut(TARGET).migrator_dies(SHOWN_WAIT);
    assert_eq!(died, Ok(true));
    scene.reaches(&guest, Phase::Committed).unwrap();
    let open = journaled_attempt(&scene, &guest);
    let source = scene.lab.site(SOURCE);
    lies(source, &third, &guest, open);
    lies(source, &target, &guest, AttemptId(1));
    let view = shown(source, &guest);
    assert_eq!(view.ownership, Ownership::Relinquished);
    assert_eq!(view.state, GuestState::Frozen);
    assert_eq!(journaled_attempt(&scene, &guest), open);
    let log = std::fs::read_to_string(source.migrator_log()).unwrap();
    let is_audited = |line: &str| {
        let words = ["audit", "peer=edge/box-9", "answers Nack"];
        words.iter().all(|word| line.contains(word))
    };
    assert!(log.lines().any(is_audited), "{log}");
    // The genuine answer counts; afterwards both sites still tell forged answers from it.
    scene.lab.site_mut(TARGET).start_migrator();
    scene.arrives(&guest, &mut console).unwrap();
    let source = scene.lab.site(SOURCE).identity().clone();
    lies(scene.lab.site(SOURCE), &third, &guest, open);
    lies(scene.lab.site(TARGET), &source, &guest, open);
    scene.rest(&guest, &mut console).unwrap();
}

#[test]
fn h05_an_answer_before_the_question_leaves_the_guest_with_its_source() {
    let mut scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    scene.lab.site_mut(TARGET).kill_migrator();
    let liar = Answerer::at(scene.lab.site(TARGET));
    scene.begin(&guest, MigrationMode::Pre).unwrap();
    let welcome = Message::Welcome(Welcome {
        version: version::OURS.max,
    });
    let mut asked = liar.greet(&welcome);
    let offered = asked.hear();
    assert!(matches!(offered, Some(Message::Prepare(_))), "{offered:?}");
    // It claims to run the guest, which was not given to it.
    asked.say(&Message::Ack(1));
    alarms(scene.lab.site(SOURCE), Code::Unexpected);
    let ended = wait_until(SHOWN_WAIT, || {
        let moves = scene.lab.site(SOURCE).moves(&guest.name).ok()?;
        moves.iter().all(|it| it.phase.is_finished()).then_some(())
    });
    ended.expect("such a target gets no guest");
    let view = shown(scene.lab.site(SOURCE), &guest);
    assert_eq!(view.state, GuestState::Running);
    assert_eq!(view.ownership, Ownership::Owned);
    drop((asked, liar));
    scene.lab.site_mut(TARGET).start_migrator();
    scene.begin(&guest, MigrationMode::Pre).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
}

#[test]
fn a_target_is_told_again_that_a_move_is_over_for_the_word_may_have_died_on_its_way() {
    let mut scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let _console = scene.guest(&guest);
    scene.lab.site_mut(TARGET).kill_migrator();
    let deaf = Answerer::at(scene.lab.site(TARGET));
    let view = scene.begin(&guest, MigrationMode::Pre).unwrap();
    let welcome = Message::Welcome(Welcome {
        version: version::OURS.max,
    });
    let mut asked = deaf.greet(&welcome);
    let offered = asked.hear();
    assert!(matches!(offered, Some(Message::Prepare(_))), "{offered:?}");
    scene.lab.site(SOURCE).cancel(&view).unwrap();
    // This host, which looks like a target, has heard nothing as far as its source can know.
    let mut again = deaf.greet(&welcome);
    assert_eq!(again.hello.attempt, asked.hello.attempt);
    let last = again.hear();
    assert!(matches!(last, Some(Message::Abort(_))), "{last:?}");
    drop((asked, again));
    // It has closed the lanes, so it has heard the message.
    let forgotten = wait_until(SHOWN_WAIT, || {
        let folder = scene.lab.site(SOURCE).guest_folder(&guest.name);
        (!folder.join("farewells.json").exists()).then_some(())
    });
    forgotten.expect("it is not said for ever");
}

#[test]
fn h05_what_an_honest_target_says_again_alarms_nobody() {
    let mut scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    // It answers, and dies before the answer arrives; and again after it is back.
    for step in ["target:say-ack", "target:say-complete"] {
        let site = scene.lab.site_mut(TARGET);
        site.kill_migrator();
        site.start_migrator_with(Some(step));
        if step == "target:say-ack" {
            scene.begin(&guest, MigrationMode::Post).unwrap();
        }
        let died = scene.lab.site_mut(TARGET).migrator_dies(SHOWN_WAIT);
        assert_eq!(died, Ok(true), "{step}");
    }
    scene.lab.site_mut(TARGET).start_migrator();
    scene.arrives(&guest, &mut console).unwrap();
    // The source repeats a question to which it already knows the answer.
    let (site, source) = (scene.lab.site(TARGET), scene.lab.site(SOURCE).identity());
    let attempt = journaled_attempt(&scene, &guest);
    let mut again = Peer::open(
        &site.service_socket(),
        source,
        shown(site, &guest).id,
        attempt,
    );
    let again = again.as_mut().unwrap();
    for _ in 0..2 {
        let commit = Message::Commit(Epoch(2), Root([1; 32]));
        again.say(Lane::Control, &commit).unwrap();
        assert!(again.hear().is_some());
    }
    check_no_alarm(&scene.lab).unwrap();
}
