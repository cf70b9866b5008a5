//! The messages between two migrators, and their encoding.
//!
//! A move uses four streams, its *lanes*. The source opens all of them, so that each has its own
//! class in the tunnel. Each lane begins with [`Hello`] and [`Welcome`]. Metadata is postcard under
//! a cap per kind; chunks have a fixed binary header. Every number is checked before anything is
//! allocated.
//!
//! ```text
//!            control                         bulk             switch            demand
//!  source ── Prepare, Commit, Abort, ... ──► Chunk ──►        StatePart,        Chunk ──►
//!                                                             MissingPart, Manifest,
//!                                                             FinalEnd ──►
//!  target ◄─ Prepared, Received, Ready, Ack,                                    ◄── Demand
//!            Nack, MissingPart, Complete, Mark
//! ```

mod kind;

use aegis::aegis128x4::Aegis128X4Mac;
use serde::{Deserialize, Serialize};

use crate::fault::{Code, Fault};
use crate::frame::{self, DIGESTED_HEAD_BYTES, FLAG_CRITICAL, FLAG_DIGESTED, HEADER_BYTES, Header};
use crate::identity::{AttemptId, Epoch, GuestId, MigrationId, Name};
use crate::image::Manifest;
use crate::ownership::Root;
use crate::space::{BLOCK_COUNT_MAX, BlockRun, Geometry, SPACE_COUNT_MAX, SpaceId};
use crate::version::VersionRange;

use kind::Kind;

/// Most raw bytes of blocks in one chunk. Bulk travels in small pieces so that an urgent stream
/// never waits long behind one (256 KiB cost 5 ms at 200 Mbit/s, measured).
pub const CHUNK_RAW_BYTES_MAX: u32 = 64 * 1024;

/// Most runs in one chunk: sixteen single pages.
pub const CHUNK_RUN_COUNT_MAX: usize = 16;

/// Most blocks in one chunk that carries bytes: [`CHUNK_RAW_BYTES_MAX`] of the smallest blocks.
pub const CHUNK_BLOCKS_MAX: u64 = 16;

/// The digest of a chunk of zeros. Such a chunk may name gigabytes, which need not be hashed
/// because the runs say everything.
pub const ZERO_CHUNK_DIGEST: [u8; 16] = [0; 16];

/// The key of [`digest_of`]. It is not a secret.
const DIGEST_KEY: &[u8; 16] = b"towpath chunk v1";

/// Most blocks a chunk of zeros may name in one run.
pub const ZERO_RUN_BLOCKS_MAX: u32 = 1 << 20;

/// Most bytes of a guest's description in `Prepare`.
pub const CONFIG_BYTES_MAX: usize = 16 * 1024;

/// Most bytes of vCPU and machine state.
pub const STATE_BYTES_MAX: usize = 1024 * 1024;

/// Bytes of state in one part.
pub const STATE_PART_BYTES_MAX: usize = 60 * 1024;

/// Words of a block set in one part: 2^18 blocks, 1 GiB of memory.
pub const MISSING_PART_WORDS_MAX: usize = 4096;

/// Most bytes of a reason in words.
pub const DETAIL_BYTES_MAX: usize = 512;

/// The purpose of a stream. Each lane has its class in the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Lane {
    /// Messages of the handover, acknowledgements, pings.
    Control,
    /// Chunks of pre-copy and push.
    Bulk,
    /// Device state and the manifest while the guest is paused.
    Switch,
    /// Blocks that a stopped vCPU waits for.
    Demand,
}

impl Lane {
    /// All lanes, in the order they are opened.
    pub const ALL: [Self; 4] = [Self::Control, Self::Bulk, Self::Switch, Self::Demand];
}

/// How a chunk's payload is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[repr(u8)]
pub enum Codec {
    /// All bytes are zero; no payload.
    Zero = 1,
    /// The bytes as they are.
    Raw = 2,
    /// One LZ4 block.
    Lz4 = 3,
    /// One zstd frame.
    Zstd = 4,
}

impl Codec {
    fn from_byte(byte: u8) -> Result<Self, Fault> {
        match byte {
            1 => Ok(Self::Zero),
            2 => Ok(Self::Raw),
            3 => Ok(Self::Lz4),
            4 => Ok(Self::Zstd),
            _ => Err(Fault::new(
                Code::Codec,
                format!("codec {byte} is not known"),
            )),
        }
    }
}

/// First message of every lane, source to target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions the source speaks.
    pub versions: VersionRange,
    /// The move this belongs to.
    pub migration: MigrationId,
    /// The attempt this lane serves.
    pub attempt: AttemptId,
    /// The guest that moves.
    pub guest: GuestId,
    /// The purpose of the lane.
    pub lane: Lane,
    /// Number of this set of lanes. Lanes with the same number belong together, and a new number
    /// replaces the set before.
    pub link: u64,
}

/// The target's answer to [`Hello`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The version both use from here on.
    pub version: u16,
}

/// A space of the guest as it is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SpaceInfo {
    /// Its number.
    pub id: SpaceId,
    /// Bytes of a block.
    pub block_bytes: u32,
    /// Number of blocks.
    pub block_count: u64,
}

impl SpaceInfo {
    /// The geometry, checked.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` as [`Geometry::new`].
    pub fn geometry(&self) -> Result<Geometry, Fault> {
        Geometry::new(self.block_bytes, self.block_count)
    }
}

/// The source's offer of a guest: everything the target needs to admit and build it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepare {
    /// The operator's name for the guest.
    pub name: Name,
    /// The epoch that the target would own it with.
    pub epoch: Epoch,
    /// Its spaces.
    pub spaces: Vec<SpaceInfo>,
    /// The guest's description. Opaque here; the guest process checks it.
    pub config: Vec<u8>,
}

/// How far the target has installed the stream of chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Received {
    /// Every chunk up to this number is installed.
    pub through_sequence: u64,
    /// The transcript hash after that chunk. [`crate::source`] and [`crate::target`] compute it
    /// alike.
    pub chain: [u8; 32],
}

/// A slice of a set of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MissingPart {
    /// The space.
    pub space: SpaceId,
    /// First 64-block word.
    pub first_word: u64,
    /// The words, lowest block in the lowest bit.
    pub words: Vec<u64>,
}

/// End of the paused stage. Lists all that must arrive before the guest may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FinalEnd {
    /// The last chunk sent before the switch.
    pub through_sequence: u64,
    /// Bytes of state sent in parts.
    pub state_bytes: u32,
    /// Number of missing blocks over all spaces.
    pub missing_count: u64,
    /// The source's root.
    pub root: Root,
}

/// Why a side ends an attempt.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reason {
    /// The text of a stable code.
    pub code: String,
    /// One sentence.
    pub detail: String,
}

impl From<&Fault> for Reason {
    fn from(fault: &Fault) -> Self {
        let mut detail = fault.detail.clone();
        while detail.len() > DETAIL_BYTES_MAX {
            detail.pop();
        }
        Self {
            code: fault.code.as_str().to_owned(),
            detail,
        }
    }
}

impl Reason {
    /// Converts the reason to a fault: with the peer's code if it is known, else with `otherwise`.
    #[must_use]
    pub fn to_fault(&self, otherwise: Code) -> Fault {
        let code = Code::parse(&self.code).unwrap_or(otherwise);
        Fault::new(code, self.detail.clone())
    }
}

/// The fixed header of a chunk of blocks.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ChunkHeader {
    /// Its number on the bulk lane, from 1 and without gaps; 0 on the demand lane.
    pub sequence: u64,
    /// The round it was read in. Never decreases.
    pub generation: u32,
    /// The space.
    pub space: SpaceId,
    /// How the payload is packed.
    pub codec: Codec,
    /// The blocks, in ascending order and disjoint.
    pub runs: Vec<BlockRun>,
    /// [`digest_of`] the unpacked bytes; [`ZERO_CHUNK_DIGEST`] for zeros.
    pub digest: [u8; 16],
}

impl Default for ChunkHeader {
    /// A header to be filled by [`ChunkHeader::decode_into`]: it names no blocks.
    fn default() -> Self {
        Self {
            sequence: 0,
            generation: 0,
            space: SpaceId::default(),
            codec: Codec::Zero,
            runs: Vec::new(),
            digest: ZERO_CHUNK_DIGEST,
        }
    }
}

/// A message between migrators. Chunks are not here: see [`ChunkHeader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// First on every lane.
    Hello(Hello),
    /// Answer to `Hello`.
    Welcome(Welcome),
    /// Source: offers a guest.
    Prepare(Prepare),
    /// Target: accepts the offer, and says how far it has installed the stream of chunks.
    Prepared(Received),
    /// Target: refuses the offer, for this attempt for ever.
    Refused(Reason),
    /// Target: chunks were installed.
    Received(Received),
    /// Source: a paused stage begins. Parts of an earlier one are void.
    FinalBegin,
    /// Part of the vCPU and machine state.
    StatePart(Vec<u8>),
    /// Part of a missing set: the source's at the switch, or the target's when lanes come back.
    MissingPart(MissingPart),
    /// Target: the missing set that was sent in parts is complete. Also says how far the stream of
    /// chunks is installed.
    MissingEnd(Received),
    /// Source: the parts of this paused stage's image, for the log of a target that refuses the
    /// image. A side that does not know this message skips it.
    Manifest(Manifest),
    /// Source: the paused stage is over.
    FinalEnd(FinalEnd),
    /// Target: the image is complete and verified.
    Ready(Root),
    /// Source: hands the guest over.
    Commit(Epoch, Root),
    /// Target: runs the guest. Holds the microseconds from receiving `Commit` to running.
    Ack(u64),
    /// Target: will never run the guest.
    Nack(Reason),
    /// Source: ends this attempt.
    Abort(Reason),
    /// Target: nothing is missing any more.
    Complete,
    /// Source: has let go of the guest.
    Released,
    /// Target: a vCPU waits for this block.
    Demand(SpaceId, u64),
    /// Either side: asks whether the other is alive.
    Ping(u64),
    /// Either side: answers `Ping`.
    Pong(u64),
    /// Target: the highest epoch it has seen of a guest. Precedes the refusal of an offer whose
    /// epoch is not above it.
    Mark(Epoch),
}

/// Kind byte of a chunk's frame.
pub const KIND_CHUNK: u8 = Kind::Chunk as u8;

/// Highest kind byte that this version knows. Kinds begin at 1.
pub const KIND_MAX: u8 = Kind::Mark as u8;

const CHUNK_FIXED_BYTES: usize = 8 + 4 + 2 + 1 + 1 + 16;
const RUN_BYTES: usize = 8 + 4;

/// Most bytes of a chunk's frame before its payload.
pub const CHUNK_HEAD_BYTES_MAX: usize =
    HEADER_BYTES + CHUNK_FIXED_BYTES + CHUNK_RUN_COUNT_MAX * RUN_BYTES;

/// A chunk's payload has a digest of its own; the frame's checksum covers its head.
const CHUNK_FLAGS: u8 = FLAG_CRITICAL | FLAG_DIGESTED;

const _: () = assert!(CHUNK_HEAD_BYTES_MAX - HEADER_BYTES <= DIGESTED_HEAD_BYTES);

/// Largest body of a kind that this version does not know.
const UNKNOWN_BODY_BYTES_MAX: u32 = 1024;

/// Largest body of each kind, checked before the body is read.
#[must_use]
pub const fn body_bytes_max(kind: u8) -> u32 {
    match Kind::from_byte(kind) {
        Some(kind) => kind.body_bytes_max(),
        None => UNKNOWN_BODY_BYTES_MAX,
    }
}

impl Message {
    /// The kind byte.
    #[must_use]
    pub const fn kind(&self) -> u8 {
        self.known_kind() as u8
    }

    const fn known_kind(&self) -> Kind {
        match self {
            Self::Hello(_) => Kind::Hello,
            Self::Welcome(_) => Kind::Welcome,
            Self::Prepare(_) => Kind::Prepare,
            Self::Prepared(_) => Kind::Prepared,
            Self::Refused(_) => Kind::Refused,
            Self::Received(_) => Kind::Received,
            Self::StatePart(_) => Kind::StatePart,
            Self::MissingPart(_) => Kind::MissingPart,
            Self::MissingEnd(_) => Kind::MissingEnd,
            Self::FinalEnd(_) => Kind::FinalEnd,
            Self::Ready(_) => Kind::Ready,
            Self::Commit(..) => Kind::Commit,
            Self::Ack(_) => Kind::Ack,
            Self::Nack(_) => Kind::Nack,
            Self::Abort(_) => Kind::Abort,
            Self::Complete => Kind::Complete,
            Self::Released => Kind::Released,
            Self::Demand(..) => Kind::Demand,
            Self::Ping(_) => Kind::Ping,
            Self::Pong(_) => Kind::Pong,
            Self::FinalBegin => Kind::FinalBegin,
            Self::Manifest(_) => Kind::Manifest,
            Self::Mark(_) => Kind::Mark,
        }
    }

    /// Appends the message as one frame.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let start = frame::begin_frame(out);
        match self {
            Self::Hello(body) => put(body, out),
            Self::Welcome(body) => put(body, out),
            Self::Prepare(body) => put(body, out),
            Self::Prepared(body) | Self::Received(body) | Self::MissingEnd(body) => put(body, out),
            Self::Refused(body) | Self::Nack(body) | Self::Abort(body) => put(body, out),
            Self::StatePart(bytes) => out.extend_from_slice(bytes),
            Self::MissingPart(body) => put(body, out),
            Self::Manifest(body) => put(body, out),
            Self::FinalEnd(body) => put(body, out),
            Self::Ready(root) => put(root, out),
            Self::Commit(epoch, root) => put(&(epoch, root), out),
            Self::Ack(number) | Self::Ping(number) | Self::Pong(number) => put(number, out),
            Self::Complete | Self::Released | Self::FinalBegin => {}
            Self::Demand(space, block) => put(&(space, block), out),
            Self::Mark(epoch) => put(epoch, out),
        }
        let kind = self.known_kind();
        let flags = if kind.is_critical() { FLAG_CRITICAL } else { 0 };
        frame::finish_frame(kind as u8, flags, start, out);
    }

    /// Parses the body of a frame whose header and checksum are valid.
    ///
    /// # Errors
    ///
    /// `E_UNKNOWN_KIND` for a kind that this version does not know, `E_META` if the body does not
    /// parse or has impossible values, `E_RANGE` for a part of a block set that is out of range,
    /// `E_FRAMING` if bytes are left over.
    pub fn decode(kind: u8, body: &[u8]) -> Result<Self, Fault> {
        let unknown = || Fault::new(Code::UnknownKind, format!("message kind {kind}"));
        let message = match Kind::from_byte(kind).ok_or_else(unknown)? {
            Kind::Hello => Self::Hello(get(kind, body)?),
            Kind::Welcome => Self::Welcome(get(kind, body)?),
            Kind::Prepare => Self::Prepare(checked_prepare(get(kind, body)?)?),
            Kind::Prepared => Self::Prepared(get(kind, body)?),
            Kind::Refused => Self::Refused(checked_reason(get(kind, body)?)?),
            Kind::Received => Self::Received(get(kind, body)?),
            Kind::StatePart => Self::StatePart(checked_state_part(body)?),
            Kind::MissingPart => Self::MissingPart(checked_missing(get(kind, body)?)?),
            Kind::MissingEnd => Self::MissingEnd(get(kind, body)?),
            Kind::FinalEnd => Self::FinalEnd(checked_final_end(get(kind, body)?)?),
            Kind::Ready => Self::Ready(get(kind, body)?),
            Kind::Commit => {
                let (epoch, root) = get(kind, body)?;
                Self::Commit(epoch, root)
            }
            Kind::Ack => Self::Ack(get(kind, body)?),
            Kind::Nack => Self::Nack(checked_reason(get(kind, body)?)?),
            Kind::Abort => Self::Abort(checked_reason(get(kind, body)?)?),
            Kind::Complete => get(kind, body).map(|()| Self::Complete)?,
            Kind::Released => get(kind, body).map(|()| Self::Released)?,
            Kind::Demand => {
                let (space, block) = get(kind, body)?;
                Self::Demand(space, block)
            }
            Kind::Ping => Self::Ping(get(kind, body)?),
            Kind::Pong => Self::Pong(get(kind, body)?),
            Kind::FinalBegin => get(kind, body).map(|()| Self::FinalBegin)?,
            Kind::Manifest => Self::Manifest(get(kind, body)?),
            Kind::Mark => Self::Mark(get(kind, body)?),
            // Parsed by itself: [`ChunkHeader::decode`].
            Kind::Chunk => return Err(unknown()),
        };
        Ok(message)
    }
}

/// Whether this version may skip a header's kind: it is unknown and not marked critical.
#[must_use]
pub const fn is_skippable(header: &Header) -> bool {
    let is_known = Kind::from_byte(header.kind).is_some();
    !is_known && header.flags & FLAG_CRITICAL == 0
}

impl ChunkHeader {
    /// Raw bytes that the chunk unpacks to, for blocks of `block_bytes`. Zero chunks may name far
    /// more than [`CHUNK_RAW_BYTES_MAX`], because they have no payload.
    #[must_use]
    pub fn raw_bytes(&self, block_bytes: u32) -> u64 {
        crate::space::block_count_of(&self.runs) * u64::from(block_bytes)
    }

    /// Appends the chunk as one frame; `payload` is already packed.
    ///
    /// # Panics
    ///
    /// If there are more than [`CHUNK_RUN_COUNT_MAX`] runs. Our own planner stays below it.
    pub fn encode(&self, payload: &[u8], out: &mut Vec<u8>) {
        let start = frame::begin_frame(out);
        out.resize(start + Self::head_bytes(self.runs.len()), 0);
        self.write_head(&mut out[start..]);
        out.extend_from_slice(payload);
        frame::finish_frame(KIND_CHUNK, CHUNK_FLAGS, start, out);
    }

    /// The offset of the payload in the frame of a chunk of `run_count` runs.
    #[must_use]
    pub const fn head_bytes(run_count: usize) -> usize {
        HEADER_BYTES + CHUNK_FIXED_BYTES + run_count * RUN_BYTES
    }

    /// Writes everything before the payload to the start of `frame`, for an encoder that packs in
    /// place. [`seal_chunk`] then completes the frame.
    ///
    /// # Panics
    ///
    /// If there are more than [`CHUNK_RUN_COUNT_MAX`] runs or `frame` is shorter than
    /// [`ChunkHeader::head_bytes`].
    pub fn write_head(&self, frame: &mut [u8]) {
        let run_count = self.runs.len();
        assert!(
            run_count <= CHUNK_RUN_COUNT_MAX,
            "{run_count} runs in a chunk"
        );
        let (fixed, runs) =
            frame[HEADER_BYTES..Self::head_bytes(run_count)].split_at_mut(CHUNK_FIXED_BYTES);
        fixed[..8].copy_from_slice(&self.sequence.to_le_bytes());
        fixed[8..12].copy_from_slice(&self.generation.to_le_bytes());
        fixed[12..14].copy_from_slice(&self.space.0.to_le_bytes());
        fixed[14] = self.codec as u8;
        fixed[15] = u8::try_from(run_count).expect("asserted above");
        fixed[16..].copy_from_slice(&self.digest);
        for (bytes, run) in runs.chunks_exact_mut(RUN_BYTES).zip(&self.runs) {
            bytes[..8].copy_from_slice(&run.start.to_le_bytes());
            bytes[8..].copy_from_slice(&run.count.to_le_bytes());
        }
    }

    /// Parses the body of a chunk's frame into its header and its packed payload.
    ///
    /// # Errors
    ///
    /// As [`ChunkHeader::decode_into`].
    pub fn decode(body: &[u8]) -> Result<(Self, &[u8]), Fault> {
        let mut header = Self::default();
        let payload = header.decode_into(body)?;
        Ok((header, payload))
    }

    /// Parses the body of a chunk's frame into this header, reusing its memory, and returns the
    /// packed payload.
    ///
    /// # Errors
    ///
    /// `E_TRUNCATED`, `E_CODEC` or `E_RANGE`; the header is then meaningless. Checks that the runs
    /// are ascending, disjoint, not empty and not too many. Whether they lie in the space the
    /// caller has to check.
    pub fn decode_into<'a>(&mut self, body: &'a [u8]) -> Result<&'a [u8], Fault> {
        let short = || Fault::new(Code::Truncated, format!("a chunk of {} bytes", body.len()));
        let (fixed, rest) = body.split_at_checked(CHUNK_FIXED_BYTES).ok_or_else(short)?;
        let run_count = usize::from(fixed[15]);
        if run_count == 0 || run_count > CHUNK_RUN_COUNT_MAX {
            return Err(Fault::new(
                Code::Range,
                format!("a chunk of {run_count} runs"),
            ));
        }
        let (run_bytes, payload) = rest
            .split_at_checked(run_count * RUN_BYTES)
            .ok_or_else(short)?;
        self.sequence = u64::from_le_bytes(fixed[..8].try_into().expect("eight bytes"));
        self.generation = u32::from_le_bytes(fixed[8..12].try_into().expect("four bytes"));
        self.space = SpaceId(u16::from_le_bytes(
            fixed[12..14].try_into().expect("two bytes"),
        ));
        self.codec = Codec::from_byte(fixed[14])?;
        self.digest = fixed[16..].try_into().expect("sixteen bytes");
        self.take_runs(run_bytes)?;
        self.check_payload(payload)?;
        Ok(payload)
    }

    fn take_runs(&mut self, run_bytes: &[u8]) -> Result<(), Fault> {
        let (run_blocks_max, blocks_max) = match self.codec {
            Codec::Zero => (u64::from(ZERO_RUN_BLOCKS_MAX), u64::MAX),
            Codec::Raw | Codec::Lz4 | Codec::Zstd => (CHUNK_BLOCKS_MAX, CHUNK_BLOCKS_MAX),
        };
        self.runs.clear();
        let mut free_from = 0;
        let mut blocks = 0;
        for bytes in run_bytes.chunks_exact(RUN_BYTES) {
            let (start, count) = bytes.split_at(8);
            let run = BlockRun {
                start: u64::from_le_bytes(start.try_into().expect("eight bytes")),
                count: u32::from_le_bytes(count.try_into().expect("four bytes")),
            };
            let count = u64::from(run.count);
            blocks += count;
            let fits = count > 0 && count <= run_blocks_max && blocks <= blocks_max;
            if !fits || run.start < free_from || run.end() > BLOCK_COUNT_MAX {
                return Err(Fault::new(
                    Code::Range,
                    format!("a chunk's run {run} after block {free_from}"),
                ));
            }
            free_from = run.end();
            self.runs.push(run);
        }
        Ok(())
    }

    fn check_payload(&self, payload: &[u8]) -> Result<(), Fault> {
        let bytes = payload.len();
        let fits = match self.codec {
            Codec::Zero => bytes == 0 && self.digest == ZERO_CHUNK_DIGEST,
            Codec::Raw | Codec::Lz4 | Codec::Zstd => {
                bytes > 0 && bytes <= CHUNK_RAW_BYTES_MAX as usize
            }
        };
        if !fits {
            let codec = self.codec;
            return Err(Fault::new(
                Code::Codec,
                format!("a chunk packed as {codec:?} with a payload of {bytes} bytes"),
            ));
        }
        Ok(())
    }
}

/// The digest of a chunk's unpacked bytes: the tag of AEGIS-128X4 used as a MAC
/// (draft-irtf-cfrg-aegis-aead), under a public key.
///
/// It detects accidental damage: in a codec, in memory, in a queue. It does not resist attacks,
/// because the key is known, and need not: the link authenticates every byte, and a malicious
/// source has no use for a collision, as the bytes are its own anyway. A chunk that does not
/// compress is only copied and hashed, so hashing must be about as fast as copying; a
/// collision-resistant hash takes several times as long.
#[must_use]
pub fn digest_of(raw: &[u8]) -> [u8; 16] {
    let mut state = Aegis128X4Mac::<16>::new(DIGEST_KEY);
    state.update(raw);
    state.finalize()
}

/// Sets the number and the checksums of the chunk that fills `frame`. Separate from
/// [`ChunkHeader::write_head`] because many threads pack chunks and one numbers them.
///
/// # Panics
///
/// If `frame` is shorter than the head of a chunk or above the cap of a frame.
pub fn seal_chunk(sequence: u64, frame: &mut [u8]) {
    frame[HEADER_BYTES..HEADER_BYTES + 8].copy_from_slice(&sequence.to_le_bytes());
    frame::finish_frame(KIND_CHUNK, CHUNK_FLAGS, 0, frame);
}

/// The transcript hash after a chunk. Both sides fold in every chunk in the order of its number, so
/// equal hashes mean that the same bytes went to the same blocks in the same order.
#[must_use]
pub fn chain_after(chain: &[u8; 32], header: &ChunkHeader) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain);
    hasher.update(&header.sequence.to_le_bytes());
    hasher.update(&header.generation.to_le_bytes());
    hasher.update(&header.space.0.to_le_bytes());
    hasher.update(&header.digest);
    for run in &header.runs {
        hasher.update(&run.start.to_le_bytes());
        hasher.update(&run.count.to_le_bytes());
    }
    *hasher.finalize().as_bytes()
}

fn put<T: Serialize>(body: &T, out: &mut Vec<u8>) {
    let bytes = postcard::to_allocvec(body).expect("plain structs always serialise");
    out.extend_from_slice(&bytes);
}

fn get<'a, T: Deserialize<'a>>(kind: u8, body: &'a [u8]) -> Result<T, Fault> {
    let (value, rest) = postcard::take_from_bytes(body)
        .map_err(|error| Fault::new(Code::Meta, format!("message kind {kind}: {error}")))?;
    if !rest.is_empty() {
        let left = rest.len();
        return Err(Fault::new(
            Code::Framing,
            format!("message kind {kind} has {left} bytes left"),
        ));
    }
    Ok(value)
}

fn checked_prepare(prepare: Prepare) -> Result<Prepare, Fault> {
    if prepare.spaces.is_empty() || prepare.spaces.len() > SPACE_COUNT_MAX {
        let count = prepare.spaces.len();
        return Err(Fault::new(Code::Meta, format!("a guest of {count} spaces")));
    }
    if prepare.config.len() > CONFIG_BYTES_MAX {
        let bytes = prepare.config.len();
        return Err(Fault::new(
            Code::Meta,
            format!("a guest's description of {bytes} bytes"),
        ));
    }
    for (position, space) in prepare.spaces.iter().enumerate() {
        if usize::from(space.id.0) != position {
            return Err(Fault::new(
                Code::Meta,
                "a guest's spaces are not numbered from 0".to_owned(),
            ));
        }
    }
    Ok(prepare)
}

fn checked_reason(reason: Reason) -> Result<Reason, Fault> {
    if reason.detail.len() > DETAIL_BYTES_MAX || reason.code.len() > 64 {
        return Err(Fault::new(Code::Meta, "a reason above its cap".to_owned()));
    }
    Ok(reason)
}

fn checked_state_part(bytes: &[u8]) -> Result<Vec<u8>, Fault> {
    if bytes.is_empty() || bytes.len() > STATE_PART_BYTES_MAX {
        return Err(Fault::new(
            Code::Meta,
            format!("a part of state of {} bytes", bytes.len()),
        ));
    }
    Ok(bytes.to_vec())
}

fn checked_missing(part: MissingPart) -> Result<MissingPart, Fault> {
    let count = part.words.len();
    let end = part.first_word.checked_add(count as u64);
    if count == 0 || count > MISSING_PART_WORDS_MAX || end.is_none_or(|e| e > BLOCK_COUNT_MAX / 64)
    {
        return Err(Fault::new(
            Code::Range,
            format!("a part of {count} words of a block set"),
        ));
    }
    Ok(part)
}

fn checked_final_end(end: FinalEnd) -> Result<FinalEnd, Fault> {
    let (bytes, missing) = (end.state_bytes, end.missing_count);
    if bytes as usize > STATE_BYTES_MAX || missing > SPACE_COUNT_MAX as u64 * BLOCK_COUNT_MAX {
        return Err(Fault::new(
            Code::Meta,
            format!("an end of {bytes} bytes of state and {missing} missing blocks"),
        ));
    }
    Ok(end)
}

/// Bytes that a lane's reader needs before it can parse a header.
pub const LANE_HEADER_BYTES: usize = HEADER_BYTES;
