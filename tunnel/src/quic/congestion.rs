//! The estimator as a congestion controller for QUIC.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant as StdInstant};

use quinn_proto::RttEstimator;
use quinn_proto::congestion::{Controller, ControllerFactory, ControllerMetrics};
use tokio::sync::Notify;
use towpath_protocol::amounts::nanos;
use towpath_protocol::class::Leg;
use towpath_protocol::time::Instant;

use crate::path::estimate::{Ack, Estimate, Estimator};
use crate::path::loss_gaps::Gaps;

/// Initial window of a bulk connection in packets, as RFC 9002 allows.
const BULK_PACKETS: u64 = 10;

/// Initial window of an urgent connection in packets: 64 KiB for a stopped processor leave in one
/// round trip. Urgent bytes are few, so a thin link rarely sees such a burst.
const URGENT_PACKETS: u64 = 64;

/// What an earlier connection learnt about the path to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PathMemory {
    pub bytes_per_second: u64,
    /// Round trip without a queue.
    pub rtt: Duration,
}

/// The congestion controller; keeps the queue at the bottleneck short, see [`crate::path::estimate`].
#[derive(Debug, Clone)]
pub(crate) struct DelayController {
    estimator: Estimator,
    gaps: Gaps,
    packet_bytes: u64,
    began: StdInstant,
    /// Bytes sent and neither acknowledged nor lost; perhaps a little more, because it counts
    /// packets that are never acknowledged.
    in_flight_bytes: u64,
    /// Number of packets acknowledged.
    arrived: u64,
    /// How many of the questions counted by [`DelayController::ask`] were sent.
    asked: u64,
    hints: Arc<Hints>,
}

/// Values set from outside; shared, because QUIC hands out only copies of the controller.
#[derive(Debug, Default)]
struct Hints {
    floor_bytes: AtomicU64,
    is_local: AtomicBool,
    is_cruising: AtomicBool,
    /// See [`DelayController::part`].
    is_parting: AtomicBool,
    /// See [`DelayController::ask`].
    questions: AtomicU64,
    is_unanswered: AtomicBool,
    answered: Notify,
    /// See [`DelayController::resume`]; zero once taken over.
    known_bytes_per_second: AtomicU64,
    known_rtt_nanos: AtomicU64,
    /// See [`DelayController::mark`].
    marked_nanos: [[AtomicU64; 2]; 2],
}

impl DelayController {
    /// A factory of controllers, one per connection; the accepting side does not know the leg yet.
    pub(crate) const fn factory(leg: Option<Leg>) -> DelayFactory {
        DelayFactory {
            packets: match leg {
                Some(Leg::Bulk) => BULK_PACKETS,
                Some(Leg::Urgent) | None => URGENT_PACKETS,
            },
        }
    }

    /// A copy of a connection's controller.
    pub(crate) fn of(connection: &quinn::Connection) -> Option<Self> {
        let controller = connection.congestion_state().into_any();
        controller.downcast::<Self>().ok().map(|delay| *delay)
    }

    /// The current estimate of the path.
    pub(crate) fn estimate(&self) -> Estimate {
        self.estimator.estimate()
    }

    /// Sets a lower limit of the window: what the link's other connection has learnt about the
    /// path.
    pub(crate) fn set_floor(&self, bytes: u64) {
        self.hints.floor_bytes.store(bytes, Ordering::Relaxed);
    }

    /// Passes on what an earlier connection to the same peer has learnt about the path.
    pub(crate) fn resume(&self, known: PathMemory) {
        let nanos = nanos(known.rtt);
        self.hints.known_rtt_nanos.store(nanos, Ordering::Relaxed);
        let rate = known.bytes_per_second;
        self.hints
            .known_bytes_per_second
            .store(rate, Ordering::Release);
    }

    /// States that the other end is an address of this host.
    pub(crate) fn set_local(&self) {
        self.hints.is_local.store(true, Ordering::Relaxed);
    }

    /// Sets whether bulk keeps below the rate.
    pub(crate) fn set_cruising(&self, is_cruising: bool) {
        self.hints.is_cruising.store(is_cruising, Ordering::Relaxed);
    }

    /// Lifts the window before the connection is closed. While the window is full and data waits,
    /// QUIC would hold its close frame back, and for ever, since no acknowledgement arrives any
    /// more. Once closing, it sends nothing else.
    pub(crate) fn part(&self) {
        self.hints.is_parting.store(true, Ordering::Relaxed);
    }

    /// Lets one more packet go, however full the window is. All that fills it may be lost, and only
    /// a new packet can tell.
    pub(crate) fn ask(&self) {
        self.hints.questions.fetch_add(1, Ordering::Relaxed);
        self.hints.is_unanswered.store(true, Ordering::Relaxed);
    }

    /// Number of our packets that the peer has acknowledged.
    pub(crate) const fn arrived(&self) -> u64 {
        self.arrived
    }

    /// Waits until a packet is acknowledged after a question.
    pub(crate) async fn answered(&self) {
        self.hints.answered.notified().await;
    }

    /// Marks two periods of the controller's time, to observe the packets sent in them separately.
    pub(crate) fn mark(&self, marks: [(Instant, Instant); 2]) {
        for ((from, until), hints) in marks.into_iter().zip(&self.hints.marked_nanos) {
            for (moment, hint) in [from, until].into_iter().zip(hints) {
                hint.store(moment.as_nanos(), Ordering::Relaxed);
            }
        }
    }

    /// Start of the controller's time.
    pub(crate) const fn began(&self) -> StdInstant {
        self.began
    }

    fn at(&self, clock: StdInstant) -> Instant {
        let elapsed = clock.saturating_duration_since(self.began);
        Instant::ZERO + elapsed
    }
}

/// Makes [`DelayController`] controllers.
#[derive(Debug)]
pub(crate) struct DelayFactory {
    packets: u64,
}

impl ControllerFactory for DelayFactory {
    fn build(self: Arc<Self>, now: StdInstant, current_mtu: u16) -> Box<dyn Controller> {
        let packet_bytes = u64::from(current_mtu);
        let window_bytes = self.packets * packet_bytes;
        // The clock starts a little earlier, because a packet may have been stamped just before
        // this.
        let began = now.checked_sub(Duration::from_secs(1)).unwrap_or(now);
        let mut delay = DelayController {
            estimator: Estimator::new(packet_bytes, window_bytes, Instant::ZERO),
            gaps: Gaps::default(),
            packet_bytes,
            began,
            in_flight_bytes: 0,
            arrived: 0,
            asked: 0,
            hints: Arc::default(),
        };
        delay.estimator = Estimator::new(packet_bytes, window_bytes, delay.at(now));
        Box::new(delay)
    }
}

impl Controller for DelayController {
    fn on_sent(&mut self, _now: StdInstant, bytes: u64, _last_packet_number: u64) {
        self.in_flight_bytes += bytes;
        self.asked = self.hints.questions.load(Ordering::Relaxed);
    }

    fn on_ack(
        &mut self,
        now: StdInstant,
        sent: StdInstant,
        bytes: u64,
        app_limited: bool,
        _rtt: &RttEstimator,
    ) {
        let ack = Ack {
            now: self.at(now),
            sent: self.at(sent),
            bytes,
            is_app_limited: app_limited,
            is_cruising: self.hints.is_cruising.load(Ordering::Relaxed),
        };
        if self.hints.is_local.load(Ordering::Relaxed) {
            self.estimator.set_local();
        }
        let moment = |nanos: &AtomicU64| Instant::from_nanos(nanos.load(Ordering::Relaxed));
        let marks = [0, 1].map(|index| {
            let [from, until] = &self.hints.marked_nanos[index];
            (moment(from), moment(until))
        });
        self.estimator.mark(marks);
        self.estimator.on_ack(ack);
        self.gaps.arrived(bytes);
        self.arrived += 1;
        let is_unanswered = &self.hints.is_unanswered;
        if is_unanswered.load(Ordering::Relaxed) && is_unanswered.swap(false, Ordering::Relaxed) {
            self.hints.answered.notify_one();
        }
        let known = &self.hints.known_bytes_per_second;
        let rate = known.load(Ordering::Acquire);
        if rate > 0 {
            known.store(0, Ordering::Relaxed);
            let rtt = Duration::from_nanos(self.hints.known_rtt_nanos.load(Ordering::Relaxed));
            self.estimator.resume(rate, rtt);
        }
    }

    fn on_end_acks(
        &mut self,
        _now: StdInstant,
        in_flight: u64,
        _app_limited: bool,
        _largest: Option<u64>,
    ) {
        self.in_flight_bytes = in_flight;
    }

    fn on_congestion_event(
        &mut self,
        now: StdInstant,
        sent: StdInstant,
        is_all: bool,
        lost_bytes: u64,
    ) {
        let (now, sent) = (self.at(now), self.at(sent));
        self.in_flight_bytes = self.in_flight_bytes.saturating_sub(lost_bytes);
        self.estimator.on_loss(now, sent, lost_bytes, is_all);
        self.gaps.lost(lost_bytes);
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.packet_bytes = new_mtu.into();
        self.estimator.set_packet_bytes(self.packet_bytes);
    }

    fn window(&self) -> u64 {
        if self.hints.is_parting.load(Ordering::Relaxed) {
            return u64::MAX;
        }
        let floor_bytes = self.hints.floor_bytes.load(Ordering::Relaxed);
        let wanted = self.estimator.window_bytes().max(floor_bytes);
        let window = wanted.min(self.gaps.window_bytes_max(self.packet_bytes));
        if self.asked == self.hints.questions.load(Ordering::Relaxed) {
            return window;
        }
        // QUIC sends a packet only if that leaves some of the window free.
        window.max(self.in_flight_bytes + 2 * self.packet_bytes)
    }

    fn metrics(&self) -> ControllerMetrics {
        let mut metrics = ControllerMetrics::default();
        metrics.congestion_window = self.window();
        metrics.pacing_rate = Some(self.estimate().rate_bytes_per_second * 8);
        metrics
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        self.window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_goes_out_behind_a_full_window_and_takes_no_second_packet_along() {
        let now = StdInstant::now();
        let mut delay = Arc::new(DelayController::factory(Some(Leg::Bulk))).build(now, 1452);
        let window = delay.window();
        delay.on_sent(now, window + 1000, 10);
        let full = window + 1000;
        let asking = delay.clone_box().into_any().downcast::<DelayController>();
        asking.expect("one of ours").ask();
        // QUIC's own condition, for one packet and for two.
        assert!(full + 1452 < delay.window());
        assert!(full + 2 * 1452 >= delay.window());
        delay.on_sent(now, 1452, 11);
        assert_eq!(delay.window(), window);
    }

    #[test]
    fn no_more_is_under_way_than_leaves_the_gaps_that_the_other_side_keeps() {
        let now = StdInstant::now();
        let factory = Arc::new(DelayController::factory(Some(Leg::Bulk)));
        let mut delay = factory
            .build(now, 1452)
            .into_any()
            .downcast::<DelayController>();
        let delay = delay.as_mut().expect("one of ours");
        delay.set_floor(128 << 20);
        assert_eq!(delay.window(), 128 << 20);
        // One packet in fifty.
        delay.gaps.arrived(49_000_000);
        delay.on_congestion_event(now, now, false, 1_000_000);
        assert_eq!(delay.window(), 400 * 1452 * 50);
    }
}
