//! Tests the journal with torn writes, lost writes, corrupt bytes and a failing disk.
#![forbid(unsafe_code)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "a test that fails there has found something"
)]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use proptest::prelude::*;
use towpath_migrator::journal::{JOURNAL_BYTES, Journal, RECORD_BYTES_MAX, SLOT_BYTES, Storage};
use towpath_protocol::fault::Code;

const SECTOR: usize = 512;
const EMPTY: [u8; JOURNAL_BYTES as usize] = [0; JOURNAL_BYTES as usize];

/// A disk with a cache: after a power loss, unsynced data may be there completely, partly or not at
/// all.
#[derive(Debug, Clone)]
struct Disk(Arc<Mutex<Platter>>);

#[derive(Debug)]
struct Platter {
    durable: Vec<u8>,
    cached: Vec<(usize, Vec<u8>)>,
    /// Data of a failed flush. Reads return it until it is overwritten or the power fails, but it
    /// is never flushed again.
    forgotten: Vec<(usize, Vec<u8>)>,
    writes_until_error: Option<usize>,
    syncs_until_error: Option<usize>,
    write_count: usize,
    sync_count: usize,
}

impl Disk {
    fn new(durable: &[u8]) -> Self {
        Self(Arc::new(Mutex::new(Platter {
            durable: durable.to_vec(),
            cached: Vec::new(),
            forgotten: Vec::new(),
            writes_until_error: None,
            syncs_until_error: None,
            write_count: 0,
            sync_count: 0,
        })))
    }

    fn platter(&self) -> MutexGuard<'_, Platter> {
        self.0.lock().unwrap()
    }

    /// Writes and syncs so far.
    fn counts(&self) -> (usize, usize) {
        let platter = self.platter();
        (platter.write_count, platter.sync_count)
    }

    fn durable(&self) -> Vec<u8> {
        self.platter().durable.clone()
    }

    /// The disk after a power loss. `keep` decides for each cached sector whether it was written.
    fn after_power_loss(&self, mut keep: impl FnMut() -> bool) -> Self {
        let mut platter = self.platter();
        let mut durable = platter.durable.clone();
        for (offset, bytes) in std::mem::take(&mut platter.cached) {
            for (sector, bytes) in bytes.chunks(SECTOR).enumerate() {
                let at = offset + sector * SECTOR;
                if keep() {
                    durable[at..at + bytes.len()].copy_from_slice(bytes);
                }
            }
        }
        Self::new(&durable)
    }
}

fn countdown(left: &mut Option<usize>) -> io::Result<()> {
    match left {
        Some(0) => Err(io::Error::from_raw_os_error(5)),
        Some(left) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

impl Storage for Disk {
    fn read_at(&mut self, offset: u64, slot: &mut [u8]) -> io::Result<()> {
        let platter = self.platter();
        let mut seen = platter.durable.clone();
        for (offset, bytes) in platter.forgotten.iter().chain(&platter.cached) {
            seen[*offset..*offset + bytes.len()].copy_from_slice(bytes);
        }
        let from = usize::try_from(offset).unwrap().min(seen.len());
        let have = (seen.len() - from).min(slot.len());
        slot[..have].copy_from_slice(&seen[from..from + have]);
        slot[have..].fill(0);
        Ok(())
    }

    fn write_at(&mut self, offset: u64, slot: &[u8]) -> io::Result<()> {
        let mut platter = self.platter();
        platter.write_count += 1;
        countdown(&mut platter.writes_until_error)?;
        platter
            .cached
            .push((usize::try_from(offset).unwrap(), slot.to_vec()));
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut platter = self.platter();
        platter.sync_count += 1;
        let failed = countdown(&mut platter.syncs_until_error);
        let dirty = std::mem::take(&mut platter.cached);
        platter
            .forgotten
            .retain(|(known, _)| dirty.iter().all(|(offset, _)| offset != known));
        if failed.is_err() {
            platter.forgotten.extend(dirty);
            return failed;
        }
        for (offset, bytes) in dirty {
            platter.durable[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        Ok(())
    }
}

#[test]
fn what_a_failed_flush_left_in_the_cache_is_no_history_of_its_own() {
    let disk = Disk::new(&EMPTY);
    let mut journal = Journal::create(disk.clone(), 1, b"one").unwrap();
    journal.write(b"two").unwrap();
    disk.platter().syncs_until_error = Some(0);
    assert_eq!(journal.write(b"three").unwrap_err().code, Code::Journal);
    disk.platter().syncs_until_error = None;
    // The next start sees the third record, which the disk never got.
    let journal = Journal::open(disk.clone(), 1).unwrap();
    let seen = journal.record().to_vec();
    let after = disk.after_power_loss(|| false);
    assert_eq!(Journal::open(after, 1).unwrap().record(), seen);
}

/// The record in the journal with these bytes.
fn read(bytes: &[u8]) -> Result<Vec<u8>, Code> {
    Journal::open(Disk::new(bytes), 1)
        .map(|journal| journal.record().to_vec())
        .map_err(|fault| fault.code)
}

/// The bytes of a journal after these records.
fn written(records: &[&[u8]]) -> Vec<u8> {
    let disk = Disk::new(&EMPTY);
    let mut journal = Journal::create(disk.clone(), 1, records[0]).unwrap();
    for record in &records[1..] {
        journal.write(record).unwrap();
    }
    disk.durable()
}

/// The slot that differs between two states of a journal.
fn changed_slot(before: &[u8], after: &[u8]) -> usize {
    (0..2)
        .find(|slot| {
            let range = slot * SLOT_BYTES..(slot + 1) * SLOT_BYTES;
            before[range.clone()] != after[range]
        })
        .unwrap()
}

#[test]
fn the_last_record_written_is_the_one_read() {
    let full = vec![0xff; RECORD_BYTES_MAX];
    for records in [
        &[&b"one"[..]][..],
        &[b"one", b"two"],
        &[b"one", b"two", b"three"],
        &[b"one", b"", b"three", &full],
        &[b""],
    ] {
        assert_eq!(
            read(&written(records)).as_deref(),
            Ok(*records.last().unwrap())
        );
    }
}

#[test]
fn a_record_above_the_cap_is_refused_and_changes_nothing() {
    let disk = Disk::new(&EMPTY);
    let mut journal = Journal::create(disk, 1, b"one").unwrap();
    let fault = journal
        .write(&vec![1; RECORD_BYTES_MAX + 1])
        .expect_err("too long");
    assert_eq!(fault.code, Code::Journal);
    assert_eq!(journal.record(), b"one");
    journal.write(b"two").unwrap();
}

#[test]
fn fault_27_a_write_torn_at_any_byte_leaves_the_old_record_or_the_new() {
    let before = written(&[b"the first", b"the second, longer record"]);
    let after = written(&[b"the first", b"the second, longer record", b"the third"]);
    let slot = changed_slot(&before, &after) * SLOT_BYTES;
    for cut in 0..=SLOT_BYTES {
        // Either the beginning or the end of the slot was written.
        let mut beginning = before.clone();
        beginning[slot..slot + cut].copy_from_slice(&after[slot..slot + cut]);
        let mut end = after.clone();
        end[slot..slot + cut].copy_from_slice(&before[slot..slot + cut]);
        for torn in [beginning, end] {
            let expected: &[u8] = if torn == after {
                b"the third"
            } else {
                b"the second, longer record"
            };
            assert_eq!(read(&torn).as_deref(), Ok(expected), "cut at {cut}");
        }
    }
}

#[test]
fn fault_27_every_flipped_bit_of_the_newest_slot_brings_the_older_record() {
    let bytes = written(&[b"old", b"new"]);
    let newest = changed_slot(&written(&[b"old"]), &bytes) * SLOT_BYTES;
    let mut damaged = bytes.clone();
    for bit in newest * 8..(newest + SLOT_BYTES) * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&damaged).as_deref(), Ok(&b"old"[..]), "bit {bit}");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn fault_27_once_settled_no_flipped_bit_of_one_slot_brings_an_older_record() {
    let disk = Disk::new(&EMPTY);
    let mut journal = Journal::create(disk.clone(), 1, b"old").unwrap();
    journal.write(b"new").unwrap();
    journal.settle().unwrap();
    let sync_count = disk.platter().sync_count;
    journal.settle().unwrap();
    assert_eq!(
        disk.platter().sync_count,
        sync_count,
        "settling twice costs nothing"
    );
    let mut damaged = disk.durable();
    for bit in 0..damaged.len() * 8 {
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&damaged).as_deref(), Ok(&b"new"[..]), "bit {bit}");
        damaged[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn fault_27_with_no_valid_slot_the_guest_is_quarantined() {
    let mut both = written(&[b"old", b"new"]);
    both[100] ^= 1;
    both[SLOT_BYTES + 100] ^= 1;
    let mut swapped = written(&[b"old", b"new"]);
    swapped.rotate_left(SLOT_BYTES);
    for bytes in [&EMPTY[..], &both, &swapped, &[0xff; 2 * SLOT_BYTES], &[]] {
        assert_eq!(read(bytes), Err(Code::Quarantine));
    }
}

#[test]
fn fault_27_a_file_cut_at_any_byte_never_says_what_was_not_written() {
    let bytes = written(&[b"old", b"new"]);
    for end in 0..bytes.len() {
        match read(&[&bytes[..end], &vec![0; bytes.len() - end]].concat()) {
            Ok(record) => assert!(record == b"old" || record == b"new", "cut at {end}"),
            Err(code) => assert_eq!(code, Code::Quarantine, "cut at {end}"),
        }
    }
}

#[test]
fn fault_45_slots_of_two_times_are_quarantined() {
    let early = written(&[b"1", b"2"]);
    let late = written(&[b"1", b"2", b"3", b"4", b"5"]);
    for slot in [0, 1] {
        let mut mixed = late.clone();
        let range = slot * SLOT_BYTES..(slot + 1) * SLOT_BYTES;
        mixed[range.clone()].copy_from_slice(&early[range]);
        assert_eq!(read(&mixed), Err(Code::Quarantine), "slot {slot}");
    }
}

#[test]
fn fault_45_a_record_from_a_later_start_of_the_host_is_quarantined() {
    let disk = Disk::new(&EMPTY);
    drop(Journal::create(disk.clone(), 7, b"one").unwrap());
    let open = |incarnation| Journal::open(disk.clone(), incarnation).map_err(|fault| fault.code);
    assert_eq!(open(6).unwrap_err(), Code::Quarantine);
    assert!(open(7).is_ok());
    assert!(open(8).is_ok());
    assert_eq!(
        open(7).unwrap_err(),
        Code::Quarantine,
        "opening wrote the later start"
    );
}

#[test]
fn fault_26_an_error_of_the_disk_poisons_the_journal() {
    for is_sync in [false, true] {
        let disk = Disk::new(&EMPTY);
        let mut journal = Journal::create(disk.clone(), 1, b"one").unwrap();
        if is_sync {
            disk.platter().syncs_until_error = Some(0);
        } else {
            disk.platter().writes_until_error = Some(0);
        }
        assert_eq!(journal.write(b"two").expect_err("EIO").code, Code::Journal);
        assert_eq!(journal.record(), b"one");
        // The disk works again, but whether it holds the failed write is unknown.
        disk.platter().syncs_until_error = None;
        disk.platter().writes_until_error = None;
        let counts = disk.counts();
        for _ in 0..3 {
            assert_eq!(
                journal.write(b"three").expect_err("poisoned").code,
                Code::Journal
            );
            assert_eq!(journal.settle().expect_err("poisoned").code, Code::Journal);
        }
        assert_eq!(counts, disk.counts());
        for keep in [true, false] {
            let record = read(&disk.after_power_loss(|| keep).durable()).unwrap();
            assert!(record == b"one" || record == b"two");
        }
    }
}

#[test]
fn fault_26_opening_fails_if_what_it_read_cannot_be_made_durable() {
    let disk = Disk::new(&written(&[b"one"]));
    disk.platter().syncs_until_error = Some(0);
    assert_eq!(Journal::open(disk, 1).unwrap_err().code, Code::Journal);
}

#[test]
fn what_opening_returns_survives_a_power_loss_even_if_only_the_cache_had_it() {
    let mut disk = Disk::new(&written(&[b"one"]));
    // Killed between the write and its sync: the record is only in the cache.
    let second = written(&[b"one", b"two"]);
    disk.write_at(0, &second[..SLOT_BYTES]).unwrap();
    assert!(!disk.platter().cached.is_empty());
    let reopened = Journal::open(disk.clone(), 1).unwrap();
    let after = disk.after_power_loss(|| false);
    assert_eq!(read(&after.durable()).as_deref(), Ok(reopened.record()));
}

#[test]
fn a_journal_in_a_real_file_reads_back_and_says_what_a_sync_costs() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("journal");
    let open = |path: &std::path::Path| {
        let mut options = std::fs::File::options();
        options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap()
    };
    let file = open(&path);
    file.set_len(JOURNAL_BYTES).unwrap();
    let mut journal = Journal::create(file, 1, b"0").unwrap();
    let mut costs: Vec<_> = (1..=50_u32)
        .map(|number| {
            let begun = std::time::Instant::now();
            journal.write(&number.to_le_bytes()).unwrap();
            begun.elapsed()
        })
        .collect();
    costs.sort();
    println!("a durable record: p50 {:?}, p99 {:?}", costs[25], costs[49]);
    let journal = Journal::open(open(&path), 2).unwrap();
    assert_eq!(journal.record(), 50_u32.to_le_bytes());
    assert_eq!(std::fs::metadata(&path).unwrap().len(), JOURNAL_BYTES);
}

#[derive(Debug, Clone)]
enum Step {
    Write(u8),
    Settle,
    Restart,
    PowerLoss(u64),
    PowerLossWhileWriting(u8, u64),
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => any::<u8>().prop_map(Step::Write),
        1 => Just(Step::Settle),
        1 => Just(Step::Restart),
        1 => any::<u64>().prop_map(Step::PowerLoss),
        3 => any::<(u8, u64)>().prop_map(|(r, s)| Step::PowerLossWhileWriting(r, s)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens in between, after a power loss the journal holds the last acknowledged
    /// record or the one being written, and never an older one.
    #[test]
    fn an_acknowledged_record_is_never_lost(steps in prop::collection::vec(any_step(), 1..40)) {
        let mut disk = Disk::new(&EMPTY);
        let mut journal = Journal::create(disk.clone(), 1, b"begin").unwrap();
        let mut known = b"begin".to_vec();
        for step in steps {
            match step {
                Step::Write(record) => {
                    known = vec![record; 40];
                    journal.write(&known).unwrap();
                }
                Step::Settle => journal.settle().unwrap(),
                Step::Restart => journal = Journal::open(disk.clone(), 1).unwrap(),
                Step::PowerLoss(mut seed) => {
                    disk = disk.after_power_loss(|| { seed = seed.rotate_left(7) ^ 0x55; seed & 1 == 1 });
                    journal = Journal::open(disk.clone(), 1).unwrap();
                }
                Step::PowerLossWhileWriting(record, mut seed) => {
                    let new = vec![record; 40];
                    disk.platter().syncs_until_error = Some(0);
                    prop_assert!(journal.write(&new).is_err());
                    disk = disk.after_power_loss(|| { seed = seed.rotate_left(7) ^ 0x55; seed & 1 == 1 });
                    journal = Journal::open(disk.clone(), 1).unwrap();
                    if journal.record() == new {
                        known = new;
                    }
                }
            }
            prop_assert_eq!(journal.record(), &known[..]);
        }
    }

    #[test]
    fn any_bytes_as_a_journal_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut file = EMPTY.to_vec();
        file[..bytes.len()].copy_from_slice(&bytes);
        prop_assert_eq!(read(&file), Err(Code::Quarantine));
    }
}
