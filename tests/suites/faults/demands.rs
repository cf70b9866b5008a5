//! Requests that no honest target makes: for blocks outside the guest, and for blocks of a guest
//! that has been released.

use std::sync::atomic::{AtomicBool, Ordering};

use towpath_migrator::api::MigrationMode;
use towpath_protocol::fault::Code;
use towpath_protocol::message::{Lane, Message};
use towpath_protocol::space::MEMORY;
use towpath_tests::lab::Guest;
use towpath_tests::meddler::{Altered, Meddler};
use towpath_tests::scene::{LINK, SOURCE, Scene, TARGET};

use super::peers::{alarms, open, shown};

/// Number of blocks of a guest of 16 MiB.
const BLOCK_COUNT: u64 = 4096;

/// Whether a request has been altered already; it is done once.
static IS_ALTERED: AtomicBool = AtomicBool::new(false);

/// Alters the first request to ask for the block after the last one.
fn beyond_memory(word: Message) -> Message {
    match word {
        Message::Demand(space, _) if !IS_ALTERED.swap(true, Ordering::SeqCst) => {
            Message::Demand(space, BLOCK_COUNT)
        }
        word => word,
    }
}

#[test]
fn f22_a_demand_altered_on_its_way_drops_the_lanes_and_the_guest_is_whole_in_the_end() {
    let scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    let service = scene.lab.site(TARGET).service_socket();
    let _meddler = Meddler::before(service, Altered::Asked(beyond_memory));
    scene.begin(&guest, MigrationMode::Post).unwrap();
    let source = scene.lab.site(SOURCE);
    assert_eq!(alarms(source, Code::Range), 1);
    assert!(IS_ALTERED.load(Ordering::SeqCst));
    // Nothing is read for it, the following requests come over new lanes, and every page is checked
    // at the end.
    scene.arrives(&guest, &mut console).unwrap();
    assert_eq!(alarms(source, Code::Range), 1, "it is refused once");
    let log = std::fs::read_to_string(source.migrator_log()).unwrap();
    let is_refused = |line: &&str| line.contains("E_RANGE") && line.contains("4096");
    assert!(log.lines().any(|line| is_refused(&line)), "{log}");
    let target_log = std::fs::read_to_string(scene.lab.site(TARGET).migrator_log()).unwrap();
    assert!(target_log.contains("lanes are down"), "{target_log}");
}

#[test]
fn f24_whoever_asks_for_blocks_of_a_guest_that_was_let_go_gets_none() {
    let scene = Scene::new(LINK);
    let guest = Guest::new("till", 16);
    let mut console = scene.guest(&guest);
    let id = shown(scene.lab.site(SOURCE), &guest).id;
    scene.begin(&guest, MigrationMode::Post).unwrap();
    scene.arrives(&guest, &mut console).unwrap();
    let source = scene.lab.site(SOURCE);
    let attempt = 1;
    let mut target = open(source, "box-7", id, attempt);
    let demand = Message::Demand(MEMORY, 3);
    for lane in [Lane::Demand, Lane::Control] {
        // The lanes may already have ended.
        drop(target.say(lane, &demand));
    }
    // Such lanes end, and nothing has been sent on them.
    assert_eq!(target.count_frames(Lane::Demand), 0);
    assert_eq!(target.count_frames(Lane::Bulk), 0);
}
