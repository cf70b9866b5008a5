//! The workload's part of a guest's state, the same for both kinds of guest.

use towpath_protocol::fault::Fault;

use crate::console::Console;
use crate::layout::WorkingSet;
use crate::memory::Memory;
use crate::pattern::{PAGE_BYTES, PAGE_WORDS, Pattern};
use crate::sections::{Fields, Kind, Sections, refused};

/// Version of the workload's section.
const VERSION: u16 = 1;

/// Most ticks and writes that a guest can have done: a billion a second for a century.
const COUNT_MAX: u64 = 1 << 62;

/// The workload state that the machine keeps in addition to the payload's registers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    /// Ticks so far, which is the number of the last heartbeat.
    pub(crate) tick_count: u64,
    /// Pages written or assigned so far, including the initial fill.
    pub(crate) write_count: u64,
    /// Position of the next write in the working set. A KVM payload keeps its own.
    pub(crate) position: u64,
    /// The pacer's remaining credit.
    pub(crate) credit_micropages: u64,
}

impl Counters {
    pub(crate) fn put(&self, console: &Console, sections: &mut Sections) {
        let fields = [
            self.tick_count,
            self.write_count,
            self.position,
            self.credit_micropages,
        ];
        let bytes: Vec<u8> = fields
            .iter()
            .flat_map(|field| field.to_le_bytes())
            .collect();
        sections.put(Kind::Workload, VERSION, bytes);
        sections.put(Kind::Console, VERSION, console.unfinished());
    }

    pub(crate) fn take(
        set: &WorkingSet,
        console: &mut Console,
        sections: &mut Sections,
    ) -> Result<Self, Fault> {
        let bytes = sections.take(Kind::Workload, VERSION)?;
        let mut fields = Fields(&bytes);
        let counters = Self {
            tick_count: fields.u64()?,
            write_count: fields.u64()?,
            position: fields.u64()?,
            credit_micropages: fields.u64()?,
        };
        fields.finish()?;
        for (count, what) in [
            (counters.tick_count, "ticks"),
            (counters.write_count, "writes"),
        ] {
            if count > COUNT_MAX {
                return Err(refused(format!("a workload of {count} {what}")));
            }
        }
        if counters.position >= set.page_count.max(1) {
            let position = counters.position;
            return Err(refused(format!(
                "the workload stands at page {position} of {}",
                set.page_count
            )));
        }
        console.restore_unfinished(&sections.take(Kind::Console, VERSION)?);
        Ok(counters)
    }
}

/// Writes version 1 of every page of the working set, like a loader that fills memory before a
/// first start.
pub(crate) fn fill_memory(memory: &Memory, set: &WorkingSet, pattern: &Pattern) {
    let mut words = [0; PAGE_WORDS];
    for page in set.pages() {
        pattern.words(page, 1, &mut words);
        memory.write_words(page * PAGE_BYTES as u64, &words);
    }
}

#[cfg(test)]
mod tests {
    use towpath_protocol::fault::Code;

    use super::*;

    #[test]
    fn f19_counters_that_cannot_be_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut console = Console::open(&folder.path().join("console.log")).unwrap();
        let set = WorkingSet {
            first_page: 512,
            page_count: 4,
            stride: 1,
        };
        let mut refuses = |counters: Counters| {
            let mut sections = Sections::default();
            counters.put(&console, &mut sections);
            Counters::take(&set, &mut console, &mut sections).err()
        };
        let good = Counters {
            tick_count: COUNT_MAX,
            write_count: COUNT_MAX,
            position: 3,
            credit_micropages: u64::MAX,
        };
        assert_eq!(refuses(good), None);
        for bad in [
            Counters {
                tick_count: u64::MAX,
                ..good
            },
            Counters {
                write_count: u64::MAX,
                ..good
            },
            Counters {
                position: 4,
                ..good
            },
        ] {
            let fault = refuses(bad).expect("refused");
            assert_eq!(fault.code, Code::CpuState, "{bad:?}");
        }
    }
}
