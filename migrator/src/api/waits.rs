//! How long a host may take to do what it is asked for: whoever asks waits for as long, and a little more.

use std::time::Duration;

use crate::guest::{END_WAIT, READY_WAIT, RUN_WAIT, VERIFY_WAIT, WORK_WAIT};

/// Longest wait until a guest's worker comes to what it is asked for: it may be making a record durable, pausing a
/// guest, or looking at every page of it. Shorter than a client waits for an answer to anything.
pub(crate) const TAKEN: Duration = Duration::from_secs(50);

/// Longest that a worker takes to begin a move or to end one.
pub(crate) const MOVE: Duration = WORK_WAIT;

/// Longest that a worker takes to boot a guest: what is left of it is ended, and another process made and run.
pub(crate) const BOOT: Duration = sum(&[WORK_WAIT, END_WAIT, READY_WAIT, RUN_WAIT]);

/// Longest that a worker takes to end a guest.
pub(crate) const STOP: Duration = sum(&[WORK_WAIT, END_WAIT]);

/// Longest that a worker takes to look at every page of a guest.
pub(crate) const VERIFY: Duration = VERIFY_WAIT;

/// What shows an answer, and carries it, beside what was asked for.
const REST: Duration = Duration::from_secs(10);

/// Longest wait for a host that starts a guest or boots it.
pub const START_ANSWER: Duration = sum(&[TAKEN, BOOT, REST]);

/// Longest wait for a host that stops a guest.
pub const STOP_ANSWER: Duration = sum(&[TAKEN, STOP, REST]);

/// Longest wait for a host that looks at every page of a guest.
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
