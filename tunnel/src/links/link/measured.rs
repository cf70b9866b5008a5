//! What a link measures each second, and its recent trouble.

use std::time::{Duration, Instant};

use quinn::ConnectionStats;
use towpath_protocol::class::{Class, Leg, PerLeg};

use super::Link;
use crate::operators::health;
use crate::quic::congestion::DelayController;

/// The last measurements of a link.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measured {
    /// Bytes of programs sent per second.
    pub sent_per_second: u64,
    /// Bytes of programs received per second.
    pub received_per_second: u64,
    /// Bytes of programs per second sent and received, by class.
    pub classes: [(u64, u64); Class::ALL.len()],
    /// Mean time that sent data waited here in the last second, by class.
    pub waits: [Duration; Class::ALL.len()],
    /// Packets lost per million sent, over the last second.
    pub lost_per_million: u64,
    /// Packets lost per million sent, by leg.
    pub legs_lost_per_million: PerLeg<u64>,
}

/// The state of one leg, as its classes see it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LegStanding {
    pub leg: Leg,
    /// Smoothed round trip time.
    pub rtt: Duration,
    /// Round trip time without a queue.
    pub base_rtt: Duration,
    /// Queueing delay of the last round trip.
    pub queue: Duration,
    pub lost_per_million: u64,
}

/// Recent trouble of a link; zero where there was none.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Trouble {
    pub lost_per_million: u64,
    pub queue: Duration,
    lost_at: Option<Instant>,
    queued_at: Option<Instant>,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Totals {
    at: Instant,
    /// Bytes of programs sent and received, by class.
    bytes: [(u64, u64); Class::ALL.len()],
    /// Number of pieces that waited here and their total wait, by class.
    waits: [(u64, Duration); Class::ALL.len()],
    /// Packets lost and sent, by leg.
    packets: PerLeg<(u64, u64)>,
}

impl Link {
    /// The last measurements.
    pub(crate) fn measured(&self) -> Measured {
        *self.measured.lock()
    }

    /// Counts the packets sent and lost since the last call.
    pub(super) fn count_packets(
        &self,
        counted: &mut PerLeg<(u64, u64)>,
        stats: &PerLeg<ConnectionStats>,
    ) {
        for leg in Leg::ALL {
            let path = &stats[leg].path;
            let now = (path.sent_packets, path.lost_packets);
            let (sent, lost) = std::mem::replace(&mut counted[leg], now);
            let sent = now.0.saturating_sub(sent);
            self.counters
                .add_packets(leg, sent, now.1.saturating_sub(lost));
        }
    }

    /// The state of both legs.
    pub(crate) fn legs(&self) -> PerLeg<LegStanding> {
        let lost = self.measured().legs_lost_per_million;
        PerLeg::of(|leg| {
            let connection = self.connection(leg);
            let estimate = DelayController::of(connection).map(|delay| delay.estimate());
            let estimate = estimate.unwrap_or_default();
            LegStanding {
                leg,
                rtt: connection.rtt(),
                base_rtt: estimate.told_base_rtt,
                queue: estimate.told_queue,
                lost_per_million: lost[leg],
            }
        })
    }

    /// The trouble within [`health::SHOWN`].
    pub(crate) fn trouble(&self) -> Trouble {
        let mut trouble = *self.trouble.lock();
        let is_over = |at: Option<Instant>| at.is_none_or(|at| at.elapsed() > health::SHOWN);
        if is_over(trouble.lost_at) {
            trouble.lost_per_million = 0;
        }
        if is_over(trouble.queued_at) {
            trouble.queue = Duration::ZERO;
        }
        trouble
    }

    fn note_trouble(&self, lost_per_million: u64, packets: u64) {
        let queue = self.estimate().queue_delay;
        let mut trouble = self.trouble.lock();
        if packets >= health::PACKETS_MIN && lost_per_million >= health::LOSS_PER_MILLION {
            trouble.lost_per_million = lost_per_million;
            trouble.lost_at = Some(Instant::now());
        }
        if health::is_queued(queue, packets) {
            trouble.queue = queue;
            trouble.queued_at = Some(Instant::now());
        }
    }

    /// Computes the rates since the last call from the counters of both connections.
    pub(super) fn measure(&self, before: &mut Option<Totals>, stats: &PerLeg<ConnectionStats>) {
        let counters = &self.counters;
        let now = Totals {
            at: Instant::now(),
            bytes: Class::ALL.map(|class| (counters.sent(class), counters.received(class))),
            waits: Class::ALL.map(|class| counters.waits(class)),
            packets: stats.each_ref().map(|of_leg| {
                let path = &of_leg.path;
                (path.lost_packets, path.sent_packets)
            }),
        };
        let before = before.replace(now);
        let Some(before) = before else { return };
        let millis = now.at.duration_since(before.at).as_millis().max(1);
        let per_second =
            |bytes: u64| u64::try_from(u128::from(bytes) * 1000 / millis).unwrap_or(u64::MAX);
        let mut measured = Measured::default();
        for (class, rates) in measured.classes.iter_mut().enumerate() {
            let ((sent, received), (sent_before, received_before)) =
                (now.bytes[class], before.bytes[class]);
            *rates = (
                per_second(sent.saturating_sub(sent_before)),
                per_second(received.saturating_sub(received_before)),
            );
            measured.sent_per_second += rates.0;
            measured.received_per_second += rates.1;
        }
        measured.waits = std::array::from_fn(|class| {
            let ((count, time), (count_before, time_before)) =
                (now.waits[class], before.waits[class]);
            let count = count.saturating_sub(count_before).max(1);
            let nanos = time.saturating_sub(time_before).as_nanos() / u128::from(count);
            Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
        });
        let legs = PerLeg::of(|leg| {
            let ((lost, sent), (lost_before, sent_before)) =
                (now.packets[leg], before.packets[leg]);
            (
                lost.saturating_sub(lost_before),
                sent.saturating_sub(sent_before),
            )
        });
        measured.legs_lost_per_million = legs.map(|(lost, sent)| per_million(lost, sent));
        let packets_sent = legs.urgent.1 + legs.bulk.1;
        measured.lost_per_million = per_million(legs.urgent.0 + legs.bulk.0, packets_sent);
        self.note_trouble(measured.lost_per_million, packets_sent);
        *self.measured.lock() = measured;
    }
}

/// Packets lost per million sent. Losses are noticed later than the packets are sent, perhaps while
/// little is sent; so the result is limited to a million.
pub(crate) fn per_million(lost: u64, sent: u64) -> u64 {
    lost.saturating_mul(1_000_000) / sent.max(lost).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_lost_than_all() {
        assert_eq!(per_million(0, 0), 0);
        assert_eq!(per_million(1, 100), 10_000);
        assert_eq!(per_million(300, 2), 1_000_000);
        assert_eq!(per_million(3, 0), 1_000_000);
    }
}
