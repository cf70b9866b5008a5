//! Tests that wrong answers and wrong files from a guest process are refused.

#![allow(clippy::unwrap_used, reason = "all of it is test code")]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::thread::JoinHandle;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType,
};
use towpath_migrator::guest::GuestProcess;
use towpath_protocol::fault::{Blame, Code, Fault};
use towpath_protocol::guest_api::{
    Description, GuestConfig, GuestKind, GuestState, Region, Request, Response, TrackingMethod,
    Workload, decode_request,
};
use towpath_protocol::identity::{Epoch, GuestId};
use towpath_protocol::message::Reason;
use towpath_protocol::space::BlockSet;

const MEMORY_BYTES: u64 = 8 << 20;

fn description() -> Description {
    Description {
        config: GuestConfig {
            id: GuestId(1),
            name: "liar".parse().unwrap(),
            kind: GuestKind::Process,
            memory_bytes: MEMORY_BYTES,
            vcpu_count: 1,
            workload: Workload {
                dirty_pages_per_second: 0,
                working_set_bytes: 0,
                incompressible_percent: 0,
                key: 0,
                heartbeat_interval_us: 2000,
            },
        },
        state: GuestState::Loaded,
        epoch: None,
        heartbeat_sequence: 0,
        write_count: 0,
        page_in_progress: None,
        tracking_method: TrackingMethod::Unavailable,
        is_tracking: false,
        is_armed: false,
    }
}

/// Plays a guest process in a thread: greets and describes itself correctly, and answers everything
/// else as it is told.
struct Liar {
    _folder: tempfile::TempDir,
    thread: Option<JoinHandle<()>>,
    process: Option<GuestProcess>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.process = None;
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Liar {
    fn new(answers: impl Fn(u32) -> Vec<(u32, Response)> + Send + 'static, file: OwnedFd) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = listen(folder.path());
        let thread = std::thread::spawn(move || serve(&listener, answers, &file));
        let process = GuestProcess::adopt(folder.path()).unwrap();
        Self {
            _folder: folder,
            thread: Some(thread),
            process: Some(process),
        }
    }

    fn process(&mut self) -> &mut GuestProcess {
        self.process.as_mut().unwrap()
    }
}

fn listen(folder: &Path) -> OwnedFd {
    let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    let address = SocketAddrUnix::new(folder.join("guest.sock")).unwrap();
    rustix::net::bind(&socket, &address).unwrap();
    rustix::net::listen(&socket, 1).unwrap();
    socket
}

fn serve(listener: &OwnedFd, answers: impl Fn(u32) -> Vec<(u32, Response)>, file: &OwnedFd) {
    let connection = rustix::net::accept(listener).unwrap();
    let mut packet = vec![0; 1 << 16];
    loop {
        // Zero, or a reset if answers were left unread: the client is done.
        let received = rustix::net::recv(&connection, &mut packet[..], RecvFlags::empty());
        let Some((_, length)) = received.ok().filter(|(_, length)| *length > 0) else {
            return;
        };
        let (number, request) = decode_request(&packet[..length]).unwrap();
        match request {
            Request::Hello { .. } => {
                let welcome = Response::Welcome {
                    version: 1,
                    process_id: std::process::id(),
                };
                send(&connection, number, &welcome, None).unwrap();
            }
            Request::Describe => {
                let described = Response::Described(Box::new(description()));
                send(&connection, number, &described, None).unwrap();
            }
            _ => {
                for (number, response) in answers(number) {
                    // The client may have enough answers and be gone before all are sent.
                    if send(&connection, number, &response, Some(file.as_fd())).is_err() {
                        return;
                    }
                }
            }
        }
    }
}

fn send(
    connection: &OwnedFd,
    number: u32,
    response: &Response,
    file: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<usize> {
    let mut packet = Vec::new();
    response.encode(number, &mut packet);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let files: Vec<BorrowedFd<'_>> = file.into_iter().collect();
    if !files.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    }
    let parts = [IoSlice::new(&packet)];
    rustix::net::sendmsg(connection, &parts, &mut ancillary, SendFlags::NOSIGNAL)
}

fn memory_file(bytes: u64, seals: SealFlags) -> OwnedFd {
    let file = rustix::fs::memfd_create("liar", MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&file, bytes).unwrap();
    rustix::fs::fcntl_add_seals(&file, seals).unwrap();
    file
}

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW);

fn always(response: Response) -> impl Fn(u32) -> Vec<(u32, Response)> {
    move |number| vec![(number, response.clone())]
}

#[test]
fn l03_a_map_that_is_not_the_guests_memory_is_refused() {
    let region = |address, bytes, memory_offset| Region {
        address,
        bytes,
        memory_offset,
    };
    let half = MEMORY_BYTES / 2;
    for regions in [
        vec![],
        vec![region(0x10_0000, half, 0)],
        vec![region(0x10_0000, half, 0), region(0x10_0000, half, half)],
        vec![region(0x10_0000, MEMORY_BYTES * 2, 0)],
        vec![region(0x10_0000, MEMORY_BYTES, 4096)],
    ] {
        let armed = Response::Armed { regions };
        let mut liar = Liar::new(always(armed), memory_file(MEMORY_BYTES, SEALS));
        let fault = liar.process().arm_missing().unwrap_err();
        assert_eq!(fault.code, Code::Layout);
    }
}

#[test]
fn l03_a_file_that_is_not_the_guests_memory_is_refused() {
    let memory = Response::Memory {
        bytes: MEMORY_BYTES,
    };
    for file in [
        memory_file(MEMORY_BYTES + 4096, SEALS),
        memory_file(MEMORY_BYTES, SealFlags::SHRINK),
        std::fs::File::open("/dev/zero").unwrap().into(),
    ] {
        let mut liar = Liar::new(always(memory.clone()), file);
        assert_eq!(liar.process().memory().unwrap_err().code, Code::Layout);
    }
    let mut honest = Liar::new(always(memory), memory_file(MEMORY_BYTES, SEALS));
    assert!(honest.process().memory().is_ok());
}

#[test]
fn a_harvest_of_blocks_that_were_not_asked_for_is_refused() {
    let harvested = |first_block, count| Response::Harvested {
        first_block,
        words: vec![u64::MAX; count],
    };
    for wrong in [harvested(64, 32), harvested(0, 31), harvested(0, 33)] {
        let mut liar = Liar::new(always(wrong), memory_file(MEMORY_BYTES, SEALS));
        let mut dirty = BlockSet::empty(2048);
        let fault = liar.process().harvest(&mut dirty).unwrap_err();
        assert_eq!(fault.code, Code::Guest);
        assert!(dirty.is_empty());
    }
}

#[test]
fn an_answer_to_an_earlier_question_is_not_taken_for_this_one() {
    let late = |number: u32| {
        vec![
            (number - 1, Response::Paused { stopped_at_ns: 1 }),
            (number, Response::Paused { stopped_at_ns: 2 }),
        ]
    };
    let mut liar = Liar::new(late, memory_file(MEMORY_BYTES, SEALS));
    let before = liar.process().heard_count();
    assert_eq!(liar.process().pause().unwrap().as_nanos(), 2);
    // Late answers still count as heard.
    assert_eq!(liar.process().heard_count(), before + 2);
    let never = |number: u32| vec![(number + 1, Response::Done); 100];
    let mut liar = Liar::new(never, memory_file(MEMORY_BYTES, SEALS));
    let fault = liar.process().start_tracking().unwrap_err();
    assert_eq!(fault.code, Code::Guest);
}

#[test]
fn an_answer_to_another_kind_of_question_is_refused() {
    let mut liar = Liar::new(always(Response::Done), memory_file(MEMORY_BYTES, SEALS));
    assert_eq!(liar.process().pause().unwrap_err().code, Code::Guest);
    assert_eq!(liar.process().memory().unwrap_err().code, Code::Guest);
    let fault = liar.process().save_state().unwrap_err();
    assert_eq!(fault.code, Code::Guest);
}

#[test]
fn what_a_guest_process_says_wrongly_is_no_fault_of_a_peer() {
    // Every code that blames the peer, and one that cannot be decoded as an answer.
    for code in Code::ALL.iter().filter(|code| code.blame() == Blame::Peer) {
        let reason = Reason::from(&Fault::new(*code, "why"));
        let mut liar = Liar::new(
            always(Response::Failed(reason)),
            memory_file(MEMORY_BYTES, SEALS),
        );
        let fault = liar.process().run(Epoch(2)).unwrap_err();
        assert_eq!(fault.code, Code::Guest, "{fault}");
        assert!(fault.detail.contains("why") && fault.detail.contains(code.as_str()));
    }
    let answer = Response::StateSaved { bytes: u32::MAX };
    let mut liar = Liar::new(always(answer), memory_file(MEMORY_BYTES, SEALS));
    let fault = liar.process().save_state().unwrap_err();
    assert_eq!(fault.code, Code::Guest, "{fault}");
    // Faults of this host keep their code.
    let reason = Reason::from(&Fault::new(Code::CpuState, "why"));
    let mut liar = Liar::new(
        always(Response::Failed(reason)),
        memory_file(MEMORY_BYTES, SEALS),
    );
    let fault = liar.process().run(Epoch(2)).unwrap_err();
    assert_eq!(fault, Fault::new(Code::CpuState, "why"));
}

#[test]
fn a_process_that_cannot_be_looked_for_is_not_taken_to_be_gone() {
    let folder = tempfile::tempdir().unwrap();
    assert!(!GuestProcess::lives(folder.path()));
    GuestProcess::end_unadopted(folder.path()).unwrap();
    // A self-referencing link keeps the file from being opened, as a lack of descriptors would.
    let file = folder.path().join("guest.pid");
    std::os::unix::fs::symlink(&file, &file).unwrap();
    assert!(GuestProcess::lives(folder.path()));
    let unknown = GuestProcess::end_unadopted(folder.path()).unwrap_err();
    assert_eq!(unknown.code, Code::Path, "{unknown}");
}
