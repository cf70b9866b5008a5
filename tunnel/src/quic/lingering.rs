//! Ends connections that their peers have closed and that quinn would otherwise keep until the idle
//! timeout.
//!
//! Works around a fault of quinn-proto 0.11.19, and can go once that is fixed. A packet that closes
//! a connection starts the closing timer, except if it is the connection's first packet:
//! `Connection::handle_first_packet` starts none, which leaves only the idle timeout of up to ten
//! minutes. Anybody can send such a packet, and a peer that gives up dialling sends one if its
//! earlier packets were lost. Until the timeout, the connection takes memory and the endpoint keeps
//! its port.
//!
//! Quinn takes the time from its runtime. So the task that drives such a connection is polled once
//! with a clock ahead of every timeout, and quinn ends the connection itself.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::quic::transport::IDLE_TIMEOUT_MAX;

/// How long a closed connection is kept for packets still on their way: three probe timeouts of a
/// path without measurements, as for connections with a closing timer.
const DRAINING: Duration = Duration::from_secs(3);

/// How far the clock is put ahead.
const AHEAD: Duration = IDLE_TIMEOUT_MAX.saturating_mul(2);

thread_local! {
    /// How far ahead the clock of the running task is.
    static CLOCK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// The driver spawned last on this thread.
    static SPAWNED: Cell<Option<Driver>> = const { Cell::new(None) };
}

/// Handle to the task that drives a connection.
#[derive(Debug)]
pub(crate) struct Driver(Arc<Notify>);

/// Wraps a task that quinn spawns, and remembers it for [`Driver::spawned_by`].
pub(crate) fn driving(
    mut task: Pin<Box<dyn Future<Output = ()> + Send>>,
) -> impl Future<Output = ()> + Send {
    let ending = Arc::new(Notify::new());
    SPAWNED.set(Some(Driver(Arc::clone(&ending))));
    async move {
        tokio::select! {
            biased;
            () = &mut task => return,
            () = ending.notified() => {}
        }
        poll_fn(|context| {
            let _ahead = Ahead::begin();
            task.as_mut().poll(context)
        })
        .await;
    }
}

/// How far the clock of the running task is ahead of the system's.
pub(crate) fn ahead() -> Duration {
    CLOCK.get()
}

impl Driver {
    /// Makes a call that makes quinn spawn a driver on this thread; also returns the driver, if
    /// there is one.
    pub(crate) fn spawned_by<T>(call: impl FnOnce() -> T) -> (T, Option<Self>) {
        SPAWNED.set(None);
        (call(), SPAWNED.take())
    }

    /// Ends the connection, which its peer has closed, after [`DRAINING`], when none of its packets
    /// can be on their way any more.
    pub(crate) fn end_drained(self) {
        tokio::spawn(async move {
            sleep(DRAINING).await;
            // Has no effect on a driver that has ended meanwhile.
            self.0.notify_one();
        });
    }
}

/// Guard: the clock is ahead until this is dropped, even if the task panics, since other
/// connections run on the thread.
struct Ahead;

impl Ahead {
    fn begin() -> Self {
        CLOCK.set(AHEAD);
        Self
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        CLOCK.set(Duration::ZERO);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::task::Poll;

    #[tokio::test]
    async fn a_driver_runs_ahead_of_time_only_once_it_is_told_to_and_alone() {
        // A connection that ends only by its idle timeout.
        let idle = || {
            Box::pin(poll_fn(|_| match ahead() {
                ahead if ahead >= IDLE_TIMEOUT_MAX => Poll::Ready(()),
                _ => Poll::Pending,
            }))
        };
        let (told, driver) = Driver::spawned_by(|| tokio::spawn(driving(idle())));
        let driver = driver.expect("it was spawned");
        let ((), none) = Driver::spawned_by(|| ());
        assert!(none.is_none(), "it is handed out once");
        let other = tokio::spawn(driving(idle()));
        tokio::task::yield_now().await;
        assert!(!told.is_finished());
        driver.0.notify_one();
        told.await.unwrap();
        assert!(!other.is_finished(), "another connection was ended");
        assert_eq!(ahead(), Duration::ZERO);
    }
}
