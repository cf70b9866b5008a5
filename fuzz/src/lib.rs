//! Every parser of untrusted bytes, as a function that a fuzzer can call.
//!
//! An entry takes any bytes and must return; anything that parses must also survive being written
//! and parsed again. The first byte selects how the rest is passed on: as it is, or inside an
//! envelope with correct lengths and checksums, because no fuzzer guesses a CRC and the code behind
//! it matters most.
#![forbid(unsafe_code)]

mod files;
pub mod large;
pub mod seeds;
pub mod smoke;
mod trust;

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::Serialize;
use serde::de::DeserializeOwned;
use towpath_daemon::{config, strict};
use towpath_migrator::api::{GuestRequest, MigrationRequest};
use towpath_migrator::codec::Decoder;
use towpath_migrator::journal::{JOURNAL_BYTES, Journal, RECORD_BYTES_MAX, Storage};
use towpath_migrator::lane::{Incoming, LaneReader};
use towpath_protocol::frame::{BODY_BYTES_MAX, FLAG_CRITICAL, HEADER_BYTES, write_frame};
use towpath_protocol::guest_api::{decode_request, decode_response};
use towpath_protocol::message::Message;
use towpath_protocol::ownership::Record;
use towpath_protocol::preamble::Preamble;
use towpath_protocol::space::Geometry;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::foreign;
use towpath_tunnel::probe::ProbeRequest;
use towpath_tunnel::shares::{ServiceCap, Shaping};

pub use files::{channels, guest_state, history, received};
pub use trust::{certificates, revocations};

/// A parser's entry: returns whether the input was valid.
pub type Entry = fn(&[u8]) -> bool;

/// Every target with its name.
pub const TARGETS: [(&str, Entry); 13] = [
    ("wire", wire),
    ("preamble", preamble),
    ("guest_api", guest_api),
    ("journal", journal),
    ("config", config),
    ("requests", requests),
    ("packets", packets),
    ("certificates", certificates),
    ("revocations", revocations),
    ("channels", channels),
    ("history", history),
    ("received", received),
    ("guest_state", guest_state),
];

/// First byte of an input that is passed on as it is.
pub const AS_IT_IS: u8 = 0;

/// First byte of an input that is put into an envelope: its second byte is a kind, and the rest a
/// body.
pub const IN_A_FRAME: u8 = 1;

/// A stream between two migrators: frames, messages, chunks with every codec.
pub fn wire(bytes: &[u8]) -> bool {
    let stream = dress(bytes);
    let mut reader = LaneReader::new(&stream[..]);
    let mut decoder = Decoder::new().expect("the decoder has its memory");
    let memory = Geometry::new(4096, 1 << 16).expect("a geometry");
    let volume = Geometry::new(65536, 64).expect("a geometry");
    loop {
        let frame = match reader.next_frame() {
            Ok(Incoming::Frame(frame)) => frame,
            Ok(Incoming::End) => return true,
            Ok(Incoming::Idle) | Err(_) => return false,
        };
        if frame.is_chunk() {
            let Ok(chunk) = decoder.decode(frame.body, &[memory, volume]) else {
                return false;
            };
            assert!(chunk.raw.len() <= 65536, "a chunk above its cap");
            continue;
        }
        let Ok(message) = frame.message() else {
            return false;
        };
        let mut again = Vec::new();
        message.encode(&mut again);
        let body = &again[HEADER_BYTES..];
        assert_eq!(Message::decode(frame.kind, body), Ok(message));
    }
}

/// The preamble of a stream of the tunnel, from a local program or a peer.
pub fn preamble(bytes: &[u8]) -> bool {
    let Ok(preamble) = Preamble::decode(&dress(bytes)) else {
        return false;
    };
    assert_eq!(Preamble::decode(&preamble.encode()), Ok(preamble));
    true
}

/// A packet between a migrator and a guest process.
pub fn guest_api(bytes: &[u8]) -> bool {
    let packet = dress(bytes);
    let mut again = Vec::new();
    let request = decode_request(&packet);
    if let Ok((number, request)) = &request {
        request.encode(*number, &mut again);
        assert_eq!(
            decode_request(&again).as_ref(),
            Ok(&(*number, request.clone()))
        );
        again.clear();
    }
    let response = decode_response(&packet);
    if let Ok((number, response)) = &response {
        response.encode(*number, &mut again);
        assert_eq!(
            decode_response(&again).as_ref(),
            Ok(&(*number, response.clone()))
        );
    }
    request.is_ok() || response.is_ok()
}

/// A journal's file, or a record inside one.
pub fn journal(bytes: &[u8]) -> bool {
    let Some((how, bytes)) = bytes.split_first() else {
        return false;
    };
    if *how == AS_IT_IS {
        return Journal::open(Memory::new(bytes), u64::MAX).is_ok();
    }
    if bytes.len() <= RECORD_BYTES_MAX {
        let file = Memory::new(&journal_of(bytes));
        let journal = Journal::open(file, 1).expect("what was written reads back");
        assert_eq!(journal.record(), bytes);
    }
    let Ok(record) = Record::decode(bytes) else {
        return false;
    };
    assert_eq!(record.encode(), bytes, "one record has one encoding");
    true
}

/// A configuration file of either daemon, or a request's JSON.
pub fn config(bytes: &[u8]) -> bool {
    let Some((how, bytes)) = bytes.split_first() else {
        return false;
    };
    if *how != AS_IT_IS {
        return strict::parse::<serde_json::Value>(bytes).is_ok();
    }
    let Ok(text) = std::str::from_utf8(bytes) else {
        return false;
    };
    let path = Path::new("towpath.toml");
    let migrator = config::check::<towpath_migrator::config::Config>(path, text);
    let tunnel = config::check::<towpath_tunnel::config::Config>(path, text);
    migrator.is_ok() || tunnel.is_ok()
}

/// The body of a request to either daemon; the second byte selects the request.
pub fn requests(bytes: &[u8]) -> bool {
    let [_, kind, body @ ..] = bytes else {
        return false;
    };
    match kind % REQUEST_KINDS {
        0 => request::<ChannelSpec>(body).is_some(),
        1 => request::<Shaping>(body).is_some_and(|asked| asked.check().is_ok()),
        2 => request::<ServiceCap>(body).is_some(),
        3 => request::<ProbeRequest>(body).is_some(),
        4 => request::<GuestRequest>(body).is_some_and(|asked| asked.check().is_ok()),
        _ => request::<MigrationRequest>(body).is_some_and(|asked| asked.check().is_ok()),
    }
}

/// Number of kinds of requests that have a body.
pub(crate) const REQUEST_KINDS: u8 = 6;

/// A request, which must be the same after it is written and read again.
fn request<T: DeserializeOwned + Serialize + PartialEq + Debug>(body: &[u8]) -> Option<T> {
    let asked: T = strict::parse(body).ok()?;
    let again = serde_json::to_vec(&asked).expect("plain values");
    assert_eq!(strict::parse::<T>(&again).as_ref(), Ok(&asked));
    Some(asked)
}

/// A datagram from a stranger at the tunnel's port, and the kernel's netlink messages.
pub fn packets(bytes: &[u8]) -> bool {
    let Some((how, datagram)) = bytes.split_first() else {
        return false;
    };
    if *how == AS_IT_IS {
        return !foreign::is_malformed(datagram);
    }
    foreign::announcement_count(datagram) > 0
}

/// The file of a journal with this as its last record.
pub(crate) fn journal_of(record: &[u8]) -> Vec<u8> {
    let file = Memory::new(&[]);
    drop(Journal::create(file.clone(), 1, record).expect("memory takes writes"));
    let bytes = file.bytes().clone();
    bytes
}

/// Puts an input into the envelope that its first byte selects.
fn dress(bytes: &[u8]) -> Vec<u8> {
    match bytes {
        [IN_A_FRAME, kind, body @ ..] => {
            let body = &body[..body.len().min(BODY_BYTES_MAX as usize)];
            let mut frame = Vec::new();
            write_frame(*kind, FLAG_CRITICAL, body, &mut frame);
            frame
        }
        [_, rest @ ..] => rest.to_vec(),
        [] => Vec::new(),
    }
}

/// A journal's file in memory.
#[derive(Debug, Clone)]
struct Memory(Arc<Mutex<Vec<u8>>>);

impl Memory {
    fn new(bytes: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(bytes.to_vec())))
    }

    fn bytes(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().expect("nothing panics with the lock")
    }
}

impl Storage for Memory {
    fn read_at(&mut self, offset: u64, slot: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes();
        let from = usize::try_from(offset).map_or(bytes.len(), |from| from.min(bytes.len()));
        let have = (bytes.len() - from).min(slot.len());
        slot[..have].copy_from_slice(&bytes[from..from + have]);
        slot[have..].fill(0);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, slot: &[u8]) -> io::Result<()> {
        let from = usize::try_from(offset).expect("a small file");
        let mut bytes = self.bytes();
        bytes.resize(JOURNAL_BYTES as usize, 0);
        bytes[from..from + slot.len()].copy_from_slice(slot);
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}
