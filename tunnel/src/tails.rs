//! What a stream may keep of what it sent, beside the others of its leg. Pure.
//!
//! What is kept is what the peer has not reported, and so the most of it that may stand unread in its
//! connection's window, which all streams of the leg share. One whose reader is slow must leave the others, and
//! the link's own words, their room. So three things count together:
//!
//! - a little is always allowed, so that each stream makes progress by itself;
//! - what the path holds, within what an ordinary window takes, is for whoever comes;
//! - more only in step with what the stream's own reader has taken of late.

use towpath_protocol::channel::Leg;

use crate::windows::KEPT_BYTES;

/// What a stream is always allowed: more than what is read at once at least. With this the streams that both
/// sides may begin, 64 each by default, fit into what an ordinary window has beside what is for whoever comes.
const LEAST_BYTES: u64 = 48 * 1024;

/// Round trips for which a stream keeps what its reader takes in one: while a start doubles, what is reported is
/// two round trips old, and so a quarter of what is sent.
const OWN_ROUND_TRIPS: u64 = 8;

/// How a stream and its leg stand.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail {
    pub leg: Leg,
    /// What is kept for the path.
    pub path_bytes: u64,
    /// Kept of all streams of the leg.
    pub leg_held_bytes: u64,
    /// Kept of the stream.
    pub held_bytes: u64,
    /// What the stream's reader took in a round trip, at most, of late.
    pub taken_bytes: u64,
}

impl Tail {
    /// How many bytes the stream may keep beside those it does. `alone_bytes` is what a stream may keep whatever
    /// the path holds.
    pub(crate) fn room(&self, alone_bytes: u64) -> u64 {
        let anybody_bytes = self.path_bytes.min(KEPT_BYTES);
        let alone_bytes = if self.leg_held_bytes < KEPT_BYTES {
            alone_bytes
        } else {
            alone_bytes.min(LEAST_BYTES)
        };
        let own_bytes = self.taken_bytes.saturating_mul(OWN_ROUND_TRIPS);
        let of_stream = |most: u64| most.saturating_sub(self.held_bytes);
        let of_leg = |most: u64| most.saturating_sub(self.leg_held_bytes);
        of_stream(alone_bytes)
            .max(of_leg(anybody_bytes))
            .max(of_stream(own_bytes).min(of_leg(self.leg_bytes())))
    }

    /// What all streams may keep in step with their readers: half as much again as anybody may, so that those
    /// who read get on beside one who does not. The urgent connection's window at the peer never grows.
    fn leg_bytes(&self) -> u64 {
        let bytes = self.path_bytes + self.path_bytes.min(KEPT_BYTES) / 2;
        match self.leg {
            Leg::Urgent => bytes.min(KEPT_BYTES),
            Leg::Bulk => bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::windows::RECEIVE_BYTES;

    const MIB: u64 = 1 << 20;
    const ALONE_BYTES: u64 = MIB;

    /// A leg whose streams may keep so much, and what each of them keeps.
    struct Streams {
        leg: Leg,
        path_bytes: u64,
        held: Vec<u64>,
    }

    impl Streams {
        fn new(leg: Leg, path_bytes: u64, count: usize) -> Self {
            Self {
                leg,
                path_bytes,
                held: vec![0; count],
            }
        }

        fn sum(&self) -> u64 {
            self.held.iter().sum()
        }

        /// Lets a stream send until it has no room for a read.
        fn fill(&mut self, stream: usize, taken_bytes: u64) {
            loop {
                let tail = Tail {
                    leg: self.leg,
                    path_bytes: self.path_bytes,
                    leg_held_bytes: self.sum(),
                    held_bytes: self.held[stream],
                    taken_bytes,
                };
                let room = tail.room(ALONE_BYTES);
                if room < 32 * 1024 {
                    return;
                }
                self.held[stream] += room.min(256 * 1024);
            }
        }
    }

    /// 1 Gbit/s over 200 ms, three times.
    const LONG_BYTES: u64 = 3 * 25_500_000;

    #[test]
    fn the_urgent_leg_keeps_no_more_than_its_window_at_the_peer_has_room_for() {
        let mut streams = Streams::new(Leg::Urgent, LONG_BYTES, 1);
        streams.fill(0, LONG_BYTES);
        assert!(streams.sum() <= KEPT_BYTES);
        let mut streams = Streams::new(Leg::Bulk, LONG_BYTES, 1);
        streams.fill(0, LONG_BYTES);
        assert!(streams.sum() >= LONG_BYTES);
    }

    #[test]
    fn whatever_nobody_reads_leaves_room_in_the_window_for_others() {
        for leg in Leg::ALL {
            for count in [1, 2, 8, 32, 128] {
                let mut streams = Streams::new(leg, LONG_BYTES, count);
                (0..count).for_each(|stream| streams.fill(stream, 0));
                assert!(streams.held.iter().all(|held| *held >= 32 * 1024));
                let sum = streams.sum();
                assert!(sum < RECEIVE_BYTES - MIB, "{count}: {sum}");
            }
        }
    }

    #[test]
    fn a_stream_goes_beyond_that_in_step_with_its_own_reader() {
        let mut streams = Streams::new(Leg::Bulk, LONG_BYTES, 2);
        // Nobody reads the first, and the second is read as fast as the path brings it.
        streams.fill(0, 0);
        assert!((KEPT_BYTES - MIB..=KEPT_BYTES).contains(&streams.held[0]));
        let mut taken_bytes = 0;
        for _ in 0..10 {
            streams.fill(1, taken_bytes);
            taken_bytes = streams.held[1].min(25_500_000);
        }
        assert!(streams.held[1] > 2 * 25_500_000, "{:?}", streams.held);
        assert!(streams.sum() <= LONG_BYTES + KEPT_BYTES / 2);
        // A slow one keeps little more than what it would without a path.
        let mut streams = Streams::new(Leg::Bulk, LONG_BYTES, 1);
        streams.fill(0, 200_000);
        assert!(streams.sum() <= KEPT_BYTES);
    }

    #[test]
    fn streams_that_begin_one_after_the_other_keep_no_more_than_those_that_begin_at_once() {
        for path_bytes in [0, MIB, 4 * MIB, LONG_BYTES] {
            let count = 16;
            let mut streams = Streams::new(Leg::Bulk, path_bytes, count);
            for stream in 0..count {
                streams.fill(stream, 0);
                let most = path_bytes + (stream as u64 + 1) * ALONE_BYTES;
                assert!(streams.sum() <= most, "{stream} of {path_bytes}");
            }
        }
    }
}
