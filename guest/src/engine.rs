//! The interface that every kind of guest implements.

use std::time::Duration;

use towpath_protocol::fault::Fault;
use towpath_protocol::guest_api::TrackingMethod;

use crate::runner::{Outcome, Progress};
use crate::sections::Sections;

/// Longest wait for the guest's thread to stop or start. A running vCPU stops within a millisecond.
/// One that waits for a missing page does not stop at all, and the client must hear that before its
/// own wait ends.
pub(crate) const STOP_WAIT: Duration = Duration::from_secs(2);

/// A guest in its process. The service only calls what the guest's state allows.
pub(crate) trait Engine {
    /// Fills memory and registers for a first start.
    fn boot(&mut self) -> Result<(), Fault>;

    /// Runs the guest under an epoch and returns since when it runs.
    fn start(&mut self, epoch: u64) -> Result<u64, Fault>;

    /// Stops the guest between two instructions and returns since when it is stopped.
    fn stop(&mut self) -> Result<u64, Fault>;

    /// Saves all state that is not in memory. The guest must be stopped.
    fn save(&mut self) -> Result<Sections, Fault>;

    /// Loads state that was saved elsewhere. The guest must never have run here.
    fn load(&mut self, sections: Sections) -> Result<(), Fault>;

    /// The progress of the workload; exact while the guest is stopped.
    fn progress(&self) -> Progress;

    /// How the guest ended, if it has.
    fn outcome(&self) -> Option<Outcome>;

    /// The method that finds written pages.
    fn tracking_method(&self) -> TrackingMethod;

    /// Starts tracking writes.
    fn start_tracking(&mut self) -> Result<(), Fault>;

    /// Returns the written blocks among `block_count` blocks from `first_block`, a multiple of 64,
    /// as a bitmap, and clears them. They are cleared before this returns, so the next harvest sees
    /// any later write.
    fn harvest(&mut self, first_block: u64, block_count: u32) -> Result<Vec<u64>, Fault>;

    /// Stops tracking writes.
    fn stop_tracking(&mut self) -> Result<(), Fault>;

    /// Ends the guest's thread.
    fn end(&mut self);
}
