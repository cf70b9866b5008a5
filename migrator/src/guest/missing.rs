//! Answers vCPUs that wait for missing pages, through the guest's userfaultfd.
//!
//! The bindings are our own: the kernel's structures are few and stable, and the available crates
//! need a C header parser to build. The numbers are those of `linux/userfaultfd.h`.

#![allow(
    unsafe_code,
    reason = "answering faults takes ioctls on addresses of the guest process"
)]

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Updater, opcode};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{Region, check_regions};
use towpath_protocol::space::{BlockRun, Geometry, MEMORY_BLOCK_BYTES};

const BLOCK_BYTES: u64 = MEMORY_BLOCK_BYTES as u64;

/// Bytes of one event.
const EVENT_BYTES: usize = 32;
/// The event for a touch of a missing page. Its third word is the address.
const EVENT_PAGEFAULT: u8 = 0x12;

/// How often in a row the kernel may answer `EAGAIN`, which it does while the guest's memory map
/// changes, before that is a fault. Each time takes microseconds.
const AGAIN_COUNT_MAX: u32 = 10_000;

#[repr(C)]
struct Range {
    start: u64,
    bytes: u64,
}

#[repr(C)]
struct CopyArgument {
    target: u64,
    source: u64,
    bytes: u64,
    mode: u64,
    copied: i64,
}

#[repr(C)]
struct ZeroArgument {
    range: Range,
    mode: u64,
    zeroed: i64,
}

const _: () = assert!(size_of::<CopyArgument>() == 40);
const _: () = assert!(size_of::<ZeroArgument>() == 32);

const UFFDIO_WAKE: Opcode = opcode::read::<Range>(0xaa, 0x02);
const UFFDIO_COPY: Opcode = opcode::read_write::<CopyArgument>(0xaa, 0x03);
const UFFDIO_ZEROPAGE: Opcode = opcode::read_write::<ZeroArgument>(0xaa, 0x04);

/// Outcome of installing blocks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Installed {
    /// Blocks that were missing and are installed now.
    pub installed_count: u32,
    /// Blocks that were there already and were kept, because the guest may have written to them.
    pub present_count: u32,
}

/// The missing pages of a guest's memory.
#[derive(Debug)]
pub struct MissingMemory {
    fd: OwnedFd,
    regions: Vec<Region>,
    geometry: Geometry,
}

impl MissingMemory {
    /// Takes a userfaultfd and the map of the guest's memory that were handed over.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` if the map is not exactly the guest's memory (L03).
    pub(super) fn new(fd: OwnedFd, regions: Vec<Region>, memory_bytes: u64) -> Result<Self, Fault> {
        check_regions(&regions, memory_bytes)?;
        rustix::io::ioctl_fionbio(&fd, true)
            .map_err(|error| Fault::new(Code::Io, format!("userfaultfd: {error}")))?;
        Ok(Self {
            fd,
            regions,
            geometry: Geometry::memory(memory_bytes)?,
        })
    }

    /// The next block a vCPU waits for; `None` if no fault came within `wait`. Each fault is
    /// reported once. After a restart, [`Self::wake_all`] makes the vCPUs that still wait fault
    /// again.
    ///
    /// # Errors
    ///
    /// `E_GUEST` if the userfaultfd fails or names an address outside guest memory.
    pub fn next_fault(&self, wait: Duration) -> Result<Option<u64>, Fault> {
        let failed = |error: Errno| Fault::new(Code::Guest, format!("userfaultfd: {error}"));
        if let Some(address) = self.read_fault().map_err(failed)? {
            return self.block_at(address).map(Some);
        }
        let timeout = Timespec::try_from(wait)
            .map_err(|_| Fault::new(Code::Usage, format!("a wait of {wait:?}")))?;
        let mut polled = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(error) => return Err(failed(error)),
        }
        if polled[0].revents().contains(PollFlags::ERR) {
            return Err(Fault::new(Code::Guest, "userfaultfd: not usable"));
        }
        let address = self.read_fault().map_err(failed)?;
        address.map(|address| self.block_at(address)).transpose()
    }

    /// Installs blocks, each atomically, and wakes the vCPUs that wait for them. A block that is
    /// there already is kept (F25).
    ///
    /// # Errors
    ///
    /// `E_RANGE` for a run outside memory, `E_USAGE` if `bytes` is not exactly as long as the run,
    /// `E_STATE` if the guest no longer takes pages, `E_GUEST` if it is gone.
    pub fn install(&self, run: BlockRun, bytes: &[u8]) -> Result<Installed, Fault> {
        self.geometry.check(run)?;
        if bytes.len() as u64 != self.geometry.bytes_of(u64::from(run.count)) {
            let length = bytes.len();
            return Err(Fault::new(
                Code::Usage,
                format!("{length} bytes for blocks {run}"),
            ));
        }
        self.install_with(run, |target, offset, length| {
            let offset = usize::try_from(offset).expect("an offset in a slice");
            let source = &bytes[offset..offset + usize::try_from(length).expect("of a slice")];
            let mut copy = CopyArgument {
                target,
                source: source.as_ptr() as u64,
                bytes: length,
                mode: 0,
                copied: 0,
            };
            // SAFETY: the opcode's argument is this structure, laid out as the kernel's.
            let update = unsafe { Updater::<UFFDIO_COPY, _>::new(&mut copy) };
            // SAFETY: the source is a live slice of the length given; the target is memory of the
            // guest process by the checked map, in which the kernel fills only pages that are missing.
            let result = unsafe { ioctl::ioctl(&self.fd, update) };
            (result, copy.copied)
        })
    }

    /// Installs blocks of zeros, as [`Self::install`].
    ///
    /// # Errors
    ///
    /// As [`Self::install`].
    pub fn install_zero(&self, run: BlockRun) -> Result<Installed, Fault> {
        self.geometry.check(run)?;
        self.install_with(run, |target, _, length| {
            let mut zero = ZeroArgument {
                range: Range {
                    start: target,
                    bytes: length,
                },
                mode: 0,
                zeroed: 0,
            };
            // SAFETY: the opcode's argument is this structure, laid out as the kernel's.
            let update = unsafe { Updater::<UFFDIO_ZEROPAGE, _>::new(&mut zero) };
            // SAFETY: the target is memory of the guest process by the checked map, in which the
            // kernel fills only pages that are missing.
            let result = unsafe { ioctl::ioctl(&self.fd, update) };
            (result, zero.zeroed)
        })
    }

    /// Wakes all waiting vCPUs: those whose page is present continue, the others fault again. A
    /// restarted migrator calls this first.
    ///
    /// # Errors
    ///
    /// `E_GUEST` if the guest is gone.
    pub fn wake_all(&self) -> Result<(), Fault> {
        self.regions
            .iter()
            .try_for_each(|region| self.wake(region.address, region.bytes))
    }

    fn install_with(
        &self,
        run: BlockRun,
        fill: impl Fn(u64, u64, u64) -> (Result<(), Errno>, i64),
    ) -> Result<Installed, Fault> {
        let mut result = Installed::default();
        let length = self.geometry.bytes_of(u64::from(run.count));
        let mut done = 0;
        let mut again_count = 0;
        while done < length {
            let offset = self.geometry.bytes_of(run.start) + done;
            let (target, left) = self.place(offset, length - done);
            let (outcome, filled) = fill(target, done, left);
            // Even a failed call may have filled some pages first; it then returns how many bytes.
            let filled = u64::try_from(filled).unwrap_or(0).min(left) / BLOCK_BYTES * BLOCK_BYTES;
            done += filled;
            result.installed_count += u32::try_from(filled / BLOCK_BYTES).expect("within a run");
            match outcome {
                _ if filled > 0 => again_count = 0,
                Ok(()) => return Err(Fault::new(Code::Guest, "userfaultfd fills nothing")),
                Err(Errno::AGAIN) if again_count < AGAIN_COUNT_MAX => again_count += 1,
                Err(Errno::EXIST) => {
                    // The page may have come by a write to the file, which wakes nobody.
                    self.wake(target, BLOCK_BYTES)?;
                    done += BLOCK_BYTES;
                    result.present_count += 1;
                }
                Err(error) => return Err(install_fault(run, error)),
            }
        }
        Ok(result)
    }

    /// The address of a memory offset in the guest process, and how much of `length` is contiguous
    /// there.
    fn place(&self, offset: u64, length: u64) -> (u64, u64) {
        let region = self
            .regions
            .iter()
            .find(|region| offset - region.memory_offset.min(offset) < region.bytes)
            .expect("the regions cover the space, and the run lies in it");
        let within = offset - region.memory_offset;
        (region.address + within, length.min(region.bytes - within))
    }

    fn block_at(&self, address: u64) -> Result<u64, Fault> {
        let region = self
            .regions
            .iter()
            .find(|region| (region.address..region.address + region.bytes).contains(&address));
        region.map_or_else(
            || {
                Err(Fault::new(
                    Code::Guest,
                    format!("a page at {address:#x} is none of the guest's"),
                ))
            },
            |region| Ok((region.memory_offset + address - region.address) / BLOCK_BYTES),
        )
    }

    /// The address of the next unread fault on a missing page. Skips other events.
    fn read_fault(&self) -> Result<Option<u64>, Errno> {
        loop {
            let mut event = [0; EVENT_BYTES];
            match rustix::io::read(&self.fd, &mut event) {
                Ok(EVENT_BYTES) if event[0] == EVENT_PAGEFAULT => {
                    let address = event[16..24].try_into().expect("eight bytes");
                    return Ok(Some(u64::from_ne_bytes(address)));
                }
                Ok(EVENT_BYTES) | Err(Errno::INTR) => {}
                Ok(_) => return Err(Errno::IO),
                Err(Errno::AGAIN) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }

    fn wake(&self, start: u64, bytes: u64) -> Result<(), Fault> {
        let mut range = Range { start, bytes };
        // SAFETY: the opcode's argument is this structure, laid out as the kernel's.
        let update = unsafe { Updater::<UFFDIO_WAKE, _>::new(&mut range) };
        // SAFETY: wakes threads of the guest process; touches no memory.
        unsafe { ioctl::ioctl(&self.fd, update) }
            .map_err(|error| Fault::new(Code::Guest, format!("userfaultfd wake: {error}")))
    }
}

fn install_fault(run: BlockRun, error: Errno) -> Fault {
    let (code, what) = match error {
        Errno::NOENT => (Code::State, "the guest no longer takes pages"),
        Errno::SRCH => (Code::Guest, "the guest process is gone"),
        Errno::NOMEM | Errno::NOSPC => (Code::Guest, "this host is out of memory"),
        _ => (Code::Guest, "userfaultfd"),
    };
    Fault::new(code, format!("install blocks {run}: {what}: {error}"))
}
