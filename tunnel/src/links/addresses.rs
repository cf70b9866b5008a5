//! Resolves a peer's name repeatedly, one lookup at a time.
//!
//! Lookups start every few seconds and not with each attempt to dial, because a peer that is away
//! for days would otherwise cost its resolver nine queries a second. A lookup cannot be cancelled,
//! and without an answer it occupies its thread for as long as the resolver takes. So attempts use
//! the addresses found last while a lookup is under way or fails.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use towpath_protocol::fault::{Code, Fault};

/// Minimum time between the starts of two lookups of the same name. While a peer is away, attempts
/// to dial start four times a second, and each lookup is at least two queries to the resolver.
const LOOKUP_PAUSE: Duration = Duration::from_secs(5);

/// The resolver's answers for a name.
#[derive(Debug, Default)]
struct Resolved {
    is_looking: bool,
    /// When the last lookup started; `None` before the first and after a change of the network.
    looked_at: Option<Instant>,
    addresses: Vec<SocketAddr>,
    /// Those of `addresses` that were dialled, the most recent last.
    dialled: Vec<SocketAddr>,
    /// Why the last failed lookup found nothing.
    why: String,
}

/// The address to dial now.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    At(SocketAddr),
    /// No address is known yet, and a lookup is under way.
    Wait,
    Nowhere(String),
}

impl Resolved {
    /// Whether to start a lookup; if so, it counts as started.
    fn look(&mut self, now: Instant) -> bool {
        let is_early = |at: Instant| now.saturating_duration_since(at) < LOOKUP_PAUSE;
        if self.is_looking || self.looked_at.is_some_and(is_early) {
            return false;
        }
        self.is_looking = true;
        self.looked_at = Some(now);
        true
    }

    /// The network has changed, and perhaps the resolver or its answer.
    fn note_network(&mut self) {
        self.looked_at = None;
    }

    /// Records the result of a lookup.
    fn found(&mut self, found: Result<Vec<SocketAddr>, String>) {
        self.is_looking = false;
        match found {
            Ok(addresses) if addresses.is_empty() => "no address".clone_into(&mut self.why),
            Ok(addresses) => {
                self.dialled.retain(|address| addresses.contains(address));
                self.addresses = addresses;
            }
            Err(why) => self.why = why,
        }
    }

    /// Chooses the addresses in turn, since nobody knows beforehand which of them is cut off. A
    /// resolver may return them in another order each time, so the choice is the first that was
    /// never dialled, or else the one dialled longest ago.
    fn next(&mut self) -> Next {
        let waited = |address: &&SocketAddr| self.dialled.iter().position(|one| one == *address);
        if let Some(address) = self.addresses.iter().min_by_key(waited).copied() {
            self.dialled.retain(|one| *one != address);
            self.dialled.push(address);
            return Next::At(address);
        }
        match self.is_looking {
            true => Next::Wait,
            false => Next::Nowhere(self.why.clone()),
        }
    }
}

/// A peer's name with its port, and the addresses found for it.
#[derive(Debug)]
pub(crate) struct PeerAddress {
    pub name: String,
    known: watch::Sender<Resolved>,
}

impl PeerAddress {
    /// A name without any known address.
    pub(crate) fn new(name: String) -> Arc<Self> {
        let (known, _) = watch::channel(Resolved::default());
        Arc::new(Self { name, known })
    }

    /// Makes the next attempt look the name up, however recent the last lookup.
    pub(crate) fn note_network(&self) {
        self.known.send_modify(Resolved::note_network);
    }

    /// Returns the address to dial next. Starts a lookup for later attempts, unless the last one
    /// was recent.
    ///
    /// # Errors
    ///
    /// `E_UNREACHABLE` if no address is known and the lookup has found none.
    pub(crate) async fn next(self: &Arc<Self>) -> Result<SocketAddr, Fault> {
        if self
            .known
            .send_if_modified(|known| known.look(Instant::now()))
        {
            let place = Arc::clone(self);
            // In a task, since the caller may give up before the answer.
            tokio::spawn(async move {
                let found = tokio::net::lookup_host(&place.name).await;
                let found = found.map(Iterator::collect);
                let found = found.map_err(|error| error.to_string());
                place.known.send_modify(|known| known.found(found));
            });
        }
        let mut changes = self.known.subscribe();
        loop {
            changes.mark_unchanged();
            let mut next = Next::Wait;
            self.known.send_if_modified(|known| {
                next = known.next();
                false
            });
            match next {
                Next::At(address) => return Ok(address),
                Next::Nowhere(why) => {
                    let detail = format!("{}: {why}", self.name);
                    return Err(Fault::new(Code::Unreachable, detail));
                }
                // Fails only if the sender is gone, and `self` owns it.
                Next::Wait => {
                    let _ = changes.changed().await;
                }
            }
        }
    }

    /// Whether no address has been found yet.
    pub(crate) fn is_unknown(&self) -> bool {
        self.known.borrow().addresses.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 7000))
    }

    #[test]
    fn one_lookup_runs_at_a_time_and_what_was_found_last_is_dialled_meanwhile() {
        let (mut known, mut now) = (Resolved::default(), Instant::now());
        assert!(known.look(now));
        assert_eq!(known.next(), Next::Wait);
        for _ in 0..100 {
            now += LOOKUP_PAUSE;
            assert!(
                !known.look(now),
                "another lookup beside one without an answer"
            );
        }
        let mut look = |known: &mut Resolved| {
            now += LOOKUP_PAUSE;
            known.look(now)
        };
        known.found(Err("no such host".to_owned()));
        assert_eq!(known.next(), Next::Nowhere("no such host".to_owned()));
        assert!(look(&mut known));
        known.found(Ok(vec![at(1)]));
        assert!(look(&mut known));
        assert_eq!(known.next(), Next::At(at(1)), "while the next is awaited");
        for failed in [Err("the resolver is gone".to_owned()), Ok(Vec::new())] {
            known.found(failed);
            assert_eq!(known.next(), Next::At(at(1)));
            assert!(look(&mut known));
        }
        known.found(Ok(vec![at(2)]));
        assert_eq!(known.next(), Next::At(at(2)));
    }

    #[test]
    fn a_peer_that_is_away_costs_a_lookup_every_few_seconds_and_one_more_when_the_network_changes()
    {
        let (mut known, began) = (Resolved::default(), Instant::now());
        let mut count = 0;
        for attempt in 0..240 {
            if known.look(began + attempt * Duration::from_millis(250)) {
                // A failed lookup is no reason to ask sooner.
                known.found(Err("no such host".to_owned()));
                count += 1;
            }
        }
        assert_eq!(count, 12, "in a minute");
        let now = began + Duration::from_mins(1) - Duration::from_millis(250);
        assert!(!known.look(now));
        known.note_network();
        assert!(known.look(now));
        // A lookup that started before the change may have asked the old resolver.
        known.note_network();
        assert!(!known.look(now));
        known.found(Ok(vec![at(1)]));
        assert!(known.look(now));
    }

    #[test]
    fn attempts_take_a_names_addresses_in_turns() {
        let mut known = Resolved::default();
        known.found(Ok(vec![at(1), at(2)]));
        let dialled = [(); 4].map(|()| known.next());
        assert_eq!(dialled, [at(1), at(2), at(1), at(2)].map(Next::At));
    }

    #[test]
    fn no_address_is_left_out_by_a_resolver_that_turns_them_round() {
        let mut known = Resolved::default();
        let mut answer = vec![at(1), at(2), at(3)];
        let mut dialled = Vec::new();
        for _ in 0..9 {
            known.found(Ok(answer.clone()));
            answer.rotate_right(1);
            dialled.push(known.next());
        }
        for number in 1..=3 {
            let count = dialled.iter().filter(|next| **next == Next::At(at(number)));
            assert_eq!(count.count(), 3, "{dialled:?}");
        }
        // A new address is tried at once, a removed one no more.
        known.found(Ok(vec![at(2), at(4)]));
        assert_eq!([known.next(), known.next()], [at(4), at(2)].map(Next::At));
    }
}
