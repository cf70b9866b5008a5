//! Which blocks go in which stage, and when to switch.
//!
//! Pre-copy runs in whole rounds until the rest fits the allowed pause. If it never will, because
//! the guest dirties faster than the link carries or a round did not shrink the rest, the guest is
//! switched to post-copy. Each [`Judgement`] carries the numbers it is based on, so that a move's
//! record can explain it.

use std::fmt;
use std::time::Duration;

/// Rounds after which a guest that did not converge is switched or given up. QEMU users report no
/// gain after a few dozen, and every round costs link time.
pub const ROUND_COUNT_MAX: u32 = 30;

/// A round that leaves at least this share of what the round before left has not converged.
const SHRINK_RATIO_MIN: f64 = 0.85;

/// Dirtying at this share of the goodput cannot converge in useful time.
const DIRTY_RATIO_MAX: f64 = 0.8;

/// Share of the pause budget for carrying the freshest blocks when the rest is left for post-copy.
/// The remainder is a reserve for wrong predictions.
const CARRY_SHARE: f64 = 0.4;

/// If the path alone takes longer than the allowed pause, this share of the fixed pause is spent on
/// carrying blocks as well. Every block left for post-copy costs the guest a round trip, and once
/// the whole rest fits, more rounds gain less than they cost.
const LONG_PATH_SHARE: f64 = 0.25;

/// In mode `pre`, rounds after which the path is believed to be longer than the allowed pause. By
/// then the round trip has been measured with little other traffic.
const LONG_PATH_ROUNDS: u32 = 3;

/// Assumed pause for freezing, saving, loading and two journal writes, without the link. A paused
/// vCPU stops within a millisecond, and state is tens of kilobytes.
const FIXED_PAUSE: Duration = Duration::from_millis(8);

/// Round trips from the last byte of the source to the first instruction at the target: state one
/// way, `Ready` back, `Commit` one way.
const PAUSE_ROUND_TRIPS: f64 = 1.5;

/// How the operator wants the guest to move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Pre-copy rounds while they help, then post-copy if the rest does not fit the pause.
    #[default]
    Auto,
    /// Pre-copy only. A guest that does not converge stays where it is.
    Pre,
    /// Switch at once, and fetch everything afterwards.
    Post,
}

impl Mode {
    /// The mode's name in commands and documents.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Pre => "pre",
            Self::Post => "post",
        }
    }
}

/// The operator's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Policy {
    /// The stages that are allowed.
    pub mode: Mode,
    /// Longest pause that the operator accepts.
    pub pause_max: Duration,
    /// Cap on this move's own rate, in bytes of frames per second; `None` leaves it to the link.
    pub bytes_per_second_max: Option<u64>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            mode: Mode::Auto,
            pause_max: Duration::from_millis(200),
            bytes_per_second_max: None,
        }
    }
}

/// Measurements at the end of a round.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Facts {
    /// Rounds finished, including the first full copy.
    pub rounds_done: u32,
    /// Raw bytes dirtied since the round began, which are left to send.
    pub residual_bytes: u64,
    /// Raw bytes that the round itself carried.
    pub round_bytes: u64,
    /// Raw bytes per second that were carried and acknowledged. With compression this may exceed
    /// the link's rate.
    pub goodput_bytes_per_second: u64,
    /// Raw bytes per second that the guest dirtied in the round.
    pub dirty_bytes_per_second: u64,
    /// Round-trip time of the control lane.
    pub round_trip: Duration,
}

/// Why the guest was switched, or given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The rest fits the allowed pause.
    Converged,
    /// The last round left nearly as much as the one before.
    NotConverging,
    /// The guest dirties nearly as fast as the link carries.
    DirtiesTooFast,
    /// The cap on rounds was reached.
    RoundsExhausted,
    /// The operator asked for post-copy.
    PostCopyAsked,
    /// The path alone takes longer than the allowed pause, and the rest adds little to it.
    LongPath,
}

impl Reason {
    /// All reasons, for documents and metrics.
    pub const ALL: [Self; 6] = [
        Self::Converged,
        Self::NotConverging,
        Self::DirtiesTooFast,
        Self::RoundsExhausted,
        Self::PostCopyAsked,
        Self::LongPath,
    ];

    /// The reason's name in records and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Converged => "converged",
            Self::NotConverging => "not converging",
            Self::DirtiesTooFast => "dirties too fast",
            Self::RoundsExhausted => "rounds exhausted",
            Self::PostCopyAsked => "post-copy asked",
            Self::LongPath => "the path is longer than the pause",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Decision {
    /// Send the rest while the guest runs. With a reason, rounds do not help any more but only
    /// pre-copy is allowed.
    AnotherRound(Option<Reason>),
    /// Freeze, send the whole rest, switch.
    SwitchWhole(Reason),
    /// Freeze, carry at most this many raw bytes of the freshest blocks, and leave the rest for
    /// post-copy.
    SwitchAndFetch {
        /// The reason.
        reason: Reason,
        /// Raw bytes that fit the pause.
        carry_bytes_max: u64,
    },
    /// Leave the guest where it is.
    GiveUp(Reason),
}

/// A decision with the predictions it is based on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// The decision.
    pub decision: Decision,
    /// The predicted pause if the whole rest were sent in it.
    pub pause_if_whole: Duration,
    /// The predicted pause of the decision; for another round, as if switched now.
    pub pause_predicted: Duration,
}

/// The predicted pause for carrying `bytes` raw bytes at the goodput, in raw bytes per second.
#[must_use]
pub fn predicted_pause(
    bytes: u64,
    goodput_bytes_per_second: u64,
    round_trip: Duration,
) -> Duration {
    let carry = seconds_for(bytes, goodput_bytes_per_second);
    FIXED_PAUSE + round_trip.mul_f64(PAUSE_ROUND_TRIPS) + carry
}

/// The time to carry `bytes` at a rate; an hour if the rate is zero.
#[must_use]
#[allow(
    clippy::cast_precision_loss,
    reason = "an estimate: 53 bits are plenty"
)]
pub fn seconds_for(bytes: u64, bytes_per_second: u64) -> Duration {
    const UNKNOWN: Duration = Duration::from_secs(3600);
    if bytes == 0 {
        return Duration::ZERO;
    }
    if bytes_per_second == 0 {
        return UNKNOWN;
    }
    Duration::from_secs_f64((bytes as f64 / bytes_per_second as f64).min(1e9))
}

/// Decides what follows a finished round. `left_before` is what the round before left, if there was
/// one. In mode `post` the guest is switched after the first, and nothing is carried in its pause.
#[must_use]
pub fn judge(policy: &Policy, facts: &Facts, left_before: Option<u64>) -> Judgement {
    let goodput = facts.goodput_bytes_per_second;
    let pause_if_whole = predicted_pause(facts.residual_bytes, goodput, facts.round_trip);
    if policy.mode == Mode::Post {
        let decision = Decision::SwitchAndFetch {
            reason: Reason::PostCopyAsked,
            carry_bytes_max: 0,
        };
        return Judgement {
            decision,
            pause_if_whole,
            pause_predicted: predicted_pause(0, goodput, facts.round_trip),
        };
    }
    let whole = |decision| Judgement {
        decision,
        pause_if_whole,
        pause_predicted: pause_if_whole,
    };
    let is_bound = policy.mode == Mode::Pre;
    let carried_in = seconds_for(facts.residual_bytes, goodput);
    let room = carrying_time(policy, goodput, facts.round_trip);
    if room.is_some_and(|room| carried_in <= room) {
        return whole(Decision::SwitchWhole(
            if pause_if_whole <= policy.pause_max {
                Reason::Converged
            } else {
                Reason::LongPath
            },
        ));
    }
    if is_bound && room.is_none() && facts.rounds_done >= LONG_PATH_ROUNDS {
        return whole(Decision::GiveUp(Reason::LongPath));
    }
    let Some(reason) = hopeless(facts, left_before) else {
        return whole(Decision::AnotherRound(None));
    };
    if is_bound {
        return whole(if facts.rounds_done < ROUND_COUNT_MAX {
            Decision::AnotherRound(Some(reason))
        } else {
            Decision::GiveUp(Reason::RoundsExhausted)
        });
    }
    let carry_bytes_max = carry_budget(policy, goodput, facts.round_trip);
    let carried = carry_bytes_max.min(facts.residual_bytes);
    Judgement {
        decision: Decision::SwitchAndFetch {
            reason,
            carry_bytes_max,
        },
        pause_if_whole,
        pause_predicted: predicted_pause(carried, goodput, facts.round_trip),
    }
}

/// Decides in the middle of a round, in mode `pre`, whether to give up because the path alone takes
/// longer than the allowed pause, which no round changes. The round trip is the shortest one
/// measured.
#[must_use]
pub fn judge_path(policy: &Policy, facts: &Facts) -> Option<Judgement> {
    let goodput = facts.goodput_bytes_per_second;
    if carrying_time(policy, goodput, facts.round_trip).is_some() {
        return None;
    }
    Some(Judgement {
        decision: Decision::GiveUp(Reason::LongPath),
        pause_if_whole: predicted_pause(facts.residual_bytes, goodput, facts.round_trip),
        pause_predicted: predicted_pause(0, goodput, facts.round_trip),
    })
}

/// The part of the pause for carrying blocks. `None` in mode `pre` if the path alone takes longer
/// than the allowed pause: the operator has set a strict limit.
fn carrying_time(
    policy: &Policy,
    goodput_bytes_per_second: u64,
    round_trip: Duration,
) -> Option<Duration> {
    let fixed = predicted_pause(0, goodput_bytes_per_second, round_trip);
    let is_bound = policy.mode == Mode::Pre;
    let beyond = || (!is_bound).then(|| fixed.mul_f64(LONG_PATH_SHARE));
    policy.pause_max.checked_sub(fixed).or_else(beyond)
}

/// Raw bytes of the freshest blocks that fit the pause.
#[must_use]
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "an estimate of non-negative bytes below 2^53"
)]
pub fn carry_budget(policy: &Policy, goodput_bytes_per_second: u64, round_trip: Duration) -> u64 {
    let room = carrying_time(policy, goodput_bytes_per_second, round_trip).unwrap_or_default();
    (room.as_secs_f64() * CARRY_SHARE * goodput_bytes_per_second as f64) as u64
}

#[allow(clippy::cast_precision_loss, reason = "a ratio of estimates")]
fn hopeless(facts: &Facts, left_before: Option<u64>) -> Option<Reason> {
    if facts.rounds_done >= ROUND_COUNT_MAX {
        return Some(Reason::RoundsExhausted);
    }
    let goodput = facts.goodput_bytes_per_second as f64;
    if goodput > 0.0 && facts.dirty_bytes_per_second as f64 >= goodput * DIRTY_RATIO_MAX {
        return Some(Reason::DirtiesTooFast);
    }
    let left = facts.residual_bytes as f64;
    if left_before.is_some_and(|before| left >= before as f64 * SHRINK_RATIO_MIN) {
        return Some(Reason::NotConverging);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> Facts {
        Facts {
            rounds_done: 1,
            residual_bytes: 10 << 20,
            round_bytes: 256 << 20,
            goodput_bytes_per_second: 12 << 20,
            dirty_bytes_per_second: 1 << 20,
            round_trip: Duration::from_millis(40),
        }
    }

    #[test]
    fn pc7_an_idle_guest_converges_and_carries_everything() {
        let idle = Facts {
            residual_bytes: 0,
            dirty_bytes_per_second: 0,
            ..facts()
        };
        let judgement = judge(&Policy::default(), &idle, None);
        assert_eq!(judgement.decision, Decision::SwitchWhole(Reason::Converged));
        assert!(judgement.pause_predicted <= Duration::from_millis(3 * 40 + 20));
    }

    #[test]
    fn a_residual_that_shrinks_gets_another_round() {
        let judgement = judge(&Policy::default(), &facts(), Some(100 << 20));
        assert_eq!(judgement.decision, Decision::AnotherRound(None));
        assert!(judgement.pause_if_whole > Duration::from_millis(200));
    }

    #[test]
    fn pc7_a_guest_dirtying_at_twice_the_link_is_switched_within_the_pause() {
        let busy = Facts {
            dirty_bytes_per_second: 24 << 20,
            residual_bytes: 200 << 20,
            ..facts()
        };
        let judgement = judge(&Policy::default(), &busy, None);
        let Decision::SwitchAndFetch { reason, .. } = judgement.decision else {
            panic!("{judgement:?}");
        };
        assert_eq!(reason, Reason::DirtiesTooFast);
        assert!(judgement.pause_predicted <= Policy::default().pause_max);
    }

    #[test]
    fn a_round_that_does_not_shrink_is_not_repeated() {
        let judgement = judge(&Policy::default(), &facts(), Some(10 << 20));
        assert!(matches!(
            judgement.decision,
            Decision::SwitchAndFetch {
                reason: Reason::NotConverging,
                ..
            }
        ));
    }

    #[test]
    fn pre_copy_alone_gives_up_at_the_cap_and_never_switches_early() {
        let policy = Policy {
            mode: Mode::Pre,
            ..Policy::default()
        };
        let judgement = judge(&policy, &facts(), Some(10 << 20));
        let again = Decision::AnotherRound(Some(Reason::NotConverging));
        assert_eq!(judgement.decision, again, "it is said why in vain");
        let last = Facts {
            rounds_done: ROUND_COUNT_MAX,
            ..facts()
        };
        let judgement = judge(&policy, &last, Some(10 << 20));
        assert_eq!(
            judgement.decision,
            Decision::GiveUp(Reason::RoundsExhausted)
        );
    }

    #[test]
    fn post_copy_alone_switches_at_once_and_carries_nothing() {
        let policy = Policy {
            mode: Mode::Post,
            ..Policy::default()
        };
        // Whether the whole rest fits the pause or never would.
        for residual_bytes in [0, 1 << 40] {
            let facts = Facts {
                residual_bytes,
                ..facts()
            };
            let judgement = judge(&policy, &facts, None);
            let switched = Decision::SwitchAndFetch {
                reason: Reason::PostCopyAsked,
                carry_bytes_max: 0,
            };
            assert_eq!(judgement.decision, switched);
            assert!(judgement.pause_predicted <= policy.pause_max);
        }
    }

    #[test]
    fn a_path_longer_than_the_pause_gets_no_rounds_for_it() {
        let far = Facts {
            round_trip: Duration::from_millis(200),
            residual_bytes: 800 << 10,
            ..facts()
        };
        let decide = |policy: &Policy, facts| judge(policy, &facts, None).decision;
        let policy = Policy::default();
        let switched = Decision::SwitchWhole(Reason::LongPath);
        assert_eq!(decide(&policy, far), switched);
        // A larger rest is worth another round, and so is a pause that can be kept.
        let more = Facts {
            residual_bytes: 2 << 20,
            ..far
        };
        assert_eq!(decide(&policy, more), Decision::AnotherRound(None));
        let pre = Policy {
            mode: Mode::Pre,
            ..policy
        };
        assert_eq!(decide(&pre, far), Decision::AnotherRound(None));
        let again = Facts {
            rounds_done: LONG_PATH_ROUNDS,
            ..far
        };
        let given_up = Decision::GiveUp(Reason::LongPath);
        assert_eq!(decide(&pre, again), given_up, "no round shortens the path");
        let near = Facts {
            round_trip: Duration::from_millis(110),
            ..far
        };
        assert_eq!(decide(&policy, near), Decision::AnotherRound(None));
    }

    #[test]
    fn pc4_how_much_is_carried_in_the_pause_grows_with_the_goodput() {
        let budget = |goodput| carry_budget(&Policy::default(), goodput, Duration::from_millis(40));
        assert!(budget(1 << 20) < budget(10 << 20));
        assert_eq!(budget(0), 0);
        // If no pause is short enough, a slightly longer one saves the guest round trips.
        assert!(carry_budget(&Policy::default(), 10 << 20, Duration::from_millis(200)) > 100 << 10);
    }
}
