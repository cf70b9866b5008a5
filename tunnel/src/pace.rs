//! The shaper with a clock: waits until bytes may go.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Clock};

use tokio::sync::Notify;
use towpath_protocol::channel::{Class, Leg};
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::shaper::{Grant, Shaper};

/// How long a scavenger waits at most before it looks again whether bulk has gone.
const YIELD_TIME_MAX: Duration = Duration::from_millis(50);

/// Paces what one side of a link sends.
#[derive(Debug)]
pub(crate) struct Pace {
    shaper: Mutex<Shaper>,
    began: Clock,
    bulk_left: Notify,
    /// Bulk streams take turns, one grant each; the lock is fair.
    turn: tokio::sync::Mutex<()>,
}

/// A stream with bytes to send; ends when dropped.
#[derive(Debug)]
pub(crate) struct Backlog<'a> {
    pace: &'a Pace,
    class: Class,
}

impl Pace {
    pub(crate) fn new(rate: Option<Rate>) -> Self {
        Self {
            shaper: Mutex::new(Shaper::new(rate, Instant::ZERO)),
            began: Clock::now(),
            bulk_left: Notify::new(),
            turn: tokio::sync::Mutex::new(()),
        }
    }

    /// Says that a stream has bytes to send, until the answer is dropped.
    pub(crate) fn backlog(&self, class: Class) -> Backlog<'_> {
        self.shaper().enter(class);
        Backlog { pace: self, class }
    }

    /// The cap.
    pub(crate) fn rate(&self) -> Option<Rate> {
        self.shaper().rate()
    }

    /// Changes the cap; streams that wait for the old one ask again when they would have anyway.
    pub(crate) fn set_rate(&self, rate: Option<Rate>) {
        let now = self.now();
        self.shaper().set_rate(rate, now);
    }

    /// Takes note of all bytes that have left on the wire since the link is up.
    pub(crate) fn observe(&self, wire_bytes: u64) {
        let now = self.now();
        self.shaper().observe(wire_bytes, now);
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.began.elapsed()
    }

    fn shaper(&self) -> MutexGuard<'_, Shaper> {
        // Nothing panics while it is held, and a shaper is whole between any two calls.
        self.shaper.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Backlog<'_> {
    /// Waits until some of `bytes` may go; gives how many.
    pub(crate) async fn grant(&self, bytes: u64) -> u64 {
        let _turn = match self.class.leg() {
            Leg::Bulk if self.pace.rate().is_some() => Some(self.pace.turn.lock().await),
            _ => None,
        };
        loop {
            let bulk_left = self.pace.bulk_left.notified();
            let now = self.pace.now();
            let grant = self.pace.shaper().grant(self.class, bytes, now);
            match grant {
                Grant::Bytes(granted) => return granted,
                Grant::At(then) => tokio::time::sleep(then.since(now)).await,
                // The timeout only repeats the question.
                Grant::Yield => {
                    let _ = tokio::time::timeout(YIELD_TIME_MAX, bulk_left).await;
                }
            }
        }
    }
}

impl Drop for Backlog<'_> {
    fn drop(&mut self) {
        self.pace.shaper().leave(self.class);
        if self.class == Class::Bulk {
            self.pace.bulk_left.notify_waiters();
        }
    }
}
