//! How long a host may take to answer a request. Clients wait that long, and a little longer.

use std::time::Duration;

use crate::guest::{END_WAIT, READY_WAIT, RUN_WAIT, VERIFY_WAIT, WORK_WAIT};

/// Longest wait for a guest's worker to take up a request. It may be making a record durable,
/// pausing the guest or checking every page. Shorter than the time a client waits for any answer.
pub(crate) const TAKEN: Duration = Duration::from_secs(50);

/// Longest that a worker takes to begin or end a move.
pub(crate) const MOVE: Duration = WORK_WAIT;

/// Longest that a worker takes to boot a guest: it ends the old process, then starts and runs a new
/// one.
pub(crate) const BOOT: Duration = sum(&[WORK_WAIT, END_WAIT, READY_WAIT, RUN_WAIT]);

/// Longest that a worker takes to stop a guest.
pub(crate) const STOP: Duration = sum(&[WORK_WAIT, END_WAIT]);

/// Longest that a worker takes to check every page of a guest.
pub(crate) const VERIFY: Duration = VERIFY_WAIT;

/// Allowance for publishing and delivering an answer.
const REST: Duration = Duration::from_secs(10);

/// Longest wait for a host to start or boot a guest.
pub const START_ANSWER: Duration = sum(&[TAKEN, BOOT, REST]);

/// Longest wait for a host to stop a guest.
pub const STOP_ANSWER: Duration = sum(&[TAKEN, STOP, REST]);

/// Longest wait for a host to check every page of a guest.
pub const VERIFY_ANSWER: Duration = sum(&[TAKEN, VERIFY, REST]);

const fn sum(waits: &[Duration]) -> Duration {
    let mut sum = Duration::ZERO;
    let mut index = 0;
    while index < waits.len() {
        sum = sum.saturating_add(waits[index]);
        index += 1;
    }
    sum
}

#[cfg(test)]
mod tests {
    use towpath_daemon::client::ANSWER_TIMEOUT;

    use super::*;

    #[test]
    fn nobody_who_asks_gives_up_before_the_answer_is_due() {
        assert!(
            TAKEN < ANSWER_TIMEOUT,
            "a client is told that nothing was done"
        );
        for (answer, work) in [
            (START_ANSWER, END_WAIT + READY_WAIT + RUN_WAIT),
            (STOP_ANSWER, END_WAIT),
            (VERIFY_ANSWER, VERIFY_WAIT),
        ] {
            assert!(answer > TAKEN + work, "{answer:?} {work:?}");
        }
    }
}
