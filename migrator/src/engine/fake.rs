//! A stand-in for a guest's process in tests: a thread that answers or stays silent.

use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketType,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{
    Description, GuestConfig, GuestState, Request, Response, TrackingMethod, decode_request,
};
use towpath_protocol::identity::Epoch;
use towpath_protocol::message::Reason;

use super::ground::Ground;

/// How the fake behaves, and what it was told.
#[derive(Debug, Default)]
pub(super) struct Standing {
    /// Answers nothing from here on.
    pub(super) is_silent: bool,
    /// Answers nothing once it was told to run.
    pub(super) is_silent_once_run: bool,
    pub(super) is_armed: bool,
    /// Does not stop when told to.
    pub(super) stops_never: bool,
    /// Its memory can be written but not read; block 3 was touched.
    pub(super) is_unreadable: bool,
    /// Its guest has crashed.
    pub(super) has_crashed: bool,
    pub(super) run_count: u32,
}

/// A fake process in a guest's folder.
#[derive(Debug)]
pub(super) struct Fake(Arc<Mutex<Standing>>);

impl Fake {
    /// Starts answering in the guest's folder, which must exist.
    pub(super) fn start(ground: &Ground, standing: Standing) -> Self {
        let config = ground.config.clone().unwrap();
        let socket = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        let address = SocketAddrUnix::new(ground.path().unwrap().join("guest.sock")).unwrap();
        rustix::net::bind(&socket, &address).unwrap();
        rustix::net::listen(&socket, 8).unwrap();
        let standing = Arc::new(Mutex::new(standing));
        let shared = Arc::clone(&standing);
        // The thread ends with the test.
        std::thread::spawn(move || {
            let memory = rustix::fs::memfd_create("fake", MemfdFlags::ALLOW_SEALING).unwrap();
            rustix::fs::ftruncate(&memory, config.memory_bytes).unwrap();
            let seals = SealFlags::SHRINK | SealFlags::GROW;
            rustix::fs::fcntl_add_seals(&memory, seals).unwrap();
            let memory = if shared.lock().unwrap().is_unreadable {
                rustix::io::pwrite(&memory, &[7], 3 * 4096).unwrap();
                let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
                OwnedFd::from(File::options().write(true).open(path).unwrap())
            } else {
                memory
            };
            let memory = Arc::new(memory);
            while let Ok(connection) = rustix::net::accept(&socket) {
                let (config, memory) = (config.clone(), Arc::clone(&memory));
                let standing = Arc::clone(&shared);
                std::thread::spawn(move || serve(&connection, &config, &memory, &standing));
            }
        });
        Self(standing)
    }

    /// Reads or changes the fake's behaviour.
    pub(super) fn standing<T>(&self, look: impl FnOnce(&mut Standing) -> T) -> T {
        look(&mut self.0.lock().unwrap())
    }
}

fn serve(connection: &OwnedFd, config: &GuestConfig, memory: &OwnedFd, standing: &Mutex<Standing>) {
    let mut packet = vec![0; 1 << 16];
    loop {
        let received = rustix::net::recv(connection, &mut packet[..], RecvFlags::empty());
        let Some((_, length)) = received.ok().filter(|(_, length)| *length > 0) else {
            return;
        };
        while standing.lock().unwrap().is_silent {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (number, request) = decode_request(&packet[..length]).unwrap();
        let (response, file) = answer(&request, config, memory, &mut standing.lock().unwrap());
        if send(connection, number, &response, file).is_err() {
            return;
        }
    }
}

fn answer<'a>(
    request: &Request,
    config: &GuestConfig,
    memory: &'a OwnedFd,
    standing: &mut Standing,
) -> (Response, Option<BorrowedFd<'a>>) {
    let response = match request {
        Request::Hello { .. } => Response::Welcome {
            version: 1,
            process_id: std::process::id(),
        },
        Request::Describe => Response::Described(Box::new(Description {
            config: config.clone(),
            state: if standing.has_crashed {
                let reason = "as the test wants it".to_owned();
                GuestState::Crashed { reason }
            } else {
                GuestState::Running
            },
            epoch: Some(Epoch(2)),
            heartbeat_sequence: 1,
            write_count: 0,
            page_in_progress: None,
            tracking_method: TrackingMethod::Unavailable,
            is_tracking: false,
            is_armed: standing.is_armed,
        })),
        Request::TakeMemory => {
            let bytes = config.memory_bytes;
            return (Response::Memory { bytes }, Some(memory.as_fd()));
        }
        Request::Pause if standing.stops_never => {
            let late = Fault::new(Code::Guest, "the vcpu did not stop within 2s");
            Response::Failed(Reason::from(&late))
        }
        Request::Pause => Response::Paused { stopped_at_ns: 1 },
        Request::Run { .. } | Request::Resume => {
            standing.run_count += 1;
            standing.is_silent = standing.is_silent_once_run;
            Response::Running {
                epoch: Epoch(2),
                running_since_ns: 1,
            }
        }
        Request::DisarmMissing => {
            standing.is_armed = false;
            Response::Done
        }
        _ => Response::Done,
    };
    (response, None)
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
