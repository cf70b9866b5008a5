//! The guest's side of userfaultfd: registers memory for missing pages or for tracking writes.
//!
//! The bindings are our own: the kernel's structures are few and stable, and the available crates
//! need a C header parser to build. The numbers are those of `linux/userfaultfd.h` and
//! `linux/fs.h`. Structure sizes are asserted below, since the ioctl numbers contain them.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::ioctl::{self, Opcode, Updater, opcode};
use towpath_protocol::fault::{Code, Fault};

use crate::pattern::PAGE_BYTES;

/// First argument of the handshake.
const UFFD_API: u64 = 0xaa;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_MISSING: u64 = 1;
const REGISTER_MODE_WP: u64 = 2;

const PAGE_IS_WPALLOWED: u64 = 1;
const PAGE_IS_WRITTEN: u64 = 2;
const PM_SCAN_WP_MATCHING: u64 = 1;
const PM_SCAN_CHECK_WPASYNC: u64 = 2;

/// Regions of written pages read from the kernel at a time: 24 KiB, allocated once.
const REGION_COUNT: usize = 1024;

#[repr(C)]
struct ApiArgument {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// A range of this process's addresses, as the kernel takes it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Range {
    /// The first address.
    pub(crate) start: u64,
    /// The length.
    pub(crate) bytes: u64,
}

#[repr(C)]
struct RegisterArgument {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    regions: u64,
    region_count: u64,
    pages_max: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const _: () = assert!(size_of::<ApiArgument>() == 24);
const _: () = assert!(size_of::<RegisterArgument>() == 32);
const _: () = assert!(size_of::<ScanArgument>() == 96);

const USERFAULTFD_NEW: Opcode = opcode::none(0xaa, 0x00);
const UFFDIO_API: Opcode = opcode::read_write::<ApiArgument>(0xaa, 0x3f);
const UFFDIO_REGISTER: Opcode = opcode::read_write::<RegisterArgument>(0xaa, 0x00);
const UFFDIO_UNREGISTER: Opcode = opcode::read::<Range>(0xaa, 0x01);
const PAGEMAP_SCAN: Opcode = opcode::read_write::<ScanArgument>(b'f', 16);

/// The flag for a userfaultfd that handles only faults of user code, which every user may create
/// (`UFFD_USER_MODE_ONLY`, since Linux 5.11).
const USER_MODE_ONLY: i32 = 1;

/// Who accesses a guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TouchedBy {
    /// User code and the kernel, as with KVM.
    Kernel,
    /// User code only.
    UserCode,
}

/// Creates a userfaultfd, through the device if there is one, else by the system call. If only user
/// code touches the memory, one that handles only faults of user code is enough.
fn open(touched_by: TouchedBy) -> Result<OwnedFd, Fault> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    let by_call = |flags: i32| {
        // SAFETY: the system call makes a file from plain flags and reads no memory of ours.
        unsafe { libc::syscall(libc::SYS_userfaultfd, flags) }
    };
    let from_device = File::options()
        .read(true)
        .write(true)
        .open("/dev/userfaultfd");
    let result = match &from_device {
        Ok(device) => {
            // SAFETY: the command makes a file from plain flags; the kernel reads no memory of ours.
            unsafe {
                libc::ioctl(
                    std::os::fd::AsRawFd::as_raw_fd(device),
                    u64::from(USERFAULTFD_NEW),
                    flags,
                )
            }
            .into()
        }
        Err(_) => by_call(flags),
    };
    let result = match touched_by {
        TouchedBy::UserCode if result < 0 => by_call(flags | USER_MODE_ONLY),
        _ => result,
    };
    let Some(number) = i32::try_from(result).ok().filter(|&number| number >= 0) else {
        let error = std::io::Error::last_os_error();
        let device = from_device.err().map_or_else(
            || "/dev/userfaultfd".to_owned(),
            |device| format!("/dev/userfaultfd ({device}) and the system call"),
        );
        return Err(Fault::new(
            Code::Guest,
            format!(
                "userfaultfd cannot be had from {device}: {error}; give this user /dev/userfaultfd, or set \
                 vm.unprivileged_userfaultfd to 1"
            ),
        ));
    };
    // SAFETY: the kernel has just given this number to us and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A userfaultfd with guest memory registered on it.
#[derive(Debug)]
pub(crate) struct Registration {
    fd: OwnedFd,
    range: Range,
}

impl Registration {
    /// Registers memory so that an access to a missing page waits for an answer.
    pub(crate) fn for_missing(range: Range, touched_by: TouchedBy) -> Result<Self, Fault> {
        let fd = open(touched_by)?;
        Self::new(fd, range, FEATURE_MISSING_SHMEM, REGISTER_MODE_MISSING)
    }

    /// Registers memory so that writes can be queried afterwards, without anyone answering faults.
    fn for_writes(range: Range) -> Result<Self, Fault> {
        let features = FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
        // The kernel records all writes itself, including its own, so no fault is answered.
        let fd = open(TouchedBy::UserCode)?;
        Self::new(fd, range, features, REGISTER_MODE_WP)
    }

    fn new(fd: OwnedFd, range: Range, features: u64, mode: u64) -> Result<Self, Fault> {
        let mut api = ApiArgument {
            api: UFFD_API,
            features,
            ioctls: 0,
        };
        // SAFETY: the opcode's argument is this structure, laid out as the kernel's.
        let update = unsafe { Updater::<UFFDIO_API, _>::new(&mut api) };
        // SAFETY: a handshake on our own userfaultfd; the kernel writes only to the argument.
        unsafe { ioctl::ioctl(&fd, update) }
            .map_err(|error| failed(&format!("handshake for features {features:#x}"), error))?;
        let mut register = RegisterArgument {
            range,
            mode,
            ioctls: 0,
        };
        // SAFETY: the opcode's argument is this structure, laid out as the kernel's.
        let update = unsafe { Updater::<UFFDIO_REGISTER, _>::new(&mut register) };
        // SAFETY: registering makes touches of the range wait; memory keeps its content.
        unsafe { ioctl::ioctl(&fd, update) }.map_err(|error| failed("register", error))?;
        Ok(Self { fd, range })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        // The descriptor may live on in a migrator. Unregistering wakes all waiting threads and
        // keeps any from waiting again.
        let mut range = self.range;
        // SAFETY: the opcode's argument is this structure, laid out as the kernel's.
        let update = unsafe { Updater::<UFFDIO_UNREGISTER, _>::new(&mut range) };
        // SAFETY: the range is the one registered; memory keeps its content.
        if let Err(error) = unsafe { ioctl::ioctl(&self.fd, update) } {
            tracing::error!(%error, "guest memory stays registered on its userfaultfd");
        }
    }
}

/// Finds written pages by asynchronous write-protection: the kernel records the first write to each
/// protected page, and one system call reads the records and protects the pages again.
#[derive(Debug)]
pub(crate) struct WriteTracker {
    registration: Registration,
    page_map: File,
    regions: Vec<PageRegion>,
    swap: SwapGuard,
}

impl WriteTracker {
    /// Starts tracking writes to mapped memory.
    pub(crate) fn start(range: Range) -> Result<Self, Fault> {
        let swap = SwapGuard::start(range)?;
        let page_map = File::open("/proc/self/pagemap")
            .map_err(|error| Fault::new(Code::Guest, format!("/proc/self/pagemap: {error}")))?;
        let empty = PageRegion {
            start: 0,
            end: 0,
            categories: 0,
        };
        let mut tracker = Self {
            registration: Registration::for_writes(range)?,
            page_map,
            regions: vec![empty; REGION_COUNT],
            swap,
        };
        tracker.harvest(0, range.bytes / PAGE_BYTES as u64, |_| ())?;
        Ok(tracker)
    }

    /// Reports the pages of a range written since they were last reported, and resets them.
    pub(crate) fn harvest(
        &mut self,
        first_page: u64,
        page_count: u64,
        mut found: impl FnMut(std::ops::Range<u64>),
    ) -> Result<(), Fault> {
        let base = self.registration.range.start;
        let page = PAGE_BYTES as u64;
        let end = base + (first_page + page_count) * page;
        let mut at = base + first_page * page;
        // Each iteration advances by at least one page, which bounds the loop.
        while at < end {
            let left = Range {
                start: at,
                bytes: end - at,
            };
            let scanned = scan_pages(&self.page_map, left, &mut self.regions)?;
            for region in &self.regions[..scanned.region_count] {
                found((region.start - base) / page..(region.end - base) / page);
            }
            if scanned.walk_end <= at {
                return Err(Fault::new(Code::Guest, "the page map scan stands still"));
            }
            at = scanned.walk_end;
        }
        self.swap.check()
    }
}

/// How far a scan of the page map came.
struct Scanned {
    /// Number of regions that were filled in.
    region_count: usize,
    /// The address at which the scan ended: before the range's end if there were too many regions.
    walk_end: u64,
}

/// Finds the written pages of a range and protects them again. The kernel fills in `regions` from
/// the front.
fn scan_pages(page_map: &File, range: Range, regions: &mut [PageRegion]) -> Result<Scanned, Fault> {
    let mut scan = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        flags: PM_SCAN_WP_MATCHING | PM_SCAN_CHECK_WPASYNC,
        start: range.start,
        end: range.start.saturating_add(range.bytes),
        walk_end: 0,
        regions: regions.as_mut_ptr() as u64,
        region_count: regions.len() as u64,
        pages_max: 0,
        category_inverted: 0,
        category_mask: PAGE_IS_WRITTEN | PAGE_IS_WPALLOWED,
        category_anyof_mask: 0,
        return_mask: PAGE_IS_WRITTEN,
    };
    let argument: *mut ScanArgument = &raw mut scan;
    let file = std::os::fd::AsRawFd::as_raw_fd(page_map);
    // SAFETY: the argument is the kernel's structure; its regions are a slice that is ours alone
    // during the call, with its length. The pages of the range are only protected against writes,
    // which the kernel lifts by itself. The wrapper of rustix drops the count returned.
    let count = unsafe { libc::ioctl(file, u64::from(PAGEMAP_SCAN), argument) };
    let region_count = usize::try_from(count).map_err(|_| {
        let error = std::io::Error::last_os_error();
        Fault::new(Code::Guest, format!("PAGEMAP_SCAN: {error}"))
    })?;
    Ok(Scanned {
        region_count,
        walk_end: scan.walk_end,
    })
}

/// Ensures that written pages stay in the page tables. A page that is swapped out loses its entry,
/// and with it the record that it was written.
#[derive(Debug)]
enum SwapGuard {
    /// This host swaps, so the pages are locked.
    Locked(Range),
    /// There was no swap at the start. This file, `/proc/swaps`, reports when that changes.
    Watched(OwnedFd),
    /// Swap was turned on meanwhile, so records may be lost.
    Spoilt,
    /// This kernel has no swap.
    Needless,
}

impl SwapGuard {
    /// Starts before the first page is tracked. Locking takes 50 ms per GiB, so it is only done if
    /// there is swap.
    fn start(range: Range) -> Result<Self, Fault> {
        let lock = |why: &str| match lock(range) {
            Ok(()) => Ok(Self::Locked(range)),
            Err(error) => Err(Fault::new(
                Code::Guest,
                format!("memory cannot be locked ({error}) and {why}: raise RLIMIT_MEMLOCK"),
            )),
        };
        match File::open("/proc/swaps") {
            // Read after opening: any later change is reported.
            Ok(mut file) => match std::io::read_to_string(&mut file) {
                Ok(swaps) if swaps.lines().count() <= 1 => Ok(Self::Watched(file.into())),
                Ok(_) => lock("this host swaps"),
                Err(error) => lock(&format!("/proc/swaps cannot be read ({error})")),
            },
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::Needless),
            Err(error) => lock(&format!("/proc/swaps cannot be opened ({error})")),
        }
    }

    /// Fails unless every page written so far was recorded.
    fn check(&mut self) -> Result<(), Fault> {
        if let Self::Watched(swaps) = self {
            let mut polled = [PollFd::new(swaps, PollFlags::PRI)];
            let at_once = Timespec::default();
            let ready = poll(&mut polled, Some(&at_once));
            ready.map_err(|error| Fault::new(Code::Guest, format!("/proc/swaps: {error}")))?;
            let has_changed = polled[0]
                .revents()
                .intersects(PollFlags::PRI | PollFlags::ERR);
            if has_changed {
                *self = Self::Spoilt;
            }
        }
        match self {
            Self::Spoilt => Err(Fault::new(
                Code::TrackingLost,
                "swap was turned on or off while writes were tracked, and may hide some",
            )),
            _ => Ok(()),
        }
    }
}

impl Drop for SwapGuard {
    fn drop(&mut self) {
        if let Self::Locked(Range { start, bytes }) = *self {
            let length = usize::try_from(bytes).expect("a mapping's length");
            // SAFETY: unlocks pages of a mapping that is ours; content stays.
            let unlocked = unsafe { rustix::mm::munlock(start as *mut core::ffi::c_void, length) };
            if let Err(error) = unlocked {
                tracing::debug!(%error, "memory stays locked");
            }
        }
    }
}

fn lock(range: Range) -> Result<(), Errno> {
    let length = usize::try_from(range.bytes).expect("a mapping's length");
    let address = range.start as *mut core::ffi::c_void;
    // SAFETY: locks pages of a mapping that is ours once they are touched; content stays.
    unsafe { rustix::mm::mlock_with(address, length, rustix::mm::MlockFlags::ONFAULT) }
}

fn failed(what: &str, error: Errno) -> Fault {
    Fault::new(Code::Guest, format!("userfaultfd {what}: {error}"))
}

/// Whether this process can answer missing pages whoever touches them, or why not.
pub(crate) fn probe_missing() -> Result<(), Fault> {
    let memory = crate::memory::Memory::create(8 << 20, false)?;
    Registration::for_missing(memory.range(), TouchedBy::Kernel).map(drop)
}

/// Whether this process can track writes to its memory, or why not.
pub(crate) fn probe_writes() -> Result<(), Fault> {
    let memory = crate::memory::Memory::create(8 << 20, false)?;
    WriteTracker::start(memory.range()).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Memory;

    /// A tracker for `memory`. Prints that the test is skipped if writes cannot be tracked here.
    fn tracker_of(memory: &Memory) -> Option<WriteTracker> {
        WriteTracker::start(memory.range())
            .inspect_err(|fault| println!("skipped: {fault}"))
            .ok()
    }

    fn harvested(tracker: &mut WriteTracker, first: u64, count: u64) -> Vec<u64> {
        let mut pages = Vec::new();
        tracker
            .harvest(first, count, |range| pages.extend(range))
            .unwrap();
        pages
    }

    #[test]
    fn a_tracker_names_each_written_page_once_and_only_those() {
        let memory = Memory::create(16 << 20, false).unwrap();
        memory.write(5 * 4096, &[1]);
        let Some(mut tracker) = tracker_of(&memory) else {
            return;
        };
        assert!(harvested(&mut tracker, 0, 4096).is_empty());
        for page in [5, 6, 63, 64, 4095] {
            memory.write(page * 4096, &[2]);
        }
        assert_eq!(harvested(&mut tracker, 0, 64), [5, 6, 63]);
        assert_eq!(harvested(&mut tracker, 0, 4096), [64, 4095]);
        assert!(harvested(&mut tracker, 0, 4096).is_empty());
        // More scattered pages than one system call returns.
        let scattered: Vec<u64> = (0..4096).step_by(2).collect();
        for page in &scattered {
            memory.write(page * 4096, &[3]);
        }
        assert_eq!(harvested(&mut tracker, 0, 4096), scattered);
    }

    #[test]
    fn a_tracker_refuses_what_swap_may_have_hidden_and_goes_on_refusing() {
        let memory = Memory::create(8 << 20, false).unwrap();
        let Some(mut tracker) = tracker_of(&memory) else {
            return;
        };
        // An out-of-band byte is reported by `poll` in the same way as a change of /proc/swaps.
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let watched = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (peer, _) = listener.accept().unwrap();
        tracker.swap = SwapGuard::Watched(watched.into());
        assert_eq!(tracker.harvest(0, 2048, |_| ()), Ok(()));
        rustix::net::send(&peer, &[1], rustix::net::SendFlags::OOB).unwrap();
        for _ in 0..2 {
            let refused = tracker.harvest(0, 2048, |_| ()).unwrap_err();
            assert_eq!(refused.code, Code::TrackingLost, "{refused}");
            assert!(refused.detail.contains("swap was turned on"), "{refused}");
        }
    }

    #[test]
    fn locked_memory_is_tracked_as_well() {
        let memory = Memory::create(8 << 20, false).unwrap();
        let Some(mut tracker) = tracker_of(&memory) else {
            return;
        };
        if let Err(error) = lock(memory.range()) {
            return println!("skipped: memory cannot be locked ({error})");
        }
        tracker.swap = SwapGuard::Locked(memory.range());
        memory.write(3 * 4096, &[1]);
        assert_eq!(harvested(&mut tracker, 0, 2048), [3]);
    }
}
