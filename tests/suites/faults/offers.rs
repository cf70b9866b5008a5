//! Offers of guests with nothing after them: what a peer can occupy on a host by messages alone.

use std::time::Duration;

use towpath_daemon::units::Span;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::GuestId;
use towpath_protocol::message::{Lane, Message};
use towpath_tests::peer::Peer;
use towpath_tests::scene::{LINK, Scene, TARGET};
use towpath_tests::site::Site;
use towpath_tests::verdict::wait_until;

use crate::peers::{SHOWN_WAIT, code, described, offer, open};

/// Concurrent offers.
const OFFER_COUNT: u128 = 1000;

/// Places for one peer: `limits.incoming_per_peer`, and the row of the catalogue.
const PLACE_COUNT: usize = 4;

/// How long an offer keeps its place in the part of the test that waits for that.
const OFFER_WAIT: Duration = Duration::from_secs(1);

/// The most that a migrator may grow while it refuses, in KiB: buffers and threads of the open
/// lanes.
const GROWTH_KIB_MAX: u64 = 24 << 10;

/// Memory of each guest offered; a thousand of them are four times the quota.
const MEMORY_MIB: u64 = 64;

/// Offers a guest; returns the peer if it is admitted, or the code of the refusal.
fn offered(site: &Site, from: &str, id: u128) -> Result<Peer, String> {
    let mut peer = open(site, from, GuestId(id), id);
    let config = described(GuestId(id), &format!("till-{id}"), MEMORY_MIB);
    peer.say(Lane::Control, &offer(&config, 2)).unwrap();
    match peer.hear() {
        Some(Message::Prepared(_)) => Ok(peer),
        Some(Message::Refused(reason)) => Err(code(&reason).to_owned()),
        other => panic!("{other:?}"),
    }
}

/// Number of guest folders at a site.
fn folder_count(site: &Site) -> usize {
    let folders = std::fs::read_dir(site.folder().join("state/guests")).unwrap();
    folders.count()
}

/// Number of processes of the offered guests.
fn process_count(scene: &Scene, ids: impl Iterator<Item = u128>) -> usize {
    let of = |id| {
        let name = format!("till-{id}").parse().unwrap();
        scene.lab.guest_processes(TARGET, &name).len()
    };
    ids.map(of).sum()
}

fn ends(scene: &Scene, ids: &[u128]) {
    let gone = wait_until(SHOWN_WAIT, || {
        let is_empty = folder_count(scene.lab.site(TARGET)) == 0;
        (is_empty && process_count(scene, ids.iter().copied()) == 0).then_some(())
    });
    gone.expect("nothing is left of what was offered");
}

#[test]
fn h10_a_thousand_offers_without_data_hold_four_places_and_no_memory() {
    let mut scene = Scene::new(LINK);
    let site = scene.lab.site(TARGET);
    // The first admitted offer shows what each one costs.
    let mut admitted = vec![offered(site, "box-7", 0).unwrap()];
    let before = site.peaks_kib()[0];
    for id in 1..OFFER_COUNT {
        match offered(site, "box-7", id) {
            Ok(peer) => admitted.push(peer),
            Err(code) => assert_eq!(code, Code::Busy.as_str()),
        }
        assert!(folder_count(site) <= PLACE_COUNT, "it makes room first");
    }
    assert_eq!(admitted.len(), PLACE_COUNT);
    let grown = site.peaks_kib()[0].saturating_sub(before);
    println!("{OFFER_COUNT} offers: {grown} KiB more");
    assert!(grown <= GROWTH_KIB_MAX, "{grown} KiB more");
    assert_eq!(process_count(&scene, 0..OFFER_COUNT), PLACE_COUNT);
    // Another peer is still admitted.
    admitted.push(offered(site, "box-8", OFFER_COUNT).unwrap());

    // Offers expire after their time, including those from before a restart.
    let wait = Span::new(OFFER_WAIT);
    let site = scene.lab.site_mut(TARGET);
    site.reconfigure_migrator(|config| config.limits.offer_wait = wait);
    let ids: Vec<u128> = (0..PLACE_COUNT as u128).chain([OFFER_COUNT]).collect();
    ends(&scene, &ids);
    // One peer that keeps sending, one that reopens its lanes, and others whose lanes are gone.
    let ids: Vec<u128> = (2000..).take(PLACE_COUNT).collect();
    let site = scene.lab.site(TARGET);
    let mut talker = offered(site, "box-7", ids[0]).unwrap();
    for id in &ids[1..] {
        drop(offered(site, "box-7", *id).unwrap());
    }
    assert_eq!(
        offered(site, "box-7", 3000).map(drop),
        Err(Code::Busy.as_str().to_owned())
    );
    let ended = wait_until(SHOWN_WAIT, || {
        drop(open(site, "box-7", GuestId(ids[1]), ids[1]));
        talker.say(Lane::Control, &Message::Ping(1)).ok()?;
        match talker.hear()? {
            Message::Pong(_) => None,
            Message::Nack(reason) => Some(reason),
            other => panic!("{other:?}"),
        }
    });
    assert_eq!(code(&ended.expect("it ends")), Code::Stalled.as_str());
    ends(&scene, &ids);
    // The places are free again.
    for id in (4000..).take(PLACE_COUNT) {
        drop(offered(scene.lab.site(TARGET), "box-7", id).unwrap());
    }
}
