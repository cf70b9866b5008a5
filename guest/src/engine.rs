//! What a guest must be able to do, whatever it is made of.

use std::time::Duration;

use towpath_protocol::fault::Fault;
use towpath_protocol::guest_api::TrackingMethod;

use crate::runner::{Outcome, Progress};
use crate::sections::Sections;

/// Longest wait for the guest's thread to stop or to start. A vCPU that runs stops within a
/// millisecond; one that waits for a missing page does not stop at all, and the asker must hear that
/// before it gives up on us.
pub(crate) const STOP_WAIT: Duration = Duration::from_secs(2);

/// A guest in its process. The service asks only what the guest's state allows.
pub(crate) trait Engine {
    /// Fills memory and registers for a first start.
    fn boot(&mut self) -> Result<(), Fault>;

    /// Lets the guest run under an epoch; says since when.
    fn start(&mut self, epoch: u64) -> Result<u64, Fault>;

    /// Stops the guest between two instructions; says since when.
    fn stop(&mut self) -> Result<u64, Fault>;

    /// Takes all state that is not in memory; the guest stands.
    fn save(&mut self) -> Result<Sections, Fault>;

    /// Takes over state saved elsewhere; the guest never ran here.
    fn load(&mut self, sections: Sections) -> Result<(), Fault>;

    /// How far the workload is: exact while it stands.
    fn progress(&self) -> Progress;

    /// How the guest ended, if it did.
    fn outcome(&self) -> Option<Outcome>;

    /// How written pages are found here.
    fn tracking_method(&self) -> TrackingMethod;

    /// Notes writes from now on.
    fn start_tracking(&mut self) -> Result<(), Fault>;

    /// Writes of `block_count` blocks from a multiple of 64 on, as bits; forgets them. The bits are
    /// cleared before this returns, so a write after it is seen by the next harvest.
    fn harvest(&mut self, first_block: u64, block_count: u32) -> Result<Vec<u64>, Fault>;

    /// Stops noting writes.
    fn stop_tracking(&mut self) -> Result<(), Fault>;

    /// Ends the guest's thread.
    fn end(&mut self);
}
