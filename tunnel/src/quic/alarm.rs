//! Waits that are exact to a microsecond, where the runtime's timers are exact to a millisecond.
//!
//! Packets that leave in millisecond bursts stand in the bottleneck's queue for as long. The
//! kernel's timers are as exact as its clock, and a timer of the kernel is a file that the runtime
//! watches like a socket.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;

/// Most timers. If more streams wait in line for their pieces, the last ones wait long enough for
/// the runtime's timers.
const TIMER_COUNT_MAX: usize = 4;

/// A remaining wait that counts as over: going to sleep takes as long.
const WAIT_MIN: Duration = Duration::from_micros(5);

/// Longest wait on a timer of the kernel; the runtime's are exact enough for longer waits.
const WAIT_MAX: Duration = Duration::from_millis(100);

/// Exact timers, shared by the waiting tasks of one thread.
#[derive(Debug, Default)]
pub(crate) struct Alarms {
    timers: Mutex<Timers>,
}

#[derive(Debug, Default)]
struct Timers {
    idle: Vec<AsyncFd<OwnedFd>>,
    made: usize,
}

/// A borrowed timer, given back when dropped; one that does not work is discarded.
struct Borrowed<'a> {
    alarms: &'a Alarms,
    timer: Option<AsyncFd<OwnedFd>>,
}

impl Alarms {
    /// Waits until `at`.
    pub(crate) async fn until(&self, at: Instant) {
        let Some(timer) = self.take() else {
            return tokio::time::sleep_until(at.into()).await;
        };
        let mut borrowed = Borrowed {
            alarms: self,
            timer: Some(timer),
        };
        loop {
            let wait = at.saturating_duration_since(Instant::now());
            if wait <= WAIT_MIN {
                return;
            }
            let timer = borrowed.timer.as_ref().filter(|_| wait <= WAIT_MAX);
            let Some(timer) = timer else {
                return tokio::time::sleep_until(at.into()).await;
            };
            if ring(timer, wait).await.is_err() {
                // The runtime that watched the timer is gone.
                borrowed.timer = None;
            }
        }
    }

    fn take(&self) -> Option<AsyncFd<OwnedFd>> {
        let mut timers = self.timers();
        if let Some(timer) = timers.idle.pop() {
            return Some(timer);
        }
        if timers.made >= TIMER_COUNT_MAX {
            return None;
        }
        // If the system has no timers left, the runtime's are used.
        let timer = make().ok()?;
        timers.made += 1;
        Some(timer)
    }

    fn timers(&self) -> MutexGuard<'_, Timers> {
        self.timers.lock()
    }
}

impl Drop for Borrowed<'_> {
    fn drop(&mut self) {
        let mut timers = self.alarms.timers();
        match self.timer.take() {
            Some(timer) => timers.idle.push(timer),
            None => timers.made = timers.made.saturating_sub(1),
        }
    }
}

#[expect(
    deprecated,
    reason = "what took its place asks for a promise that files stay; one of our own does"
)]
fn make() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
    AsyncFd::new(timerfd_create(TimerfdClockId::Monotonic, flags)?)
}

/// Waits for one timer. May return early, because of an earlier wait that was given up.
async fn ring(timer: &AsyncFd<OwnedFd>, wait: Duration) -> io::Result<()> {
    let once = Itimerspec {
        it_interval: Timespec::default(),
        it_value: Timespec::try_from(wait).map_err(|_| io::ErrorKind::InvalidInput)?,
    };
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    // Setting the timer again clears its expiry, so it is never read.
    timer.readable().await?.clear_ready();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn soon(what: impl Future<Output = ()>) {
        let within = Duration::from_secs(20);
        tokio::time::timeout(within, what).await.expect("in time");
    }

    #[tokio::test]
    async fn nobody_wakes_early_and_timers_are_used_again() {
        let alarms = Alarms::default();
        for micros in [0, 3, 40, 700, 2_300] {
            let at = Instant::now() + Duration::from_micros(micros);
            soon(alarms.until(at)).await;
            assert!(Instant::now() + WAIT_MIN >= at, "{micros}");
        }
        assert_eq!(alarms.timers().made, 1);
    }

    #[tokio::test]
    async fn a_wait_that_was_given_up_does_not_shorten_the_next() {
        let alarms = Alarms::default();
        for _ in 0..50 {
            let soon_over = Instant::now() + Duration::from_micros(50);
            tokio::select! {
                biased;
                () = alarms.until(soon_over) => {}
                () = tokio::task::yield_now() => {}
            }
            let at = Instant::now() + Duration::from_micros(400);
            soon(alarms.until(at)).await;
            assert!(Instant::now() + WAIT_MIN >= at);
        }
    }

    #[tokio::test]
    async fn more_waits_than_timers_all_end() {
        let alarms = std::sync::Arc::new(Alarms::default());
        let at = Instant::now() + Duration::from_millis(2);
        let waits: Vec<_> = (0..3 * TIMER_COUNT_MAX)
            .map(|_| std::sync::Arc::clone(&alarms))
            .map(|alarms| tokio::spawn(async move { alarms.until(at).await }))
            .collect();
        for wait in waits {
            soon(async { wait.await.expect("it does not panic") }).await;
        }
        assert!(Instant::now() + WAIT_MIN >= at);
        let timers = alarms.timers();
        assert!(timers.made <= TIMER_COUNT_MAX && timers.idle.len() == timers.made);
    }
}
