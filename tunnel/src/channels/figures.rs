//! Counters and the condition of a channel.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use towpath_protocol::amounts::per_second;
use towpath_protocol::fault::Fault;

use crate::streams::table::Meter;

/// Counters and the condition of a channel.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub meter: Arc<Meter>,
    pub connections: AtomicU64,
    pub connections_total: AtomicU64,
    pub errors: AtomicU64,
    /// How long the latest connection waited for the peer's service, in microseconds.
    pub open_us: AtomicU64,
    /// Bytes per second over the last measuring interval.
    pub sent_per_second: AtomicU64,
    pub received_per_second: AtomicU64,
    pub last_error: Mutex<Option<String>>,
    /// Why the channel does not work, if so.
    failing: Mutex<Option<Failing>>,
}

/// Why a channel does not work.
#[derive(Debug)]
struct Failing {
    why: String,
    /// Whether the service refused datagrams. Then a successful opening proves nothing, because a
    /// flow to a dead service opens too.
    is_refused: bool,
}

impl Figures {
    pub(crate) fn set_error(&self, fault: &Fault) {
        *self.last_error.lock() = Some(fault.to_string());
    }

    /// Whether the last error was this one.
    pub(crate) fn is_last_error(&self, fault: &Fault) -> bool {
        self.last_error.lock().as_deref() == Some(&*fault.to_string())
    }

    /// Notes the result of an opening over a link. After a failure the channel counts as not
    /// working until another opening succeeds.
    pub(crate) fn note_opening(&self, failed: Option<&Fault>) {
        let mut failing = self.failing_now();
        match failed {
            Some(fault) => {
                *failing = Some(Failing {
                    why: fault.to_string(),
                    is_refused: false,
                });
            }
            None if failing.as_ref().is_some_and(|one| one.is_refused) => {}
            None => *failing = None,
        }
    }

    /// Notes that the service refused a flow's datagrams: the channel counts as not working until
    /// the service accepts some.
    pub(crate) fn note_refusal(&self, fault: &Fault) {
        *self.failing_now() = Some(Failing {
            why: fault.to_string(),
            is_refused: true,
        });
    }

    /// Notes that the service has accepted a flow's datagrams.
    pub(crate) fn note_served(&self) {
        *self.failing_now() = None;
    }

    /// Why the channel does not work, if so.
    pub(crate) fn failing(&self) -> Option<String> {
        self.failing_now().as_ref().map(|one| one.why.clone())
    }

    fn failing_now(&self) -> MutexGuard<'_, Option<Failing>> {
        self.failing.lock()
    }

    /// Computes the rates since the previous counts, taken `elapsed` ago; returns the present
    /// counts.
    pub(crate) fn measure(&self, before: Option<&[u64; 2]>, elapsed: Duration) -> [u64; 2] {
        let counters = [&self.meter.sent, &self.meter.received];
        let now = counters.map(|counter| counter.load(Ordering::Relaxed));
        let before = before.copied().unwrap_or(now);
        let [sent, received] = [0, 1].map(|way| {
            let bytes = now[way].saturating_sub(before[way]);
            per_second(bytes, elapsed)
        });
        self.sent_per_second.store(sent, Ordering::Relaxed);
        self.received_per_second.store(received, Ordering::Relaxed);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_by_the_second_however_far_apart_the_looks_are() {
        let figures = Figures::default();
        let mut before = figures.measure(None, Duration::from_secs(1));
        for millis in [1000, 250, 4000] {
            figures.meter.sent.fetch_add(5 * millis, Ordering::Relaxed);
            figures.meter.received.fetch_add(millis, Ordering::Relaxed);
            before = figures.measure(Some(&before), Duration::from_millis(millis));
            let rates = [&figures.sent_per_second, &figures.received_per_second];
            let rates = rates.map(|rate| rate.load(Ordering::Relaxed));
            assert_eq!(rates, [5000, 1000], "{millis} ms");
        }
    }
}
