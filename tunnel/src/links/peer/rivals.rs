//! Detects two tunnels that show one identity, as a host and its copy do. Pure.
//!
//! A restarted tunnel has a run id that is new to us, and its link replaces the one before at once.
//! A run that comes back after another run has replaced it belongs to a second tunnel. If both were
//! admitted, they would replace each other's link for as long as they run. So the tunnel that has
//! the link keeps it while it answers.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use towpath_protocol::fault::{Code, Fault};

use crate::links::link::Link;
use crate::streams::table::Party;

/// Remembered runs: more than the copies of a host that exist by mistake.
const RUN_COUNT_MAX: usize = 8;

/// Refused links of one run in a row before a second tunnel is certain. A tunnel that has ended may
/// have left one attempt under way, since it joins one link at a time.
const REFUSAL_COUNT_MIN: u32 = 2;

/// How long after the last refusal the second tunnel counts as present: a few times its pause
/// between two attempts.
const SHOWN: Duration = Duration::from_secs(15);

/// The remedy for two tunnels that show one identity.
pub(crate) const REMEDY: &str =
    "issue the copy a certificate of its own; revoke this one if you do not know it";

/// The runs of a peer's tunnels, and whether two are present at once.
#[derive(Debug, Default)]
pub(super) struct Rivals {
    /// The run whose link was accepted last.
    last: Option<Party>,
    /// Runs that another run has replaced, newest last.
    past: VecDeque<Party>,
    /// The run whose link was refused last, and how many times in a row.
    refused: Option<(Party, u32)>,
    shown: Option<Shown>,
}

#[derive(Debug)]
struct Shown {
    words: String,
    at: Instant,
}

impl Rivals {
    /// Records the run whose link was accepted.
    pub(super) fn note_taken(&mut self, party: &Party) {
        if self.last.as_ref() == Some(party) {
            return;
        }
        self.past.retain(|past| past != party);
        if let Some(last) = self.last.replace(party.clone()) {
            if self.past.len() == RUN_COUNT_MAX {
                self.past.pop_front();
            }
            self.past.push_back(last);
        }
    }

    /// Whether another run has replaced this one.
    pub(super) fn is_past(&self, party: &Party) -> bool {
        self.past.contains(party)
    }

    /// Records a link that was refused because another run has the link. Returns a warning if one
    /// is due.
    fn note_refused(
        &mut self,
        party: &Party,
        addresses: [SocketAddr; 2],
        now: Instant,
    ) -> Option<String> {
        let count = match &self.refused {
            Some((last, count)) if last == party => count.saturating_add(1),
            _ => 1,
        };
        self.refused = Some((party.clone(), count));
        if count < REFUSAL_COUNT_MIN {
            return None;
        }
        if let Some(shown) = self.shown.as_mut().filter(|shown| shown.is_fresh(now)) {
            shown.at = now;
            return None;
        }
        let [one, other] = addresses;
        let words = format!(
            "two tunnels show the identity {}, from {one} and from {other}",
            party.host
        );
        self.shown = Some(Shown {
            words: words.clone(),
            at: now,
        });
        Some(words)
    }

    /// Refuses a link because another run has the link, and logs a warning once a second tunnel is
    /// certain.
    pub(super) fn refuse(&mut self, current: &Link, new: &Link) -> Fault {
        let addresses = [current, new].map(Link::remote_address);
        if let Some(words) = self.note_refused(&new.party(), addresses, Instant::now()) {
            tracing::warn!(target: "audit", remedy = REMEDY, "{words}");
        }
        let detail = format!(
            "another tunnel that shows the identity {} has the link",
            new.peer
        );
        Fault::new(Code::State, detail).remedy(REMEDY)
    }

    /// The warning to show while two tunnels are present.
    pub(super) fn shown(&self, now: Instant) -> Option<String> {
        let shown = self.shown.as_ref().filter(|shown| shown.is_fresh(now));
        shown.map(|shown| shown.words.clone())
    }
}

impl Shown {
    fn is_fresh(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.at) < SHOWN
    }
}

#[cfg(test)]
mod tests {
    use towpath_protocol::identity::HostIdentity;
    use towpath_protocol::preamble::RunId;

    use super::*;

    fn run(number: u128) -> Party {
        let host = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
        Party {
            host,
            run: RunId(number),
        }
    }

    fn addresses() -> [SocketAddr; 2] {
        ["192.0.2.1:7600", "192.0.2.2:7600"].map(|address| address.parse().unwrap())
    }

    #[test]
    fn a_run_that_was_never_seen_is_no_rival_and_one_that_comes_back_is() {
        let mut rivals = Rivals::default();
        for number in 1..=20 {
            assert!(!rivals.is_past(&run(number)));
            rivals.note_taken(&run(number));
            rivals.note_taken(&run(number));
            assert!(!rivals.is_past(&run(number)), "it has the link");
        }
        assert!(rivals.is_past(&run(19)) && rivals.is_past(&run(12)));
        assert!(!rivals.is_past(&run(11)), "forgotten");
        // It may have the link again once the other run has lost it.
        rivals.note_taken(&run(19));
        assert!(!rivals.is_past(&run(19)) && rivals.is_past(&run(20)));
    }

    #[test]
    fn two_tunnels_are_told_of_once_as_long_as_both_are_there() {
        let (mut rivals, mut now) = (Rivals::default(), Instant::now());
        rivals.note_taken(&run(1));
        rivals.note_taken(&run(2));
        // An attempt that the earlier run has left under way.
        assert_eq!(rivals.note_refused(&run(1), addresses(), now), None);
        assert_eq!(rivals.shown(now), None);
        let told = rivals.note_refused(&run(1), addresses(), now).unwrap();
        assert!(told.contains("edge/box-1, from 192.0.2.1:7600 and from 192.0.2.2:7600"));
        for _ in 0..100 {
            now += Duration::from_secs(1);
            assert_eq!(rivals.note_refused(&run(1), addresses(), now), None);
            assert_eq!(rivals.shown(now), Some(told.clone()));
        }
        now += SHOWN;
        assert_eq!(rivals.shown(now), None, "it is gone");
        assert!(rivals.note_refused(&run(1), addresses(), now).is_some());
    }
}
