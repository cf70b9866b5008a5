//! Tests that the engine does what its configuration says, and that hosts recover their guests.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::TryRecvError;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde_json::{Value, json};
use tempfile::TempDir;
use towpath_daemon::config as file;
use towpath_protocol::frame::write_frame;
use towpath_protocol::guest_api::{self, Workload};
use towpath_protocol::identity::{AttemptId, Epoch, HostIdentity, MigrationId};
use towpath_protocol::message::Message;

use super::greeting::greet;
use super::ground::now;
use super::input::{Booting, Claim, Command};
use super::order::{Order, Spent};
use super::shared::{Beginning, quarantined};
use super::source_move::SourceMove;
use super::*;
use crate::api::{GuestRequest, GuestState, GuestView, MigrationRequest, MigrationView, Phase};
use crate::config::{Limits, Quota};
use crate::journal::{RECORD_BYTES_MAX, SLOT_BYTES};

const MIB: u64 = 1 << 20;

/// Longest that any wait in these tests may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// A host with `more` in its configuration and no guests.
pub(super) fn host(more: &str) -> (TempDir, Arc<Shared>) {
    let folder = tempfile::tempdir().unwrap();
    let (state, run) = (folder.path().join("state"), folder.path().join("run"));
    let text = format!(
        "trust_domain = \"d\"\nsite = \"edge\"\nhost = \"box\"\nstate_dir = {state:?}\nrun_dir = {run:?}\n{more}"
    );
    let config: Config = file::check(Path::new("migrator.toml"), &text).unwrap();
    let store = Store::open(&config.state_dir).unwrap();
    (folder, Arc::new(Shared::new(config, store).unwrap()))
}

fn code<T>(result: Result<T, Fault>) -> Option<Code> {
    result.err().map(|fault| fault.code)
}

/// Reserves room for guests until one is refused. Returns how many fit and the refusal's code.
fn begun(shared: &Arc<Shared>, memory_bytes: u64) -> (usize, Code) {
    let mut rooms = Vec::new();
    for number in 0..100 {
        match shared.begin(GuestId(number), memory_bytes) {
            Ok(room) => rooms.push(room),
            Err(fault) => return (rooms.len(), fault.code),
        }
    }
    panic!("100 guests found room");
}

/// Admits guests of one peer until one is refused. Returns how many were admitted and the refusal's
/// code.
fn sent(shared: &Arc<Shared>) -> (u128, Code) {
    let peer = HostIdentity::from_uri("spiffe://d/site/region/host/box").unwrap();
    for number in 0..100 {
        let admitted = shared.admit(&peer, GuestId(number), AttemptId(number), 1);
        if let Some(code) = code(admitted) {
            return (number, code);
        }
    }
    panic!("one peer sent 100 guests");
}

pub(super) fn order(number: u128) -> Order {
    let request = json!({"guest": "till", "site": "region"});
    Order {
        id: MigrationId(number),
        target: HostIdentity::from_uri("spiffe://d/site/region/host/box").unwrap(),
        request: serde_json::from_value::<MigrationRequest>(request).unwrap(),
        attempt: AttemptId(number),
        attempts: 1,
        started_unix_ms: 0,
        starts: 0,
        last_start_unix_ms: 0,
        spent: Spent::default(),
        may_be_heard: true,
    }
}

/// A guest that has a description and nothing else.
pub(super) fn ground(shared: &Arc<Shared>) -> Ground {
    let mut ground = Ground::new(Arc::clone(shared), Arc::new(Mailbox::new()), GuestId(7));
    ground.config = Some(GuestConfig {
        id: GuestId(7),
        name: "till".parse().unwrap(),
        kind: guest_api::GuestKind::Process,
        memory_bytes: 16 * MIB,
        vcpu_count: 1,
        workload: Workload {
            dirty_pages_per_second: 0,
            working_set_bytes: MIB,
            incompressible_percent: 0,
            key: 1,
            heartbeat_interval_us: 1000,
        },
    });
    ground
}

/// Requests a move from a host with `open` moves under way. Returns the fault.
fn asked(shared: &Arc<Shared>, open: u128) -> Fault {
    let ground = ground(shared);
    let handle = Handle {
        name: ground.config.as_ref().map(|config| config.name.clone()),
        made_for: None,
        mailbox: Arc::clone(&ground.mailbox),
    };
    shared.workers().insert(ground.id, handle);
    for number in 0..open {
        let view = order(number).view(&ground, Phase::Copying);
        shared.board().show_move(view);
    }
    let engine = Engine::new(Arc::clone(shared));
    engine.migrate(order(99).request).unwrap_err()
}

/// Number of buffers of a move's codec, which is proportional to its threads.
fn codec_buffers(threads: u32) -> usize {
    let (_folder, shared) = host(&format!("[limits]\ncodec_threads = {threads}"));
    SourceMove::codec_buffer_count(&ground(&shared), &order(1))
}

/// Tests, by configuration key, that each key has its effect. A key that is missing here has none.
const EFFECTS: [(&str, fn()); 6] = [
    ("quota.memory", || {
        let (_folder, shared) = host("[quota]\nmemory = \"8MiB\"");
        assert_eq!(begun(&shared, 3 * MIB), (2, Code::Quota));
    }),
    ("quota.guests", || {
        let (_folder, shared) = host("[quota]\nguests = 3");
        assert_eq!(begun(&shared, 1), (3, Code::Quota));
        assert_eq!(sent(&shared), (3, Code::Quota));
    }),
    ("limits.outgoing", || {
        let (_folder, shared) = host("[limits]\noutgoing = 2");
        assert_ne!(asked(&shared, 1).code, Code::Busy);
        let fault = asked(&shared, 2);
        assert!(fault.detail.contains("limits.outgoing"), "{fault}");
    }),
    ("limits.incoming_per_peer", || {
        let (_folder, shared) = host("[limits]\nincoming_per_peer = 7");
        assert_eq!(sent(&shared), (7, Code::Busy));
    }),
    ("limits.offer_wait", || {
        let (_folder, shared) = host("[limits]\noffer_wait = \"1s\"\nincoming_per_peer = 1");
        assert_eq!(sent(&shared), (1, Code::Busy));
        let begun = std::time::Instant::now();
        while shared
            .admit(&order(1).target, GuestId(1), AttemptId(1), 1)
            .is_err()
        {
            assert!(begun.elapsed() < PATIENCE, "its place is never free again");
            std::thread::yield_now();
        }
    }),
    ("limits.codec_threads", || {
        assert!(codec_buffers(4) > codec_buffers(2));
    }),
];

#[test]
fn every_quota_and_limit_does_what_it_says() {
    let sections = json!({"quota": Quota::default(), "limits": Limits::default()});
    let sections = sections.as_object().unwrap().iter();
    let keys = |(section, keys): (&String, &Value)| {
        let keys = keys.as_object().unwrap().keys();
        let keys: Vec<String> = keys.map(|key| format!("{section}.{key}")).collect();
        keys
    };
    let known: BTreeSet<String> = sections.flat_map(keys).collect();
    let shown: BTreeSet<String> = EFFECTS.iter().map(|(key, _)| (*key).to_owned()).collect();
    assert_eq!(known, shown);
    for (key, show) in EFFECTS {
        println!("{key}");
        show();
    }
}

#[test]
fn room_for_a_guest_that_did_not_come_to_live_is_free_again() {
    let (_folder, shared) = host("[quota]\nmemory = \"8MiB\"");
    let room = shared.begin(GuestId(1), 8 * MIB).unwrap();
    assert_eq!(code(shared.begin(GuestId(2), 1)), Some(Code::Quota));
    drop(room);
    assert_eq!(code(shared.begin(GuestId(2), 8 * MIB)), None);
}

#[test]
fn a_guest_whose_process_does_not_answer_at_the_start_takes_its_room() {
    let (folder, shared) = host("[quota]\nmemory = \"20MiB\"");
    let mut ground = ground(&shared);
    let (_, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    drop(ground);
    let till = folder.path().join("state/guests/till");
    // The process lives but answers nobody.
    let process = std::fs::File::create(till.join("guest.pid")).unwrap();
    rustix::fs::flock(&process, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let address = SocketAddrUnix::new(till.join("guest.sock")).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 4).unwrap();
    recover_guests(&shared).unwrap();
    assert_eq!(code(shared.begin(GuestId(8), 8 * MIB)), Some(Code::Quota));
    assert_eq!(code(shared.begin(GuestId(8), 4 * MIB)), None);
}

#[test]
fn a_record_from_before_a_guest_came_back_says_nothing_of_it() {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let id = ground.id;
    let (_, record) = Ownership::owner(shared.host.clone(), id, Epoch(1));
    ground.persist(&record).unwrap();
    drop(ground);
    // Its end was recorded, but its folder could not be removed.
    let ended = Record {
        state: State::Vacant,
        ..record
    };
    shared.store.keep_ended(id, &ended.encode()).unwrap();
    let peer = order(1).target;
    // Now nothing says which guest the folder holds, and the kept record may be older than the
    // folder.
    let till = folder.path().join("state/guests/till");
    let saved = std::fs::read(till.join("guest.json")).unwrap();
    std::fs::write(till.join("guest.json"), "{").unwrap();
    let journal = std::fs::read(till.join("journal")).unwrap();
    std::fs::write(till.join("journal"), vec![0; journal.len()]).unwrap();
    recover_guests(&shared).unwrap();
    assert_eq!(code(mailbox_of(&shared, &peer, id)), Some(Code::Quarantine));
    // After a restart of a host that can read the folder, no old record is left.
    std::fs::write(till.join("guest.json"), saved).unwrap();
    std::fs::write(till.join("journal"), journal).unwrap();
    recover_guests(&shared).unwrap();
    assert_eq!(shared.store.ended(id), Ok(None));
}

#[test]
fn what_a_guest_left_is_kept_where_its_folder_cannot_be_trusted() {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let id = ground.id;
    let (_, record) = Ownership::owner(shared.host.clone(), id, Epoch(3));
    ground.persist(&record).unwrap();
    drop(ground);
    let till = folder.path().join("state/guests/till");
    let saved = std::fs::read(till.join("guest.json")).unwrap();
    for (description, high_water) in [
        // The description is corrupt: an operator will look at the folder and may remove it.
        ("{".as_bytes(), Epoch(3)),
        // The folder is intact, but older than the guest's end.
        (saved.as_slice(), Epoch(4)),
    ] {
        let left = Record {
            high_water,
            state: State::Vacant,
            ..record.clone()
        };
        shared.store.keep_ended(id, &left.encode()).unwrap();
        std::fs::write(till.join("guest.json"), description).unwrap();
        recover_guests(&shared).unwrap();
        assert_eq!(shared.store.ended(id), Ok(Some(left.encode())));
        let shown: Vec<_> = shared.board().all_guests().map(|view| view.state).collect();
        assert_eq!(shown, [GuestState::Quarantined]);
        assert!(!shared.workers().contains_key(&id));
    }
}

#[test]
fn a_peer_with_lanes_of_guests_that_are_not_here_keeps_no_other_peer_out() {
    let (_folder, shared) = host("");
    let peer = |name: &str| {
        let uri = format!("spiffe://d/site/region/host/{name}");
        HostIdentity::from_uri(&uri).unwrap()
    };
    let (bad, good) = (peer("bad"), peer("good"));
    let made = |number: u128, of: Option<&HostIdentity>, name: Option<&str>| {
        let handle = Handle {
            name: name.map(|name| name.parse().unwrap()),
            made_for: of.cloned(),
            mailbox: Arc::new(Mailbox::new()),
        };
        shared.workers().insert(GuestId(number), handle);
    };
    // Guests that live here or were offered do not count as strangers, whoever has lanes for them.
    (0..100).for_each(|number| made(number, None, Some("till")));
    (100..200).for_each(|number| made(number, Some(&bad), Some("till")));
    assert!(mailbox_of(&shared, &bad, GuestId(0)).is_ok());
    let mut number = 1000;
    let fault = loop {
        made(number, Some(&bad), None);
        if let Err(fault) = mailbox_of(&shared, &bad, GuestId(number + 1)) {
            break fault;
        }
        number += 1;
        assert!(number < 2000, "one peer has a thousand threads here");
    };
    assert_eq!(fault.code, Code::Busy, "{fault}");
    assert!(mailbox_of(&shared, &bad, GuestId(0)).is_ok());
    assert!(mailbox_of(&shared, &good, GuestId(number + 1)).is_ok());
}

#[test]
fn a_slow_disk_keeps_no_lanes_waiting_but_those_of_the_guest_it_is_asked_about() {
    let (_folder, shared) = host("");
    let peer = order(1).target;
    let (slow, other) = (GuestId(1), ground(&shared));
    register(&shared, &other, None);
    let held = shared.store.hold_kept();
    let (asking, of) = (Arc::clone(&shared), peer.clone());
    let asked = std::thread::spawn(move || mailbox_of(&asking, &of, slow).map(drop));
    let (answer, answered) = channel();
    let looking = Arc::clone(&shared);
    std::thread::spawn(move || {
        while !looking.workers().contains_key(&slow) {
            std::thread::yield_now();
        }
        // One thread per guest, however many lanes arrive meanwhile.
        let again = mailbox_of(&looking, &peer, slow).map(drop);
        let others = mailbox_of(&looking, &peer, other.id).map(drop);
        drop(answer.send((again, others)));
    });
    let heard = answered.recv_timeout(PATIENCE);
    drop(held);
    assert_eq!(heard, Ok((Ok(()), Ok(()))));
    assert_eq!(asked.join().unwrap(), Ok(()));
}

#[test]
fn a_guest_whose_record_cannot_be_read_keeps_no_place() {
    let (folder, shared) = host("");
    let (id, peer) = (GuestId(1), order(1).target);
    std::fs::write(folder.path().join(format!("state/ended/{id}")), "rotten").unwrap();
    for _ in 0..2 {
        assert_eq!(code(mailbox_of(&shared, &peer, id)), Some(Code::Quarantine));
        assert!(!shared.workers().contains_key(&id));
    }
}

/// A command that nobody has given up on.
fn told(command: Command) -> Input {
    Input::Command(command, Claim::default())
}

fn boot_command(room: Beginning, reply: Sender<Result<(), Fault>>) -> Command {
    let how = Booting::Ended;
    Command::Boot { room, how, reply }
}

#[test]
fn room_for_a_boot_is_kept_until_its_guest_is_shown() {
    let (_folder, shared) = host("[quota]\nmemory = \"16MiB\"");
    let mut ground = ground(&shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    let mailbox = Arc::clone(&ground.mailbox);
    let room = shared.begin(ground.id, 16 * MIB).unwrap();
    let (reply, answer) = channel();
    mailbox.send(told(boot_command(room, reply)));
    // Nobody waits for the answer any more, and the worker has not taken the command up.
    drop(answer);
    assert_eq!(code(shared.begin(GuestId(8), 1)), Some(Code::Quota));
    register(&shared, &ground, None);
    start_worker(&shared, ground, move |ground| {
        Worker::new(ground, ownership)
    })
    .unwrap();
    // There is no guest program in these tests, so the boot fails and its room is freed.
    let begun = std::time::Instant::now();
    while shared.begin(GuestId(8), 16 * MIB).is_err() {
        assert!(begun.elapsed() < PATIENCE, "its room is never free again");
        std::thread::yield_now();
    }
    let (reply, answer) = channel();
    mailbox.send(told(Command::Stop(reply)));
    answer.recv_timeout(PATIENCE).unwrap().unwrap();
}

#[test]
fn the_last_record_stands_in_both_slots_soon_after_it_was_written() {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    let slots = || {
        let journal = folder.path().join("state/guests/till/journal");
        let bytes = std::fs::read(journal).unwrap();
        // The record area, between the numbers and the checksums.
        [0, 1].map(|slot| bytes[slot * SLOT_BYTES..][32..][..RECORD_BYTES_MAX].to_vec())
    };
    let [one, other] = slots();
    assert_ne!(one, other, "it was written twice while somebody waited");
    let mailbox = Arc::clone(&ground.mailbox);
    register(&shared, &ground, None);
    start_worker(&shared, ground, move |ground| {
        Worker::new(ground, ownership)
    })
    .unwrap();
    let begun = std::time::Instant::now();
    loop {
        let [one, other] = slots();
        if one == other {
            break;
        }
        assert!(begun.elapsed() < PATIENCE, "a rotten slot loses the record");
        std::thread::yield_now();
    }
    let (reply, answer) = channel();
    mailbox.send(told(Command::Stop(reply)));
    answer.recv_timeout(PATIENCE).unwrap().unwrap();
}

/// The belongings of a guest that is owned here and has ended.
fn ended_guest(shared: &Arc<Shared>) -> (Ground, Ownership) {
    let mut ground = ground(shared);
    let (ownership, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    ground.persist(&record).unwrap();
    (ground, ownership)
}

#[test]
fn a_guest_that_is_stopped_is_not_booted_by_who_asked_at_the_same_time() {
    let (folder, shared) = host("");
    let (ground, ownership) = ended_guest(&shared);
    let ((stop, stopped), (boot, booted)) = (channel(), channel());
    let room = shared.begin(ground.id, MIB).unwrap();
    let commands = [Command::Stop(stop), boot_command(room, boot)];
    ground.mailbox.send_all(commands.map(told));
    register(&shared, &ground, None);
    start_worker(&shared, ground, move |ground| {
        Worker::new(ground, ownership)
    })
    .unwrap();
    stopped.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(
        booted.recv_timeout(PATIENCE).unwrap_err(),
        RecvTimeoutError::Disconnected
    );
    assert!(!folder.path().join("state/guests/till").exists());
}

#[test]
fn what_was_given_up_before_its_worker_came_to_it_is_not_done() {
    let (folder, shared) = host("");
    let (ground, ownership) = ended_guest(&shared);
    let mailbox = Arc::clone(&ground.mailbox);
    let ((stop, stopped), (verify, verified)) = (channel(), channel());
    let given_up = Claim::default();
    assert!(given_up.give_up());
    mailbox.send(Input::Command(Command::Stop(stop), given_up));
    mailbox.send(told(Command::Verify(verify)));
    register(&shared, &ground, None);
    start_worker(&shared, ground, move |ground| {
        Worker::new(ground, ownership)
    })
    .unwrap();
    // A worker still answers, for a guest without a process.
    verified.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert_eq!(stopped.try_recv(), Err(TryRecvError::Disconnected));
    assert!(folder.path().join("state/guests/till").exists());
    let (reply, answer) = channel();
    mailbox.send(told(Command::Stop(reply)));
    answer.recv_timeout(PATIENCE).unwrap().unwrap();
}

#[test]
fn a_move_that_was_refused_does_not_begin_with_the_next_start() {
    let (folder, shared) = host("");
    let (ground, ownership) = ended_guest(&shared);
    let mailbox = Arc::clone(&ground.mailbox);
    let (reply, answer) = channel();
    mailbox.send(told(Command::Migrate(Box::new(order(1)), reply)));
    register(&shared, &ground, None);
    start_worker(&shared, ground, move |ground| {
        Worker::new(ground, ownership)
    })
    .unwrap();
    // The guest has no process, and so no memory to send.
    answer.recv_timeout(PATIENCE).unwrap().unwrap_err();
    assert!(!folder.path().join("state/guests/till/move.json").exists());
    let (reply, answer) = channel();
    mailbox.send(told(Command::Stop(reply)));
    answer.recv_timeout(PATIENCE).unwrap().unwrap();
}

#[test]
fn a_move_whose_guest_is_stopped_before_its_next_attempt_is_over() {
    let (_folder, shared) = host("");
    let (ground, ownership) = ended_guest(&shared);
    let mailbox = Arc::clone(&ground.mailbox);
    shared
        .board()
        .show_move(order(1).view(&ground, Phase::Preparing));
    let (reply, answer) = channel();
    mailbox.send(told(Command::Stop(reply)));
    register(&shared, &ground, None);
    start_worker(&shared, ground, move |ground| {
        let mut worker = Worker::new(ground, ownership);
        worker.retry = Some((now() + PATIENCE, Box::new(order(1))));
        worker
    })
    .unwrap();
    answer.recv_timeout(PATIENCE).unwrap().unwrap();
    let phase = shared.board().moves[&MigrationId(1)].phase;
    assert!(phase.is_finished(), "{phase:?} takes a place for ever");
}

#[test]
fn moves_that_are_asked_for_at_once_are_counted_before_they_are_shown() {
    let (_folder, shared) = host("[limits]\noutgoing = 2");
    let ground = ground(&shared);
    let first = shared.begin_to_leave(MigrationId(1)).unwrap();
    let second = shared.begin_to_leave(MigrationId(2)).unwrap();
    let busy = |number| code(shared.begin_to_leave(MigrationId(number)).map(drop));
    assert_eq!(busy(3), Some(Code::Busy));
    // A move on the board is not counted twice, and one that did not begin is not counted.
    let view = order(1).view(&ground, Phase::Copying);
    shared.board().show_move(view);
    assert_eq!(busy(3), Some(Code::Busy));
    drop(second);
    assert_eq!(busy(3), None);
    drop(first);
    let third = shared.begin_to_leave(MigrationId(3)).unwrap();
    assert_eq!(busy(4), Some(Code::Busy));
    drop(third);
}

#[test]
fn fault_45_a_copy_of_a_folder_is_shown_beside_the_guest_that_is_well() {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let (_, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(3));
    ground.persist(&record).unwrap();
    drop(ground);
    let guests = folder.path().join("state/guests");
    for copy in ["one", "other"] {
        std::fs::create_dir(guests.join(copy)).unwrap();
        std::fs::set_permissions(guests.join(copy), std::fs::Permissions::from_mode(0o700))
            .unwrap();
        for file in ["journal", "guest.json"] {
            std::fs::copy(guests.join("till").join(file), guests.join(copy).join(file)).unwrap();
        }
    }
    recover_guests(&shared).unwrap();
    let engine = Engine::new(Arc::clone(&shared));
    let shown = || {
        engine
            .guests()
            .into_iter()
            .map(|guest| (guest.name.to_string(), guest.state))
    };
    let quarantined = shown().filter(|(_, state)| *state == GuestState::Quarantined);
    let names: Vec<_> = quarantined.map(|(name, _)| name).collect();
    assert_eq!(names, ["one", "other"]);
    assert!(shown().any(|(name, state)| name == "till" && state != GuestState::Quarantined));
    let text = shared.metrics.text(&shared.board());
    assert!(text.contains("\ntowpath_quarantined_guests 2\n"), "{text}");
}

/// A socket whose accept queue is full and that nobody accepts from.
fn hung(path: &Path) -> (OwnedFd, Vec<OwnedFd>) {
    let socket = || {
        let (family, flags) = (AddressFamily::UNIX, SocketFlags::NONBLOCK);
        rustix::net::socket_with(family, SocketType::STREAM, flags, None).unwrap()
    };
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let address = SocketAddrUnix::new(path).unwrap();
    let listener = socket();
    rustix::net::bind(&listener, &address).unwrap();
    rustix::net::listen(&listener, 1).unwrap();
    let mut waiting = Vec::new();
    for _ in 0..100 {
        let next = socket();
        if rustix::net::connect(&next, &address).is_err() {
            return (listener, waiting);
        }
        waiting.push(next);
    }
    panic!("100 connections wait");
}

#[test]
fn a_tunnel_that_hangs_does_not_keep_a_host_from_saying_how_it_is() {
    let (_folder, shared) = host("");
    let _tunnel = hung(&shared.config.tunnel_socket());
    let (answer, answered) = channel();
    let engine = Engine::new(Arc::clone(&shared));
    std::thread::spawn(move || drop(answer.send(engine.status())));
    let status = answered.recv_timeout(PATIENCE).unwrap();
    assert!(!status.ready);
    assert!(status.not_ready_reason.unwrap().contains("tunnel.sock"));
    // It does not block a worker either.
    let fault = asked(&shared, 0);
    assert_eq!(fault.code, Code::Stalled, "{fault}");
}

#[test]
fn f05_messages_of_later_versions_are_counted_where_scrapers_look() {
    let (_folder, shared) = host("");
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    let mut said = Vec::new();
    write_frame(200, 0, b"from a later version", &mut said);
    Message::Ping(1).encode(&mut said);
    theirs.write_all(&said).unwrap();
    assert_eq!(
        code(greet(&shared, order(1).target, ours)),
        Some(Code::Unexpected)
    );
    let text = shared.metrics.text(&shared.board());
    let counted = "\ntowpath_migration_skipped_messages_total 1\n";
    assert!(text.contains(counted), "{text}");
}

#[test]
fn a_guest_that_lives_elsewhere_is_said_to_whatever_is_asked_of_it() {
    let (_folder, shared) = host("");
    let ground = ground(&shared);
    let name = ground.name().unwrap().clone();
    let handle = Handle {
        name: Some(name.clone()),
        made_for: None,
        mailbox: Arc::clone(&ground.mailbox),
    };
    shared.workers().insert(ground.id, handle);
    let engine = Engine::new(Arc::clone(&shared));
    let start: GuestRequest =
        serde_json::from_value(json!({"name": "till", "memory_bytes": 16 * MIB})).unwrap();
    let none = Fault::new(Code::Io, "");
    for (state, moved_to, said) in [
        (
            GuestState::Moved,
            Some("region/rack-1"),
            "has moved to region/rack-1",
        ),
        (GuestState::Absent, None, "lives on another host"),
    ] {
        let view = GuestView {
            state,
            moved_to: moved_to.map(str::to_owned),
            ..quarantined(&name, ground.id, &none)
        };
        shared.board().guests.insert(ground.id, view);
        let answers = [
            (engine.migrate(order(1).request).map(drop), Code::State),
            (engine.boot_guest(&name).map(drop), Code::State),
            (
                engine.start_guest(start.clone()).map(drop),
                Code::GuestExists,
            ),
        ];
        for (answer, code) in answers {
            let fault = answer.unwrap_err();
            assert_eq!(fault.code, code, "{fault}");
            assert!(fault.detail.contains(said), "{fault}");
        }
    }
}

#[test]
fn a_move_that_ends_is_counted_once_and_keeps_what_was_still_to_go() {
    let (_folder, shared) = host("");
    let ground = ground(&shared);
    let order = order(1);
    let copying = MigrationView {
        blocks_total: 9,
        blocks_left: 7,
        ..order.view(&ground, Phase::Copying)
    };
    shared.board().show_move(copying);
    for _ in 0..2 {
        let fault = Fault::new(Code::Refused, "no room");
        let ended = order.ended_view(&ground, &fault);
        shared.board().show_move(ended);
    }
    let view = shared.board().moves[&order.id].clone();
    assert_eq!((view.blocks_total, view.blocks_left), (9, 7));
    let done = MigrationView {
        id: MigrationId(2),
        pause_reported_ms: Some(150),
        ..order.view(&ground, Phase::Done)
    };
    shared.board().show_move(done);
    let text = shared.metrics.text(&shared.board());
    for line in [
        "towpath_migrations_ended_total{outcome=\"failed\",role=\"source\"} 1",
        "towpath_migrations_ended_total{outcome=\"done\",role=\"source\"} 1",
        "towpath_migrations_ended_total{outcome=\"cancelled\",role=\"target\"} 0",
        "towpath_migration_downtime_seconds_bucket{le=\"0.1\"} 0",
        "towpath_migration_downtime_seconds_bucket{le=\"0.2\"} 1",
        "towpath_migration_duration_seconds_count 1",
        "towpath_build_info{component=\"migrator\"",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

#[test]
fn a_record_that_cannot_be_made_durable_is_counted() {
    let (folder, shared) = host("");
    let mut ground = ground(&shared);
    let (_, record) = Ownership::owner(shared.host.clone(), ground.id, Epoch(1));
    // The guests' folder is replaced by a file, so no guest folder can be made.
    let guests = folder.path().join("state/guests");
    std::fs::remove_dir(&guests).unwrap();
    std::fs::write(&guests, "").unwrap();
    assert!(ground.persist(&record).is_err());
    let text = shared.metrics.text(&shared.board());
    assert!(
        text.contains("\ntowpath_journal_errors_total 1\n"),
        "{text}"
    );
}

/// A log writer that keeps what is written.
#[derive(Clone, Default)]
struct Kept(Arc<std::sync::Mutex<Vec<u8>>>);

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn l01_another_user_hands_over_no_lane() {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let (folder, shared) = host("");
    let path = folder.path().join("run/service.sock");
    let service = Socket::bind(&path).unwrap();
    // Make every file permission too open.
    for door in [folder.path(), path.parent().unwrap(), path.as_path()] {
        std::fs::set_permissions(door, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let kept = Kept::default();
    let writer = kept.clone();
    let options = towpath_daemon::log::Options::default();
    let log = towpath_daemon::log::lines(&options, false, move || writer.clone()).unwrap();
    // This thread never returns; it ends with the test program.
    std::thread::spawn(move || {
        tracing::dispatcher::with_default(&log, || accept_lanes(&shared, &service));
    });
    // Whether the migrator hangs up on a user. It does not on a lane that it accepts: it waits for
    // the hello.
    let is_refused = |user| {
        let path = path.clone();
        let asking = std::thread::spawn(move || {
            // Affects this thread only.
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(user)).unwrap();
            let mut stream = UnixStream::connect(path).unwrap();
            stream
                .set_read_timeout(Some(Duration::from_secs(1)))
                .unwrap();
            stream.read(&mut [0]).is_ok_and(|count| count == 0)
        });
        asking.join().unwrap()
    };
    assert!(is_refused(65_534));
    let text = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    for word in ["audit", "local user refused", "65534", "service.sock"] {
        assert!(text.contains(word), "{word}: {text}");
    }
    assert!(!is_refused(0), "root is let in");
}
