//! The two-slot journal of a guest: its record survives a power loss, or the journal counts as
//! invalid.
//!
//! ```text
//!  0        8         12       16         24            32                           4060     4092   4096
//!  +--------+---------+--------+----------+-------------+----------------+---- 0 ----+--------+--------+
//!  | magic  | version | length | sequence | incarnation | record         |           | BLAKE3 | CRC32C |
//!  +--------+---------+--------+----------+-------------+----------------+-----------+--------+--------+
//! ```
//!
//! Record number n is in slot n mod 2, so a torn write damages only the record before last. The
//! checksums cover every byte of the slot. Opening ends with two writes, first in place and then to
//! the other slot: afterwards the record is durable even if the page cache showed more than the
//! disk had, and it is in both slots.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;

use towpath_protocol::fault::{Code, Fault};

/// Most bytes of a record.
pub const RECORD_BYTES_MAX: usize = 2048;

/// Bytes of a slot: the size that most disks write atomically.
pub const SLOT_BYTES: usize = 4096;

/// Bytes of a journal's file.
pub const JOURNAL_BYTES: u64 = 2 * SLOT_BYTES as u64;

const MAGIC: [u8; 8] = *b"TOWPATHJ";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 32;
const HASH_AT: usize = SLOT_BYTES - 36;
const CRC_AT: usize = SLOT_BYTES - 4;

const _: () = assert!(HEADER_BYTES + RECORD_BYTES_MAX <= HASH_AT);

/// The medium of a journal. Tests use one that tears writes and fails.
pub trait Storage: Send {
    /// Reads all of `slot`; bytes past the end of the file are zero.
    ///
    /// # Errors
    ///
    /// If the medium cannot be read.
    fn read_at(&mut self, offset: u64, slot: &mut [u8]) -> io::Result<()>;

    /// Writes all of `slot`.
    ///
    /// # Errors
    ///
    /// If not all of it could be written.
    fn write_at(&mut self, offset: u64, slot: &[u8]) -> io::Result<()>;

    /// Makes all earlier writes durable.
    ///
    /// # Errors
    ///
    /// If they may not be durable. Repeating the call does not help: the kernel forgets which pages
    /// failed.
    fn sync(&mut self) -> io::Result<()>;
}

impl Storage for File {
    fn read_at(&mut self, offset: u64, slot: &mut [u8]) -> io::Result<()> {
        let mut have = 0;
        while have < slot.len() {
            match FileExt::read_at(self, &mut slot[have..], offset + have as u64) {
                Ok(0) => break,
                Ok(bytes) => have += bytes,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        slot[have..].fill(0);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, slot: &[u8]) -> io::Result<()> {
        self.write_all_at(slot, offset)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}

/// The journal of one guest.
#[derive(Debug)]
pub struct Journal<S> {
    storage: S,
    sequence: u64,
    incarnation: u64,
    record: Vec<u8>,
    in_both_slots: bool,
    is_poisoned: bool,
}

impl<S: Storage> Journal<S> {
    /// Begins a journal in an empty, preallocated file.
    ///
    /// # Errors
    ///
    /// `E_JOURNAL` if the first record cannot be made durable.
    pub fn create(storage: S, incarnation: u64, record: &[u8]) -> Result<Self, Fault> {
        let mut journal = Self {
            storage,
            sequence: 0,
            incarnation,
            record: Vec::with_capacity(RECORD_BYTES_MAX),
            in_both_slots: false,
            is_poisoned: false,
        };
        journal.write(record)?;
        Ok(journal)
    }

    /// Opens a journal; [`Journal::record`] then returns its newest record. `incarnation` counts
    /// this host's starts and is part of every record written from now on.
    ///
    /// # Errors
    ///
    /// `E_QUARANTINE` if no slot is valid, or if the slots do not share one history: the file was
    /// assembled from two points in time, or the host's own start count went back. `E_JOURNAL` if
    /// the record cannot be made durable again.
    pub fn open(mut storage: S, incarnation: u64) -> Result<Self, Fault> {
        let slot = newest(&mut storage, incarnation)?;
        let mut journal = Self {
            storage,
            sequence: slot.sequence,
            incarnation,
            record: slot.record,
            in_both_slots: false,
            is_poisoned: false,
        };
        journal.make_sure(slot.incarnation)?;
        journal.settle()?;
        Ok(journal)
    }

    /// Reads the newest record without writing. The record may not be durable, so nothing may be
    /// done or answered because of it.
    ///
    /// # Errors
    ///
    /// As [`Journal::open`], except `E_JOURNAL`.
    pub fn peek(mut storage: S, incarnation: u64) -> Result<Vec<u8>, Fault> {
        newest(&mut storage, incarnation).map(|slot| slot.record)
    }

    /// The last record written.
    #[must_use]
    pub fn record(&self) -> &[u8] {
        &self.record
    }

    /// Whether a write has failed. Until the next start it is unknown which record is the last one.
    #[must_use]
    pub const fn is_poisoned(&self) -> bool {
        self.is_poisoned
    }

    /// Refuses all further writes, because the file has lost its name, or may have.
    pub const fn poison(&mut self) {
        self.is_poisoned = true;
    }

    /// The number of the last record written.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Makes a record durable. Once this returns, a power loss cannot bring back an earlier record.
    ///
    /// # Errors
    ///
    /// `E_JOURNAL`: the record may or may not be durable, which stays unknown until the host agent
    /// starts again. Every later call fails as well.
    pub fn write(&mut self, record: &[u8]) -> Result<(), Fault> {
        let length = record.len();
        if length > RECORD_BYTES_MAX {
            return Err(Fault::new(
                Code::Journal,
                format!("a record of {length} bytes does not fit in {RECORD_BYTES_MAX}"),
            ));
        }
        self.put(record)?;
        self.record.clear();
        self.record.extend_from_slice(record);
        self.in_both_slots = false;
        Ok(())
    }

    /// Writes the last record to the other slot too, unless it is there already, so that one
    /// corrupt slot cannot bring back the record before it. Call this when nobody waits.
    ///
    /// # Errors
    ///
    /// As [`Journal::write`].
    pub fn settle(&mut self) -> Result<(), Fault> {
        if self.in_both_slots {
            return Ok(());
        }
        let record = std::mem::take(&mut self.record);
        let result = self.put(&record);
        self.record = record;
        self.in_both_slots = result.is_ok();
        result
    }

    /// Whether [`Journal::settle`] has something to do.
    #[must_use]
    pub const fn is_unsettled(&self) -> bool {
        !self.in_both_slots && !self.is_poisoned
    }

    /// Rewrites the last record in place. After a failed flush the page cache shows data that the
    /// disk never got, and keeps doing so; only after this rewrite may the other slot be
    /// overwritten.
    fn make_sure(&mut self, incarnation: u64) -> Result<(), Fault> {
        let slot = build(self.sequence, incarnation, &self.record);
        self.put_slot(&slot)
    }

    fn put(&mut self, record: &[u8]) -> Result<(), Fault> {
        if self.is_poisoned {
            return Err(Fault::new(
                Code::Journal,
                "the journal failed before; nothing is written until the host agent starts again",
            ));
        }
        // Poisoned until the write has succeeded, even if this returns early or panics.
        self.is_poisoned = true;
        self.sequence += 1;
        let slot = build(self.sequence, self.incarnation, record);
        self.put_slot(&slot)?;
        self.is_poisoned = false;
        Ok(())
    }

    /// Writes a slot durably to the place of the current sequence number.
    fn put_slot(&mut self, slot: &[u8; SLOT_BYTES]) -> Result<(), Fault> {
        let offset = self.sequence % 2 * SLOT_BYTES as u64;
        self.storage
            .write_at(offset, slot)
            .and_then(|()| self.storage.sync())
            .map_err(|error| {
                let sequence = self.sequence;
                Fault::new(
                    Code::Journal,
                    format!("record {sequence} cannot be made durable: {error}"),
                )
            })
    }
}

struct Slot {
    sequence: u64,
    incarnation: u64,
    record: Vec<u8>,
}

/// The valid slot with the highest sequence number, if the slots share one history.
fn newest(storage: &mut impl Storage, incarnation: u64) -> Result<Slot, Fault> {
    let mut slots = [None, None];
    for (index, found) in (0..).zip(&mut slots) {
        let mut slot = [0; SLOT_BYTES];
        storage
            .read_at(index * SLOT_BYTES as u64, &mut slot)
            .map_err(|error| quarantine(&format!("cannot be read: {error}")))?;
        *found = parse(&slot).filter(|slot| slot.sequence % 2 == index);
    }
    let slot = match slots {
        [None, None] => return Err(quarantine("has no valid record")),
        [Some(slot), None] | [None, Some(slot)] => slot,
        [Some(a), Some(b)] if a.sequence.abs_diff(b.sequence) != 1 => {
            return Err(quarantine("has records of two times"));
        }
        [Some(a), Some(b)] if a.sequence > b.sequence => a,
        [_, Some(b)] => b,
    };
    if slot.incarnation > incarnation {
        let (theirs, ours) = (slot.incarnation, incarnation);
        return Err(quarantine(&format!(
            "was written by start {theirs} of this host, and this is start {ours}"
        )));
    }
    Ok(slot)
}

fn build(sequence: u64, incarnation: u64, record: &[u8]) -> [u8; SLOT_BYTES] {
    let length = record.len();
    assert!(
        length <= RECORD_BYTES_MAX,
        "whoever writes or reads a record checks its {length} bytes"
    );
    let mut slot = [0; SLOT_BYTES];
    slot[..8].copy_from_slice(&MAGIC);
    slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
    let length_bytes = u32::try_from(length).expect("asserted above").to_le_bytes();
    slot[12..16].copy_from_slice(&length_bytes);
    slot[16..24].copy_from_slice(&sequence.to_le_bytes());
    slot[24..32].copy_from_slice(&incarnation.to_le_bytes());
    slot[HEADER_BYTES..HEADER_BYTES + length].copy_from_slice(record);
    let hash = blake3::hash(&slot[..HASH_AT]);
    slot[HASH_AT..CRC_AT].copy_from_slice(hash.as_bytes());
    let crc = crc32c::crc32c(&slot[..CRC_AT]);
    slot[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    slot
}

fn parse(slot: &[u8; SLOT_BYTES]) -> Option<Slot> {
    let (checked, crc) = slot.split_at(CRC_AT);
    let (hashed, hash) = checked.split_at(HASH_AT);
    let is_whole = crc == crc32c::crc32c(checked).to_le_bytes()
        && hash == blake3::hash(hashed).as_bytes()
        && hashed[..8] == MAGIC
        && hashed[8..12] == VERSION.to_le_bytes();
    let word = |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().expect("eight bytes"));
    let length = u32::from_le_bytes(slot[12..16].try_into().expect("four bytes")) as usize;
    if !is_whole || length > RECORD_BYTES_MAX {
        return None;
    }
    Some(Slot {
        sequence: word(16),
        incarnation: word(24),
        record: slot[HEADER_BYTES..HEADER_BYTES + length].to_vec(),
    })
}

fn quarantine(what: &str) -> Fault {
    Fault::new(
        Code::Quarantine,
        format!("the journal {what}; the guest is not started"),
    )
}
