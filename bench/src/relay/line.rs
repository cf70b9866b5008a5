//! One direction of the link: loss, queue, bottleneck, delay. Pure: time is an argument.

use std::collections::VecDeque;
use std::time::Duration;

use super::{Direction, Queue};
use crate::random::split_mix;

/// Overhead of every datagram on the wire: 20 bytes of IPv4 and 8 of UDP.
pub const HEADER_BYTES: u64 = 28;

/// Most bytes on the line and in its queue, whatever the configured queue: a bound on memory.
const HELD_BYTES_MAX: u64 = 256 << 20;

/// Counters of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Counters {
    /// Datagrams delivered.
    pub delivered_count: u64,
    /// Their bytes, headers included.
    pub delivered_bytes: u64,
    /// Datagrams lost at random.
    pub lost_count: u64,
    /// Datagrams dropped because the queue was full.
    pub overflow_count: u64,
    /// Datagrams lost because the link was cut, or because they were too large for it.
    pub cut_count: u64,
}

/// A datagram in flight, with the caller's data on where it goes.
#[derive(Debug)]
struct Held<T> {
    due: Duration,
    wire_bytes: u64,
    datagram: T,
}

/// One direction. Times are relative to a start chosen by the caller.
#[derive(Debug)]
pub(super) struct Line<T> {
    direction: Direction,
    is_cut: bool,
    payload_bytes_max: usize,
    /// When the bottleneck will have sent everything it holds.
    free_at: Duration,
    held: VecDeque<Held<T>>,
    held_bytes: u64,
    chance: Chance,
    counters: Counters,
}

impl<T> Line<T> {
    pub(super) fn new(direction: Direction, seed: u64) -> Self {
        Self {
            direction,
            is_cut: false,
            payload_bytes_max: usize::MAX,
            free_at: Duration::ZERO,
            held: VecDeque::new(),
            held_bytes: 0,
            chance: Chance(seed),
            counters: Counters::default(),
        }
    }

    pub(super) const fn counters(&self) -> Counters {
        self.counters
    }

    pub(super) const fn set(&mut self, direction: Direction) {
        self.direction = direction;
    }

    /// Cuts or mends the direction; a cut loses what is in flight.
    pub(super) fn set_cut(&mut self, is_cut: bool, now: Duration) {
        if is_cut && !self.is_cut {
            self.counters.cut_count += self.held.len() as u64;
            self.held.clear();
            self.held_bytes = 0;
            self.free_at = now;
        }
        self.is_cut = is_cut;
    }

    pub(super) const fn set_payload_max(&mut self, bytes: usize) {
        self.payload_bytes_max = bytes;
    }

    /// Takes a datagram of `payload_bytes` that arrived at `now`.
    pub(super) fn push(&mut self, payload_bytes: usize, datagram: T, now: Duration) {
        let wire_bytes = payload_bytes as u64 + HEADER_BYTES;
        if self.is_cut || payload_bytes > self.payload_bytes_max {
            self.counters.cut_count += 1;
            return;
        }
        // A number is drawn for every datagram, so that a change of the loss rate does not shift
        // the sequence.
        if self.chance.next() < self.direction.loss {
            self.counters.lost_count += 1;
            return;
        }
        let begins = self.free_at.max(now);
        let sending = self.time_for(wire_bytes);
        let waiting = begins.saturating_sub(now);
        let is_full = match self.direction.queue {
            // A datagram always fits an empty queue: the bottleneck takes it at once.
            _ if waiting.is_zero() => false,
            Queue::Time(depth) => waiting + sending > depth,
            Queue::Bytes(depth) => self.bytes_in(waiting) + wire_bytes > depth,
        };
        if is_full || self.held_bytes + wire_bytes > HELD_BYTES_MAX {
            self.counters.overflow_count += 1;
            return;
        }
        self.free_at = begins + sending;
        let due = self.free_at + self.direction.delay;
        // After a change to a shorter delay, later datagrams must not overtake earlier ones.
        let due = self.held.back().map_or(due, |last| due.max(last.due));
        self.held_bytes += wire_bytes;
        self.held.push_back(Held {
            due,
            wire_bytes,
            datagram,
        });
    }

    /// When the next datagram is due.
    pub(super) fn due(&self) -> Option<Duration> {
        self.held.front().map(|held| held.due)
    }

    /// The next datagram, if it is due.
    pub(super) fn pop(&mut self, now: Duration) -> Option<T> {
        if self.due()? > now {
            return None;
        }
        let held = self.held.pop_front()?;
        self.held_bytes -= held.wire_bytes;
        self.counters.delivered_count += 1;
        self.counters.delivered_bytes += held.wire_bytes;
        Some(held.datagram)
    }

    fn time_for(&self, bytes: u64) -> Duration {
        self.direction
            .bits_per_second
            .map_or(Duration::ZERO, |rate| {
                let nanos = (u128::from(bytes) * 8_000_000_000).div_ceil(u128::from(rate));
                Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
            })
    }

    fn bytes_in(&self, time: Duration) -> u64 {
        self.direction.bits_per_second.map_or(0, |rate| {
            let bytes = time.as_nanos().saturating_mul(u128::from(rate)) / 8_000_000_000;
            u64::try_from(bytes).unwrap_or(u64::MAX)
        })
    }
}

/// Seeded random numbers (splitmix64), so that a run with losses can be repeated.
#[derive(Debug)]
struct Chance(u64);

impl Chance {
    /// The next number in 0..1.
    #[allow(clippy::cast_precision_loss, reason = "53 bits fit a float exactly")]
    const fn next(&mut self) -> f64 {
        (split_mix(&mut self.0) >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// 1 Mbit/s is 125 bytes a millisecond, so each of these datagrams takes 8 ms.
    const PAYLOAD: usize = 1000 - 28;

    fn line(queue: Queue) -> Line<u32> {
        let direction = Direction {
            bits_per_second: Some(1_000_000),
            delay: ms(20),
            queue,
            loss: 0.0,
        };
        Line::new(direction, 1)
    }

    fn arrivals(line: &mut Line<u32>) -> Vec<(u32, Duration)> {
        let mut all = Vec::new();
        while let Some(due) = line.due() {
            assert!(due == Duration::ZERO || line.pop(due - Duration::from_nanos(1)).is_none());
            all.push((line.pop(due).unwrap(), due));
        }
        all
    }

    #[test]
    fn datagrams_leave_one_after_the_other_and_arrive_after_the_delay() {
        let mut line = line(Queue::Time(ms(100)));
        line.push(PAYLOAD, 1, ms(0));
        line.push(PAYLOAD, 2, ms(0));
        line.push(PAYLOAD, 3, ms(50));
        assert_eq!(arrivals(&mut line), [(1, ms(28)), (2, ms(36)), (3, ms(78))]);
    }

    #[test]
    fn a_full_queue_drops_the_newest() {
        for queue in [Queue::Time(ms(24)), Queue::Bytes(3000)] {
            let mut line = line(queue);
            for number in 0..10 {
                line.push(PAYLOAD, number, ms(0));
            }
            let numbers: Vec<_> = arrivals(&mut line).iter().map(|a| a.0).collect();
            assert_eq!(numbers, [0, 1, 2], "{queue:?}");
            assert_eq!(line.counters().overflow_count, 7);
        }
    }

    #[test]
    fn a_cut_loses_what_is_on_its_way_and_what_comes() {
        let mut line = line(Queue::Time(ms(100)));
        line.push(PAYLOAD, 1, ms(0));
        line.set_cut(true, ms(1));
        line.push(PAYLOAD, 2, ms(2));
        assert_eq!(line.due(), None);
        line.set_cut(false, ms(3));
        line.push(PAYLOAD, 3, ms(3));
        assert_eq!(arrivals(&mut line), [(3, ms(31))]);
        assert_eq!(line.counters().cut_count, 2);
    }

    #[test]
    fn a_shorter_delay_does_not_let_datagrams_overtake() {
        let mut line = line(Queue::Time(ms(100)));
        line.push(PAYLOAD, 1, ms(0));
        let mut direction = line.direction;
        direction.delay = Duration::ZERO;
        line.set(direction);
        line.push(PAYLOAD, 2, ms(0));
        assert_eq!(arrivals(&mut line), [(1, ms(28)), (2, ms(28))]);
    }

    #[test]
    fn losses_follow_their_chance_and_their_seed() {
        let lost = |seed| {
            let direction = Direction {
                loss: 0.1,
                ..Direction::default()
            };
            let mut line = Line::new(direction, seed);
            (0..10_000).for_each(|number| line.push(100, number, ms(0)));
            line.counters().lost_count
        };
        assert!((900..1100).contains(&lost(1)), "{}", lost(1));
        assert_eq!(lost(7), lost(7));
        assert_ne!(lost(7), lost(8));
    }
}
