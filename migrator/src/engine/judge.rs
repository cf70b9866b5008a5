//! Judges what the end of a lane says about the peer: an outage, corrupt bytes, or a lie. Pure.
//!
//! An outage says nothing, however often it comes. Corrupt bytes are fetched again over new lanes,
//! a few times in a row; a cause that corrupts every try will not go away. What can only have been
//! sent on purpose ends the attempt at once.

use towpath_protocol::fault::{Blame, Code, Fault};

/// Lanes in a row that may end with corrupt bytes while nothing new arrives (fault 29).
const SPOILT_COUNT_MAX: u32 = 3;

/// Judges the lanes of one attempt.
#[derive(Debug, Default)]
pub(super) struct Judge {
    spoilt_count: u32,
    /// Items that had arrived when a lane last ended with corrupt bytes.
    arrived_count: u64,
}

impl Judge {
    /// Judges a lane that ended with `fault` when `arrived_count` items had arrived in this
    /// attempt. Returns the fault that ends the attempt, if it must end.
    pub(super) fn lane_ended(&mut self, fault: &Fault, arrived_count: u64) -> Option<Fault> {
        match fault.code {
            // A lane that was cut or whose peer is gone ends with these.
            Code::Truncated | Code::Stalled => None,
            Code::Codec | Code::Framing => self.spoilt(fault, arrived_count),
            _ if fault.blame() == Blame::Peer => Some(fault.clone()),
            _ => None,
        }
    }

    fn spoilt(&mut self, fault: &Fault, arrived_count: u64) -> Option<Fault> {
        if arrived_count > self.arrived_count {
            self.spoilt_count = 0;
        }
        self.arrived_count = arrived_count;
        self.spoilt_count += 1;
        (self.spoilt_count >= SPOILT_COUNT_MAX).then(|| {
            let detail = format!("{SPOILT_COUNT_MAX} times in a row: {}", fault.detail);
            Fault::new(fault.code, detail)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault(code: Code) -> Fault {
        Fault::new(code, "a lane ended")
    }

    #[test]
    fn outages_say_nothing() {
        let mut judge = Judge::default();
        for _ in 0..1000 {
            for code in [Code::Unreachable, Code::Truncated, Code::Stalled, Code::Io] {
                assert_eq!(judge.lane_ended(&fault(code), 0), None, "{code}");
            }
        }
    }

    #[test]
    fn f08_f09_what_nobody_sends_by_accident_ends_the_attempt_at_once() {
        for code in [
            Code::Range,
            Code::Conflict,
            Code::Meta,
            Code::Unexpected,
            Code::UnknownKind,
            Code::TooLarge,
        ] {
            let ended = Judge::default().lane_ended(&fault(code), 100);
            assert_eq!(ended, Some(fault(code)));
        }
    }

    #[test]
    fn fault_29_spoilt_bytes_are_had_again_as_long_as_that_helps() {
        let mut judge = Judge::default();
        for arrived_count in 1..100 {
            let ended = judge.lane_ended(&fault(Code::Codec), arrived_count);
            assert_eq!(ended, None, "more has arrived each time");
        }
        assert_eq!(judge.lane_ended(&fault(Code::Framing), 99), None);
        assert_eq!(judge.lane_ended(&fault(Code::Unreachable), 99), None);
        let ended = judge.lane_ended(&fault(Code::Codec), 99);
        assert_eq!(ended.expect("the third in a row").code, Code::Codec);
    }
}
