//! What a link sends at most, as we want it and as the peer does, and what the peer says of its path.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as StdInstant};

use towpath_protocol::channel::PathReport;
use towpath_protocol::rate::Rate;

use super::Link;

/// How old the peer's word of what its path carries may be: it has one each second.
const FILLED_TIME: Duration = Duration::from_secs(2);

/// What both sides have said.
#[derive(Debug)]
pub(super) struct Wishes {
    caps: Mutex<Caps>,
    /// What the peer has said since that was last taken note of.
    said: Mutex<Option<PeerCap>>,
    /// See [`Link::take_filled`].
    filled: Mutex<Option<(StdInstant, u64)>>,
}

impl Wishes {
    /// Those of a link that begins, whose peer wants at most so much.
    pub(super) fn of(theirs: Option<Rate>) -> Self {
        Self {
            caps: Mutex::new(Caps { ours: None, theirs }),
            said: Mutex::default(),
            filled: Mutex::default(),
        }
    }
}

/// What is sent at most: as we want it, and as the peer does.
#[derive(Debug, Default)]
struct Caps {
    ours: Option<Rate>,
    theirs: Option<Rate>,
}

/// Most that the peer wants to receive; without a rate as much as comes.
#[derive(Debug, Clone, Copy)]
struct PeerCap(Option<Rate>);

impl Link {
    /// Changes the most that we send; the peer's wish still holds.
    /// Says whether that made a difference.
    pub(crate) fn set_send_rate(&self, rate: Option<Rate>) -> bool {
        self.change_caps(|caps| caps.ours = rate)
    }

    /// What the peer wants to receive at most.
    pub(crate) fn wanted_rate(&self) -> Option<Rate> {
        locked(&self.wishes.caps).theirs
    }

    fn change_caps(&self, change: impl FnOnce(&mut Caps)) -> bool {
        let mut caps = locked(&self.wishes.caps);
        change(&mut caps);
        let rate = least(caps.ours, caps.theirs);
        let is_another = self.pace.rate() != rate;
        if is_another {
            self.pace.set_rate(rate);
        }
        is_another
    }

    /// The peer says what it wants to receive, and what its path to us carries. The newest word holds from the
    /// next look on: there may be any number of them.
    pub(crate) fn hear_of_path(&self, report: &PathReport) {
        *locked(&self.wishes.said) = Some(PeerCap(report.receive_rate_max.map(Rate::clamped)));
        if let Some(bytes) = report.filled_bytes_per_second {
            let bytes = Rate::clamped(bytes).bytes_per_second();
            let filled = Some((StdInstant::now(), bytes));
            *locked(&self.wishes.filled) = filled;
        }
    }

    /// Takes note of what the peer wants to receive now, if it has said so since.
    pub(super) fn heed(&self) -> bool {
        let said = locked(&self.wishes.said).take();
        said.is_some_and(|PeerCap(theirs)| self.change_caps(|caps| caps.theirs = theirs))
    }

    /// What the peer's path to us carried of late, if it was the limit: who receives sees only what came.
    pub(crate) fn take_filled(&self) -> Option<u64> {
        let (at, bytes_per_second) = locked(&self.wishes.filled).take()?;
        (at.elapsed() < FILLED_TIME).then_some(bytes_per_second)
    }
}

/// The lower of two caps.
pub(crate) fn least(ours: Option<Rate>, theirs: Option<Rate>) -> Option<Rate> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
        (one, other) => one.or(other),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while it is held.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
