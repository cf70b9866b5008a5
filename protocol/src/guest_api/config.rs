//! The description of a guest: its limits, its checks and its encoding.

use serde::{Deserialize, Serialize};

use super::take_whole;
use crate::fault::{Code, Fault};
use crate::identity::{GuestId, Name};
use crate::message::{CONFIG_BYTES_MAX, SpaceInfo};
use crate::size::Size;
use crate::space::{MEMORY, MEMORY_BLOCK_BYTES};

/// Bytes at the start of memory that belong to the machine: tables, payload, noise. The working set
/// begins after them.
pub const WORKING_SET_START_BYTES: u64 = 4 << 20;

/// Smallest memory of a guest, in bytes: the machine's part and as much again.
pub const MEMORY_BYTES_MIN: u64 = 8 << 20;

/// Guest memory comes in steps of the machine's 2 MiB page-table entries.
pub const MEMORY_STEP_BYTES: u64 = 2 << 20;

/// Largest memory of a guest, in bytes: as much as the machine's page tables can map.
pub const MEMORY_BYTES_MAX: u64 = 256 << 30;

/// Most virtual processors. The test payload uses one.
pub const VCPU_COUNT_MAX: u32 = 1;

/// Shortest heartbeat interval. Below it, printing would be the workload.
pub const HEARTBEAT_INTERVAL_US_MIN: u32 = 500;

/// Longest heartbeat interval. One heartbeat per second still shows that a guest is alive.
pub const HEARTBEAT_INTERVAL_US_MAX: u32 = 1_000_000;

/// The default heartbeat interval.
pub const HEARTBEAT_INTERVAL_US: u32 = 2_000;

/// Most pages per second that a workload may ask to dirty: more than one processor can write.
pub const DIRTY_PAGES_PER_SECOND_MAX: u32 = 10_000_000;

/// The kind of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// A KVM machine with our own bare payload.
    Kvm,
    /// A process whose memory is tracked by userfaultfd write-protection.
    Process,
}

impl std::fmt::Display for GuestKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Kvm => "kvm",
            Self::Process => "process",
        })
    }
}

/// What the guest does with its memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// Pages it writes per second.
    pub dirty_pages_per_second: u32,
    /// Bytes of memory it writes to, in whole pages, from [`WORKING_SET_START_BYTES`] on.
    pub working_set_bytes: u64,
    /// Percentage of pages that hold noise. The others compress to almost nothing.
    pub incompressible_percent: u8,
    /// Affects every byte, so that pages of two guests are never alike.
    pub key: u64,
    /// Microseconds between two heartbeats on the console.
    pub heartbeat_interval_us: u32,
}

/// The description of a guest. It never changes while the guest lives, and travels with it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestConfig {
    /// Its identity, the same wherever it runs.
    pub id: GuestId,
    /// What operators call it.
    pub name: Name,
    /// Its kind.
    pub kind: GuestKind,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Virtual processors.
    pub vcpu_count: u32,
    /// What it does with its memory.
    pub workload: Workload,
}

/// The most that a host gives to one guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestQuota {
    /// Bytes of memory.
    pub memory_bytes_max: u64,
    /// Virtual processors.
    pub vcpu_count_max: u32,
}

impl GuestConfig {
    /// Checks everything that can be checked without a machine.
    ///
    /// # Errors
    ///
    /// `E_QUOTA` if the guest wants more than the quota allows, else `E_LAYOUT`. The detail lists
    /// every difference, not just the first.
    pub fn check(&self, quota: &GuestQuota) -> Result<(), Fault> {
        let mut wrong = Vec::new();
        let quota_bytes = quota.memory_bytes_max;
        if self.memory_bytes > quota_bytes {
            let [wanted, quota] = [self.memory_bytes, quota_bytes].map(Size::from_bytes);
            wrong.push(format!("memory of {wanted} is above the quota of {quota}"));
        }
        if self.vcpu_count > quota.vcpu_count_max {
            let (count, max) = (self.vcpu_count, quota.vcpu_count_max);
            wrong.push(format!("{count} vcpus are above the quota of {max}"));
        }
        let code = if wrong.is_empty() {
            Code::Layout
        } else {
            Code::Quota
        };
        self.list_impossible(&mut wrong);
        refuse_unless_empty(code, &wrong)
    }

    /// Checks the spaces a peer announces against this description.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` with every difference.
    pub fn check_spaces(&self, spaces: &[SpaceInfo]) -> Result<(), Fault> {
        let mut wrong = Vec::new();
        if spaces.len() != 1 {
            wrong.push(format!("{} spaces instead of memory alone", spaces.len()));
        }
        for space in spaces {
            let number = space.id.0;
            if space.id != MEMORY {
                wrong.push(format!("space {number} is not part of the guest"));
                continue;
            }
            if space.block_bytes != MEMORY_BLOCK_BYTES {
                let bytes = space.block_bytes;
                wrong.push(format!(
                    "memory in blocks of {bytes} bytes instead of {MEMORY_BLOCK_BYTES}"
                ));
            }
            if space.block_count != self.block_count() {
                let (have, want) = (space.block_count, self.block_count());
                wrong.push(format!("memory of {have} blocks instead of {want}"));
            }
        }
        refuse_unless_empty(Code::Layout, &wrong)
    }

    /// The number of blocks of its memory.
    #[must_use]
    pub const fn block_count(&self) -> u64 {
        self.memory_bytes / MEMORY_BLOCK_BYTES as u64
    }

    /// Encodes the description as in [`crate::message::Prepare`].
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        postcard::to_allocvec(self).expect("plain structs always serialise")
    }

    /// Decodes the description from bytes of a peer. Does not check what it describes; see
    /// [`GuestConfig::check`].
    ///
    /// # Errors
    ///
    /// `E_TOO_LARGE` above [`CONFIG_BYTES_MAX`], `E_META` if it does not parse, `E_FRAMING` if
    /// bytes are left over.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() > CONFIG_BYTES_MAX {
            let length = bytes.len();
            return Err(Fault::new(
                Code::TooLarge,
                format!(
                    "a guest's description of {length} bytes, above the cap of {CONFIG_BYTES_MAX}"
                ),
            ));
        }
        take_whole("a guest's description", bytes)
    }

    fn list_impossible(&self, wrong: &mut Vec<String>) {
        let Self {
            memory_bytes,
            vcpu_count,
            workload,
            ..
        } = self;
        if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(memory_bytes)
            || !memory_bytes.is_multiple_of(MEMORY_STEP_BYTES)
        {
            wrong.push(format!(
                "memory of {memory_bytes} bytes is not {MEMORY_BYTES_MIN} to {MEMORY_BYTES_MAX} in steps of {MEMORY_STEP_BYTES}"
            ));
        }
        if !(1..=VCPU_COUNT_MAX).contains(vcpu_count) {
            wrong.push(format!(
                "{vcpu_count} vcpus instead of 1 to {VCPU_COUNT_MAX}"
            ));
        }
        let set_bytes = workload.working_set_bytes;
        let set_bytes_max = memory_bytes.saturating_sub(WORKING_SET_START_BYTES);
        if set_bytes > set_bytes_max || !set_bytes.is_multiple_of(u64::from(MEMORY_BLOCK_BYTES)) {
            wrong.push(format!(
                "a working set of {set_bytes} bytes is not whole pages up to {set_bytes_max}"
            ));
        }
        let percent = workload.incompressible_percent;
        if percent > 100 {
            wrong.push(format!("{percent} percent of incompressible pages"));
        }
        let rate = workload.dirty_pages_per_second;
        if rate > DIRTY_PAGES_PER_SECOND_MAX {
            wrong.push(format!(
                "{rate} dirty pages a second are above {DIRTY_PAGES_PER_SECOND_MAX}"
            ));
        }
        let interval = workload.heartbeat_interval_us;
        if !(HEARTBEAT_INTERVAL_US_MIN..=HEARTBEAT_INTERVAL_US_MAX).contains(&interval) {
            wrong.push(format!(
                "a heartbeat every {interval} us instead of {HEARTBEAT_INTERVAL_US_MIN} to {HEARTBEAT_INTERVAL_US_MAX}"
            ));
        }
    }
}

fn refuse_unless_empty(code: Code, wrong: &[String]) -> Result<(), Fault> {
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Fault::new(code, wrong.join("; ")))
}
