//! Blocks that cannot be read after the commit. They delay only the guest accesses that need them.

use std::time::Duration;

use towpath_protocol::fault::Fault;
use towpath_protocol::source::ChunkOrder;
use towpath_protocol::time::Instant;

/// Wait before a block that could not be read is tried again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Orders of demanded blocks that wait to be tried again, and why blocks cannot be read.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// Each block appears once, because the target asks for a block once per set of lanes.
    orders: Vec<ChunkOrder>,
    /// Why the last order could not be read.
    fault: Option<Fault>,
    /// Why blocks of the push could not be read last; the machine orders these again.
    pushed_fault: Option<Fault>,
    again_at: Option<Instant>,
}

impl Unread {
    /// Keeps an order to be tried again later.
    pub(super) fn hold(&mut self, order: ChunkOrder, fault: Fault, now: Instant) {
        self.orders.push(order);
        self.again_at.get_or_insert(now + READ_AGAIN_AFTER);
        self.fault = Some(fault);
    }

    /// Notes why blocks of the push could not be read.
    pub(super) fn note_pushed(&mut self, fault: Fault) {
        self.pushed_fault = Some(fault);
    }

    /// Takes all orders once their time has come. Those that fail again must be held again.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<ChunkOrder> {
        match self.again_at.take_if(|at| *at <= now) {
            Some(_) => std::mem::take(&mut self.orders),
            None => Vec::new(),
        }
    }

    /// Drops all orders, because nobody waits for them any more.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Forgets why orders could not be read, because all of them were.
    pub(super) fn note_read(&mut self) {
        self.fault = None;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// When the orders are tried again.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.again_at
    }

    /// Why a block is not sent.
    pub(super) fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref().or(self.pushed_fault.as_ref())
    }
}
