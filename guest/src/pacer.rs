//! Decides how many pages a workload writes between two heartbeats.
//!
//! The requested rate is met on average, but no tick gets more pages than fit before the next
//! heartbeat. So a processor that is too slow for the rate, or that waits for missing pages, still
//! keeps its heartbeat.

use std::time::Duration;

use towpath_protocol::amounts::nanos;

/// Share of the interval that a tick's pages may take, in percent. The rest is for the heartbeat
/// itself.
const WORK_PERCENT_MAX: u64 = 70;

/// First estimate of the time per page: that of a slow machine. The first ticks correct it.
const PAGE_COST_NS_START: u64 = 50_000;

/// A million: rates are per second and intervals in microseconds.
const MICRO: u64 = 1_000_000;

/// Distributes pages over ticks.
#[derive(Debug, Clone)]
pub(crate) struct Pacer {
    pages_per_second: u64,
    interval_us: u64,
    credit_micropages: u64,
    page_cost_ns: u64,
}

impl Pacer {
    pub(crate) fn new(pages_per_second: u32, interval_us: u32) -> Self {
        Self {
            pages_per_second: u64::from(pages_per_second),
            interval_us: u64::from(interval_us),
            credit_micropages: 0,
            page_cost_ns: PAGE_COST_NS_START,
        }
    }

    /// Nanoseconds from one tick to the next.
    pub(crate) const fn interval_ns(&self) -> u64 {
        self.interval_us * 1000
    }

    /// Fractional pages left over from past ticks. Moves with the guest.
    pub(crate) const fn credit_micropages(&self) -> u64 {
        self.credit_micropages
    }

    /// Takes over the credit from another host; at most one page.
    pub(crate) fn restore_credit(&mut self, credit_micropages: u64) {
        self.credit_micropages = credit_micropages.min(MICRO);
    }

    /// Returns the number of pages for the next tick.
    pub(crate) fn deal(&mut self) -> u32 {
        self.credit_micropages += self.pages_per_second * self.interval_us;
        let work_ns_max = self.interval_ns() * WORK_PERCENT_MAX / 100;
        let fits = (work_ns_max / self.page_cost_ns.max(1)).max(1);
        let pages = self.credit_micropages / MICRO;
        if pages > fits {
            // Pages that do not fit are dropped: a debt would only delay later heartbeats.
            self.credit_micropages = 0;
        } else {
            self.credit_micropages -= pages * MICRO;
        }
        u32::try_from(pages.min(fits)).unwrap_or(u32::MAX)
    }

    /// Learns from the last tick: how long this many pages took.
    pub(crate) fn learn(&mut self, pages: u32, took: Duration) {
        if pages > 0 {
            let cost_ns = nanos(took) / u64::from(pages);
            // A missing page may take seconds, which must not slow the workload for minutes
            // afterwards.
            let cost_ns = cost_ns.min(self.interval_ns());
            self.page_cost_ns = (self.page_cost_ns * 3 + cost_ns) / 4;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dealt(pacer: &mut Pacer, ticks: u32, page_cost: Duration) -> u64 {
        let mut total = 0;
        for _ in 0..ticks {
            let pages = pacer.deal();
            pacer.learn(pages, page_cost * pages);
            total += u64::from(pages);
        }
        total
    }

    #[test]
    fn the_rate_is_met_exactly_when_the_processor_is_fast_enough() {
        for rate in [0, 1, 333, 500, 1000, 123_456] {
            let mut pacer = Pacer::new(rate, 2000);
            dealt(&mut pacer, 500, Duration::from_nanos(300));
            let total = dealt(&mut pacer, 5000, Duration::from_nanos(300));
            assert!(total.abs_diff(u64::from(rate) * 10) <= 1, "{rate}: {total}");
        }
    }

    #[test]
    fn a_slow_processor_keeps_its_heartbeat() {
        let mut pacer = Pacer::new(1_000_000, 2000);
        dealt(&mut pacer, 50, Duration::from_micros(100));
        assert!((10..=14).contains(&pacer.deal()));
    }

    #[test]
    fn a_long_wait_for_one_page_is_forgotten_soon() {
        let mut pacer = Pacer::new(10_000, 2000);
        dealt(&mut pacer, 50, Duration::from_micros(1));
        pacer.learn(1, Duration::from_secs(10));
        dealt(&mut pacer, 10, Duration::from_micros(1));
        assert_eq!(pacer.deal(), 20);
    }

    #[test]
    fn credit_moves_with_the_guest() {
        let mut here = Pacer::new(333, 2000);
        dealt(&mut here, 7, Duration::ZERO);
        let mut there = Pacer::new(333, 2000);
        there.restore_credit(here.credit_micropages());
        for _ in 0..100 {
            assert_eq!(here.deal(), there.deal());
        }
    }
}
