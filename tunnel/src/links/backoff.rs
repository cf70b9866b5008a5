//! When to dial next: pauses between attempts to reach a peer.

use std::time::Duration;

/// Pause after the first failure. A peer that restarts is back within a few such pauses.
const FIRST: Duration = Duration::from_millis(50);

/// Longest pause after a failed attempt, and between overlapping attempts to a peer that was never
/// reached.
const LONGEST: Duration = Duration::from_secs(1);

/// Time between attempts while the peer does not answer: the most that dialling adds to an outage,
/// however long it was. A peer that has gone for good is dialled for ever: with about 70 packets of
/// 1.2 KB a second during [`PATIENCE`], and ten a second afterwards.
pub(crate) const BETWEEN: Duration = Duration::from_millis(250);

/// How long a peer may be silent before attempts become quiet. A quiet attempt dials urgent first
/// and sends its first packet once; the next attempt takes the place of a retransmission. For a
/// peer that was never reached, attempts also become as rare as [`LONGEST`]: nobody waits for its
/// return, and its address may be wrong.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Pauses between attempts to reach one peer. Each has a random part, so that the peers of a region
/// do not all dial in step after it restarts.
#[derive(Debug)]
pub(crate) struct Backoff {
    failures: u32,
    was_reached: bool,
    random: u64,
}

impl Backoff {
    /// Pauses that depend on `seed` only.
    pub(crate) const fn new(seed: u64) -> Self {
        Self {
            failures: 0,
            was_reached: false,
            random: seed | 1,
        }
    }

    /// Records that the peer has accepted a link, so its address is right.
    pub(crate) const fn note_reached(&mut self) {
        self.was_reached = true;
    }

    /// Treats the next failure as the first again.
    pub(crate) const fn reset(&mut self) {
        self.failures = 0;
    }

    /// The pause after an attempt that was refused or failed at once.
    pub(crate) fn after_failure(&mut self) -> Duration {
        let doubled = FIRST * 2_u32.pow(self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        self.jitter(doubled.min(LONGEST))
    }

    /// The pause before another attempt beside one that is still unanswered.
    pub(crate) fn beside(&mut self, down_for: Duration) -> Duration {
        let is_soon = self.was_reached || down_for < PATIENCE;
        self.jitter(if is_soon { BETWEEN } else { LONGEST })
    }

    /// Three quarters of a pause, plus up to a quarter at random.
    fn jitter(&mut self, pause: Duration) -> Duration {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = u32::try_from(self.random % 256).expect("below 256");
        pause * 3 / 4 + pause / 4 * share / 256
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_begin_anew_once_up() {
        let mut backoff = Backoff::new(7);
        let pauses: Vec<_> = (0..40).map(|_| backoff.after_failure()).collect();
        assert!(pauses[0] >= FIRST * 3 / 4 && pauses[0] <= FIRST);
        assert!(pauses.iter().all(|pause| *pause <= LONGEST));
        assert!(pauses[10..].iter().all(|pause| *pause >= LONGEST * 3 / 4));
        assert!(
            pauses[10..].iter().any(|pause| *pause != pauses[10]),
            "no jitter"
        );
        backoff.reset();
        assert!(backoff.after_failure() <= FIRST);
    }

    #[test]
    fn a_peer_that_was_reached_once_is_dialled_as_often_after_hours_as_at_once() {
        let outages = [0, 59, 60, 600, 7 * 24 * 3600].map(Duration::from_secs);
        let mut backoff = Backoff::new(7);
        assert!(backoff.beside(Duration::from_secs(59)) <= BETWEEN);
        assert!(backoff.beside(Duration::from_secs(600)) > BETWEEN, "never");
        backoff.note_reached();
        // A change of the network tells nothing about the peer.
        backoff.reset();
        assert!(
            outages
                .iter()
                .all(|outage| backoff.beside(*outage) <= BETWEEN)
        );
    }

    #[test]
    fn the_same_seed_gives_the_same_pauses() {
        let pauses = |seed| {
            let mut backoff = Backoff::new(seed);
            (0..20).map(|_| backoff.after_failure()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(3), pauses(3));
        assert_ne!(pauses(3), pauses(5));
    }

    #[test]
    fn unanswered_attempts_are_repeated_quickly_and_later_less_often() {
        let mut backoff = Backoff::new(7);
        assert!(backoff.beside(Duration::from_secs(10)) <= BETWEEN);
        assert!(backoff.beside(Duration::from_secs(600)) >= LONGEST * 3 / 4);
    }
}
