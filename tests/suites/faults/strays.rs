//! Both migrators are killed right after steps that a move reaches only if a peer misbehaves.

use towpath_migrator::api::{MigrationMode, Phase};
use towpath_protocol::fault::Code;
use towpath_protocol::guest_api::GuestConfig;
use towpath_protocol::identity::AttemptId;
use towpath_protocol::message::{Lane, Message};
use towpath_protocol::ownership::State;
use towpath_tests::journals::records;
use towpath_tests::killed::SLOW;
use towpath_tests::lab::{Guest, check_kvm};
use towpath_tests::peer::Peer;
use towpath_tests::scene::{LINK, SOURCE, Scene, TARGET};
use towpath_tests::steps::failpoint;
use towpath_tests::trial::Side;

use crate::peers::send_with_other_state;

const REPORT: (Side, &str) = (Side::Target, "report");

const TARGET_DROPS: (Side, &str) = (Side::Target, "drop-link");

const SOURCE_DROPS: (Side, &str) = (Side::Source, "drop-link");

/// The steps at which they die.
pub(crate) const STOPS: [(Side, &str); 3] = [REPORT, TARGET_DROPS, SOURCE_DROPS];

/// A process guest, and a virtual machine where those can run.
fn guests(name: &str, memory_mib: u64) -> Vec<Guest> {
    let guest = Guest::new(name, memory_mib);
    let machine = Guest::new(&format!("{name}-machine"), memory_mib).virtual_machine();
    let machine = check_kvm().is_ok().then_some(machine);
    std::iter::once(guest).chain(machine).collect()
}

fn description(scene: &Scene, guest: &Guest) -> GuestConfig {
    let path = scene.lab.site(SOURCE).guest_folder(&guest.name);
    let text = std::fs::read(path.join("guest.json")).unwrap();
    serde_json::from_slice(&text).unwrap()
}

#[test]
fn fault_05_target_killed_as_it_reports_an_image_that_differs() {
    let mut scene = Scene::new(LINK);
    for (guest, attempt) in guests("differs", 16).into_iter().zip(1..) {
        let (side, step) = REPORT;
        scene.restart_to_die(side, &failpoint(side, step));
        let mut console = scene.guest(&guest);
        let config = description(&scene, &guest);
        let (service, identity) = (
            scene.lab.site(TARGET).service_socket(),
            scene.lab.site(SOURCE).identity().clone(),
        );
        let source = Peer::open(&service, &identity, config.id, AttemptId(attempt));
        let (_, reason) = send_with_other_state(&mut source.unwrap(), &config, attempt);
        assert_eq!(reason.code, Code::RootMismatch.as_str());
        scene.died(side).unwrap();
        let site = scene.lab.site_mut(TARGET);
        site.start_migrator();
        let kept = std::fs::read_dir(site.folder().join("state/incidents")).unwrap();
        assert_eq!(kept.count(), usize::try_from(attempt).unwrap());
        // The guest that the false messages were about still runs at its source, and moves.
        scene.begin(&guest, MigrationMode::Auto).unwrap();
        scene.arrives(&guest, &mut console).unwrap();
        scene.lab.forget_guest(&guest.name);
    }
}

#[test]
fn fault_06_target_killed_as_it_drops_lanes_on_which_wrong_is_said() {
    let mut scene = Scene::new(SLOW);
    for guest in guests("wronged", 32) {
        let (side, step) = TARGET_DROPS;
        scene.restart_to_die(side, &failpoint(side, step));
        let mut console = scene.guest(&guest);
        scene.begin(&guest, MigrationMode::Post).unwrap();
        scene.reaches(&guest, Phase::Serving).unwrap();
        scene.lab.site_mut(SOURCE).kill_migrator();
        let [record, _] = records(&scene.lab, &guest.name).unwrap();
        let Some(State::Relinquished { attempt, .. }) = record.as_ref().map(|it| &it.state) else {
            panic!("{record:?}");
        };
        let (service, identity) = (
            scene.lab.site(TARGET).service_socket(),
            scene.lab.site(SOURCE).identity().clone(),
        );
        let id = description(&scene, &guest).id;
        let mut liar = Peer::open(&service, &identity, id, *attempt).unwrap();
        liar.say(Lane::Switch, &Message::FinalBegin).unwrap();
        scene.died(side).unwrap();
        scene.lab.site_mut(TARGET).start_migrator();
        scene.lab.site_mut(SOURCE).start_migrator();
        scene.arrives(&guest, &mut console).unwrap();
        scene.lab.forget_guest(&guest.name);
    }
}

#[test]
fn fault_03_source_killed_as_it_drops_lanes_that_are_refused_behind_the_commit() {
    let mut scene = Scene::new(LINK);
    for guest in guests("refused", 16) {
        scene.restart_to_die(Side::Source, &failpoint(Side::Source, "relinquished"));
        let mut console = scene.guest(&guest);
        // A migrator that dies at once does not answer.
        let asked = scene.begin(&guest, MigrationMode::Auto);
        let died = scene.died(Side::Source);
        died.unwrap_or_else(|why| panic!("{why}: {asked:?}"));
        // Nothing is answered about a guest whose record cannot be read.
        let target = scene.lab.site_mut(TARGET);
        target.kill_migrator();
        let journal = target.guest_folder(&guest.name).join("journal");
        let kept = std::fs::read(&journal).unwrap();
        std::fs::write(&journal, vec![0xa5; kept.len()]).unwrap();
        target.start_migrator();
        let (side, step) = SOURCE_DROPS;
        let source = scene.lab.site_mut(SOURCE);
        source.spawn_migrator(Some(&failpoint(side, step)));
        scene.died(side).unwrap();
        scene.lab.site_mut(SOURCE).start_migrator();
        console.read().unwrap();
        let target = scene.lab.site_mut(TARGET);
        target.kill_migrator();
        std::fs::write(&journal, kept).unwrap();
        target.start_migrator();
        scene.arrives(&guest, &mut console).unwrap();
        scene.lab.forget_guest(&guest.name);
    }
}
