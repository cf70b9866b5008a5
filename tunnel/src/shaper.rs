//! The byte shaper: how many bytes may be handed to a connection now, so that a cap holds on the wire.
//!
//! Pure: time is an argument. Credit grows with time at the capped rate; a grant takes from it what
//! the program's bytes cost. What really left is only known afterwards from QUIC's own counters, with
//! headers, acknowledgements and retransmissions, so [`Shaper::observe`] charges the difference.
//!
//! Credit is counted in billionths of a byte, so a rate in bytes per second times nanoseconds is
//! exact: nothing drifts, however odd the rate (whole-nanosecond intervals per byte, the usual way,
//! are 67 % off at 600 MB/s).

use std::time::Duration;

use towpath_protocol::channel::{Class, Leg};
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

/// Most bytes in one grant: a piece this small holds an urgent one up by 5 ms at 100 Mbit/s at most.
pub const PIECE_BYTES_MAX: u64 = 64 * 1024;

/// Least bytes in one grant: two full packets, below which headers eat the link.
const PIECE_BYTES_MIN: u64 = 2 * 1200;

/// What one grant of bulk lasts on the wire. Timers fire to the millisecond, so pieces of four keep
/// the rate smooth and the wake-ups few.
const PIECE_TIME: Duration = Duration::from_millis(4);

/// Credit kept while nobody asks: what a timer that fires late would otherwise lose.
const BURST_TIME: Duration = Duration::from_millis(12);

/// How far urgent bytes may run ahead of the rate before they, too, wait: a guest's page never waits
/// behind bulk, and still the cap holds within this time.
const DEBT_TIME: Duration = Duration::from_millis(50);

/// Most debt that retransmissions and headers can leave: beyond it, they are forgiven, because a
/// link that was mostly loss for a while must not stand still afterwards.
const DEBT_TIME_MAX: Duration = Duration::from_secs(1);

const BILLION: i128 = 1_000_000_000;

/// The answer to a wish to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// So many bytes may go now, at least one and at most as many as were asked for.
    Bytes(u64),
    /// None before this instant; ask again then.
    At(Instant),
    /// None while bulk is waiting; ask again after [`Shaper::leave`] was called for it.
    Yield,
}

/// Shapes what one side of a link sends to its peer.
#[derive(Debug)]
pub struct Shaper {
    rate: Option<Rate>,
    /// Billionths of a byte; below zero is debt.
    credit: i128,
    filled: Instant,
    /// Bytes granted that the wire's counter has not shown yet.
    unseen: u64,
    wire_bytes: u64,
    /// Bulk streams that have bytes to send: scavengers wait while there are any.
    bulk_count: u32,
}

impl Shaper {
    /// A shaper that begins with the credit of one burst.
    #[must_use]
    pub fn new(rate: Option<Rate>, now: Instant) -> Self {
        let mut shaper = Self {
            rate,
            credit: 0,
            filled: now,
            unseen: 0,
            wire_bytes: 0,
            bulk_count: 0,
        };
        shaper.credit = shaper.credit_max();
        shaper
    }

    /// The cap, if there is one.
    #[must_use]
    pub const fn rate(&self) -> Option<Rate> {
        self.rate
    }

    /// Changes the cap; credit and debt of the old one stay, within the limits of the new.
    pub fn set_rate(&mut self, rate: Option<Rate>, now: Instant) {
        self.fill(now);
        self.rate = rate;
        let debt_max = self.billionths(DEBT_TIME_MAX);
        self.credit = self.credit.clamp(-debt_max, self.credit_max());
    }

    /// A stream of this class has bytes to send from now on.
    pub const fn enter(&mut self, class: Class) {
        if matches!(class, Class::Bulk) {
            self.bulk_count += 1;
        }
    }

    /// A stream of this class that had entered has no bytes to send for now.
    ///
    /// # Panics
    ///
    /// If it had not entered.
    pub const fn leave(&mut self, class: Class) {
        if matches!(class, Class::Bulk) {
            assert!(self.bulk_count > 0, "a bulk stream leaves that never came");
            self.bulk_count -= 1;
        }
    }

    /// Asks to send `bytes` of a class.
    ///
    /// # Panics
    ///
    /// If `bytes` is zero: nobody asks for nothing.
    pub fn grant(&mut self, class: Class, bytes: u64, now: Instant) -> Grant {
        assert!(bytes > 0, "a wish for no bytes");
        if matches!(class, Class::Scavenger) && self.bulk_count > 0 {
            return Grant::Yield;
        }
        let Some(rate) = self.rate else {
            return Grant::Bytes(bytes);
        };
        self.fill(now);
        let piece = bytes.min(piece_bytes(rate));
        let needed = match class.leg() {
            Leg::Urgent => 1 - self.billionths(DEBT_TIME),
            Leg::Bulk => i128::from(piece) * BILLION,
        };
        if self.credit < needed {
            return Grant::At(self.instant_of(needed, rate));
        }
        self.credit -= i128::from(piece) * BILLION;
        self.unseen += piece;
        Grant::Bytes(piece)
    }

    /// Takes note of all bytes that have ever left on the wire, and charges what no grant foresaw.
    pub fn observe(&mut self, wire_bytes: u64, now: Instant) {
        self.fill(now);
        let left = wire_bytes.saturating_sub(self.wire_bytes);
        self.wire_bytes = wire_bytes;
        let foreseen = left.min(self.unseen);
        self.unseen -= foreseen;
        let debt_max = self.billionths(DEBT_TIME_MAX);
        let charged = self.credit - i128::from(left - foreseen) * BILLION;
        self.credit = charged.max(-debt_max);
    }

    fn fill(&mut self, now: Instant) {
        let elapsed = now.since(self.filled);
        self.filled = self.filled.max(now);
        self.credit = (self.credit + self.billionths(elapsed)).min(self.credit_max());
    }

    /// When credit will have grown to `needed`.
    fn instant_of(&self, needed: i128, rate: Rate) -> Instant {
        let per_nanosecond = i128::from(rate.bytes_per_second());
        let nanos = (needed - self.credit + per_nanosecond - 1) / per_nanosecond;
        self.filled + Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    fn credit_max(&self) -> i128 {
        let two_pieces = self.rate.map_or(0, |rate| 2 * piece_bytes(rate));
        self.billionths(BURST_TIME)
            .max(i128::from(two_pieces) * BILLION)
    }

    /// What the rate gives in a time, in billionths of a byte.
    fn billionths(&self, time: Duration) -> i128 {
        let rate = self.rate.map_or(0, Rate::bytes_per_second);
        let nanos = i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        i128::from(rate).saturating_mul(nanos)
    }
}

/// Bytes in one grant at a rate.
#[must_use]
pub fn piece_bytes(rate: Rate) -> u64 {
    rate.bytes_in(PIECE_TIME)
        .clamp(PIECE_BYTES_MIN, PIECE_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: u64 = 1_000_000_000;

    fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn rate(text: &str) -> Rate {
        text.parse().unwrap()
    }

    /// Sends bulk as fast as it is granted, with `overhead` per thousand on the wire; gives the bytes
    /// on the wire after `nanos`.
    fn saturate(shaper: &mut Shaper, nanos: u64, overhead: u64) -> u64 {
        let (mut now, mut wire, mut observed) = (0, 0, 0);
        while now < nanos {
            match shaper.grant(Class::Bulk, 1 << 20, at(now)) {
                Grant::Bytes(bytes) => wire += bytes * (1000 + overhead) / 1000,
                Grant::At(then) => now = then.as_nanos().max(now + 1),
                Grant::Yield => panic!("bulk yields to nobody"),
            }
            if now >= observed + SECOND / 20 {
                observed = now;
                shaper.observe(wire, at(now));
            }
        }
        wire
    }

    #[test]
    fn a_new_cap_holds_from_the_moment_it_is_set() {
        let mut shaper = Shaper::new(Some(rate("100Mbit")), at(0));
        let (mut now, mut wire) = (0, 0);
        for (cap, bytes_per_second) in [("8Mbit", 1e6), ("400Mbit", 5e7), ("24Mbit", 3e6)] {
            shaper.set_rate(Some(rate(cap)), at(now));
            let (began, before) = (now, wire);
            while now < began + 10 * SECOND {
                match shaper.grant(Class::Bulk, 1 << 20, at(now)) {
                    Grant::Bytes(bytes) => wire += bytes,
                    Grant::At(then) => now = then.as_nanos().max(now + 1),
                    Grant::Yield => panic!("bulk yields to nobody"),
                }
                shaper.observe(wire, at(now));
            }
            let share = (wire - before) as f64 / (10.0 * bytes_per_second);
            assert!((share - 1.0).abs() < 0.01, "{cap}: {share}");
        }
    }

    #[test]
    fn the_wire_holds_the_rate_at_every_order_of_magnitude() {
        for text in [
            "64kbit",
            "1Mbit",
            "100Mbit",
            "1.872Gbit",
            "4.8Gbit",
            "40Gbit",
        ] {
            for overhead in [0, 60, 200] {
                let rate = rate(text);
                let mut shaper = Shaper::new(Some(rate), at(0));
                let wire = saturate(&mut shaper, 10 * SECOND, overhead);
                let expected = rate.bytes_per_second() * 10;
                let off = wire.abs_diff(expected) * 1000 / expected;
                let burst = 2 * piece_bytes(rate) * 1000 / expected;
                assert!(
                    off <= 10 + burst,
                    "{text}, {overhead}: {wire} for {expected}"
                );
            }
        }
    }

    #[test]
    fn urgent_bytes_never_wait_for_bulk_and_bulk_pays_for_them() {
        let mut shaper = Shaper::new(Some(rate("100Mbit")), at(0));
        let mut now = 0;
        let (mut bulk, mut urgent) = (0, 0);
        while now < SECOND {
            if let Grant::Bytes(bytes) = shaper.grant(Class::Bulk, 1 << 20, at(now)) {
                bulk += bytes;
            }
            if now % (SECOND / 100) == 0 {
                assert_eq!(
                    shaper.grant(Class::Demand, 16_384, at(now)),
                    Grant::Bytes(16_384)
                );
                urgent += 16_384;
            }
            now += SECOND / 1000;
        }
        assert_eq!(urgent, 1_638_400);
        assert!(bulk + urgent <= 12_500_000 + 200_000, "{bulk} + {urgent}");
        assert!(bulk + urgent >= 12_200_000, "{bulk} + {urgent}");
    }

    #[test]
    fn urgent_bytes_alone_also_keep_to_the_rate() {
        let mut shaper = Shaper::new(Some(rate("10Mbit")), at(0));
        let (mut now, mut sent) = (0, 0);
        while now < 2 * SECOND {
            match shaper.grant(Class::Switch, 1 << 20, at(now)) {
                Grant::Bytes(bytes) => sent += bytes,
                Grant::At(then) => now = then.as_nanos(),
                Grant::Yield => panic!("urgent yields to nobody"),
            }
        }
        let most = 2_500_000 + 1_250_000 / 1000 * 50 + 30_000;
        assert!((2_450_000..=most).contains(&sent), "{sent}");
    }

    #[test]
    fn scavengers_wait_for_bulk_even_without_a_cap() {
        let mut shaper = Shaper::new(None, at(0));
        shaper.enter(Class::Bulk);
        assert_eq!(shaper.grant(Class::Scavenger, 10, at(0)), Grant::Yield);
        shaper.leave(Class::Bulk);
        assert_eq!(shaper.grant(Class::Scavenger, 10, at(0)), Grant::Bytes(10));
    }

    #[test]
    fn a_storm_of_retransmissions_is_forgiven_after_a_second() {
        let mut shaper = Shaper::new(Some(rate("10Mbit")), at(0));
        shaper.observe(1 << 40, at(0));
        let Grant::At(then) = shaper.grant(Class::Bulk, 5000, at(0)) else {
            panic!("granted in debt");
        };
        assert!(then <= at(SECOND + SECOND / 100), "{then}");
    }

    #[test]
    fn bytes_that_wait_in_a_buffer_are_not_granted_twice() {
        let mut shaper = Shaper::new(Some(rate("10Mbit")), at(0));
        let mut granted = 0;
        for now in 0..1000 {
            if let Grant::Bytes(bytes) = shaper.grant(Class::Bulk, 5000, at(now * SECOND / 1000)) {
                granted += bytes;
            }
            shaper.observe(0, at(now * SECOND / 1000));
        }
        assert!(granted <= 1_250_000 + 15_000, "{granted}");
    }

    proptest! {
        /// Whatever is asked for and whenever, grants stay within rate, burst and debt, a grant is
        /// never more than was asked for, and the promised instant is kept.
        #[test]
        fn grants_stay_within_the_rate(
            bytes_per_second in 8_000u64..2_000_000_000,
            wishes in prop::collection::vec((0usize..6, 1u64..200_000, 0u64..20_000_000), 1..200),
        ) {
            let rate = Rate::from_bytes_per_second(bytes_per_second).unwrap();
            let mut shaper = Shaper::new(Some(rate), at(0));
            let (mut now, mut granted) = (0, 0);
            for (class, bytes, pause) in wishes {
                now += pause;
                match shaper.grant(Class::ALL[class], bytes, at(now)) {
                    Grant::Bytes(given) => {
                        prop_assert!(given >= 1 && given <= bytes.min(PIECE_BYTES_MAX));
                        granted += given;
                    }
                    Grant::At(then) => {
                        prop_assert!(then > at(now));
                        now = then.as_nanos();
                        let again = shaper.grant(Class::ALL[class], bytes, at(now));
                        prop_assert!(matches!(again, Grant::Bytes(_)), "{:?}", again);
                        let Grant::Bytes(given) = again else { unreachable!() };
                        granted += given;
                    }
                    Grant::Yield => prop_assert!(false, "no bulk had entered"),
                }
                let earned = u128::from(bytes_per_second) * u128::from(now) / 1_000_000_000;
                let burst = rate.bytes_in(BURST_TIME).max(2 * piece_bytes(rate));
                let debt = rate.bytes_in(DEBT_TIME) + PIECE_BYTES_MAX;
                let most = earned + u128::from(burst) + u128::from(debt);
                prop_assert!(u128::from(granted) <= most, "{} of {}", granted, most);
            }
        }
    }
}
