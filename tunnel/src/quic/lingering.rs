//! Ends connections that their peers have closed and that the library would keep for as long as an outage may last.
//!
//! The module works around a fault of quinn-proto 0.11.19, and can go once the fault is mended there. A packet that
//! closes a connection sets the timer of its end, but for the first packet: `Connection::handle_first_packet` sets none,
//! and only the idle timeout is left, of up to ten minutes. Anybody can send such a packet, and a peer that gives up an
//! attempt to dial sends one if the packets before were lost. Until the timeout the connection takes memory, and the
//! endpoint does not let go of its port.
//!
//! The library asks its runtime for the time. So the task that drives such a connection is run once with a clock that
//! is ahead of every timeout, and the library ends the connection itself.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::sleep;

use crate::quic::transport::IDLE_TIMEOUT_MAX;

/// How long a closed connection is kept for packets that are still on their way: three probe timeouts of a path that
/// nothing is known of, as for connections whose timer is set.
const DRAINING: Duration = Duration::from_secs(3);

/// How far the clock is put ahead.
const AHEAD: Duration = IDLE_TIMEOUT_MAX.saturating_mul(2);

thread_local! {
    /// How far the clock of the task that is running now is ahead.
    static CLOCK: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// The driver that was spawned last on this thread.
    static SPAWNED: Cell<Option<Driver>> = const { Cell::new(None) };
}

/// The task that drives a connection.
#[derive(Debug)]
pub(crate) struct Driver(Arc<Notify>);

/// Wraps a task that the library spawns, and remembers it for [`Driver::spawned_by`].
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

/// How far the clock of the task that is running now is ahead of the system's.
pub(crate) fn ahead() -> Duration {
    CLOCK.get()
}

impl Driver {
    /// Makes a call that has the library spawn a driver on this thread; gives the driver as well, if there is one.
    pub(crate) fn spawned_by<T>(call: impl FnOnce() -> T) -> (T, Option<Self>) {
        SPAWNED.set(None);
        (call(), SPAWNED.take())
    }

    /// Ends the connection, which its peer has closed, once nothing of it can be on its way any more.
    pub(crate) fn end_drained(self) {
        tokio::spawn(async move {
            sleep(DRAINING).await;
            // A driver that has ended meanwhile does not hear it.
            self.0.notify_one();
        });
    }
}

/// The clock is ahead until this is dropped, even where the task panics: the thread has other connections.
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
        // A connection that ends with its idle timeout alone.
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
