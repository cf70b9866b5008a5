//! Counts concurrent uses per key. Dropping a [`Place`] gives it back; keys at zero are forgotten.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

/// The taken places, by key.
#[derive(Debug)]
pub(crate) struct Places<K: Ord>(Mutex<BTreeMap<K, usize>>);

impl<K: Ord> Default for Places<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Ord + Clone> Places<K> {
    /// How many places are taken, and how many of them by `who`.
    pub(crate) fn taken(&self, who: &K) -> (usize, usize) {
        taken_of(&self.lock(), who)
    }

    /// Takes a place.
    pub(crate) fn take(self: &Arc<Self>, who: &K) -> Place<K> {
        let Ok(place) = self.take_if(who, |_, _| Ok::<_, Infallible>(()));
        place
    }

    /// Takes a place if `check` allows it, given how many are taken and how many of them by `who`.
    ///
    /// # Errors
    ///
    /// The error of `check`.
    pub(crate) fn take_if<E>(
        self: &Arc<Self>,
        who: &K,
        check: impl FnOnce(usize, usize) -> Result<(), E>,
    ) -> Result<Place<K>, E> {
        let mut places = self.lock();
        let (all, theirs) = taken_of(&places, who);
        check(all, theirs)?;
        places.insert(who.clone(), theirs + 1);
        Ok(Place {
            places: Arc::clone(self),
            who: who.clone(),
        })
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }
}

impl<K: Ord> Places<K> {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, usize>> {
        self.0.lock()
    }
}

fn taken_of<K: Ord>(places: &BTreeMap<K, usize>, who: &K) -> (usize, usize) {
    let theirs = places.get(who).copied().unwrap_or(0);
    (places.values().sum(), theirs)
}

/// A taken place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Ord> {
    places: Arc<Places<K>>,
    who: K,
}

impl<K: Ord> Drop for Place<K> {
    fn drop(&mut self) {
        let mut places = self.places.lock();
        match places.get_mut(&self.who) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(places.remove(&self.who)),
        }
    }
}
