//! The watchdog of one connection: notices that a peer no longer answers, long before QUIC gives up.
//!
//! Pure. During an outage the interval between QUIC's own probes doubles each time. A path that is
//! back after ten seconds is then probed only seconds later. The dialling side does not wait for
//! that. Once something sent has stayed unanswered for longer than on any healthy path, it dials a
//! second link beside the first and keeps probing the first.

use std::time::Duration;

use towpath_protocol::time::Instant;

/// Minimum time without an answer that counts as a stall: a busy host may be held up for this long.
const STALL_MIN: Duration = Duration::from_millis(300);

/// Longest time by which the peer may delay an acknowledgement (`max_ack_delay` of RFC 9000).
const ACK_DELAY_MAX: Duration = Duration::from_millis(25);

/// If a look comes this much later than the one before, *we* were held up, not the peer.
const OVERSLEPT: Duration = Duration::from_millis(150);

/// How long a silent peer still counts as present. Afterwards its link is reported as down, and
/// kept for the streams on it.
const LOST_AFTER: Duration = Duration::from_secs(3);

/// Whether a peer answers on its link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Hearing {
    /// It answers.
    #[default]
    Heard,
    /// It has stopped answering, less than three seconds ago.
    Stalled,
    /// It has not answered for three seconds or more.
    Lost,
}

impl Hearing {
    /// The hearing of a peer that has been silent for `silence`; `None` if it answers.
    pub(crate) fn after(silence: Option<Duration>) -> Self {
        match silence {
            None => Self::Heard,
            Some(silence) if silence < LOST_AFTER => Self::Stalled,
            Some(_) => Self::Lost,
        }
    }
}

/// The counters of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Counted {
    /// Our packets that the peer has acknowledged. Other packets from the peer do not count. If
    /// only our direction is lost, the peer goes on sending probes and acknowledgements it has sent
    /// before.
    pub arrived: u64,
    /// Ack-eliciting frames sent.
    pub asked: u64,
    /// The smoothed round trip.
    pub rtt: Duration,
}

/// Watches one connection.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    arrived: u64,
    asked: u64,
    /// When the first unanswered ack-eliciting frame was noticed.
    unanswered_since: Option<Instant>,
    looked: Instant,
}

impl Watch {
    /// Evaluates the counters; returns whether the peer has stopped answering.
    pub(crate) fn look(&mut self, seen: Counted, now: Instant) -> bool {
        let slept = now.since(self.looked);
        self.looked = now;
        if seen.arrived != self.arrived {
            self.arrived = seen.arrived;
            self.asked = seen.asked;
            self.unanswered_since = None;
            return false;
        }
        if self.unanswered_since.is_none() && seen.asked > self.asked {
            self.unanswered_since = Some(now);
        }
        if let Some(since) = &mut self.unanswered_since
            && slept > OVERSLEPT
        {
            *since = *since + slept;
        }
        self.unanswered_since
            .is_some_and(|since| now.since(since) > stall_after(seen.rtt))
    }
}

/// Three probe timeouts. Each is the smoothed round trip, as much again for its variation, and the
/// peer's acknowledgement delay.
fn stall_after(rtt: Duration) -> Duration {
    (3 * (2 * rtt + ACK_DELAY_MAX)).max(STALL_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const RTT: Duration = Duration::from_millis(40);
    const TICK: u64 = 50;
    const TICK_STEP: usize = 50;

    fn seen(arrived: u64, asked: u64) -> Counted {
        Counted {
            arrived,
            asked,
            rtt: RTT,
        }
    }

    fn at(millis: u64) -> Instant {
        Instant::from_nanos(millis * 1_000_000)
    }

    /// Looks every tick while nothing is acknowledged; returns the time at which the stall showed.
    fn stalled_at(watch: &mut Watch, from: u64, until: u64, asked: u64) -> Option<u64> {
        (from..until)
            .step_by(TICK_STEP)
            .find(|now| watch.look(seen(1, asked), at(*now)))
    }

    #[test]
    fn an_unanswered_question_shows_after_three_probe_timeouts() {
        let mut watch = Watch::default();
        assert!(!watch.look(seen(1, 1), at(0)));
        let stalled = stalled_at(&mut watch, 50, 5000, 2).expect("it shows");
        assert!((315..=450).contains(&stalled), "{stalled} ms");
        assert!(
            !watch.look(seen(2, 3), at(stalled + TICK)),
            "an answer ends it"
        );
    }

    #[test]
    fn silence_is_no_stall_while_nothing_was_asked() {
        let mut watch = Watch::default();
        assert!(!watch.look(seen(1, 1), at(0)));
        assert_eq!(stalled_at(&mut watch, 50, 60_000, 1), None);
    }

    #[test]
    fn our_own_sleep_is_not_the_peers_silence() {
        let mut watch = Watch::default();
        assert!(!watch.look(seen(1, 1), at(0)));
        assert!(!watch.look(seen(1, 2), at(50)));
        assert!(!watch.look(seen(1, 2), at(3000)));
        assert!(!watch.look(seen(1, 2), at(3050)));
    }

    #[test]
    fn a_long_path_gets_longer() {
        let mut watch = Watch::default();
        let seen = |asked| Counted {
            arrived: 1,
            asked,
            rtt: Duration::from_millis(600),
        };
        assert!(!watch.look(seen(1), at(0)));
        assert!((1..70).all(|tick| !watch.look(seen(2), at(tick * TICK))));
        assert!((70..80).any(|tick| watch.look(seen(2), at(tick * TICK))));
    }
}
