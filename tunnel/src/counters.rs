//! What has gone through the links to a peer, by class.

use std::sync::atomic::{AtomicU64, Ordering};

use towpath_protocol::channel::Class;

/// Bytes that have gone through a link, per class.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sent: [AtomicU64; Class::ALL.len()],
    received: [AtomicU64; Class::ALL.len()],
    /// Datagrams that were too many.
    dropped: [AtomicU64; Class::ALL.len()],
}

impl Counters {
    pub(crate) fn add_sent(&self, class: Class, bytes: u64) {
        self.sent[class.index()].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_received(&self, class: Class, bytes: u64) {
        self.received[class.index()].fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn add_dropped(&self, class: Class) {
        self.dropped[class.index()].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self, class: Class) -> u64 {
        self.dropped[class.index()].load(Ordering::Relaxed)
    }

    pub(crate) fn sent(&self, class: Class) -> u64 {
        self.sent[class.index()].load(Ordering::Relaxed)
    }

    pub(crate) fn received(&self, class: Class) -> u64 {
        self.received[class.index()].load(Ordering::Relaxed)
    }

    /// Bytes sent and received, of all classes.
    pub(crate) fn totals(&self) -> (u64, u64) {
        let sum = |of: fn(&Self, Class) -> u64| Class::ALL.iter().map(|c| of(self, *c)).sum();
        (sum(Self::sent), sum(Self::received))
    }
}
