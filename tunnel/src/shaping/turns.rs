//! Turns of those who wait for room in a connection.
//!
//! QUIC takes as much as its send window has room for. When some comes free it wakes all who wait, those that
//! came last first, and the first to write takes it all and waits anew, first again: the two ends of the row
//! alternate, and those between them get nothing for as long as that goes on. So whoever writes waits here,
//! where who came first goes next, a piece at a time, and of each row one at most waits for the connection.

use tokio::sync::{Mutex, MutexGuard};
use towpath_protocol::channel::Class;

/// Most bytes of one turn: what the shaper grants at once, so that a small write waits for little.
pub(crate) const PIECE_BYTES: usize = 64 * 1024;

/// The rows before a link's connections. The link's own words and control wait in none: they are few and short.
/// Nor does demand wait behind applications.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    demand: Mutex<()>,
    urgent: Mutex<()>,
    bulk: Mutex<()>,
}

impl Turns {
    /// Waits until it is a stream's turn to write a piece, which lasts until the answer is dropped.
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

    /// A connection's send window, that wakes those who wait as QUIC does.
    #[derive(Default)]
    struct Window(Lock<(usize, Vec<Waker>)>);

    impl Window {
        /// Writes a whole piece, with as many waits as that takes.
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

        /// So much was acknowledged.
        fn open(&self, bytes: usize) {
            let mut state = self.0.lock().unwrap();
            state.0 += bytes;
            let waiting = std::mem::take(&mut state.1);
            drop(state);
            waiting.into_iter().rev().for_each(Waker::wake);
        }
    }

    /// What streams of these classes get of a window of which 30 KB come free two thousand times.
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
            // All that this wakes has come to rest.
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
