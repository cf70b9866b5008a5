//! The limit of a stream's tail, given the other streams of its leg. Pure.
//!
//! The tail is what the peer has not reported. All of it may stand unread in the window of the
//! peer's connection, which all streams of the leg share. A stream with a slow reader must leave
//! room there for the others, and for the link's own messages. So a stream may keep the largest of
//! three amounts:
//!
//! - a little, always, so that each stream makes progress by itself;
//! - the rest of what the path holds, within an ordinary window, first come first served;
//! - more, only in step with what its own reader has recently taken.

use towpath_protocol::class::Leg;

use crate::path::windows::{KEPT_BYTES, RECEIVE_BYTES};

/// The tail that every stream may have: more than the least that is read at once. The streams that
/// both sides may begin, 64 each by default, then fit into an ordinary window beside the shared
/// part.
pub(crate) const LEAST_BYTES: u64 = 48 * 1024;

/// What streams whose readers keep up may add to the shared part. An ordinary window has room for
/// it beside all the rest, and for the link's own messages.
const KEEPING_UP_BYTES: u64 = 1 << 20;

/// What unread streams may keep beside the streams that are read: [`LEAST_BYTES`] for all streams
/// of both sides, by default. That fits into an ordinary window too; more would keep the others
/// from it.
const UNREAD_BYTES: u64 = 128 * LEAST_BYTES;

const _: () = assert!(KEPT_BYTES + KEEPING_UP_BYTES + UNREAD_BYTES < RECEIVE_BYTES);

/// Rounds of its reader's intake that a stream may keep. While a start doubles, a report is two
/// rounds old and shows a quarter of what is sent.
const OWN_ROUNDS: u64 = 8;

/// The state of a stream and its leg.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tail {
    pub leg: Leg,
    /// Bytes to keep for the path.
    pub path_bytes: u64,
    /// Bytes kept of all streams of the leg.
    pub leg_held_bytes: u64,
    /// Bytes kept of this stream.
    pub held_bytes: u64,
    /// The most that the stream's reader recently took in a round: a round trip, plus the time that
    /// a report may take.
    pub taken_bytes: u64,
}

impl Tail {
    /// How many more bytes the stream may keep. `most_alone_bytes` is what a stream may keep
    /// whatever the path holds, as long as the leg has room.
    pub(crate) fn room(&self, most_alone_bytes: u64) -> u64 {
        let anybody_bytes = self.path_bytes.min(KEPT_BYTES);
        let alone_bytes = if self.leg_held_bytes < KEPT_BYTES {
            most_alone_bytes
        } else {
            most_alone_bytes.min(LEAST_BYTES)
        };
        // A stream that was fast and stops keeps no more than the path holds; the rest is for
        // others.
        let own_bytes = self.taken_bytes.saturating_mul(OWN_ROUNDS);
        let own_bytes = own_bytes.min(self.path_bytes.max(most_alone_bytes));
        let of_stream = |most: u64| most.saturating_sub(self.held_bytes);
        let of_leg = |most: u64| most.saturating_sub(self.leg_held_bytes);
        of_stream(alone_bytes)
            .max(of_leg(anybody_bytes))
            .max(of_stream(own_bytes).min(of_leg(self.leg_bytes())))
    }

    /// Whether this tail must go because unread tails may block the leg's window at the peer. Of
    /// that window only the ordinary size is certain, however much this side keeps for the path;
    /// beyond it, tails larger than `most_alone_bytes` are in the way.
    pub(crate) fn is_in_the_way(&self, most_alone_bytes: u64) -> bool {
        let ordinary_bytes = KEPT_BYTES + KEEPING_UP_BYTES + UNREAD_BYTES;
        let is_large = self.held_bytes > most_alone_bytes;
        (is_large && self.leg_held_bytes > ordinary_bytes)
            || self.leg_held_bytes > self.leg_bytes() + UNREAD_BYTES
    }

    /// What all streams may keep in step with their readers: more than the shared part, so that
    /// streams that are read progress beside those that are not. The urgent connection's window at
    /// the peer never grows.
    fn leg_bytes(&self) -> u64 {
        let ordinary_bytes = KEPT_BYTES + KEEPING_UP_BYTES;
        match self.leg {
            Leg::Urgent => ordinary_bytes,
            Leg::Bulk => ordinary_bytes.max(self.path_bytes + self.path_bytes.min(KEPT_BYTES) / 2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const ALONE_BYTES: u64 = MIB;

    /// A leg with a limit for the path, and what each of its streams keeps.
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

        fn tail(&self, stream: usize, taken_bytes: u64) -> Tail {
            Tail {
                leg: self.leg,
                path_bytes: self.path_bytes,
                leg_held_bytes: self.sum(),
                held_bytes: self.held[stream],
                taken_bytes,
            }
        }

        /// Lets a stream send until its tail has no room for a read.
        fn fill(&mut self, stream: usize, taken_bytes: u64) {
            loop {
                let room = self.tail(stream, taken_bytes).room(ALONE_BYTES);
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
        assert!(streams.sum() <= KEPT_BYTES + KEEPING_UP_BYTES);
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
    fn who_reads_nothing_may_do_so_for_as_long_as_others_have_their_room() {
        for leg in Leg::ALL {
            // One of them was read as fast as an ordinary path allows; then all pause.
            let mut streams = Streams::new(leg, 0, 1024);
            streams.fill(0, LONG_BYTES);
            (1..128).for_each(|stream| streams.fill(stream, 0));
            let is_in_the_way = |streams: &Streams, stream| {
                let tail = streams.tail(stream, 0);
                tail.is_in_the_way(ALONE_BYTES)
            };
            assert!(!is_in_the_way(&streams, 0), "{}", streams.sum());
            (128..1024).for_each(|stream| streams.fill(stream, 0));
            assert!(is_in_the_way(&streams, 0) && is_in_the_way(&streams, 1023));
        }
    }

    #[test]
    fn who_was_fast_and_pauses_is_in_the_way_where_it_fills_an_ordinary_window() {
        let mut streams = Streams::new(Leg::Bulk, LONG_BYTES, 2);
        streams.fill(1, 100_000);
        let little = streams.held[1];
        streams.held[0] = RECEIVE_BYTES - little;
        assert!(streams.tail(0, 0).is_in_the_way(ALONE_BYTES));
        // The other keeps only what each stream may keep before the path is known.
        streams.held[1] = ALONE_BYTES;
        assert!(!streams.tail(1, 0).is_in_the_way(ALONE_BYTES));
        // On the urgent leg a tail never gets that long.
        let mut streams = Streams::new(Leg::Urgent, LONG_BYTES, 1);
        streams.fill(0, LONG_BYTES);
        assert!(!streams.tail(0, 0).is_in_the_way(ALONE_BYTES));
    }

    #[test]
    fn a_stream_goes_beyond_that_in_step_with_its_own_reader() {
        let mut streams = Streams::new(Leg::Bulk, LONG_BYTES, 2);
        // The first is never read; the second is read as fast as the path delivers.
        streams.fill(0, 0);
        assert!((KEPT_BYTES - MIB..=KEPT_BYTES).contains(&streams.held[0]));
        let mut taken_bytes = 0;
        for _ in 0..10 {
            streams.fill(1, taken_bytes);
            taken_bytes = streams.held[1].min(25_500_000);
        }
        assert!(streams.held[1] > 2 * 25_500_000, "{:?}", streams.held);
        assert!(streams.sum() <= LONG_BYTES + KEPT_BYTES / 2);
        // A slow one keeps little more than without a known path.
        let mut streams = Streams::new(Leg::Bulk, LONG_BYTES, 1);
        streams.fill(0, 200_000);
        assert!(streams.sum() <= KEPT_BYTES);
    }

    #[test]
    fn who_keeps_up_gets_on_beside_many_who_do_not() {
        // 100 Mbit/s over 40 ms, three times.
        let path_bytes = 1_650_000;
        for leg in Leg::ALL {
            let mut streams = Streams::new(leg, path_bytes, 21);
            (0..20).for_each(|stream| streams.fill(stream, 0));
            let others = streams.sum();
            assert!(others >= KEPT_BYTES);
            let mut taken_bytes = 0;
            for _ in 0..6 {
                streams.held[20] = 0;
                streams.fill(20, taken_bytes);
                // The reader takes in the next round what is under way in this one.
                taken_bytes = streams.held[20];
            }
            assert!(streams.held[20] >= path_bytes / 3, "{:?}", streams.held);
            assert!(streams.sum() < RECEIVE_BYTES - MIB);
        }
    }

    #[test]
    fn who_was_fast_and_stops_leaves_the_others_their_room() {
        let mut streams = Streams::new(Leg::Bulk, LONG_BYTES, 2);
        streams.fill(0, 25_500_000);
        assert!(streams.held[0] <= LONG_BYTES);
        let mut taken_bytes = 0;
        for _ in 0..6 {
            streams.held[1] = 0;
            streams.fill(1, taken_bytes);
            taken_bytes = streams.held[1];
        }
        assert!(streams.held[1] > 4 * MIB, "{:?}", streams.held);
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
