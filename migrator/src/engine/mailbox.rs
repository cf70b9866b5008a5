//! The queue in front of a worker: what happened, in the order it was heard of.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Inputs from outside that may wait at once: beyond it whoever hears of more has to wait, so that a
/// peer that talks too much waits for itself.
const BOUNDED_INPUTS_MAX: usize = 1024;

/// A queue of inputs for one thread.
#[derive(Debug)]
pub(super) struct Mailbox<T> {
    state: Mutex<State<T>>,
    moved: Condvar,
}

#[derive(Debug)]
struct State<T> {
    inputs: VecDeque<T>,
    is_closed: bool,
}

impl<T> Mailbox<T> {
    pub(super) fn new() -> Self {
        let state = State {
            inputs: VecDeque::new(),
            is_closed: false,
        };
        Self {
            state: Mutex::new(state),
            moved: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state
            .lock()
            .expect("nothing panics while it holds a mailbox")
    }

    /// Puts in what is bounded by its nature: the worker's own doings.
    pub(super) fn send(&self, input: T) {
        self.send_all([input]);
    }

    /// As [`Mailbox::send`]; the worker wakes once for all.
    pub(super) fn send_all(&self, inputs: impl IntoIterator<Item = T>) {
        let mut state = self.lock();
        if !state.is_closed {
            state.inputs.extend(inputs);
            self.moved.notify_all();
        }
    }

    /// Puts in what a peer causes: waits while there is too much already. Says no once nobody reads.
    pub(super) fn send_bounded(&self, inputs: impl IntoIterator<Item = T>) -> bool {
        let mut state = self.lock();
        while state.inputs.len() >= BOUNDED_INPUTS_MAX && !state.is_closed {
            state = self
                .moved
                .wait(state)
                .expect("nothing panics while it holds a mailbox");
        }
        if state.is_closed {
            return false;
        }
        state.inputs.extend(inputs);
        self.moved.notify_all();
        true
    }

    /// The next input; waits for one until `until`, or for ever.
    pub(super) fn receive(&self, until: Option<Instant>) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(input) = state.inputs.pop_front() {
                self.moved.notify_all();
                return Some(input);
            }
            let left = match until {
                None => Duration::from_secs(3600),
                Some(until) => until.checked_duration_since(Instant::now())?,
            };
            state = self
                .moved
                .wait_timeout(state, left)
                .expect("nothing panics while it holds a mailbox")
                .0;
        }
    }

    /// The next input if there is one.
    pub(super) fn try_receive(&self) -> Option<T> {
        let input = self.lock().inputs.pop_front();
        if input.is_some() {
            self.moved.notify_all();
        }
        input
    }

    /// Nobody reads any more.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        state.inputs.clear();
        self.moved.notify_all();
    }
}
