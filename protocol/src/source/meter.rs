//! Measures the goodput and the round trip at the source.

use std::collections::VecDeque;
use std::time::Duration;

use super::window::Settled;
use crate::time::Instant;

/// Shortest span of a goodput sample. Shorter ones measure bursts of acknowledgements.
const SAMPLE_SPAN_MIN: Duration = Duration::from_millis(100);

/// Shortest span of a sample for [`Meter::peak_wire_bytes_per_second`]: a few groups of
/// acknowledgements, and less than a path of 20 ms takes to double its rate.
const PEAK_SPAN_MIN: Duration = Duration::from_millis(25);

/// Weight of a new goodput sample. KubeVirt's study of live migrations settled on the same.
const GOODPUT_WEIGHT: f64 = 0.4;

/// Round trips whose median is used. After an outage a mean would be too long for half a minute,
/// and the pause predicted from it would switch the guest too early.
const ROUND_TRIP_COUNT: usize = 5;

/// Round trips needed before the shortest is taken for the path's own.
const SHORTEST_COUNT_MIN: usize = 3;

/// The round trip assumed before the first sample.
const ROUND_TRIP_UNKNOWN: Duration = Duration::from_millis(50);

/// Bytes acknowledged since a moment.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: Instant,
    bytes: u64,
}

impl Span {
    const fn beginning(now: Instant) -> Self {
        Self {
            start: now,
            bytes: 0,
        }
    }

    #[allow(
        clippy::cast_precision_loss,
        reason = "an estimate: 53 bits are plenty"
    )]
    fn bytes_per_second(&self, now: Instant) -> f64 {
        self.bytes as f64 / now.since(self.start).as_secs_f64().max(1e-4)
    }
}

#[derive(Debug)]
pub(super) struct Meter {
    span: Span,
    goodput: Option<f64>,
    /// The rate of the running span, used until the first one is full.
    provisional: f64,
    peak_span: Span,
    /// The last two short samples, in bytes of frames per second, the newest first.
    peaks: [f64; 2],
    /// The last round trips, the oldest first. Their median is kept beside them because it is
    /// needed with every chunk.
    round_trips: VecDeque<Duration>,
    round_trip: Option<Duration>,
}

impl Meter {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            span: Span::beginning(now),
            goodput: None,
            provisional: 0.0,
            peak_span: Span::beginning(now),
            peaks: [0.0; 2],
            round_trips: VecDeque::new(),
            round_trip: None,
        }
    }

    /// Counts acknowledged bytes.
    pub(super) fn acknowledged(&mut self, settled: Settled, now: Instant) {
        self.peak_span.bytes += settled.wire_bytes;
        if now.since(self.peak_span.start) >= PEAK_SPAN_MIN {
            self.peaks = [self.peak_span.bytes_per_second(now), self.peaks[0]];
            self.peak_span = Span::beginning(now);
        }
        self.span.bytes += settled.raw_bytes;
        let sample = self.span.bytes_per_second(now);
        self.provisional = sample;
        if now.since(self.span.start) < SAMPLE_SPAN_MIN {
            return;
        }
        self.goodput = Some(
            self.goodput
                .map_or(sample, |old| old + GOODPUT_WEIGHT * (sample - old)),
        );
        self.span = Span::beginning(now);
    }

    /// Restarts the measurement: there was nothing to send, or nothing could be sent.
    pub(super) const fn interrupt(&mut self, now: Instant) {
        self.span = Span::beginning(now);
        self.peak_span = Span::beginning(now);
    }

    /// Takes the answer to a ping. Its number is the time it was sent, in nanoseconds.
    pub(super) fn round_trip_sample(&mut self, nonce: u64, now: Instant) {
        let sample = now.since(Instant::from_nanos(nonce));
        if self.round_trips.len() == ROUND_TRIP_COUNT {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(sample);
        let mut sorted: Vec<Duration> = self.round_trips.iter().copied().collect();
        sorted.sort_unstable();
        // Of two, this is the shorter one.
        self.round_trip = Some(sorted[(sorted.len() - 1) / 2]);
    }

    /// Raw bytes per second; before the first full span, the rate of the running one.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a non-negative estimate far below 2^64"
    )]
    pub(super) fn bytes_per_second(&self) -> u64 {
        self.goodput.unwrap_or(self.provisional) as u64
    }

    /// The highest rate of the last two short spans, in bytes of frames per second. A smoothed rate
    /// lags several round trips behind a starting connection, which doubles in each; a window made
    /// from it would slow the connection down.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a non-negative estimate far below 2^64"
    )]
    pub(super) const fn peak_wire_bytes_per_second(&self) -> u64 {
        let [newest, before] = self.peaks;
        newest.max(before) as u64
    }

    /// The median of the last few round trips.
    pub(super) const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The shortest of the last few round trips, once there are enough that not all of them were
    /// delayed.
    pub(super) fn round_trip_at_least(&self) -> Option<Duration> {
        let is_known = self.round_trips.len() >= SHORTEST_COUNT_MIN;
        self.round_trips.iter().min().filter(|_| is_known).copied()
    }

    pub(super) fn round_trip_or_guess(&self) -> Duration {
        self.round_trip.unwrap_or(ROUND_TRIP_UNKNOWN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledgements every 5 ms, with round trips of 40 ms and of 200 ms, at a rate that doubles
    /// in each round trip.
    #[test]
    fn the_peak_keeps_up_with_a_connection_that_starts() {
        for round_trip_ms in [40_u32, 200] {
            let mut meter = Meter::new(Instant::ZERO);
            for step in 1..=2 * round_trip_ms {
                let now = Instant::ZERO + Duration::from_millis(5) * step;
                let rate = 1e6 * 2_f64.powf(f64::from(step * 5) / f64::from(round_trip_ms));
                #[allow(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "a positive number of bytes below 2^53"
                )]
                meter.acknowledged(frames((rate * 0.005) as u64), now);
                #[allow(clippy::cast_precision_loss, reason = "far below 2^53 bytes")]
                let share = meter.peak_wire_bytes_per_second() as f64 / rate;
                // Four round trips are more than the first sample needs.
                if step * 5 > 4 * round_trip_ms {
                    assert!((0.4..=1.0).contains(&share), "{round_trip_ms} ms: {share}");
                }
            }
        }
    }

    #[test]
    fn the_peak_outlives_one_slow_span_and_not_two() {
        let mut meter = Meter::new(Instant::ZERO);
        let seen = [1_000_000, 100_000, 100_000].map(|bytes| {
            let now = meter.peak_span.start + PEAK_SPAN_MIN;
            meter.acknowledged(frames(bytes), now);
            meter.peak_wire_bytes_per_second()
        });
        assert_eq!(seen, [40_000_000, 40_000_000, 4_000_000]);
    }

    #[test]
    fn round_trips_through_an_outage_do_not_count() {
        let mut meter = Meter::new(Instant::ZERO);
        assert_eq!(meter.round_trip(), None);
        let mut now = Instant::ZERO + Duration::from_secs(60);
        let mut sample = |millis: u64| {
            now = now + Duration::from_secs(1);
            let sent = now.as_nanos() - millis * 1_000_000;
            meter.round_trip_sample(sent, now);
            meter.round_trip().map(|median| median.as_millis())
        };
        assert_eq!(sample(40), Some(40));
        assert_eq!(sample(5000), Some(40));
        assert_eq!(sample(41), Some(41));
        assert_eq!(sample(3000), Some(41));
        // The path is longer from now on.
        assert_eq!([120, 120, 120].map(&mut sample), [Some(120); 3]);
    }

    const fn frames(wire_bytes: u64) -> Settled {
        Settled {
            raw_bytes: 4 * wire_bytes,
            wire_bytes,
        }
    }
}
