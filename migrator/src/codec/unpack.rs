//! The decoder: a peer's chunk is turned into blocks only if every number and every byte is right.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::message::{CHUNK_RAW_BYTES_MAX, ChunkHeader, Codec, digest_of};
use towpath_protocol::space::Geometry;
use zstd::zstd_safe;

use super::RAW_BYTES_MAX;

/// Largest window a zstd frame may ask for. Ours ask for 64 KiB; the rest is for larger chunks of
/// later versions, and far below what a decompression bomb needs.
const WINDOW_LOG_MAX: u32 = 21;

const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Bits of zstd's frame header descriptor (RFC 8878, 3.1.1.1.1).
const SINGLE_SEGMENT: u8 = 1 << 5;
const RESERVED: u8 = 1 << 3;
const DICTIONARY: u8 = 0b11;

/// A chunk that has been checked against its header.
#[derive(Debug, PartialEq, Eq)]
pub struct DecodedChunk<'a> {
    /// The header; its runs lie inside the space.
    pub header: &'a ChunkHeader,
    /// The blocks of all runs, concatenated. Empty for a chunk of zeros, which may name far more
    /// than fits in memory.
    pub raw: &'a [u8],
}

/// The contexts and the one buffer of a decoding thread.
pub struct Decoder {
    header: ChunkHeader,
    raw: Box<[u8]>,
    zstd: zstd::bulk::Decompressor<'static>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder.
    ///
    /// # Errors
    ///
    /// `E_IO` if zstd cannot allocate its memory.
    pub fn new() -> Result<Self, Fault> {
        let setup = || {
            let mut zstd = zstd::bulk::Decompressor::new()?;
            zstd.window_log_max(WINDOW_LOG_MAX)?;
            Ok(zstd)
        };
        let zstd = setup().map_err(|error: std::io::Error| {
            Fault::new(Code::Io, format!("zstd could not be set up: {error}"))
        })?;
        Ok(Self {
            header: ChunkHeader::default(),
            raw: vec![0; RAW_BYTES_MAX].into_boxed_slice(),
            zstd,
        })
    }

    /// Decodes the body of a chunk's frame. `spaces` are the guest's spaces in the order of their
    /// ids.
    ///
    /// # Errors
    ///
    /// `E_TRUNCATED`, `E_RANGE` or `E_CODEC`: the peer's fault; no blocks are returned.
    pub fn decode<'a>(
        &'a mut self,
        body: &'a [u8],
        spaces: &[Geometry],
    ) -> Result<DecodedChunk<'a>, Fault> {
        let payload = self.header.decode_into(body)?;
        let raw_bytes = check_ranges(&self.header, spaces)?;
        let raw = match self.header.codec {
            Codec::Zero => {
                return Ok(DecodedChunk {
                    header: &self.header,
                    raw: &[],
                });
            }
            Codec::Raw if payload.len() == raw_bytes => payload,
            Codec::Raw => return Err(wrong_size(&self.header, payload.len(), raw_bytes)),
            Codec::Lz4 => {
                let raw = &mut self.raw[..raw_bytes];
                // Cleared so that a bad offset can never return bytes of the previous chunk.
                raw.fill(0);
                let bytes = lz4_flex::block::decompress_into(payload, raw)
                    .map_err(|error| does_not_unpack(&self.header, &error))?;
                if bytes != raw_bytes {
                    return Err(wrong_size(&self.header, bytes, raw_bytes));
                }
                raw
            }
            Codec::Zstd => {
                let raw = &mut self.raw[..raw_bytes];
                check_zstd_frame(payload, raw_bytes)?;
                let bytes = self
                    .zstd
                    .decompress_to_buffer(payload, raw)
                    .map_err(|error| does_not_unpack(&self.header, &error))?;
                if bytes != raw_bytes {
                    return Err(wrong_size(&self.header, bytes, raw_bytes));
                }
                raw
            }
        };
        if digest_of(raw) != self.header.digest {
            let sequence = self.header.sequence;
            return Err(Fault::new(
                Code::Codec,
                format!("chunk {sequence} does not have its digest"),
            ));
        }
        Ok(DecodedChunk {
            header: &self.header,
            raw,
        })
    }
}

/// Checks that the runs lie in their space. Returns the raw bytes of a chunk that carries any.
fn check_ranges(header: &ChunkHeader, spaces: &[Geometry]) -> Result<usize, Fault> {
    let space = header.space.0;
    let geometry = spaces.get(usize::from(space)).ok_or_else(|| {
        let count = spaces.len();
        Fault::new(
            Code::Range,
            format!("space {space} of a guest with {count}"),
        )
    })?;
    for run in &header.runs {
        geometry.check(*run)?;
    }
    let raw_bytes = header.raw_bytes(geometry.block_bytes());
    if header.codec != Codec::Zero && raw_bytes > u64::from(CHUNK_RAW_BYTES_MAX) {
        return Err(Fault::new(
            Code::Range,
            format!("a chunk of {raw_bytes} bytes of blocks"),
        ));
    }
    // The result is unused for a chunk of zeros.
    Ok(usize::try_from(raw_bytes).unwrap_or(usize::MAX))
}

/// Refuses what zstd allows but we never send: skippable and concatenated frames, dictionaries,
/// large windows, and frames whose stated size is missing or wrong.
fn check_zstd_frame(payload: &[u8], raw_bytes: usize) -> Result<(), Fault> {
    let refuse = |what: &str| Err(Fault::new(Code::Codec, format!("a zstd frame with {what}")));
    let [a, b, c, d, descriptor, next, ..] = *payload else {
        return refuse("no header");
    };
    if [a, b, c, d] != ZSTD_MAGIC {
        return refuse("another magic");
    }
    if descriptor & DICTIONARY != 0 {
        return refuse("a dictionary");
    }
    if descriptor & RESERVED != 0 {
        return refuse("its reserved bit set");
    }
    if descriptor & SINGLE_SEGMENT == 0 {
        let window_log = 10 + u32::from(next >> 3);
        let eighths = u32::from(next & 7);
        if window_log > WINDOW_LOG_MAX || (window_log == WINDOW_LOG_MAX && eighths > 0) {
            return refuse("too large a window");
        }
    }
    match zstd_safe::get_frame_content_size(payload) {
        Ok(Some(bytes)) if bytes == raw_bytes as u64 => {}
        Ok(Some(_)) => return refuse("another size than the chunk"),
        Ok(None) | Err(_) => return refuse("no size"),
    }
    match zstd_safe::find_frame_compressed_size(payload) {
        Ok(bytes) if bytes == payload.len() => Ok(()),
        Ok(_) => refuse("bytes behind it"),
        Err(_) => refuse("its end missing"),
    }
}

fn wrong_size(header: &ChunkHeader, bytes: usize, expected: usize) -> Fault {
    let (sequence, codec) = (header.sequence, header.codec);
    Fault::new(
        Code::Codec,
        format!("chunk {sequence} packed as {codec:?} unpacks to {bytes} of {expected} bytes"),
    )
}

fn does_not_unpack(header: &ChunkHeader, error: &dyn std::fmt::Display) -> Fault {
    let (sequence, codec) = (header.sequence, header.codec);
    Fault::new(
        Code::Codec,
        format!("chunk {sequence} packed as {codec:?} does not unpack: {error}"),
    )
}
