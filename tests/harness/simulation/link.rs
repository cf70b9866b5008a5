//! The simulated link between two hosts: latency, bandwidth, and cuts, which streams outlive or
//! which break sessions.

use std::collections::BTreeMap;

use towpath_protocol::message::Lane;

use crate::random::Random;

/// Nanoseconds of virtual time.
pub(super) type Nanos = u64;

/// A millisecond.
pub(super) const MILLISECOND: Nanos = 1_000_000;

/// A second.
pub(super) const SECOND: Nanos = 1_000 * MILLISECOND;

/// Four lanes that are opened together; both ends know them by one number.
#[derive(Debug, Clone)]
pub(super) struct Session {
    /// The host that opened it: the source.
    pub(super) from: usize,
    /// The attempt it serves.
    pub(super) attempt: u128,
    /// For each host, whether anything it sends is lost.
    pub(super) is_deaf: [bool; 2],
    last_arrival: BTreeMap<(usize, Lane), Nanos>,
}

/// The link and all its sessions.
#[derive(Debug, Clone)]
pub(super) struct Link {
    /// One-way latency.
    pub(super) latency: Nanos,
    /// Rate in each direction.
    pub(super) bytes_per_second: u64,
    /// For each host, until when the frames it sends are held back, or break its session.
    pub(super) cut_until: [Nanos; 2],
    /// Whether streams outlive the current cut.
    pub(super) is_bridged: bool,
    sessions: BTreeMap<u64, Session>,
    next_session: u64,
    /// When the last byte of each class left, by direction.
    free_at: [[Nanos; 2]; 2],
}

impl Link {
    /// An idle link.
    #[must_use]
    pub(super) const fn new(latency: Nanos, bytes_per_second: u64) -> Self {
        Self {
            latency,
            bytes_per_second,
            cut_until: [0; 2],
            is_bridged: false,
            sessions: BTreeMap::new(),
            next_session: 1,
            free_at: [[0; 2]; 2],
        }
    }

    /// Whether bytes pass in both directions.
    #[must_use]
    pub(super) fn is_open(&self, now: Nanos) -> bool {
        self.cut_until.iter().all(|until| *until <= now)
    }

    /// Opens a session.
    pub(super) fn open(&mut self, from: usize, attempt: u128) -> u64 {
        let number = self.next_session;
        self.next_session += 1;
        let session = Session {
            from,
            attempt,
            is_deaf: [false; 2],
            last_arrival: BTreeMap::new(),
        };
        self.sessions.insert(number, session);
        number
    }

    /// A session, if it has not been closed.
    #[must_use]
    pub(super) fn session(&self, number: u64) -> Option<&Session> {
        self.sessions.get(&number)
    }

    /// Ends a session: nothing more of it arrives.
    pub(super) fn close(&mut self, number: u64) {
        self.sessions.remove(&number);
    }

    /// Cuts one or both directions. Sessions break unless the cut is bridged.
    pub(super) fn cut(&mut self, directions: [bool; 2], until: Nanos, is_bridged: bool) {
        self.is_bridged = is_bridged;
        for host in (0..2).filter(|host| directions[*host]) {
            self.cut_until[host] = until;
            if !is_bridged {
                let sessions = self.sessions.values_mut();
                sessions.for_each(|session| session.is_deaf[host] = true);
            }
        }
    }

    /// When a frame arrives at the other host; `None` if it never does.
    pub(super) fn send(
        &mut self,
        number: u64,
        from: usize,
        lane: Lane,
        wire_bytes: u64,
        now: Nanos,
        random: &mut Random,
    ) -> Option<Nanos> {
        let is_cut = self.cut_until[from] > now;
        let session = self.sessions.get_mut(&number)?;
        if is_cut && !self.is_bridged {
            session.is_deaf[from] = true;
        }
        if session.is_deaf[from] {
            return None;
        }
        let class = usize::from(lane == Lane::Bulk);
        let begin = now.max(self.free_at[from][class]).max(self.cut_until[from]);
        let left = begin + wire_bytes * SECOND / self.bytes_per_second.max(1);
        self.free_at[from][class] = left;
        let arrival = left + self.latency + random.below(self.latency / 4 + 1);
        let last = session.last_arrival.entry((from, lane)).or_insert(0);
        *last = arrival.max(*last + 1);
        Some(*last)
    }
}
