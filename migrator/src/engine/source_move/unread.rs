//! Demanded blocks that cannot be read: they keep those waiting that touched them, and nobody else.

use std::time::Duration;

use towpath_protocol::fault::Fault;
use towpath_protocol::source::ChunkOrder;
use towpath_protocol::time::Instant;

/// How long a block that could not be read is left alone before it is read again.
const READ_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Orders that wait to be carried out again.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// Each block is here once, for it is asked for once on the same lanes.
    orders: Vec<ChunkOrder>,
    /// Why the last of them could not be read.
    fault: Option<Fault>,
    again_at: Option<Instant>,
}

impl Unread {
    /// Keeps an order for later.
    pub(super) fn hold(&mut self, order: ChunkOrder, fault: Fault, now: Instant) {
        self.orders.push(order);
        self.again_at.get_or_insert(now + READ_AGAIN_AFTER);
        self.fault = Some(fault);
    }

    /// The orders, once their time has come; those that fail again are to be held again.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<ChunkOrder> {
        match self.again_at.take_if(|at| *at <= now) {
            Some(_) => std::mem::take(&mut self.orders),
            None => Vec::new(),
        }
    }

    /// Nobody waits for them any more, or they have been read.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.orders.is_empty()
    }

    /// When they are read again.
    pub(super) const fn deadline(&self) -> Option<Instant> {
        self.again_at
    }

    /// Why somebody waits for a block that is not sent.
    pub(super) const fn fault(&self) -> Option<&Fault> {
        self.fault.as_ref()
    }
}
