//! The queue of future events, in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use super::link::Nanos;

/// Events, earliest first; those at the same time in the order they were added.
#[derive(Debug)]
pub(super) struct Agenda<T> {
    order: BinaryHeap<Reverse<(Nanos, u64)>>,
    things: BTreeMap<u64, T>,
    next: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            order: BinaryHeap::new(),
            things: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<T> Agenda<T> {
    /// Adds an event at a time.
    pub(super) fn add(&mut self, at: Nanos, thing: T) {
        self.order.push(Reverse((at, self.next)));
        self.things.insert(self.next, thing);
        self.next += 1;
    }

    /// Removes the next event.
    pub(super) fn next(&mut self) -> Option<(Nanos, T)> {
        let Reverse((at, number)) = self.order.pop()?;
        let thing = self.things.remove(&number);
        thing.map(|thing| (at, thing))
    }
}
