//! The cap of one channel or service, over all its streams and links.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant as StdInstant};

use parking_lot::{Mutex, MutexGuard};
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::shaping::shaper::{Bucket, piece_bytes};

/// The longest sleep before the cap is read again, which may have changed.
const LOOK: Duration = Duration::from_millis(100);

/// Caps what goes through a channel or comes from a service; no cap until one is set.
#[derive(Debug, Default)]
pub(crate) struct Quota {
    /// Whether there is a cap. Most quotas have none, and then skip the lock.
    is_set: AtomicBool,
    state: Mutex<Option<State>>,
    /// Streams take turns, one piece each; the lock is fair.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    bucket: Bucket,
    began: StdInstant,
}

impl State {
    fn now(&self) -> Instant {
        Instant::ZERO + self.began.elapsed()
    }
}

impl Quota {
    /// A quota with this cap, or without one.
    pub(crate) fn new(cap: Option<Rate>) -> Self {
        let quota = Self::default();
        quota.set(cap);
        quota
    }

    /// Changes the cap.
    pub(crate) fn set(&self, cap: Option<Rate>) {
        let mut state = self.state();
        match (&mut *state, cap) {
            (Some(capped), Some(rate)) => {
                let now = capped.now();
                capped.bucket.set_rate(rate, now);
            }
            (state, cap) => {
                *state = cap.map(|rate| State {
                    bucket: Bucket::new(rate, Instant::ZERO),
                    began: StdInstant::now(),
                });
            }
        }
        self.is_set.store(cap.is_some(), Ordering::Relaxed);
    }

    /// The cap.
    pub(crate) fn cap(&self) -> Option<Rate> {
        Some(self.state().as_ref()?.bucket.rate())
    }

    /// Waits until some of `bytes` may be sent; returns how many. `on_wire` converts bytes to bytes
    /// on the wire.
    pub(crate) async fn take(&self, bytes: u64, on_wire: impl Fn(u64) -> u64) -> u64 {
        if !self.is_set.load(Ordering::Relaxed) {
            return bytes;
        }
        let _turn = self.turn.lock().await;
        loop {
            match self.attempt(bytes, &on_wire) {
                Ok(taken) => return taken,
                Err(wait) => tokio::time::sleep(wait.min(LOOK)).await,
            }
        }
    }

    /// Takes some of `bytes` if they may be sent now.
    ///
    /// # Errors
    ///
    /// How long to wait.
    pub(crate) fn attempt(
        &self,
        bytes: u64,
        on_wire: impl Fn(u64) -> u64,
    ) -> Result<u64, Duration> {
        if !self.is_set.load(Ordering::Relaxed) {
            return Ok(bytes);
        }
        let mut state = self.state();
        let Some(capped) = &mut *state else {
            return Ok(bytes);
        };
        let now = capped.now();
        let piece = bytes.min(piece_bytes(capped.bucket.rate()));
        capped.bucket.fill(now);
        if let Some(then) = capped.bucket.until(piece) {
            return Err(then.since(now));
        }
        capped.bucket.spend(on_wire(piece));
        Ok(piece)
    }

    /// Gives back bytes that were taken and not sent; `on_wire` converts them to bytes on the wire.
    pub(crate) fn give_back(&self, bytes: u64, on_wire: impl Fn(u64) -> u64) {
        if bytes > 0
            && let Some(capped) = &mut *self.state()
        {
            capped.bucket.gain(on_wire(bytes));
        }
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock()
    }
}
