//! Credit that grows with time at a rate, exact to a billionth of a byte.

use std::time::Duration;

use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use super::piece_bytes;

/// Time for which unused credit is kept, so that a late timer loses none.
pub(super) const BURST_TIME: Duration = Duration::from_millis(9);

/// Time for which credit is kept beyond a piece, where that is more: timers are late at low rates
/// too.
const LATE_TIME: Duration = Duration::from_millis(3);

/// Bytes per second times nanoseconds give billionths of a byte.
pub(super) const BILLION: i128 = 1_000_000_000;

/// Credit that grows at a rate.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    rate: Rate,
    /// Billionths of a byte; negative is debt.
    credit: i128,
    filled: Instant,
    /// Bursts of credit that are kept.
    bursts: i128,
}

impl Bucket {
    /// A bucket with the credit of one burst.
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self::deep(rate, 1, now)
    }

    /// A full bucket that holds several bursts.
    pub(crate) fn deep(rate: Rate, bursts: u8, now: Instant) -> Self {
        let mut bucket = Self {
            rate,
            credit: 0,
            filled: now,
            bursts: bursts.into(),
        };
        bucket.credit = bucket.credit_max();
        bucket
    }

    pub(crate) const fn rate(&self) -> Rate {
        self.rate
    }

    /// Changes the rate. Credit stays, within the limits of the new rate; a debt does not last
    /// longer than it would have.
    pub(crate) fn set_rate(&mut self, rate: Rate, now: Instant) {
        self.fill(now);
        if self.credit < 0 && rate < self.rate {
            let [new, old] = [rate, self.rate].map(|rate| i128::from(rate.bytes_per_second()));
            self.credit = self.credit.saturating_mul(new) / old;
        }
        self.rate = rate;
        self.credit = self.credit.min(self.credit_max());
    }

    pub(crate) fn fill(&mut self, now: Instant) {
        let earned = self.earned_in(now.since(self.filled));
        self.filled = self.filled.max(now);
        self.credit = (self.credit + earned).min(self.credit_max());
    }

    /// Whether there is this much credit, with a debt of at most `debt` afterwards.
    pub(crate) const fn has(&self, billionths: i128, debt: i128) -> bool {
        self.credit >= billionths - debt
    }

    /// Whether at least half of the most credit is there.
    pub(crate) fn is_half_full(&self) -> bool {
        self.credit * 2 >= self.credit_max()
    }

    /// Takes credit; debt beyond `debt_max` is forgiven.
    pub(crate) fn charge(&mut self, billionths: i128, debt_max: i128) {
        let least = self.credit.min(-debt_max);
        self.credit = (self.credit - billionths).max(least);
    }

    /// Gives back credit that was not used.
    pub(crate) fn refund(&mut self, billionths: i128) {
        self.credit = (self.credit + billionths).min(self.credit_max());
    }

    /// When there will be this much credit, with a debt of at most `debt` afterwards.
    pub(crate) fn instant_of(&self, billionths: i128, debt: i128) -> Instant {
        let missing = (billionths - debt - self.credit).max(0);
        let per_nanosecond = i128::from(self.rate.bytes_per_second());
        let nanos = (missing + per_nanosecond - 1) / per_nanosecond;
        self.filled + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// When there will be credit for so many bytes; `None` if there is now.
    pub(crate) fn until(&self, bytes: u64) -> Option<Instant> {
        let needed = i128::from(bytes) * BILLION;
        (!self.has(needed, 0)).then(|| self.instant_of(needed, 0))
    }

    /// Takes bytes, into debt if need be.
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.charge(i128::from(bytes) * BILLION, i128::MAX);
    }

    /// Gives bytes back.
    pub(crate) fn gain(&mut self, bytes: u64) {
        self.refund(i128::from(bytes) * BILLION);
    }

    /// Credit earned in a time, in billionths of a byte.
    pub(crate) fn earned_in(&self, time: Duration) -> i128 {
        let nanos = i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
        i128::from(self.rate.bytes_per_second()).saturating_mul(nanos)
    }

    fn credit_max(&self) -> i128 {
        let piece = i128::from(piece_bytes(self.rate)) * BILLION;
        let burst = self.earned_in(BURST_TIME);
        self.bursts * burst.max(piece + self.earned_in(LATE_TIME))
    }
}
