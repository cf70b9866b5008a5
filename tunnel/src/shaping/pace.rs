//! The shaper with a clock: waits until bytes may be sent.
//!
//! There is one shaper per peer, however many links lead to it: while a new link replaces an old
//! one, both together keep to the cap.
//!
//! One of the waiting tasks *leads*: it watches the clock for all of them, and hands the lead on
//! when its own bytes are granted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant as StdInstant};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, oneshot};
use towpath_protocol::class::{Class, PerLeg};
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::shaping::quota::Quota;
use crate::shaping::shaper::{Shaper, Unseen, Wish};
use crate::shaping::shares::Shares;

/// The longest sleep of the leader: the most that a missed wake-up can cost.
const LOOK: Duration = Duration::from_millis(100);

/// Paces what is sent to a peer.
#[derive(Debug)]
pub(crate) struct Pacer {
    state: Mutex<State>,
    began: StdInstant,
    lead: tokio::sync::Mutex<()>,
    /// Wakes the leader before its time.
    sooner: Notify,
}

#[derive(Debug)]
struct State {
    shaper: Shaper,
    waiting: BTreeMap<Wish, oneshot::Sender<u64>>,
    /// When the leader is due to wake.
    planned: Option<Instant>,
    /// Bytes that have left on the wire over all links, by leg.
    left: PerLeg<u64>,
}

/// Paces what one link sends, as part of the traffic to its peer.
#[derive(Debug)]
pub(crate) struct Pace {
    pacer: Arc<Pacer>,
    /// Bytes that have left on the wire over this link, by leg.
    left: PerLeg<AtomicU64>,
    /// Bytes granted to this link that its wire counters have not shown yet, by leg.
    unseen: Mutex<PerLeg<Unseen>>,
}

impl Pacer {
    pub(crate) fn new(rate: Option<Rate>, shares: Shares) -> Self {
        Self {
            state: Mutex::new(State {
                shaper: Shaper::new(rate, shares, Instant::ZERO),
                waiting: BTreeMap::new(),
                planned: None,
                left: PerLeg::default(),
            }),
            began: StdInstant::now(),
            lead: tokio::sync::Mutex::new(()),
            sooner: Notify::new(),
        }
    }

    /// The cap.
    pub(crate) fn rate(&self) -> Option<Rate> {
        self.state().shaper.rate()
    }

    /// Bytes that have left on the wire so far, over all links.
    pub(crate) fn left_bytes(&self) -> u64 {
        self.state().left.iter().sum()
    }

    /// Changes the cap, and checks the waiting wishes again.
    pub(crate) fn set_rate(&self, rate: Option<Rate>) {
        let now = self.now();
        self.state().shaper.set_rate(rate, now);
        self.sooner.notify_one();
    }

    /// Changes the shares of the classes if they differ, and checks the waiting wishes again.
    pub(crate) fn set_shares(&self, shares: &Shares) {
        let now = self.now();
        let mut state = self.state();
        if state.shaper.shares() != shares {
            state.shaper.set_shares(shares.clone(), now);
            drop(state);
            self.sooner.notify_one();
        }
    }

    /// Adds bytes that have left on the wire, by leg.
    fn observe(&self, news: PerLeg<u64>) {
        let now = self.now();
        let mut state = self.state();
        for (left, news) in state.left.iter_mut().zip(news) {
            *left += news;
        }
        let left = state.left;
        state.shaper.observe(left, now);
    }

    /// Records that granted bytes, by leg, will never leave.
    fn forget(&self, bytes: PerLeg<u64>) {
        let now = self.now();
        self.state().shaper.forget(bytes, now);
    }

    /// Gives back bytes that were granted and will not be sent.
    fn refund(&self, class: Class, bytes: u64) {
        let now = self.now();
        self.state().shaper.refund(class, bytes, now);
        self.sooner.notify_one();
    }

    /// Converts bytes of a class to bytes on the wire, by what was measured.
    fn on_wire(&self, class: Class, bytes: u64) -> u64 {
        self.state().shaper.on_wire(class.leg(), bytes)
    }

    /// Asks to send. Returns how many bytes may be sent now, or what to wait on.
    pub(crate) fn ask(self: &Arc<Self>, class: Class, bytes: u64) -> Result<u64, Waiting> {
        let now = self.now();
        let mut state = self.state();
        if state.shaper.pass(class, bytes, now) {
            return Ok(bytes);
        }
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

    /// Grants what can be granted; returns how long to wait until more can be.
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
        self.state.lock()
    }
}

impl Pace {
    /// Paces a new link.
    pub(crate) fn new(pacer: Arc<Pacer>) -> Self {
        Self {
            pacer,
            left: PerLeg::default(),
            unseen: Mutex::default(),
        }
    }

    /// Registers a stream that has bytes to send, until the result is dropped; its bytes count for
    /// `quota` too.
    pub(crate) fn backlog<'a>(self: &'a Arc<Self>, class: Class, quota: &'a Quota) -> Backlog<'a> {
        let now = self.pacer.now();
        self.pacer.state().shaper.enter(class, now);
        Backlog {
            pace: self,
            class,
            quota,
            reserved: 0,
        }
    }

    /// The cap.
    pub(crate) fn rate(&self) -> Option<Rate> {
        self.pacer.rate()
    }

    /// Changes the cap.
    pub(crate) fn set_rate(&self, rate: Option<Rate>) {
        self.pacer.set_rate(rate);
    }

    /// Changes the shares of the classes.
    pub(crate) fn set_shares(&self, shares: &Shares) {
        self.pacer.set_shares(shares);
    }

    /// Records the total bytes that have left on the wire since the link came up, by leg.
    pub(crate) fn observe(&self, wire_bytes: PerLeg<u64>) {
        let mut news = wire_bytes;
        for (news, left) in news.iter_mut().zip(self.left.iter()) {
            *news = news.saturating_sub(left.swap(*news, Ordering::Relaxed));
        }
        let now = self.pacer.now();
        for (unseen, news) in self.unseen().iter_mut().zip(news) {
            unseen.take(now, news);
        }
        self.pacer.observe(news);
    }

    /// Whether the wire counters should be read soon, so that the cap holds.
    pub(crate) fn is_unobserved(&self) -> bool {
        let now = self.pacer.now();
        self.rate().is_some() && self.unseen().iter_mut().any(|unseen| unseen.bytes(now) > 0)
    }

    /// Ends the link: what was granted to it and not sent will never leave.
    pub(crate) fn end(&self) {
        let now = self.pacer.now();
        let unseen = std::mem::take(&mut *self.unseen());
        self.pacer
            .forget(unseen.map(|mut unseen| unseen.bytes(now)));
    }

    fn unseen(&self) -> MutexGuard<'_, PerLeg<Unseen>> {
        self.unseen.lock()
    }
}

impl State {
    /// Grants what can be granted; returns the grant of `own`, a wish that nothing waits for yet.
    fn settle(&mut self, now: Instant, own: Option<Wish>) -> Option<u64> {
        let mut granted = None;
        while let Some((wish, bytes)) = self.shaper.poll(now) {
            if own == Some(wish) {
                granted = Some(bytes);
            } else if let Some(teller) = self.waiting.remove(&wish) {
                // A waiting task withdraws its wish before it ends, so the receiver exists.
                let _ = teller.send(bytes);
            }
        }
        granted
    }
}

/// A wish that is not granted yet; withdrawn when dropped.
#[derive(Debug)]
pub(crate) struct Waiting {
    pace: Arc<Pacer>,
    class: Class,
    wish: Wish,
    heard: oneshot::Receiver<u64>,
}

impl Waiting {
    /// Waits until some of the bytes may be sent; returns how many. Cancel safe until it has
    /// returned.
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
            drop(state);
            self.pace.refund(self.class, bytes);
        }
    }
}

/// Marks a stream as having bytes to send, until dropped.
#[derive(Debug)]
pub(crate) struct Backlog<'a> {
    pace: &'a Arc<Pace>,
    class: Class,
    quota: &'a Quota,
    /// Bytes that the quota has granted and the link has not yet.
    reserved: u64,
}

impl Backlog<'_> {
    /// Waits until some of `bytes` may be sent; returns how many.
    pub(crate) async fn grant(&mut self, bytes: u64) -> u64 {
        if self.reserved == 0 {
            let on_wire = |bytes| self.pace.pacer.on_wire(self.class, bytes);
            self.reserved = self.quota.take(bytes, on_wire).await;
        }
        let asked = bytes.min(self.reserved);
        let granted = match self.pace.pacer.ask(self.class, asked) {
            Ok(granted) => granted,
            Err(mut waiting) => waiting.granted().await,
        };
        let now = self.pace.pacer.now();
        self.pace.unseen()[self.class.leg()].add(now, granted);
        self.reserved -= granted;
        granted
    }

    /// Gives back bytes that were granted and will not be sent.
    pub(crate) fn give_back(&mut self, bytes: u64) {
        let pacer = &self.pace.pacer;
        self.pace.unseen()[self.class.leg()].take(pacer.now(), bytes);
        self.unspend(bytes);
        pacer.refund(self.class, bytes);
    }

    /// Gives bytes back to the quota.
    fn unspend(&self, bytes: u64) {
        let on_wire = |bytes| self.pace.pacer.on_wire(self.class, bytes);
        self.quota.give_back(bytes, on_wire);
    }
}

impl Drop for Backlog<'_> {
    fn drop(&mut self) {
        self.unspend(self.reserved);
        let pacer = &self.pace.pacer;
        let mut state = pacer.state();
        state.shaper.leave(self.class);
        let is_awaited = !state.waiting.is_empty();
        drop(state);
        if is_awaited {
            // A wish may have been waiting for this stream alone.
            pacer.sooner.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Total bytes granted to one task per link within `time`.
    async fn granted(paces: &[Arc<Pace>], time: Duration) -> u64 {
        let tasks = paces.iter().map(|pace| {
            let pace = Arc::clone(pace);
            tokio::spawn(async move {
                let quota = Quota::default();
                let mut backlog = pace.backlog(Class::Bulk, &quota);
                let (began, mut granted) = (StdInstant::now(), 0);
                while began.elapsed() < time {
                    granted += backlog.grant(1 << 20).await;
                }
                granted
            })
        });
        let mut sum = 0;
        for task in tasks.collect::<Vec<_>>() {
            sum += task.await.unwrap();
        }
        sum
    }

    #[tokio::test]
    async fn links_to_one_peer_keep_to_the_cap_together() {
        let rate = Rate::from_bytes_per_second(1_000_000).unwrap();
        let pacer = Arc::new(Pacer::new(Some(rate), Shares::default()));
        let paces: Vec<_> = (0..3)
            .map(|_| Arc::new(Pace::new(Arc::clone(&pacer))))
            .collect();
        let began = StdInstant::now();
        let sum = granted(&paces, Duration::from_millis(300)).await;
        let most = rate.bytes_in(began.elapsed() + Duration::from_millis(20));
        assert!(sum <= most, "{sum} of {most}");
        assert!(sum >= most / 2, "{sum} of {most}");
    }

    #[tokio::test]
    async fn a_link_whose_grants_never_left_is_looked_at_no_more() {
        let rate = Rate::from_bytes_per_second(1_000_000).unwrap();
        let pace = Arc::new(Pace::new(Arc::new(Pacer::new(
            Some(rate),
            Shares::default(),
        ))));
        granted(std::slice::from_ref(&pace), Duration::from_millis(20)).await;
        assert!(pace.is_unobserved());
        let began = StdInstant::now();
        while pace.is_unobserved() {
            assert!(
                began.elapsed() < Duration::from_secs(5),
                "looks without end"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
            pace.observe(PerLeg::default());
        }
        // Bytes that are given back do not count as unobserved.
        let quota = Quota::default();
        let mut backlog = pace.backlog(Class::Bulk, &quota);
        let bytes = backlog.grant(1000).await;
        assert!(pace.is_unobserved());
        backlog.give_back(bytes);
        assert!(!pace.is_unobserved());
    }

    #[tokio::test]
    async fn what_a_link_never_sent_is_no_credit_for_the_next() {
        let rate = Rate::from_bytes_per_second(1_000_000).unwrap();
        let pacer = Arc::new(Pacer::new(Some(rate), Shares::default()));
        let lost = Arc::new(Pace::new(Arc::clone(&pacer)));
        let sum = granted(std::slice::from_ref(&lost), Duration::from_millis(50)).await;
        assert!(lost.is_unobserved());
        lost.end();
        // The next link's wire shows bytes that were not granted: all of them are charged.
        let next = Arc::new(Pace::new(Arc::clone(&pacer)));
        next.observe(PerLeg {
            urgent: 0,
            bulk: sum,
        });
        let (began, quota) = (StdInstant::now(), Quota::default());
        next.backlog(Class::Bulk, &quota).grant(1000).await;
        let debt = rate.bytes_in(began.elapsed()) + rate.bytes_in(Duration::from_millis(40));
        assert!(debt >= sum, "{debt} of {sum}");
    }
}
