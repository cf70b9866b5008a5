//! The shaper with a clock: waits until bytes may go.
//!
//! Of those that wait one *leads*: it looks at the clock for all, and passes that on with its own grant.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant as Clock};

use tokio::sync::{Notify, oneshot};
use towpath_protocol::channel::Class;
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::quota::Quota;
use crate::shaper::{Shaper, Wish};
use crate::shares::Shares;

/// How long the leader sleeps at most; whatever is missed costs no more than this.
const LOOK: Duration = Duration::from_millis(100);

/// Paces what one side of a link sends.
#[derive(Debug)]
pub(crate) struct Pace {
    state: Mutex<State>,
    began: Clock,
    lead: tokio::sync::Mutex<()>,
    /// Something is to be done before the leader wakes.
    sooner: Notify,
}

#[derive(Debug)]
struct State {
    shaper: Shaper,
    waiting: BTreeMap<Wish, oneshot::Sender<u64>>,
    /// When the leader wakes.
    planned: Option<Instant>,
    /// Bytes were granted since the wire was looked at.
    is_unobserved: bool,
}

impl Pace {
    pub(crate) fn new(rate: Option<Rate>, shares: Shares) -> Self {
        Self {
            state: Mutex::new(State {
                shaper: Shaper::new(rate, shares, Instant::ZERO),
                waiting: BTreeMap::new(),
                planned: None,
                is_unobserved: false,
            }),
            began: Clock::now(),
            lead: tokio::sync::Mutex::new(()),
            sooner: Notify::new(),
        }
    }

    /// Says that a stream has bytes to send, until the answer is dropped; they count for its quota too.
    pub(crate) fn backlog<'a>(self: &'a Arc<Self>, class: Class, quota: &'a Quota) -> Backlog<'a> {
        let now = self.now();
        self.state().shaper.enter(class, now);
        Backlog {
            pace: self,
            class,
            quota,
            reserved: 0,
        }
    }

    /// The cap.
    pub(crate) fn rate(&self) -> Option<Rate> {
        self.state().shaper.rate()
    }

    /// Changes the cap; those that wait are looked at anew.
    pub(crate) fn set_rate(&self, rate: Option<Rate>) {
        let now = self.now();
        self.state().shaper.set_rate(rate, now);
        self.sooner.notify_one();
    }

    /// Changes what the classes get, if that is something else; those that wait are looked at anew.
    pub(crate) fn set_shares(&self, shares: &Shares) {
        let now = self.now();
        let mut state = self.state();
        if state.shaper.shares() != shares {
            state.shaper.set_shares(shares.clone(), now);
            drop(state);
            self.sooner.notify_one();
        }
    }

    /// Takes note of all bytes that have left on the wire since the link is up, by leg.
    pub(crate) fn observe(&self, wire_bytes: [u64; 2]) {
        let now = self.now();
        let mut state = self.state();
        state.is_unobserved = false;
        state.shaper.observe(wire_bytes, now);
    }

    /// Whether the wire should be looked at soon, so that the cap holds.
    pub(crate) fn is_unobserved(&self) -> bool {
        self.state().is_unobserved
    }

    /// What so many bytes of a class come to on the wire, as far as was seen.
    fn on_wire(&self, class: Class, bytes: u64) -> u64 {
        self.state().shaper.on_wire(class.leg(), bytes)
    }

    /// Asks to send; gives how many bytes may go now, or something to wait with.
    pub(crate) fn ask(self: &Arc<Self>, class: Class, bytes: u64) -> Result<u64, Waiting> {
        let now = self.now();
        let mut state = self.state();
        let wish = state.shaper.ask(class, bytes);
        if let Some(granted) = state.settle(now, Some(wish)) {
            return Ok(granted);
        }
        let (teller, heard) = oneshot::channel();
        state.waiting.insert(wish, teller);
        let deadline = state.shaper.deadline();
        let is_sooner = match (deadline, state.planned) {
            (Some(deadline), Some(planned)) => deadline < planned,
            _ => true,
        };
        if is_sooner {
            self.sooner.notify_one();
        }
        drop(state);
        Err(Waiting {
            pace: Arc::clone(self),
            class,
            wish,
            heard,
        })
    }

    /// Grants what can be; gives how long nothing more can.
    fn plan(&self) -> Duration {
        let now = self.now();
        let mut state = self.state();
        state.settle(now, None);
        state.planned = state.shaper.deadline();
        let wait = state.planned.map_or(LOOK, |planned| planned.since(now));
        wait.min(LOOK)
    }

    fn now(&self) -> Instant {
        Instant::ZERO + self.began.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and a shaper is whole between any two calls.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Grants what can be granted; gives what `own` was granted, which nobody waits for yet.
    fn settle(&mut self, now: Instant, own: Option<Wish>) -> Option<u64> {
        let mut granted = None;
        while let Some((wish, bytes)) = self.shaper.poll(now) {
            self.is_unobserved = self.shaper.rate().is_some();
            if own == Some(wish) {
                granted = Some(bytes);
            } else if let Some(teller) = self.waiting.remove(&wish) {
                // Who waits takes its wish back before it goes, so it is there.
                let _ = teller.send(bytes);
            }
        }
        granted
    }
}

/// A wish that is not granted yet; taken back if it is dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    pace: Arc<Pace>,
    class: Class,
    wish: Wish,
    heard: oneshot::Receiver<u64>,
}

impl Waiting {
    /// Waits until some of the bytes may go; gives how many. May be given up and called again, until it
    /// has answered.
    pub(crate) async fn granted(&mut self) -> u64 {
        let pace = Arc::clone(&self.pace);
        let _lead = tokio::select! {
            biased;
            granted = &mut self.heard => return granted.unwrap_or_default(),
            lead = pace.lead.lock() => lead,
        };
        loop {
            let wait = pace.plan();
            tokio::select! {
                biased;
                granted = &mut self.heard => return granted.unwrap_or_default(),
                () = pace.sooner.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.pace.state();
        if state.shaper.withdraw(self.class, self.wish) {
            state.waiting.remove(&self.wish);
        } else if let Ok(bytes) = self.heard.try_recv() {
            state.shaper.refund(self.class, bytes);
        }
    }
}

/// A stream with bytes to send; ends when dropped.
#[derive(Debug)]
pub(crate) struct Backlog<'a> {
    pace: &'a Arc<Pace>,
    class: Class,
    quota: &'a Quota,
    /// Bytes that the quota let go and the link did not yet.
    reserved: u64,
}

impl Backlog<'_> {
    /// Waits until some of `bytes` may go; gives how many.
    pub(crate) async fn grant(&mut self, bytes: u64) -> u64 {
        if self.reserved == 0 {
            let on_wire = |bytes| self.pace.on_wire(self.class, bytes);
            self.reserved = self.quota.take(bytes, on_wire).await;
        }
        let granted = match self.pace.ask(self.class, bytes.min(self.reserved)) {
            Ok(granted) => granted,
            Err(mut waiting) => waiting.granted().await,
        };
        self.reserved -= granted;
        granted
    }
}

impl Drop for Backlog<'_> {
    fn drop(&mut self) {
        self.quota.give_back(self.reserved);
        let mut state = self.pace.state();
        state.shaper.leave(self.class);
        let is_awaited = !state.waiting.is_empty();
        drop(state);
        if is_awaited {
            // Somebody may have waited for this stream alone.
            self.pace.sooner.notify_one();
        }
    }
}
