//! Admission of handshakes: limits for strangers, with room for peers that come back together.
//! Pure.
//!
//! A source that has proved nothing may be anybody, so handshakes are limited per source. But when
//! a region restarts, all its peers dial at once, many of them from behind one address. For them
//! the limits rise with the number of peers that have no link. Once all peers are linked, the
//! normal limits apply again.

use std::net::IpAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::{DefaultKeyedRateLimiter, Quota};
use parking_lot::Mutex;
use towpath_protocol::amounts::millis;

use crate::places::{Place, Places};
use crate::trust::dropped::DropReason;

/// Handshakes under way at once; each costs a signature and some kilobytes.
const COUNT_MAX: usize = 64;

/// Handshakes under way above which a source has to prove its address first (T02).
const RETRY_ABOVE: usize = COUNT_MAX / 2;

/// Handshakes under way from one source. A stranger who starts many and finishes none leaves room
/// for others (T03). A peer's overlapping attempts over a slow link are as many.
const PER_SOURCE_COUNT_MAX: usize = COUNT_MAX / 4;

/// The highest value of this limit while peers are missing, which may all be behind one address.
const MISSING_COUNT_MAX: usize = COUNT_MAX * 3 / 4;

/// Handshakes under way from one source above which it has to prove its address first. Nobody can
/// use up the places of somebody else's address.
const PER_SOURCE_RETRY_ABOVE: usize = PER_SOURCE_COUNT_MAX / 2;

/// Handshakes per second from one source (T03): a peer dials two connections, four times a second.
/// On top of that, [`PER_MISSING`] per second for each missing peer, shared by all sources.
const PER_SOURCE: NonZeroU32 = NonZeroU32::new(16).expect("not zero");
const PER_MISSING: u32 = 8;

/// Handshakes from one source in a burst: four overlapping attempts of several peers behind one
/// NAT.
const PER_SOURCE_BURST: NonZeroU32 = NonZeroU32::new(64).expect("not zero");

/// Minimum time between two counts of the missing peers, even under a flood.
const LOOK: Duration = Duration::from_millis(50);

/// Sources remembered before the idle ones are forgotten.
const SOURCE_COUNT_MAX: usize = 4096;

/// The decision on a handshake.
#[derive(Debug)]
pub(super) enum Verdict {
    /// The handshake may begin, and has this place until it is over.
    Begin(Place<IpAddr>),
    /// The source has to prove its address first.
    Prove,
    /// The handshake is not answered.
    Drop(DropReason),
}

/// Decides which handshakes may begin, and counts those under way.
#[derive(Debug)]
pub(super) struct Gate {
    /// The handshakes under way, by source.
    places: Arc<Places<IpAddr>>,
    sources: DefaultKeyedRateLimiter<IpAddr>,
    spare: Mutex<Spare>,
}

impl Gate {
    pub(super) fn new(now: Instant) -> Self {
        let per_source = Quota::per_second(PER_SOURCE).allow_burst(PER_SOURCE_BURST);
        Self {
            places: Arc::default(),
            sources: DefaultKeyedRateLimiter::keyed(per_source),
            spare: Mutex::new(Spare::new(now)),
        }
    }

    /// Decides on a handshake from an address. `is_proved` says whether the source has proved the
    /// address; `missing` counts the peers without a link.
    pub(super) fn admit(
        &self,
        address: IpAddr,
        is_proved: bool,
        now: Instant,
        missing: impl FnOnce() -> usize,
    ) -> Verdict {
        let source = source_of(address);
        let mut spare = self.spare.lock();
        spare.look(now, missing);
        let (all, here) = self.places.taken(&source);
        if all >= COUNT_MAX || here >= spare.per_source() {
            return Verdict::Drop(DropReason::TooMany);
        }
        let is_flood = all >= RETRY_ABOVE || here >= PER_SOURCE_RETRY_ABOVE;
        if is_flood && !is_proved {
            return Verdict::Prove;
        }
        if self.sources.len() > SOURCE_COUNT_MAX {
            self.sources.retain_recent();
        }
        if self.sources.check_key(&source).is_err() && !spare.take() {
            return Verdict::Drop(DropReason::TooFast);
        }
        Verdict::Begin(self.places.take(&source))
    }
}

/// Handshakes that may begin beyond each source's own limit.
#[derive(Debug)]
struct Spare {
    missing: usize,
    /// Handshakes to spare, in thousandths.
    credit: u64,
    looked: Instant,
}

impl Spare {
    const fn new(now: Instant) -> Self {
        Self {
            missing: 0,
            credit: 0,
            looked: now,
        }
    }

    /// Counts the missing peers again if [`LOOK`] has passed, and adds credit, up to that of one
    /// second.
    fn look(&mut self, now: Instant, missing: impl FnOnce() -> usize) {
        let passed = now.saturating_duration_since(self.looked);
        if passed < LOOK {
            return;
        }
        self.looked = now;
        self.missing = missing();
        let count = u32::try_from(self.missing).unwrap_or(u32::MAX);
        let per_second = u64::from(count) * u64::from(PER_MISSING) * 1000;
        let earned = (per_second / 1000).saturating_mul(millis(passed));
        self.credit = self.credit.saturating_add(earned).min(per_second);
    }

    /// Handshakes that may be under way from one source.
    fn per_source(&self) -> usize {
        let two_each = PER_SOURCE_COUNT_MAX.saturating_add(self.missing.saturating_mul(2));
        two_each.min(MISSING_COUNT_MAX)
    }

    /// Takes one spare handshake; returns whether there was one.
    const fn take(&mut self) -> bool {
        let left = self.credit.checked_sub(1000);
        if let Some(left) = left {
            self.credit = left;
        }
        left.is_some()
    }
}

/// The unit in which sources are counted: an IPv4 address, or the /64 that one IPv6 host is usually
/// given.
fn source_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => address,
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(mapped) => mapped.into(),
            None => {
                let bits = u128::from(address) & !u128::from(u64::MAX);
                IpAddr::V6(bits.into())
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t03_sources_are_counted_by_what_one_host_is_given() {
        let of = |text: &str| source_of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Handshakes admitted within one second, at four attempts per millisecond. Each ends at once.
    fn begun(gate: &Gate, source: IpAddr, began: Instant, missing: usize) -> usize {
        let admitted = (0..4000_u64).filter(|nth| {
            let now = began + Duration::from_millis(nth / 4);
            matches!(gate.admit(source, true, now, || missing), Verdict::Begin(_))
        });
        admitted.count()
    }

    #[test]
    fn t03_a_stranger_begins_few_where_nobody_is_missing() {
        let began = Instant::now();
        let gate = Gate::new(began);
        let count = begun(&gate, address("192.0.2.1"), began, 0);
        let own = usize::try_from(PER_SOURCE_BURST.get()).unwrap();
        assert!((own..own + 32).contains(&count), "{count}");
    }

    #[test]
    fn peers_behind_one_address_come_back_together() {
        let began = Instant::now();
        let gate = Gate::new(began);
        // Each attempts two connections, four times a second.
        let count = begun(&gate, address("192.0.2.1"), began, 220);
        assert!(count > 8 * 200, "{count} handshakes for 220 peers");
        // With no peer missing, nothing is left to spare.
        let later = began + Duration::from_secs(2);
        let count = begun(&gate, address("192.0.2.2"), later, 0);
        let own = usize::try_from(PER_SOURCE_BURST.get()).unwrap();
        assert!((own..own + 32).contains(&count), "{count}");
    }

    #[test]
    fn t03_who_begins_and_ends_none_leaves_room_for_others() {
        let began = Instant::now();
        for missing in [0, 4, 1000] {
            let gate = Gate::new(began);
            let now = began + LOOK;
            let mut places = Vec::new();
            loop {
                match gate.admit(address("192.0.2.1"), true, now, || missing) {
                    Verdict::Begin(place) => places.push(place),
                    Verdict::Prove => panic!("it is proved"),
                    Verdict::Drop(_) => break,
                }
            }
            let own = PER_SOURCE_COUNT_MAX + 2 * missing;
            assert_eq!(
                places.len(),
                own.min(MISSING_COUNT_MAX),
                "{missing} missing"
            );
            let other = gate.admit(address("192.0.2.2"), true, now, || missing);
            assert!(matches!(other, Verdict::Begin(_)), "{other:?}");
        }
    }

    #[test]
    fn t02_many_under_way_have_to_prove_their_address() {
        let now = Instant::now();
        let gate = Gate::new(now);
        let mut places = Vec::new();
        while let Verdict::Begin(place) = gate.admit(address("192.0.2.1"), false, now, || 0) {
            places.push(place);
        }
        assert_eq!(places.len(), PER_SOURCE_RETRY_ABOVE);
        let next = |is_proved| gate.admit(address("192.0.2.1"), is_proved, now, || 0);
        assert!(matches!(next(false), Verdict::Prove));
        assert!(matches!(next(true), Verdict::Begin(_)));
    }
}
