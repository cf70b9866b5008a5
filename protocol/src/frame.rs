//! The checked envelope around every message.
//!
//! ```text
//!  0       2      3       4              8              12             16
//!  +-------+------+-------+--------------+--------------+--------------+------ ... ------+
//!  | magic | kind | flags | body length  | CRC32C body  | CRC32C of 12 | body            |
//!  +-------+------+-------+--------------+--------------+--------------+------ ... ------+
//! ```
//!
//! The body's checksum covers all of it, or only its beginning if the body carries a digest of its
//! own ([`FLAG_DIGESTED`]). All numbers are little-endian. The header has a checksum of its own,
//! which is checked before the length is believed. So a flipped bit in the length neither allocates
//! nor waits for bytes that never come.

use crate::fault::{Code, Fault};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 16;

/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"TP";

/// Flag: a side that does not know the kind must end the connection instead of skipping the frame.
pub const FLAG_CRITICAL: u8 = 1;

/// Flag: the body holds, within its first [`DIGESTED_HEAD_BYTES`], a digest of the rest, which its
/// reader checks. The frame's checksum covers only that beginning, so that bytes which are hashed
/// anyway are not read twice.
pub const FLAG_DIGESTED: u8 = 2;

/// Bytes at the beginning of a [`FLAG_DIGESTED`] body that the frame's checksum covers: the longest
/// head of a chunk, and a little of its payload.
pub const DIGESTED_HEAD_BYTES: usize = 256;

/// Largest body of any frame, in bytes: one chunk of 64 KiB of raw blocks with its runs, and some
/// reserve.
pub const BODY_BYTES_MAX: u32 = 96 * 1024;

/// A header whose checksum has been verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The kind of the body.
    pub kind: u8,
    /// Any of [`FLAG_CRITICAL`] and [`FLAG_DIGESTED`].
    pub flags: u8,
    /// Bytes of the body.
    pub body_bytes: u32,
    body_crc: u32,
}

impl Header {
    /// Parses a header.
    ///
    /// # Errors
    ///
    /// `E_FRAMING` for a wrong magic, checksum or flag, `E_TOO_LARGE` for a body above
    /// `body_bytes_max` or [`BODY_BYTES_MAX`].
    pub fn parse(bytes: &[u8; HEADER_BYTES], body_bytes_max: u32) -> Result<Self, Fault> {
        let (checked, crc) = bytes.split_at(12);
        let crc_expected = u32::from_le_bytes(word(crc));
        if checked[..2] != MAGIC || crc32c::crc32c(checked) != crc_expected {
            return Err(Fault::new(
                Code::Framing,
                format!("no frame begins with {bytes:02x?}"),
            ));
        }
        let header = Self {
            kind: checked[2],
            flags: checked[3],
            body_bytes: u32::from_le_bytes(word(&checked[4..8])),
            body_crc: u32::from_le_bytes(word(&checked[8..12])),
        };
        let (kind, length) = (header.kind, header.body_bytes);
        if header.flags & !(FLAG_CRITICAL | FLAG_DIGESTED) != 0 {
            return Err(Fault::new(
                Code::Framing,
                format!("frame kind {kind} has unknown flags"),
            ));
        }
        let cap = body_bytes_max.min(BODY_BYTES_MAX);
        if length > cap {
            return Err(Fault::new(
                Code::TooLarge,
                format!("frame kind {kind} announces {length} bytes, above the cap of {cap}"),
            ));
        }
        Ok(header)
    }

    /// Checks a body against the header.
    ///
    /// # Errors
    ///
    /// `E_TRUNCATED` if it is too short, `E_FRAMING` if it is too long or its checksum differs.
    pub fn check_body(&self, body: &[u8]) -> Result<(), Fault> {
        let (kind, announced, have) = (self.kind, self.body_bytes as usize, body.len());
        if have < announced {
            let detail = format!("frame kind {kind} ends after {have} of {announced} bytes");
            return Err(Fault::new(Code::Truncated, detail));
        }
        if have > announced || checksum(self.flags, body) != self.body_crc {
            return Err(Fault::new(
                Code::Framing,
                format!("frame kind {kind} fails its checksum"),
            ));
        }
        Ok(())
    }
}

/// Appends a whole frame to `out`.
///
/// # Panics
///
/// If the body is above [`BODY_BYTES_MAX`]. Our own encoders stay below it.
pub fn write_frame(kind: u8, flags: u8, body: &[u8], out: &mut Vec<u8>) {
    let start = begin_frame(out);
    out.extend_from_slice(body);
    finish_frame(kind, flags, start, out);
}

/// Reserves room for a header at the end of `out`, so that a body can be written in place. Returns
/// where the frame begins, for [`finish_frame`].
pub fn begin_frame(out: &mut Vec<u8>) -> usize {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    start
}

/// Fills in the header of the frame that began at `start` and ends at the end of `out`.
///
/// # Panics
///
/// If the body is above [`BODY_BYTES_MAX`]. Our own encoders stay below it.
pub fn finish_frame(kind: u8, flags: u8, start: usize, out: &mut [u8]) {
    let (header, body) = out[start..].split_at_mut(HEADER_BYTES);
    let body_bytes = u32::try_from(body.len()).expect("bodies are below 4 GiB");
    assert!(
        body_bytes <= BODY_BYTES_MAX,
        "our own frame of {body_bytes} bytes is above the cap"
    );
    header[..2].copy_from_slice(&MAGIC);
    header[2] = kind;
    header[3] = flags;
    header[4..8].copy_from_slice(&body_bytes.to_le_bytes());
    header[8..12].copy_from_slice(&checksum(flags, body).to_le_bytes());
    let crc = crc32c::crc32c(&header[..12]);
    header[12..].copy_from_slice(&crc.to_le_bytes());
}

fn checksum(flags: u8, body: &[u8]) -> u32 {
    let covered = match flags & FLAG_DIGESTED {
        0 => body.len(),
        _ => body.len().min(DIGESTED_HEAD_BYTES),
    };
    crc32c::crc32c(&body[..covered])
}

fn word(bytes: &[u8]) -> [u8; 4] {
    bytes.try_into().expect("the caller cut four bytes")
}
