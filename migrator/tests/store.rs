//! Tests of the state folder: nothing planted there is followed, and received blocks are
//! remembered.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a test that fails there has found something"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{CWD, FileType, Mode};
use tempfile::TempDir;
use towpath_migrator::store::{Position, ReceivedFile, Store};
use towpath_protocol::fault::Code;
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, Name};
use towpath_protocol::ownership::{Decider, Record, State};
use towpath_protocol::space::{BlockRun, BlockSet, Geometry, SpaceId};

const MEMORY: SpaceId = SpaceId(0);
const VOLUME: SpaceId = SpaceId(1);

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn root(folder: &TempDir) -> PathBuf {
    folder.path().join("towpath")
}

/// A state folder with one guest in it.
fn store_with_guest() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&root(&folder)).unwrap();
    store.create_guest(&name("till-7")).unwrap();
    (folder, store)
}

fn code<T>(result: Result<T, towpath_protocol::fault::Fault>) -> Option<Code> {
    result.err().map(|fault| fault.code)
}

fn spaces() -> Vec<Geometry> {
    vec![
        Geometry::new(4096, 5000).unwrap(),
        Geometry::new(65536, 129).unwrap(),
    ]
}

#[test]
fn folders_and_files_are_ours_alone() {
    let (folder, store) = store_with_guest();
    let guest = store.guest(&name("till-7")).unwrap();
    guest.create_journal(b"x").unwrap();
    guest.write(&name("config"), b"y").unwrap();
    guest.create_received(AttemptId(1), &spaces()).unwrap();
    let mode = |path: &str| {
        let metadata = fs::symlink_metadata(root(&folder).join(path)).unwrap();
        metadata.permissions().mode() & 0o777
    };
    for path in ["", "guests", "guests/till-7"] {
        assert_eq!(mode(path), 0o700, "{path}");
    }
    for file in ["journal", "config", "received"] {
        assert_eq!(mode(&format!("guests/till-7/{file}")), 0o600, "{file}");
    }
    let journal = fs::metadata(root(&folder).join("guests/till-7/journal")).unwrap();
    assert_eq!(journal.len(), 8192);
    assert!(journal.blocks() * 512 >= 8192, "its space is taken");
}

#[test]
fn f27_the_newest_incidents_are_kept_and_no_more() {
    let (folder, store) = store_with_guest();
    let incidents = root(&folder).join("incidents");
    // A file that is no incident stays and does not count.
    fs::write(incidents.join("note"), "mine").unwrap();
    for number in 0..40_u64 {
        store
            .keep_incident(&format!("{number:013}-guest.json"), &number.to_le_bytes())
            .unwrap();
    }
    let mut names: Vec<String> = fs::read_dir(&incidents)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let newest = (24..40).map(|number| format!("{number:013}-guest.json"));
    let expected: Vec<String> = newest.chain(["note".to_owned()]).collect();
    assert_eq!(names, expected);
    let last = incidents.join(&names[15]);
    assert_eq!(fs::read(&last).unwrap(), 39_u64.to_le_bytes());
    let mode = fs::metadata(&last).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    // The newest file is never the one removed, whatever the clock says.
    store
        .keep_incident("0000000000000-early.json", b"x")
        .unwrap();
    assert!(incidents.join("0000000000000-early.json").exists());
    assert!(!incidents.join(&names[0]).exists());
}

#[test]
fn what_is_kept_of_an_ended_guest_outlives_restarts_until_it_has_a_folder_again() {
    let (folder, store) = store_with_guest();
    let guest = GuestId(7);
    assert_eq!(store.ended(guest), Ok(None));
    store.keep_stranger(guest, b"refused").unwrap();
    store.keep_ended(guest, b"taken").unwrap();
    drop(store);
    let store = Store::open(&root(&folder)).unwrap();
    assert_eq!(store.ended(guest), Ok(Some(b"taken".to_vec())));
    assert_eq!(store.ended(GuestId(8)), Ok(None));
    assert_eq!(store.guests(), Ok(vec![name("till-7")]), "it is no guest");
    store.forget_ended(guest).unwrap();
    store.forget_ended(guest).unwrap();
    assert_eq!(store.ended(guest), Ok(None));
}

#[test]
fn what_is_said_of_an_ended_guest_later_is_what_is_known_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let root = root(&folder);
    let store = Store::open(&root).unwrap();
    let guest = GuestId(7);
    store.keep_ended(guest, b"taken").unwrap();
    store.keep_stranger(guest, b"refused").unwrap();
    assert_eq!(store.ended(guest).unwrap().unwrap(), b"refused");
    store.keep_refused(guest, b"refused again").unwrap();
    drop(store);
    let store = Store::open(&root).unwrap();
    assert_eq!(store.ended(guest).unwrap().unwrap(), b"refused again");
}

fn peer(name: &str) -> HostIdentity {
    HostIdentity::from_uri(&format!("spiffe://d/site/region/host/{name}")).unwrap()
}

/// The record a host keeps after refusing a guest of this peer.
fn refused(of: &str, guest: GuestId) -> Vec<u8> {
    let state = State::Refused {
        epoch: Epoch(1),
        attempt: AttemptId(1),
        source: peer(of),
    };
    let record = Record {
        guest,
        high_water: Epoch(1),
        decider: Decider::SourceJournal,
        state,
        verdicts: Vec::new(),
    };
    record.encode()
}

#[test]
fn a_peer_that_names_guests_without_end_fills_only_its_own_share() {
    let (folder, store) = store_with_guest();
    let mut number = 0;
    let mut fill = |store: &Store| {
        loop {
            number += 1;
            let guest = GuestId(number);
            if let Err(fault) = store.keep_stranger(guest, &refused("bad", guest)) {
                assert_eq!(fault.code, Code::Busy);
                return number;
            }
        }
    };
    let last = fill(&store);
    assert!(last > 100, "an honest one has more than it needs");
    // A guest that has a record may be refused again.
    store
        .keep_stranger(GuestId(1), &refused("bad", GuestId(1)))
        .unwrap();
    // The counts survive restarts, and a guest that was ended here counts for no peer.
    drop(store);
    let store = Store::open(&root(&folder)).unwrap();
    assert_eq!(fill(&store), last + 1);
    store.keep_ended(GuestId(1 << 64), b"taken").unwrap();
    let good = GuestId(2 << 64);
    store.keep_stranger(good, &refused("good", good)).unwrap();
    let offered = GuestId(3 << 64);
    store
        .keep_refused(offered, &refused("good", offered))
        .unwrap();
    // A guest that does arrive makes room.
    store.forget_ended(GuestId(1)).unwrap();
    assert_eq!(fill(&store), last + 3);
}

#[test]
fn peers_that_fill_their_shares_leave_another_its_own() {
    let (folder, store) = store_with_guest();
    let strangers = root(&folder).join("strangers");
    for peer in 0..16_u128 {
        let first = GuestId(peer << 64);
        let record = refused(&format!("bad-{peer}"), first);
        store.keep_stranger(first, &record).unwrap();
        let path = strangers.join(first.to_string());
        for number in 1..1024 {
            let other = GuestId(first.0 + number);
            fs::copy(&path, strangers.join(other.to_string())).unwrap();
        }
    }
    drop(store);
    let store = Store::open(&root(&folder)).unwrap();
    let full = GuestId(99 << 64);
    let fault = store.keep_stranger(full, &refused("bad-3", full));
    assert_eq!(fault.unwrap_err().code, Code::Busy);
    for number in 0..2 {
        let good = GuestId(number | 1 << 100);
        assert_eq!(store.check_share(good, &peer("good"), 0), Ok(()));
        store.keep_stranger(good, &refused("good", good)).unwrap();
    }
}

#[test]
fn a_guest_is_offered_only_where_it_can_be_remembered_if_it_does_not_come() {
    let (_folder, store) = store_with_guest();
    let new = GuestId(1);
    let room = || {
        let is_full = |count: &usize| store.check_share(new, &peer("bad"), *count).is_err();
        (0..).find(is_full).unwrap()
    };
    let most = room();
    assert!(most > 100, "an honest one has more than it needs");
    assert_eq!(store.check_share(new, &peer("good"), most - 1), Ok(()));
    let known = GuestId(2);
    store.keep_refused(known, &refused("bad", known)).unwrap();
    assert_eq!(room(), most - 1);
    // Guests that have a record already take no further place.
    let ended = GuestId(3);
    store.keep_ended(ended, b"taken").unwrap();
    for guest in [known, ended] {
        assert_eq!(store.check_share(guest, &peer("bad"), most), Ok(()));
    }
    // A guest that was admitted is kept, whatever was named meanwhile.
    let named = (10..).map(GuestId);
    for guest in named {
        if store.keep_stranger(guest, &refused("bad", guest)).is_err() {
            break;
        }
    }
    assert_eq!(room(), 0);
    store.keep_refused(new, &refused("bad", new)).unwrap();
}

#[test]
fn guests_of_a_peer_are_counted_without_a_word_to_the_disk() {
    let (folder, store) = store_with_guest();
    let counted = GuestId(1);
    let record = refused("peer", counted);
    store.keep_stranger(counted, &record).unwrap();
    drop(store);
    let path = root(&folder).join("strangers").join(counted.to_string());
    let before = fs::read(&path).unwrap();
    let store = Store::open(&root(&folder)).unwrap();
    let other = GuestId(2);
    store.keep_stranger(other, &refused("peer", other)).unwrap();
    assert_eq!(fs::read(&path).unwrap(), before);
    // The record is made durable before anything is answered because of it.
    assert_eq!(store.ended(counted), Ok(Some(record)));
    assert_ne!(fs::read(&path).unwrap(), before);
}

#[test]
fn guests_that_end_at_the_same_time_are_kept_each_for_itself() {
    let (_folder, store) = store_with_guest();
    std::thread::scope(|scope| {
        for guest in 0..16 {
            let store = &store;
            scope.spawn(move || {
                for round in 0..20 {
                    let record = format!("guest {guest}, round {round}");
                    store.keep_ended(GuestId(guest), record.as_bytes()).unwrap();
                    let kept = store.ended(GuestId(guest)).unwrap().unwrap();
                    assert_eq!(String::from_utf8(kept).unwrap(), record);
                    if round % 5 == 4 {
                        store.forget_ended(GuestId(guest)).unwrap();
                    }
                }
            });
        }
    });
}

#[test]
fn no_rotten_slot_brings_back_what_was_kept_of_an_ended_guest_before() {
    let (folder, store) = store_with_guest();
    for (guest, slot) in [(GuestId(7), 0), (GuestId(8), 4096)] {
        store.keep_ended(guest, b"refused").unwrap();
        store.keep_ended(guest, b"taken").unwrap();
        let path = root(&folder).join("ended").join(guest.to_string());
        let mut bytes = fs::read(&path).unwrap();
        bytes[slot + 40] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert_eq!(store.ended(guest), Ok(Some(b"taken".to_vec())));
    }
}

#[test]
fn a_folder_others_may_enter_is_refused() {
    for mode in [0o755, 0o710, 0o701, 0o777] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(root(&folder)).unwrap();
        fs::set_permissions(root(&folder), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(
            code(Store::open(&root(&folder))),
            Some(Code::Path),
            "{mode:o}"
        );
    }
}

#[test]
fn guests_come_and_go_by_name() {
    let (folder, store) = store_with_guest();
    store.create_guest(&name("a.b_c")).unwrap();
    fs::write(root(&folder).join("guests/.hidden"), b"").unwrap();
    assert_eq!(store.guests().unwrap(), [name("a.b_c"), name("till-7")]);
    assert_eq!(
        code(store.create_guest(&name("till-7"))),
        Some(Code::GuestExists)
    );
    assert_eq!(code(store.guest(&name("none"))), Some(Code::NotFound));
    let guest = store.guest(&name("till-7")).unwrap();
    guest.write(&name("config"), b"text").unwrap();
    assert_eq!(
        guest.read(&name("config")).unwrap().as_deref(),
        Some(&b"text"[..])
    );
    guest.write(&name("config"), b"other").unwrap();
    assert_eq!(
        guest.read(&name("config")).unwrap().as_deref(),
        Some(&b"other"[..])
    );
    guest.remove(&name("config")).unwrap();
    guest.remove(&name("config")).unwrap();
    assert_eq!(guest.read(&name("config")).unwrap(), None);
    guest.create_journal(b"x").unwrap();
    store.remove_guest(&name("till-7")).unwrap();
    assert_eq!(store.guests().unwrap(), [name("a.b_c")]);
    assert_eq!(
        code(store.remove_guest(&name("till-7"))),
        Some(Code::NotFound)
    );
}

#[test]
fn a_journal_is_made_once_and_reopened_by_later_starts() {
    let (folder, store) = store_with_guest();
    let guest = store.guest(&name("till-7")).unwrap();
    assert_eq!(code(guest.open_journal()), Some(Code::NotFound));
    let mut journal = guest.create_journal(b"one").unwrap();
    assert_eq!(
        code(guest.create_journal(b"other")),
        Some(Code::GuestExists)
    );
    journal.write(b"two").unwrap();
    assert_eq!(store.incarnation(), 1);
    drop((guest, journal, store));
    for start in 2..5 {
        let store = Store::open(&root(&folder)).unwrap();
        assert_eq!(store.incarnation(), start);
        let guest = store.guest(&name("till-7")).unwrap();
        assert_eq!(guest.open_journal().unwrap().record(), b"two");
    }
}

#[test]
fn a_journal_that_was_not_finished_is_as_if_it_never_was() {
    let (folder, store) = store_with_guest();
    let guest = store.guest(&name("till-7")).unwrap();
    // The power failed before the journal got its name.
    fs::write(root(&folder).join("guests/till-7/.unfinished"), b"torn").unwrap();
    assert_eq!(code(guest.open_journal()), Some(Code::NotFound));
    guest.create_journal(b"one").unwrap();
    assert_eq!(guest.open_journal().unwrap().record(), b"one");
}

#[test]
fn fault_45_a_folder_put_together_from_two_times_quarantines_its_guests() {
    let (folder, store) = store_with_guest();
    let incarnation = root(&folder).join("incarnation");
    let early = fs::read(&incarnation).unwrap();
    drop(store);
    for _ in 0..3 {
        let store = Store::open(&root(&folder)).unwrap();
        let guest = store.guest(&name("till-7")).unwrap();
        drop(
            guest
                .open_journal()
                .or_else(|_| guest.create_journal(b"one"))
                .unwrap(),
        );
    }
    fs::write(&incarnation, early).unwrap();
    let store = Store::open(&root(&folder)).unwrap();
    let guest = store.guest(&name("till-7")).unwrap();
    assert_eq!(code(guest.open_journal()), Some(Code::Quarantine));
}

#[test]
fn fault_46_only_one_store_at_a_time() {
    let (folder, store) = store_with_guest();
    let fault = Store::open(&root(&folder)).expect_err("locked");
    assert_eq!(fault.code, Code::AlreadyRunning);
    let process = std::process::id().to_string();
    assert!(fault.detail.contains(&process), "{fault}");
    drop(store);
    assert!(Store::open(&root(&folder)).is_ok());
}

#[test]
fn fault_46_the_lock_is_given_up_when_the_process_dies() {
    // The lock is released when the store's own file is closed, as by a kill, not when another
    // descriptor of the lock file is closed.
    let (folder, store) = store_with_guest();
    let other = fs::File::open(root(&folder).join("lock")).unwrap();
    drop(other);
    assert_eq!(
        code(Store::open(&root(&folder))),
        Some(Code::AlreadyRunning)
    );
    drop(store);
    assert!(Store::open(&root(&folder)).is_ok());
}

/// Replaces a file with something that an attacker, or a careless restore, may have put there.
fn plant(kind: &str, at: &Path, outside: &Path) -> bool {
    drop(fs::remove_file(at));
    match kind {
        "symlink" => symlink(outside, at).unwrap(),
        "symlink beneath" => {
            // The link stays in our own folder and leads to a valid file.
            fs::write(at.with_file_name("decoy"), vec![0; 8192]).unwrap();
            symlink("decoy", at).unwrap();
        }
        "dangling symlink" => symlink("/nonexistent/x", at).unwrap(),
        "hard link" => fs::hard_link(outside, at).unwrap(),
        "folder" => fs::create_dir(at).unwrap(),
        "fifo" => rustix::fs::mknodat(CWD, at, FileType::Fifo, Mode::RWXU, 0).unwrap(),
        "device" => {
            let null = rustix::fs::makedev(1, 3);
            let made = rustix::fs::mknodat(CWD, at, FileType::CharacterDevice, Mode::RWXU, null);
            if let Err(errno) = made {
                println!("skipped: no device can be made here: {errno}");
                return false;
            }
        }
        _ => unreachable!("no such kind"),
    }
    true
}

const PLANTED: [&str; 7] = [
    "symlink",
    "symlink beneath",
    "dangling symlink",
    "hard link",
    "folder",
    "fifo",
    "device",
];

#[test]
fn d02_what_is_planted_in_the_place_of_a_file_is_never_used() {
    for kind in PLANTED {
        for file in ["journal", "received", "config"] {
            let (folder, store) = store_with_guest();
            let guest = store.guest(&name("till-7")).unwrap();
            let outside = folder.path().join("outside");
            fs::write(&outside, vec![7; 8192]).unwrap();
            if !plant(
                kind,
                &root(&folder).join("guests/till-7").join(file),
                &outside,
            ) {
                continue;
            }
            let result = match file {
                "journal" => code(guest.open_journal()),
                "received" => code(guest.open_received()),
                _ => code(guest.read(&name("config"))),
            };
            assert_eq!(result, Some(Code::Path), "{kind} in the place of {file}");
            assert_eq!(
                fs::read(&outside).unwrap(),
                vec![7; 8192],
                "{kind}: untouched"
            );
        }
    }
}

#[test]
fn d02_making_a_file_never_writes_through_what_is_planted() {
    for kind in PLANTED {
        let (folder, store) = store_with_guest();
        let guest = store.guest(&name("till-7")).unwrap();
        let outside = folder.path().join("outside");
        fs::write(&outside, b"precious").unwrap();
        let at = root(&folder).join("guests/till-7");
        for file in [".unfinished", "journal", "received", "config"] {
            if !plant(kind, &at.join(file), &outside) {
                return;
            }
        }
        for result in [
            code(guest.create_journal(b"x")),
            code(guest.create_received(AttemptId(1), &spaces())),
            code(guest.write(&name("config"), b"y")),
        ] {
            let is_refused = matches!(result, None | Some(Code::Path | Code::GuestExists));
            assert!(is_refused, "{kind}: {result:?}");
        }
        assert!(
            code(guest.create_journal(b"x")).is_some(),
            "{kind}: not replaced"
        );
        assert_eq!(fs::read(&outside).unwrap(), b"precious", "{kind}");
        assert!(!Path::new("/nonexistent/x").exists());
    }
}

#[test]
fn d02_what_is_planted_in_the_place_of_a_folder_is_never_entered() {
    for (kind, expected) in [
        ("symlink", Code::Path),
        ("dangling symlink", Code::Path),
        ("fifo", Code::Path),
    ] {
        let (folder, store) = store_with_guest();
        let outside = folder.path().join("outside");
        fs::DirBuilder::new().mode(0o700).create(&outside).unwrap();
        fs::write(outside.join("journal"), b"theirs").unwrap();
        let guests = root(&folder).join("guests");
        plant(kind, &guests.join("evil"), &outside);
        assert_eq!(code(store.guest(&name("evil"))), Some(expected), "{kind}");
        assert_eq!(
            code(store.remove_guest(&name("evil"))),
            Some(expected),
            "{kind}"
        );
        assert_eq!(
            code(store.create_guest(&name("evil"))),
            Some(Code::GuestExists),
            "{kind}"
        );
        assert_eq!(fs::read(outside.join("journal")).unwrap(), b"theirs");
        drop(store);
        fs::remove_dir(guests.join("till-7")).unwrap();
        fs::remove_file(guests.join("evil")).unwrap();
        fs::remove_dir(&guests).unwrap();
        plant(kind, &guests, &outside);
        assert_eq!(
            code(Store::open(&root(&folder))),
            Some(Code::Path),
            "{kind} as guests"
        );
    }
}

#[test]
fn d02_the_lock_and_the_count_of_starts_are_plain_files_too() {
    for file in ["lock", "incarnation"] {
        for kind in PLANTED {
            let (folder, store) = store_with_guest();
            drop(store);
            let outside = folder.path().join("outside");
            fs::write(&outside, b"precious").unwrap();
            if !plant(kind, &root(&folder).join(file), &outside) {
                continue;
            }
            assert_eq!(
                code(Store::open(&root(&folder))),
                Some(Code::Path),
                "{kind} as {file}"
            );
            assert_eq!(fs::read(&outside).unwrap(), b"precious");
        }
    }
}

#[test]
fn d01_there_is_no_way_to_name_a_path() {
    // The store takes only `Name`s; these are none.
    for bad in [
        "../till-7",
        "/etc",
        ".",
        "..",
        ".unfinished",
        "a/b",
        "",
        "a\0b",
    ] {
        assert_eq!(code(bad.parse::<Name>()), Some(Code::Name), "{bad:?}");
    }
}

/// A file of received blocks in its own folder.
fn marks() -> (TempDir, Store, ReceivedFile) {
    let (folder, store) = store_with_guest();
    let guest = store.guest(&name("till-7")).unwrap();
    let received = guest.create_received(AttemptId(9), &spaces()).unwrap();
    (folder, store, received)
}

fn reopen(store: &Store) -> Result<ReceivedFile, Code> {
    let guest = store.guest(&name("till-7")).unwrap();
    guest.open_received().map_err(|fault| fault.code)
}

fn run(start: u64, count: u32) -> BlockRun {
    BlockRun { start, count }
}

#[test]
fn what_arrived_survives_a_kill() {
    let (_folder, store, mut received) = marks();
    assert_eq!(received.position(), Position::default());
    received.insert_run(MEMORY, run(0, 1)).unwrap();
    received.insert_run(MEMORY, run(100, 4900)).unwrap();
    received.insert_run(VOLUME, run(128, 1)).unwrap();
    received.remove_run(MEMORY, run(4000, 10)).unwrap();
    let position = Position {
        sequence: 77,
        chain: [3; 32],
    };
    received.set_position(position).unwrap();
    // Reopened without closing, because a killed process closes nothing explicitly.
    let again = reopen(&store).unwrap();
    assert_eq!(again.attempt(), AttemptId(9));
    assert_eq!(again.geometries(), spaces());
    assert_eq!(again.position(), position);
    for space in [MEMORY, VOLUME] {
        assert_eq!(again.received(space), received.received(space));
    }
    assert_eq!(again.received(MEMORY).unwrap().len(), 1 + 4900 - 10);
    assert!(again.received(VOLUME).unwrap().contains(128));
}

#[test]
fn a_new_attempt_begins_with_nothing() {
    let (_folder, store, mut received) = marks();
    received.insert_run(MEMORY, run(0, 5000)).unwrap();
    let guest = store.guest(&name("till-7")).unwrap();
    guest.create_received(AttemptId(10), &spaces()).unwrap();
    let again = reopen(&store).unwrap();
    assert_eq!(again.attempt(), AttemptId(10));
    assert!(again.received(MEMORY).unwrap().is_empty());
    guest.remove_received().unwrap();
    assert_eq!(reopen(&store).unwrap_err(), Code::NotFound);
}

#[test]
fn f08_marks_outside_their_space_are_refused() {
    let (_folder, _store, mut received) = marks();
    for (space, run) in [
        (MEMORY, run(5000, 1)),
        (MEMORY, run(4999, 2)),
        (MEMORY, run(u64::MAX, 1)),
        (MEMORY, run(0, 0)),
        (VOLUME, run(129, 1)),
        (SpaceId(2), run(0, 1)),
    ] {
        assert_eq!(code(received.insert_run(space, run)), Some(Code::Range));
        assert_eq!(code(received.remove_run(space, run)), Some(Code::Range));
    }
    assert_eq!(code(received.received(SpaceId(2))), Some(Code::Range));
}

#[test]
fn damaged_marks_lose_the_image_and_never_promise_a_block() {
    let (folder, store, mut received) = marks();
    received.insert_run(MEMORY, run(10, 1000)).unwrap();
    received.insert_run(VOLUME, run(0, 100)).unwrap();
    received
        .set_position(Position {
            sequence: 5,
            chain: [1; 32],
        })
        .unwrap();
    let path = root(&folder).join("guests/till-7/received");
    let good = fs::read(&path).unwrap();
    let file = fs::File::options().write(true).open(&path).unwrap();
    for at in 0..good.len() {
        let flipped = good[at] ^ (1 << (at % 8));
        file.write_all_at(&[flipped], at as u64).unwrap();
        let result = reopen(&store);
        assert_eq!(result.err(), Some(Code::ImageLost), "byte {at}");
        file.write_all_at(&good[at..=at], at as u64).unwrap();
    }
    assert!(reopen(&store).is_ok());
    // A line from another place in the file has a valid checksum, but not for this place.
    file.write_all_at(&good[8192..8256], 8256).unwrap();
    assert_eq!(reopen(&store).unwrap_err(), Code::ImageLost);
    file.write_all_at(&good, 0).unwrap();
    for length in [
        0,
        100,
        4096,
        8191,
        good.len() as u64 - 1,
        good.len() as u64 + 1,
    ] {
        file.set_len(length).unwrap();
        assert_eq!(
            reopen(&store).unwrap_err(),
            Code::ImageLost,
            "{length} bytes"
        );
        (&file).write_all(b"").unwrap();
        file.write_all_at(&good, 0).unwrap();
        file.set_len(good.len() as u64).unwrap();
    }
    assert!(reopen(&store).is_ok());
}

#[test]
fn a_gibibyte_of_marks_costs_one_small_write_a_chunk() {
    let (_folder, store) = store_with_guest();
    let guest = store.guest(&name("till-7")).unwrap();
    let geometry = Geometry::memory(1 << 30).unwrap();
    let mut received = guest.create_received(AttemptId(1), &[geometry]).unwrap();
    let begun = std::time::Instant::now();
    for chunk in 0..16384 {
        received.insert_run(MEMORY, run(chunk * 16, 16)).unwrap();
        received
            .set_position(Position {
                sequence: chunk + 1,
                chain: [0; 32],
            })
            .unwrap();
    }
    println!(
        "marking a chunk and the position: {:?}",
        begun.elapsed() / 16384
    );
    let again = reopen(&store).unwrap();
    assert_eq!(
        again.received(MEMORY).unwrap().len(),
        geometry.block_count()
    );
    assert_eq!(again.position().sequence, 16384);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn marks_on_disk_agree_with_a_block_set(
        steps in prop::collection::vec((any::<bool>(), 0_u64..5000, 1_u32..2000), 1..40)
    ) {
        let (_folder, store, mut received) = marks();
        let mut model = BlockSet::empty(5000);
        for (is_insert, start, count) in steps {
            let run = run(start, count.min((5000 - start) as u32));
            if is_insert {
                received.insert_run(MEMORY, run).unwrap();
                model.insert_run(run);
            } else {
                received.remove_run(MEMORY, run).unwrap();
                model.remove_run(run);
            }
            prop_assert_eq!(received.received(MEMORY).unwrap(), &model);
        }
        let again = reopen(&store).unwrap();
        prop_assert_eq!(again.received(MEMORY).unwrap(), &model);
        prop_assert!(again.received(VOLUME).unwrap().is_empty());
    }
}
