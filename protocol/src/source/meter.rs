//! Goodput and round trip as the source measures them.

use std::collections::VecDeque;
use std::time::Duration;

use super::window::Settled;
use crate::time::Instant;

/// Shortest span a goodput sample is taken over: shorter ones measure bursts of acknowledgements.
const SAMPLE_SPAN_MIN: Duration = Duration::from_millis(100);

/// Shortest span of a sample for [`Meter::peak_wire_bytes_per_second`]: a few groups of acknowledgements, and less
/// than a path of 20 ms takes to double what it carries.
const PEAK_SPAN_MIN: Duration = Duration::from_millis(25);

/// Weight of a new goodput sample; KubeVirt's study of live migrations settled on the same.
const GOODPUT_WEIGHT: f64 = 0.4;

/// Round trips whose median counts: a mean would carry one that an outage made long for half a minute, and
/// the guest would be switched early for the pause that it foretells.
const ROUND_TRIP_COUNT: usize = 5;

/// Round trips of which the shortest is taken for the path's own.
const SHORTEST_COUNT_MIN: usize = 3;

/// The round trip assumed before the first sample.
const ROUND_TRIP_UNKNOWN: Duration = Duration::from_millis(50);

/// What was acknowledged since a moment.
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
    /// What the running span shows, until a first one is full.
    provisional: f64,
    peak_span: Span,
    /// The last two short samples, of frames, the newest first.
    peaks: [f64; 2],
    /// The last ones, the oldest first, and their median: it is asked for with every chunk.
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

    /// Bytes were acknowledged.
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

    /// Time from here on counts again: there was nothing to send, or nothing could be sent.
    pub(super) const fn interrupt(&mut self, now: Instant) {
        self.span = Span::beginning(now);
        self.peak_span = Span::beginning(now);
    }

    /// The ping that was sent then came back.
    pub(super) fn round_trip_sample(&mut self, nonce: u64, now: Instant) {
        let sample = now.since(Instant::from_nanos(nonce));
        if self.round_trips.len() == ROUND_TRIP_COUNT {
            self.round_trips.pop_front();
        }
        self.round_trips.push_back(sample);
        let mut sorted: Vec<Duration> = self.round_trips.iter().copied().collect();
        sorted.sort_unstable();
        // Of two, the shorter one.
        self.round_trip = Some(sorted[(sorted.len() - 1) / 2]);
    }

    /// Raw bytes a second; before the first full span, what the running one shows.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a non-negative estimate far below 2^64"
    )]
    pub(super) fn bytes_per_second(&self) -> u64 {
        self.goodput.unwrap_or(self.provisional) as u64
    }

    /// The most bytes of frames a second that the last moments show. A smoothed figure is several round trips
    /// behind a connection that starts and doubles in each; a window made from it would hold that back.
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a non-negative estimate far below 2^64"
    )]
    pub(super) const fn peak_wire_bytes_per_second(&self) -> u64 {
        let [newest, before] = self.peaks;
        newest.max(before) as u64
    }

    /// The median of the last few.
    pub(super) const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    /// The shortest of the last few, once there are enough of them that not all were held up.
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

    /// Acknowledged every 5 ms over 40 ms and over 200 ms, at a rate that doubles each round trip.
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
        // A path that is longer from now on.
        assert_eq!([120, 120, 120].map(&mut sample), [Some(120); 3]);
    }

    const fn frames(wire_bytes: u64) -> Settled {
        Settled {
            raw_bytes: 4 * wire_bytes,
            wire_bytes,
        }
    }
}
