//! The queue in front of a worker: inputs in the order they arrived.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Most inputs from outside that may be queued. Beyond it the sending thread waits, so that a peer
/// that sends too much only delays itself.
const BOUNDED_INPUTS_MAX: usize = 1024;

/// A queue of inputs for one thread.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    state: Mutex<State<T>>,
    /// Signalled when there is an input or the mailbox closes.
    filled: Condvar,
    /// Signalled when there is room or the mailbox closes.
    emptied: Condvar,
}

#[derive(Debug)]
struct State<T> {
    inputs: VecDeque<T>,
    is_closed: bool,
    /// Whether the worker sleeps. Notifying nobody would still cost a system call.
    is_awaited: bool,
    /// Whether a sender waits for room.
    is_crowded: bool,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Self {
        let state = State {
            inputs: VecDeque::new(),
            is_closed: false,
            is_awaited: false,
            is_crowded: false,
        };
        Self {
            state: Mutex::new(state),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state
            .lock()
            .expect("nothing panics while it holds a mailbox")
    }

    /// Queues an input whose number is bounded by its nature, such as one that the worker itself
    /// causes.
    pub(super) fn send(&self, input: T) {
        self.send_all([input]);
    }

    /// As [`Mailbox::send`], waking the worker once for all inputs.
    pub(super) fn send_all(&self, inputs: impl IntoIterator<Item = T>) {
        let mut state = self.lock();
        if !state.is_closed {
            state.inputs.extend(inputs);
            self.wake(state);
        }
    }

    /// Queues inputs caused by a peer, waiting while the mailbox is full. Returns `false` once it
    /// is closed.
    pub(super) fn send_bounded(&self, inputs: impl IntoIterator<Item = T>) -> bool {
        let mut state = self.lock();
        while state.inputs.len() >= BOUNDED_INPUTS_MAX && !state.is_closed {
            state.is_crowded = true;
            state = self
                .emptied
                .wait(state)
                .expect("nothing panics while it holds a mailbox");
        }
        if state.is_closed {
            return false;
        }
        state.inputs.extend(inputs);
        self.wake(state);
        true
    }

    /// Wakes the worker if it sleeps. The lock is released first, or the worker would wake only to
    /// wait for it.
    fn wake(&self, mut state: MutexGuard<'_, State<T>>) {
        let is_awaited = std::mem::take(&mut state.is_awaited);
        drop(state);
        if is_awaited {
            self.filled.notify_one();
        }
    }

    /// Waits for the next input until `until`; for ever if `None`.
    pub(super) fn receive(&self, until: Option<Instant>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(input) = self.take(&mut state) {
                return Some(input);
            }
            let left = match until {
                None => Duration::from_secs(3600),
                Some(until) => until.checked_duration_since(Instant::now())?,
            };
            state.is_awaited = true;
            state = self
                .filled
                .wait_timeout(state, left)
                .expect("nothing panics while it holds a mailbox")
                .0;
            state.is_awaited = false;
        }
    }

    /// The next input, if one is queued.
    pub(super) fn try_receive(&self) -> Option<T> {
        self.take(&mut self.lock())
    }

    fn take(&self, state: &mut State<T>) -> Option<T> {
        let input = state.inputs.pop_front();
        if state.inputs.len() < BOUNDED_INPUTS_MAX && std::mem::take(&mut state.is_crowded) {
            self.emptied.notify_all();
        }
        input
    }

    /// Closes the mailbox: queued inputs are dropped, and senders stop waiting.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.inputs.clear();
        self.filled.notify_all();
        self.emptied.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::thread;

    /// Longest that any wait in these tests may take.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn soon() -> Option<Instant> {
        Some(Instant::now() + PATIENCE)
    }

    fn until(mailbox: &Mailbox<usize>, is_so: impl Fn(&State<usize>) -> bool) {
        let begun = Instant::now();
        while !is_so(&mailbox.lock()) {
            assert!(begun.elapsed() < PATIENCE, "nobody waits");
            thread::yield_now();
        }
    }

    #[test]
    fn what_is_sent_is_heard_in_its_order() {
        let mailbox = Arc::new(Mailbox::new());
        let worker = Arc::clone(&mailbox);
        let heard = thread::spawn(move || [(); 4].map(|()| worker.receive(soon())));
        until(&mailbox, |state| state.is_awaited);
        mailbox.send_all([1, 2]);
        until(&mailbox, |state| state.is_awaited);
        assert!(mailbox.send_bounded([3]));
        until(&mailbox, |state| state.is_awaited);
        mailbox.send(4);
        assert_eq!(heard.join().unwrap(), [1, 2, 3, 4].map(Some));
        assert_eq!(mailbox.try_receive(), None);
        mailbox.send_all([5]);
        assert_eq!(mailbox.receive(Some(Instant::now())), Some(5));
        assert_eq!(mailbox.receive(Some(Instant::now())), None);
    }

    #[test]
    fn who_finds_no_room_waits_for_it_or_for_the_end() {
        let mailbox = Arc::new(Mailbox::new());
        mailbox.send_all(0..BOUNDED_INPUTS_MAX);
        let talkers = [7, 8].map(|number| {
            let mailbox = Arc::clone(&mailbox);
            thread::spawn(move || mailbox.send_bounded([number; 2]))
        });
        until(&mailbox, |state| state.is_crowded);
        let heard: Vec<usize> = (0..BOUNDED_INPUTS_MAX + 4)
            .map(|_| mailbox.receive(soon()).expect("who waits hears of room"))
            .collect();
        assert!(talkers.map(|talker| talker.join().unwrap()) == [true; 2]);
        assert_eq!(heard.iter().filter(|number| **number == 8).count(), 3);
        mailbox.send_all(0..BOUNDED_INPUTS_MAX);
        let talker = Arc::clone(&mailbox);
        let talker = thread::spawn(move || talker.send_bounded([9]));
        until(&mailbox, |state| state.is_crowded);
        mailbox.close();
        assert!(!talker.join().unwrap());
    }
}
