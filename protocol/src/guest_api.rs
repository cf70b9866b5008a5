//! The messages between a migrator and a guest process, and their encoding.
//!
//! They talk over a Unix `SOCK_SEQPACKET` socket: one packet is one message is one frame of
//! [`crate::frame`], at most [`PACKET_BYTES_MAX`]. The migrator asks, and the guest process answers
//! each request once and in order. Request and answer carry the same number, so that a late answer
//! is never taken for the answer to the next request. The first request is [`Request::Hello`].
//!
//! ```text
//!              Run                  Pause               SaveState
//!  Created ──────────► Running ◄──────────────► Paused ──────────► (bytes)
//!                        ▲   ╲      Resume
//!  Incoming ──► Loaded ──┘    ╲──► Crashed, Stopped
//!     LoadState       Run
//! ```
//!
//! A guest process never starts its guest by itself: only [`Request::Run`] does, and that needs an
//! epoch. A process made for an incoming guest refuses to run before state was loaded into it.

use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};
use crate::frame::{self, FLAG_CRITICAL, HEADER_BYTES, Header};
use crate::identity::Epoch;
use crate::message::{DETAIL_BYTES_MAX, Reason, STATE_BYTES_MAX};
use crate::space::{BLOCK_COUNT_MAX, MEMORY_BLOCK_BYTES};
use crate::version::VersionRange;

mod config;

pub use config::*;

/// Versions of this interface that this release speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };

/// Most bytes of one packet. Below the default send buffer of a Unix socket, so none is refused.
pub const PACKET_BYTES_MAX: usize = 64 * 1024;

/// Most blocks that one harvest covers: 1 GiB of memory, whose bits take half a packet.
pub const HARVEST_BLOCKS_MAX: u32 = 1 << 18;

/// Most bytes of state in one packet.
pub const STATE_PART_BYTES_MAX: usize = 60 * 1024;

/// Most memory regions that a guest process may announce. Ours has one.
pub const REGION_COUNT_MAX: usize = 64;

/// The state of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum GuestState {
    /// Made for a new guest; has never run.
    Created,
    /// Made to receive a guest; refuses to run until state was loaded.
    Incoming,
    /// State was loaded; may run.
    Loaded,
    /// Runs.
    Running,
    /// Stopped between two instructions. Memory and state do not change.
    Paused,
    /// The guest ended by itself.
    Stopped,
    /// The guest failed.
    Crashed {
        /// What it or its processor reported, at most [`DETAIL_BYTES_MAX`] bytes.
        reason: String,
    },
}

impl std::fmt::Display for GuestState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Created => f.pad("created"),
            Self::Incoming => f.pad("incoming"),
            Self::Loaded => f.pad("loaded"),
            Self::Running => f.pad("running"),
            Self::Paused => f.pad("paused"),
            Self::Stopped => f.pad("stopped"),
            Self::Crashed { reason } => write!(f, "crashed: {reason}"),
        }
    }
}

/// How written pages are tracked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum TrackingMethod {
    /// KVM's dirty log with manual protection, plus marks for writes of the machine itself.
    KvmManualProtect,
    /// KVM's dirty log, cleared when it is read, plus marks for writes of the machine itself.
    KvmDirtyLog,
    /// Asynchronous userfaultfd write-protection read by `PAGEMAP_SCAN`.
    AsyncWriteProtect,
    /// This host offers no method.
    Unavailable,
}

/// A page that the paused guest was in the middle of writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageInProgress {
    /// Its block.
    pub block: u64,
    /// The version being written. Every word has either the version before or already this one.
    pub version: u64,
}

/// What a guest process reports about its guest.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Description {
    /// The guest's description.
    pub config: GuestConfig,
    /// Its state.
    pub state: GuestState,
    /// The epoch it was last told to run under.
    pub epoch: Option<Epoch>,
    /// Number of the last heartbeat.
    pub heartbeat_sequence: u64,
    /// Pages written so far, including the first fill of each page. Exact only while paused.
    pub write_count: u64,
    /// While paused, the page that the guest was in the middle of writing.
    pub page_in_progress: Option<PageInProgress>,
    /// How written pages are tracked here.
    pub tracking_method: TrackingMethod,
    /// Whether writes are being tracked for this connection.
    pub is_tracking: bool,
    /// Whether missing pages stop the guest until they are installed.
    pub is_armed: bool,
}

/// A part of guest memory as the guest process has mapped it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Region {
    /// Its address in the guest process.
    pub address: u64,
    /// Its length.
    pub bytes: u64,
    /// Its offset in the memory file; block 0 is at 0.
    pub memory_offset: u64,
}

/// Checks that regions cover the guest's memory exactly, in order, without gap or overlap.
///
/// # Errors
///
/// `E_LAYOUT` with the reason. Installing blocks by a wrong map would write into other memory.
pub fn check_regions(regions: &[Region], memory_bytes: u64) -> Result<(), Fault> {
    let wrong = |what: String| Err(Fault::new(Code::Layout, what));
    let page = u64::from(MEMORY_BLOCK_BYTES);
    let mut offset = 0;
    for (position, region) in regions.iter().enumerate() {
        let Region { address, bytes, .. } = *region;
        if region.memory_offset != offset {
            let found = region.memory_offset;
            return wrong(format!(
                "region {position} begins at {found} of memory instead of {offset}"
            ));
        }
        let aligned = address.is_multiple_of(page) && bytes.is_multiple_of(page);
        if !aligned || bytes == 0 || address == 0 || address.checked_add(bytes).is_none() {
            return wrong(format!(
                "region {position} of {bytes} bytes at {address:#x} is not whole pages"
            ));
        }
        let overlaps = |other: &Region| {
            address < other.address + other.bytes && other.address < address + bytes
        };
        if regions[..position].iter().any(overlaps) {
            return wrong(format!(
                "region {position} at {address:#x} overlaps an earlier one"
            ));
        }
        offset = match offset.checked_add(bytes) {
            Some(end) if end <= memory_bytes => end,
            _ => return wrong(format!("region {position} ends behind the guest's memory")),
        };
    }
    if offset != memory_bytes {
        return wrong(format!(
            "regions of {offset} bytes for a guest of {memory_bytes}"
        ));
    }
    Ok(())
}

/// A request of a migrator to a guest process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// First request on every connection. The connection replaces the one before.
    Hello {
        /// Versions the migrator speaks.
        versions: VersionRange,
    },
    /// Report the guest's description and state.
    Describe,
    /// Hand over the memory file.
    TakeMemory,
    /// Track writes from now on. The migrator takes every block for dirty at first.
    StartTracking,
    /// Report which of these blocks were written since their last harvest, and clear their marks.
    Harvest {
        /// First block, a multiple of 64.
        first_block: u64,
        /// Number of blocks, 1 to [`HARVEST_BLOCKS_MAX`].
        block_count: u32,
    },
    /// Stop tracking writes.
    StopTracking,
    /// Stop every vCPU between two instructions.
    Pause,
    /// Let a paused guest continue under its epoch.
    Resume,
    /// Save a paused guest's vCPU and machine state, to be read in parts.
    SaveState,
    /// Read bytes of the saved state, from this offset on.
    ReadState {
        /// Offset of the first byte.
        offset: u32,
    },
    /// Write bytes of state to load.
    WriteState {
        /// Offset of the first byte: the end of the part before, or 0 to start over.
        offset: u32,
        /// The bytes, at most [`STATE_PART_BYTES_MAX`].
        bytes: Vec<u8>,
    },
    /// Load the state that was written.
    LoadState,
    /// Stop the guest whenever it touches a missing page, and hand over the userfaultfd that
    /// resolves these faults.
    ArmMissing,
    /// Stop catching missing pages: there are none any more.
    DisarmMissing,
    /// Run under this epoch. This is the only way a guest ever starts.
    Run {
        /// The epoch its owner holds durably.
        epoch: Epoch,
    },
    /// End the guest and its process.
    Quit,
    /// Check every byte of a paused guest's working set against what its payload should have
    /// written.
    Verify,
}

/// An answer of a guest process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Response {
    /// To `Hello`.
    Welcome {
        /// The version both use from here on.
        version: u16,
        /// The guest process's id.
        process_id: u32,
    },
    /// To `Describe`.
    Described(Box<Description>),
    /// To `TakeMemory`. The memory file is passed along with the packet.
    Memory {
        /// Its length.
        bytes: u64,
    },
    /// To requests that return nothing.
    Done,
    /// To `Harvest`: one bit per block, the lowest block in the lowest bit.
    Harvested {
        /// First block.
        first_block: u64,
        /// The bits, in as many words as cover the requested blocks.
        words: Vec<u64>,
    },
    /// To `Pause`: when every vCPU had stopped, on the monotonic clock.
    Paused {
        /// Nanoseconds.
        stopped_at_ns: u64,
    },
    /// To `SaveState`.
    StateSaved {
        /// Length of the state.
        bytes: u32,
    },
    /// To `ReadState`.
    StatePart {
        /// Offset of the first byte.
        offset: u32,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// To `ArmMissing`. The userfaultfd is passed along with the packet.
    Armed {
        /// Where guest memory lies in the guest process.
        regions: Vec<Region>,
    },
    /// To `Run` and `Resume`: since when the guest runs, on the monotonic clock.
    Running {
        /// The epoch it runs under.
        epoch: Epoch,
        /// Nanoseconds.
        running_since_ns: u64,
    },
    /// To `Verify`.
    Verified {
        /// Pages of which every byte is right: all of them, if nothing is wrong.
        page_count: u64,
        /// What is wrong with the first wrong page.
        mismatch: Option<String>,
    },
    /// The request failed. Nothing changed, except that a guest whose `Run` failed may be running.
    Failed(Reason),
}

impl Request {
    /// The kind byte.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => 1,
            Self::Describe => 2,
            Self::TakeMemory => 3,
            Self::StartTracking => 4,
            Self::Harvest { .. } => 5,
            Self::StopTracking => 6,
            Self::Pause => 7,
            Self::Resume => 8,
            Self::SaveState => 9,
            Self::ReadState { .. } => 10,
            Self::WriteState { .. } => 11,
            Self::LoadState => 12,
            Self::ArmMissing => 13,
            Self::DisarmMissing => 14,
            Self::Run { .. } => 15,
            Self::Quit => 16,
            Self::Verify => 17,
        }
    }

    /// Appends the request as one packet with its number.
    pub fn encode(&self, number: u32, out: &mut Vec<u8>) {
        let start = begin_packet(number, out);
        match self {
            Self::Hello { versions } => put(versions, out),
            Self::Harvest {
                first_block,
                block_count,
            } => put(&(first_block, block_count), out),
            Self::ReadState { offset } => put(offset, out),
            Self::WriteState { offset, bytes } => put_part(*offset, bytes, out),
            Self::Run { epoch } => put(epoch, out),
            Self::Describe
            | Self::TakeMemory
            | Self::StartTracking
            | Self::StopTracking
            | Self::Pause
            | Self::Resume
            | Self::SaveState
            | Self::LoadState
            | Self::ArmMissing
            | Self::DisarmMissing
            | Self::Quit
            | Self::Verify => {}
        }
        frame::finish_frame(self.kind(), FLAG_CRITICAL, start, out);
    }
}

impl Response {
    /// The kind byte.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        match self {
            Self::Welcome { .. } => 64,
            Self::Described(_) => 65,
            Self::Memory { .. } => 66,
            Self::Done => 67,
            Self::Harvested { .. } => 68,
            Self::Paused { .. } => 69,
            Self::StateSaved { .. } => 70,
            Self::StatePart { .. } => 71,
            Self::Armed { .. } => 72,
            Self::Running { .. } => 73,
            Self::Failed(_) => 74,
            Self::Verified { .. } => 75,
        }
    }

    /// Appends the response as one packet with the number of its request.
    pub fn encode(&self, number: u32, out: &mut Vec<u8>) {
        let start = begin_packet(number, out);
        match self {
            Self::Welcome {
                version,
                process_id,
            } => put(&(version, process_id), out),
            Self::Described(description) => put(description, out),
            Self::Memory { bytes } => put(bytes, out),
            Self::Done => {}
            Self::Harvested { first_block, words } => {
                out.extend_from_slice(&first_block.to_le_bytes());
                words
                    .iter()
                    .for_each(|word| out.extend_from_slice(&word.to_le_bytes()));
            }
            Self::Paused { stopped_at_ns } => put(stopped_at_ns, out),
            Self::StateSaved { bytes } => put(bytes, out),
            Self::StatePart { offset, bytes } => put_part(*offset, bytes, out),
            Self::Armed { regions } => put(regions, out),
            Self::Running {
                epoch,
                running_since_ns,
            } => put(&(epoch, running_since_ns), out),
            Self::Failed(reason) => put(reason, out),
            Self::Verified {
                page_count,
                mismatch,
            } => put(&(page_count, mismatch), out),
        }
        frame::finish_frame(self.kind(), FLAG_CRITICAL, start, out);
    }
}

/// Parses a packet from a migrator into the request and its number.
///
/// # Errors
///
/// `E_TRUNCATED`, `E_FRAMING`, `E_TOO_LARGE`, `E_UNKNOWN_KIND`, `E_META` or `E_RANGE`.
pub fn decode_request(packet: &[u8]) -> Result<(u32, Request), Fault> {
    let (kind, number, body) = open_packet(packet)?;
    let request = match kind {
        1 => Request::Hello {
            versions: get(kind, body)?,
        },
        2 => empty(kind, body, Request::Describe)?,
        3 => empty(kind, body, Request::TakeMemory)?,
        4 => empty(kind, body, Request::StartTracking)?,
        5 => checked_harvest(get(kind, body)?)?,
        6 => empty(kind, body, Request::StopTracking)?,
        7 => empty(kind, body, Request::Pause)?,
        8 => empty(kind, body, Request::Resume)?,
        9 => empty(kind, body, Request::SaveState)?,
        10 => Request::ReadState {
            offset: get(kind, body)?,
        },
        11 => {
            let (offset, bytes) = get_part(body)?;
            Request::WriteState { offset, bytes }
        }
        12 => empty(kind, body, Request::LoadState)?,
        13 => empty(kind, body, Request::ArmMissing)?,
        14 => empty(kind, body, Request::DisarmMissing)?,
        15 => Request::Run {
            epoch: get(kind, body)?,
        },
        16 => empty(kind, body, Request::Quit)?,
        17 => empty(kind, body, Request::Verify)?,
        _ => return Err(unknown(kind)),
    };
    Ok((number, request))
}

/// Parses a packet from a guest process into the response and the number of its request.
///
/// # Errors
///
/// `E_TRUNCATED`, `E_FRAMING`, `E_TOO_LARGE`, `E_UNKNOWN_KIND`, `E_META` or `E_RANGE`.
pub fn decode_response(packet: &[u8]) -> Result<(u32, Response), Fault> {
    let (kind, number, body) = open_packet(packet)?;
    let response = match kind {
        64 => {
            let (version, process_id) = get(kind, body)?;
            Response::Welcome {
                version,
                process_id,
            }
        }
        65 => Response::Described(Box::new(checked_description(get(kind, body)?)?)),
        66 => Response::Memory {
            bytes: get(kind, body)?,
        },
        67 => empty(kind, body, Response::Done)?,
        68 => get_harvested(body)?,
        69 => Response::Paused {
            stopped_at_ns: get(kind, body)?,
        },
        70 => Response::StateSaved {
            bytes: checked_state_bytes(get(kind, body)?)?,
        },
        71 => {
            let (offset, bytes) = get_part(body)?;
            Response::StatePart { offset, bytes }
        }
        72 => Response::Armed {
            regions: get_regions(kind, body)?,
        },
        73 => {
            let (epoch, running_since_ns) = get(kind, body)?;
            Response::Running {
                epoch,
                running_since_ns,
            }
        }
        74 => Response::Failed(checked_reason(get(kind, body)?)?),
        75 => {
            let (page_count, mismatch) = get(kind, body)?;
            Response::Verified {
                page_count,
                mismatch,
            }
        }
        _ => return Err(unknown(kind)),
    };
    Ok((number, response))
}

fn begin_packet(number: u32, out: &mut Vec<u8>) -> usize {
    let start = frame::begin_frame(out);
    out.extend_from_slice(&number.to_le_bytes());
    start
}

fn open_packet(packet: &[u8]) -> Result<(u8, u32, &[u8]), Fault> {
    let short = || {
        let length = packet.len();
        Fault::new(Code::Truncated, format!("a packet of {length} bytes"))
    };
    let (header, body) = packet
        .split_first_chunk::<HEADER_BYTES>()
        .ok_or_else(short)?;
    let body_bytes_max =
        u32::try_from(PACKET_BYTES_MAX - HEADER_BYTES).expect("a packet is far below 4 GiB");
    let header = Header::parse(header, body_bytes_max)?;
    header.check_body(body)?;
    let (number, body) = body.split_first_chunk::<4>().ok_or_else(short)?;
    Ok((header.kind, u32::from_le_bytes(*number), body))
}

fn unknown(kind: u8) -> Fault {
    Fault::new(Code::UnknownKind, format!("guest message kind {kind}"))
}

fn put<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    let bytes = postcard::to_allocvec(body).expect("plain structs always serialise");
    out.extend_from_slice(&bytes);
}

fn put_part(offset: u32, bytes: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&offset.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn take_whole<'a, T: Deserialize<'a>>(what: &str, body: &'a [u8]) -> Result<T, Fault> {
    let (value, rest) = postcard::take_from_bytes(body)
        .map_err(|error| Fault::new(Code::Meta, format!("{what}: {error}")))?;
    if !rest.is_empty() {
        let left = rest.len();
        return Err(Fault::new(
            Code::Framing,
            format!("{what} has {left} bytes left"),
        ));
    }
    Ok(value)
}

fn get<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, Fault> {
    take_whole(&format!("guest message kind {kind}"), body)
}

fn empty<T>(kind: u8, body: &[u8], message: T) -> Result<T, Fault> {
    get::<()>(kind, body).map(|()| message)
}

fn get_part(body: &[u8]) -> Result<(u32, Vec<u8>), Fault> {
    let cut = body
        .split_first_chunk::<4>()
        .map(|(offset, bytes)| (u32::from_le_bytes(*offset), bytes));
    let Some((offset, bytes)) = cut else {
        return Err(Fault::new(
            Code::Truncated,
            "a part of state without offset",
        ));
    };
    let end = (offset as usize).saturating_add(bytes.len());
    if bytes.is_empty() || bytes.len() > STATE_PART_BYTES_MAX || end > STATE_BYTES_MAX {
        let length = bytes.len();
        return Err(Fault::new(
            Code::Range,
            format!("a part of {length} bytes of state at {offset}"),
        ));
    }
    Ok((offset, bytes.to_vec()))
}

fn get_harvested(body: &[u8]) -> Result<Response, Fault> {
    let cut = body.split_first_chunk::<8>();
    let Some((first_block, bits)) = cut.filter(|(_, bits)| bits.len().is_multiple_of(8)) else {
        return Err(Fault::new(Code::Truncated, "a harvest of odd length"));
    };
    let first_block = u64::from_le_bytes(*first_block);
    let words: Vec<u64> = bits
        .chunks_exact(8)
        .map(|word| u64::from_le_bytes(word.try_into().expect("eight bytes")))
        .collect();
    let word_count_max = HARVEST_BLOCKS_MAX as usize / 64;
    if words.is_empty() || words.len() > word_count_max || first_block >= BLOCK_COUNT_MAX {
        let count = words.len();
        return Err(Fault::new(
            Code::Range,
            format!("a harvest of {count} words from block {first_block}"),
        ));
    }
    Ok(Response::Harvested { first_block, words })
}

fn get_regions(kind: u8, body: &[u8]) -> Result<Vec<Region>, Fault> {
    let regions: Vec<Region> = get(kind, body)?;
    if regions.len() > REGION_COUNT_MAX {
        let count = regions.len();
        return Err(Fault::new(Code::Meta, format!("{count} regions of memory")));
    }
    Ok(regions)
}

fn checked_harvest((first_block, block_count): (u64, u32)) -> Result<Request, Fault> {
    let end = first_block.checked_add(u64::from(block_count));
    let is_plain =
        first_block.is_multiple_of(64) && (1..=HARVEST_BLOCKS_MAX).contains(&block_count);
    if !is_plain || end.is_none_or(|end| end > BLOCK_COUNT_MAX) {
        return Err(Fault::new(
            Code::Range,
            format!("a harvest of blocks {first_block}+{block_count}"),
        ));
    }
    Ok(Request::Harvest {
        first_block,
        block_count,
    })
}

fn checked_state_bytes(bytes: u32) -> Result<u32, Fault> {
    if bytes == 0 || bytes as usize > STATE_BYTES_MAX {
        return Err(Fault::new(Code::Range, format!("a state of {bytes} bytes")));
    }
    Ok(bytes)
}

fn checked_reason(reason: Reason) -> Result<Reason, Fault> {
    if reason.detail.len() > DETAIL_BYTES_MAX || reason.code.len() > 64 {
        return Err(Fault::new(Code::Meta, "a reason above its cap"));
    }
    Ok(reason)
}

fn checked_description(description: Description) -> Result<Description, Fault> {
    if let GuestState::Crashed { reason } = &description.state
        && reason.len() > DETAIL_BYTES_MAX
    {
        return Err(Fault::new(Code::Meta, "a crash reason above its cap"));
    }
    Ok(description)
}

#[cfg(test)]
mod tests;
