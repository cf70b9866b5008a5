//! Checks a paused guest's whole working set from outside: that every byte is right and no write
//! was lost.

use std::os::fd::AsFd;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::Description;

use crate::layout::WorkingSet;
use crate::pattern::{PAGE_BYTES, Pattern};

/// Result of a successful check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Pages checked, each completely.
    pub page_count: u64,
    /// Sum of their versions, which equals the number of writes the guest counted.
    pub write_count: u64,
}

/// Checks the memory of a paused guest against its description.
///
/// # Errors
///
/// `E_ROOT` for the first page that is wrong, or if the versions do not add up to the writes the
/// guest counted, because then some page is too old. `E_IO` if memory cannot be read.
pub fn verify(memory: impl AsFd, description: &Description) -> Result<Verified, Fault> {
    let workload = &description.config.workload;
    let pattern = Pattern::new(workload.key, workload.incompressible_percent);
    let set = WorkingSet::of(&description.config);
    let mut bytes = [0; PAGE_BYTES];
    let mut versions = 0_u64;
    for page in set.pages() {
        read_page(memory.as_fd(), page, &mut bytes)?;
        let in_progress = description
            .page_in_progress
            .filter(|in_progress| in_progress.block == page);
        let checked = match in_progress {
            // The write in progress is not counted yet, so count the version before.
            Some(new) => pattern
                .check_in_progress(page, new.version, &bytes)
                .map(|()| new.version.wrapping_sub(1)),
            None => pattern.check(page, &bytes),
        };
        let version = checked.map_err(|wrong| Fault::new(Code::RootMismatch, wrong.to_string()))?;
        versions = versions.wrapping_add(version);
    }
    let writes = description.write_count;
    if set.page_count > 0 && versions != writes {
        return Err(Fault::new(
            Code::RootMismatch,
            format!("page versions add up to {versions}, the guest counted {writes} writes"),
        ));
    }
    Ok(Verified {
        page_count: set.page_count,
        write_count: versions,
    })
}

fn read_page(
    memory: std::os::fd::BorrowedFd<'_>,
    page: u64,
    bytes: &mut [u8; PAGE_BYTES],
) -> Result<(), Fault> {
    let offset = page * PAGE_BYTES as u64;
    match rustix::io::pread(memory, &mut bytes[..], offset) {
        Ok(PAGE_BYTES) => Ok(()),
        Ok(short) => Err(Fault::new(
            Code::Io,
            format!("guest memory ends {short} bytes into page {page}"),
        )),
        Err(error) => Err(Fault::new(Code::Io, format!("page {page}: {error}"))),
    }
}
