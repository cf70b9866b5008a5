//! Traffic over all links to a peer, by class.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use towpath_protocol::amounts::micros;
use towpath_protocol::class::{Class, Leg, PerLeg};

/// Traffic over the links to a peer, per class.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    sent: [AtomicU64; Class::ALL.len()],
    received: [AtomicU64; Class::ALL.len()],
    /// Datagrams dropped because there were too many.
    dropped: [AtomicU64; Class::ALL.len()],
    waits: [Waits; Class::ALL.len()],
    packets: PerLeg<Packets>,
}

/// Time that data waited here before it was given to QUIC: for a cap, a share, a turn, or room on
/// the path.
#[derive(Debug, Default)]
struct Waits {
    count: AtomicU64,
    micros: AtomicU64,
}

/// Packets of all connections of a leg, over all links.
#[derive(Debug, Default)]
struct Packets {
    sent: AtomicU64,
    lost: AtomicU64,
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

    /// Counts a piece of a stream, or a datagram, and the time since its program wrote it.
    pub(crate) fn add_wait(&self, class: Class, wait: Duration) {
        let waits = &self.waits[class.index()];
        waits.micros.fetch_add(micros(wait), Ordering::Relaxed);
        waits.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Number of pieces and datagrams that waited, and their total wait.
    pub(crate) fn waits(&self, class: Class) -> (u64, Duration) {
        let waits = &self.waits[class.index()];
        let micros = waits.micros.load(Ordering::Relaxed);
        let count = waits.count.load(Ordering::Relaxed);
        (count, Duration::from_micros(micros))
    }

    /// Adds the packets that a connection of a leg has sent since the last call, and those found
    /// lost.
    pub(crate) fn add_packets(&self, leg: Leg, sent: u64, lost: u64) {
        let packets = &self.packets[leg];
        packets.sent.fetch_add(sent, Ordering::Relaxed);
        packets.lost.fetch_add(lost, Ordering::Relaxed);
    }

    /// Packets sent over a leg, and how many of them were lost.
    pub(crate) fn packets(&self, leg: Leg) -> (u64, u64) {
        let packets = &self.packets[leg];
        // Lost is read first, so that it never exceeds sent.
        let lost = packets.lost.load(Ordering::Relaxed);
        (packets.sent.load(Ordering::Relaxed), lost)
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
