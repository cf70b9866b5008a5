//! Turns of streams that wait for room in a connection.
//!
//! QUIC takes as much as its send window has room for. When room comes free it wakes all waiting
//! writers, the latest first. The first to write takes all the room and waits again, first in line
//! again. So the two ends of the line alternate, and the writers between them starve. To prevent
//! that, writers queue here, first come first served, one piece at a time; of each queue at most
//! one writer waits for the connection.

use tokio::sync::{Mutex, MutexGuard};
use towpath_protocol::class::Class;

/// Most bytes of one turn: what the shaper grants at once, so that a small write waits for little.
pub(crate) const PIECE_BYTES: usize = 64 * 1024;

/// The queues in front of a link's connections. The link's own messages and control use none: they
/// are few and short. Demand has its own, so that it does not wait behind applications.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    demand: Mutex<()>,
    urgent: Mutex<()>,
    bulk: Mutex<()>,
}

impl Turns {
    /// Waits for a stream's turn to write a piece. The turn lasts until the result is dropped.
    pub(crate) async fn wait(&self, class: Class) -> Option<MutexGuard<'_, ()>> {
        let row = match class {
            Class::Control => return None,
            Class::Demand => &self.demand,
            Class::App | Class::Switch => &self.urgent,
            Class::Bulk | Class::Scavenger => &self.bulk,
        };
        Some(row.lock().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::sync::{Arc, Mutex as Lock};
    use std::task::{Poll, Waker};
    use tokio::task::yield_now;

    /// A connection's send window that wakes waiting writers as QUIC does.
    #[derive(Default)]
    struct Window(Lock<(usize, Vec<Waker>)>);

    impl Window {
        /// Writes a whole piece, waiting as often as that takes.
        async fn write(&self, mut bytes: usize) {
            poll_fn(|context| {
                let (room, waiting) = &mut *self.0.lock().unwrap();
                let written = bytes.min(*room);
                *room -= written;
                bytes -= written;
                if bytes == 0 {
                    return Poll::Ready(());
                }
                waiting.push(context.waker().clone());
                Poll::Pending
            })
            .await;
        }

        /// Frees `bytes` of the window, as an acknowledgement does.
        fn open(&self, bytes: usize) {
            let mut state = self.0.lock().unwrap();
            state.0 += bytes;
            let waiting = std::mem::take(&mut state.1);
            drop(state);
            waiting.into_iter().rev().for_each(Waker::wake);
        }
    }

    /// Bytes that streams of these classes send while 30 KB of the window come free two thousand
    /// times.
    async fn shares(classes: &[Class]) -> Vec<usize> {
        let (turns, window) = (Arc::new(Turns::default()), Arc::new(Window::default()));
        let sent = Arc::new(Lock::new(vec![0; classes.len()]));
        let tasks = classes.iter().enumerate().map(|(index, class)| {
            let (turns, window, class) = (Arc::clone(&turns), Arc::clone(&window), *class);
            let sent = Arc::clone(&sent);
            tokio::spawn(async move {
                loop {
                    let _turn = turns.wait(class).await;
                    window.write(PIECE_BYTES).await;
                    sent.lock().unwrap()[index] += PIECE_BYTES;
                }
            })
        });
        let tasks: Vec<_> = tasks.collect();
        for _ in 0..2000 {
            window.open(30_000);
            // Lets every task that this wakes run until it waits again.
            for _ in 0..2 * classes.len() + 2 {
                yield_now().await;
            }
        }
        tasks.iter().for_each(tokio::task::JoinHandle::abort);
        let shares = sent.lock().unwrap();
        shares.clone()
    }

    #[tokio::test]
    async fn streams_of_a_class_have_even_shares_of_a_full_window() {
        for class in [Class::Demand, Class::App, Class::Bulk] {
            for count in [1, 2, 3, 4, 20] {
                let shares = shares(&vec![class; count]).await;
                let (least, most) = (shares.iter().min(), shares.iter().max());
                let apart = most.unwrap() - least.unwrap();
                assert!(apart <= 2 * PIECE_BYTES, "{class}: {shares:?}");
                assert!(shares.iter().sum::<usize>() > 50_000_000);
            }
        }
    }

    #[tokio::test]
    async fn demand_does_not_wait_behind_applications() {
        let mut classes = vec![Class::App; 8];
        classes.insert(4, Class::Demand);
        let shares = shares(&classes).await;
        let apps = shares.iter().sum::<usize>() - shares[4];
        assert!(shares[4] >= apps / 2, "{shares:?}");
    }
}
