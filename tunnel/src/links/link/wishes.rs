//! The caps on what a link sends, ours and the peer's, and the peer's reports about its path.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use towpath_protocol::preamble::PathReport;
use towpath_protocol::rate::Rate;

use super::Link;

/// Maximum age of the peer's report of what its path carries. The peer sends one each second.
const FILLED_TIME: Duration = Duration::from_secs(2);

/// The caps and reports of both sides.
#[derive(Debug)]
pub(super) struct Wishes {
    caps: Mutex<Caps>,
    /// The peer's newest cap, until it is applied.
    said: Mutex<Option<PeerCap>>,
    /// See [`Link::take_filled`].
    filled: Mutex<Option<(Instant, u64)>>,
}

impl Wishes {
    /// The state of a new link whose peer has named the cap `theirs`.
    pub(super) fn of(theirs: Option<Rate>) -> Self {
        Self {
            caps: Mutex::new(Caps { ours: None, theirs }),
            said: Mutex::default(),
            filled: Mutex::default(),
        }
    }
}

/// The caps on what is sent: ours and the peer's.
#[derive(Debug, Default)]
struct Caps {
    ours: Option<Rate>,
    theirs: Option<Rate>,
}

/// The most that the peer wants to receive; `None` for no limit.
#[derive(Debug, Clone, Copy)]
struct PeerCap(Option<Rate>);

impl Link {
    /// Changes our cap on what we send; the peer's cap still applies. Returns whether the effective
    /// cap changed.
    pub(crate) fn set_send_rate(&self, rate: Option<Rate>) -> bool {
        self.change_caps(|caps| caps.ours = rate)
    }

    /// The most that the peer wants to receive.
    pub(crate) fn wanted_rate(&self) -> Option<Rate> {
        self.wishes.caps.lock().theirs
    }

    fn change_caps(&self, change: impl FnOnce(&mut Caps)) -> bool {
        let mut caps = self.wishes.caps.lock();
        change(&mut caps);
        let rate = least(caps.ours, caps.theirs);
        let is_another = self.pace.rate() != rate;
        if is_another {
            self.pace.set_rate(rate);
        }
        is_another
    }

    /// Records the peer's report of what it wants to receive, and what its path to us carries. The
    /// newest cap applies from the next tick on, so that any number of reports costs little.
    pub(crate) fn hear_of_path(&self, report: &PathReport) {
        *self.wishes.said.lock() = Some(PeerCap(report.receive_rate_max.map(Rate::clamped)));
        if let Some(bytes) = report.filled_bytes_per_second {
            let bytes = Rate::clamped(bytes).bytes_per_second();
            let filled = Some((Instant::now(), bytes));
            *self.wishes.filled.lock() = filled;
        }
    }

    /// Applies the peer's newest cap, if there is a new one. Returns whether the effective cap
    /// changed.
    pub(super) fn heed(&self) -> bool {
        let said = self.wishes.said.lock().take();
        said.is_some_and(|PeerCap(theirs)| self.change_caps(|caps| caps.theirs = theirs))
    }

    /// Rate that the peer's path to us carried recently, if the path was the limit. The receiver
    /// alone cannot know whether it was.
    pub(crate) fn take_filled(&self) -> Option<u64> {
        let (at, bytes_per_second) = self.wishes.filled.lock().take()?;
        (at.elapsed() < FILLED_TIME).then_some(bytes_per_second)
    }
}

/// The lower of two caps; `None` is no cap.
pub(crate) fn least(ours: Option<Rate>, theirs: Option<Rate>) -> Option<Rate> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) => Some(ours.min(theirs)),
        (one, other) => one.or(other),
    }
}
