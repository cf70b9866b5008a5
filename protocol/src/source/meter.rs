//! Goodput and round trip as the source measures them.

use std::time::Duration;

use crate::time::Instant;

/// Shortest span a goodput sample is taken over: shorter ones measure bursts of acknowledgements.
const SAMPLE_SPAN_MIN: Duration = Duration::from_millis(100);

/// Weight of a new goodput sample; KubeVirt's study of live migrations settled on the same.
const GOODPUT_WEIGHT: f64 = 0.4;

/// Weight of a new round-trip sample, as TCP's smoothed RTT (RFC 6298).
const ROUND_TRIP_WEIGHT: f64 = 0.125;

/// The round trip assumed before the first sample.
const ROUND_TRIP_UNKNOWN: Duration = Duration::from_millis(50);

#[derive(Debug)]
pub(super) struct Meter {
    span_start: Instant,
    span_bytes: u64,
    goodput: Option<f64>,
    /// What the running span shows, until a first one is full.
    provisional: f64,
    round_trip: Option<Duration>,
}

impl Meter {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            span_start: now,
            span_bytes: 0,
            goodput: None,
            provisional: 0.0,
            round_trip: None,
        }
    }

    /// Bytes were acknowledged.
    #[allow(
        clippy::cast_precision_loss,
        reason = "an estimate: 53 bits are plenty"
    )]
    pub(super) fn acknowledged(&mut self, raw_bytes: u64, now: Instant) {
        self.span_bytes += raw_bytes;
        let span = now.since(self.span_start);
        let sample = self.span_bytes as f64 / span.as_secs_f64().max(1e-4);
        self.provisional = sample;
        if span < SAMPLE_SPAN_MIN {
            return;
        }
        self.goodput = Some(
            self.goodput
                .map_or(sample, |old| old + GOODPUT_WEIGHT * (sample - old)),
        );
        self.span_start = now;
        self.span_bytes = 0;
    }

    /// Time from here on counts again: there was nothing to send, or nothing could be sent.
    pub(super) const fn interrupt(&mut self, now: Instant) {
        self.span_start = now;
        self.span_bytes = 0;
    }

    /// A ping came back.
    pub(super) fn round_trip_sample(&mut self, nonce: u64, now: Instant) {
        let sample = now.since(Instant::from_nanos(nonce));
        self.round_trip = Some(self.round_trip.map_or(sample, |old| {
            old.mul_f64(1.0 - ROUND_TRIP_WEIGHT) + sample.mul_f64(ROUND_TRIP_WEIGHT)
        }));
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

    pub(super) const fn round_trip(&self) -> Option<Duration> {
        self.round_trip
    }

    pub(super) fn round_trip_or_guess(&self) -> Duration {
        self.round_trip.unwrap_or(ROUND_TRIP_UNKNOWN)
    }
}
