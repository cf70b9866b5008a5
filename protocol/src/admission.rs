//! Admission of guests to a host: the quota shared by guests that live there, start there and are
//! on their way, and the limits on peers that send guests. Nothing is reserved before admission.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fault::{Code, Fault};
use crate::identity::{AttemptId, GuestId, HostIdentity};
use crate::size::Size;
use crate::time::Instant;

/// Most guests being received at a time, over all peers. Bounds the table when guests are tiny.
pub const OPEN_MAX: usize = 256;

/// How long a place is kept for an attempt that has sent data and then stopped. An outage of
/// minutes must not force a move to start over; an outage of a day may.
pub const IDLE_TTL: Duration = Duration::from_secs(3600);

/// The resources that guests may use on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Memory of all guests together, in bytes.
    pub memory_bytes_max: u64,
    /// Number of guests.
    pub guest_count_max: usize,
    /// Guests that one peer may be sending at a time. Bounds the places of a peer that only sends
    /// `Prepare`.
    pub per_peer_count_max: usize,
    /// How long a place is kept for an attempt that has sent no data.
    pub offer_wait: Duration,
}

/// A guest that lives on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Living {
    /// Its id.
    pub guest: GuestId,
    /// Its memory, in bytes.
    pub memory_bytes: u64,
}

/// Whom a place is kept for.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Holder {
    /// A peer that sends the guest.
    Peer {
        peer: HostIdentity,
        attempt: AttemptId,
        has_data: bool,
        used_last: Instant,
    },
    /// An operator who starts the guest here. Kept until the start has succeeded or failed.
    Operator,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    holder: Holder,
    memory_bytes: u64,
}

impl Place {
    fn is_over(&self, quota: &Quota, now: Instant) -> bool {
        match self.holder {
            Holder::Peer {
                has_data,
                used_last,
                ..
            } => used_last + if has_data { IDLE_TTL } else { quota.offer_wait } <= now,
            Holder::Operator => false,
        }
    }

    fn is_of(&self, other: &HostIdentity) -> bool {
        matches!(&self.holder, Holder::Peer { peer, .. } if peer == other)
    }

    fn is_for(&self, other: AttemptId) -> bool {
        matches!(&self.holder, Holder::Peer { attempt, .. } if *attempt == other)
    }
}

/// The guests that will soon live on a host, and the quota of the host.
///
/// The caller passes in the guests that live on the host now. A guest that both lives there and has
/// a place counts once.
#[derive(Debug, Clone)]
pub struct Admission {
    quota: Quota,
    places: BTreeMap<GuestId, Place>,
}

impl Admission {
    /// A host with this quota and no places.
    #[must_use]
    pub const fn new(quota: Quota) -> Self {
        Self {
            quota,
            places: BTreeMap::new(),
        }
    }

    /// Gives an attempt a place. Repeating the call for the same attempt is harmless; a newer
    /// attempt of the same peer replaces the older.
    ///
    /// # Errors
    ///
    /// `E_DOUBLE_OFFER` if another peer is sending the guest; `E_BUSY` if the peer, or all peers
    /// together, are at their limit, or if the guest starts here; `E_QUOTA` if there is no room.
    /// Nothing changes on an error.
    pub fn admit(
        &mut self,
        peer: &HostIdentity,
        guest: GuestId,
        attempt: AttemptId,
        memory_bytes: u64,
        living: &[Living],
        now: Instant,
    ) -> Result<(), Fault> {
        let mut used_last_before = now;
        let mut had_data = false;
        match self.place(guest, now).map(|place| &place.holder) {
            Some(Holder::Peer { peer: other, .. }) if other != peer => {
                let detail = format!("{peer} offers a guest that {other} is sending");
                return Err(Fault::new(Code::DoubleOffer, detail));
            }
            // Asking again is not data: it does not extend the time.
            Some(Holder::Peer {
                attempt: known,
                has_data,
                used_last,
                ..
            }) if *known == attempt => (used_last_before, had_data) = (*used_last, *has_data),
            Some(Holder::Operator) => return Err(begins(guest)),
            _ => {}
        }
        let sends = |place: &&Place| matches!(place.holder, Holder::Peer { .. });
        let open_count = self.others(guest, now).filter(sends).count();
        let is_same = |place: &&Place| place.is_of(peer);
        let peer_count = self.others(guest, now).filter(is_same).count();
        if peer_count >= self.quota.per_peer_count_max || open_count >= OPEN_MAX {
            let detail = format!("{peer} is sending {peer_count} guests, all peers {open_count}");
            return Err(Fault::new(Code::Busy, detail));
        }
        self.check_room(guest, memory_bytes, living, now)?;
        let holder = Holder::Peer {
            peer: peer.clone(),
            attempt,
            has_data: had_data,
            used_last: used_last_before,
        };
        self.put(guest, holder, memory_bytes, now);
        Ok(())
    }

    /// Restores the place of an attempt that was admitted before a restart, without checking the
    /// quota again. `has_data` says whether the attempt had sent data.
    pub fn readmit(
        &mut self,
        peer: &HostIdentity,
        (guest, attempt): (GuestId, AttemptId),
        memory_bytes: u64,
        has_data: bool,
        now: Instant,
    ) {
        let holder = Holder::Peer {
            peer: peer.clone(),
            attempt,
            has_data,
            used_last: now,
        };
        self.put(guest, holder, memory_bytes, now);
    }

    /// Gives a guest that starts here a place until [`Admission::end`].
    ///
    /// # Errors
    ///
    /// `E_QUOTA` if there is no room, `E_BUSY` if the guest is on its way to this host or starts
    /// already. Nothing changes on an error.
    pub fn begin(
        &mut self,
        guest: GuestId,
        memory_bytes: u64,
        living: &[Living],
        now: Instant,
    ) -> Result<(), Fault> {
        match self.place(guest, now).map(|place| &place.holder) {
            Some(Holder::Peer { peer, .. }) => {
                let detail = format!("{peer} is sending guest {guest}");
                return Err(Fault::new(Code::Busy, detail));
            }
            Some(Holder::Operator) => return Err(begins(guest)),
            None => {}
        }
        self.check_room(guest, memory_bytes, living, now)?;
        self.put(guest, Holder::Operator, memory_bytes, now);
        Ok(())
    }

    /// Frees the place of a guest that started here. It now lives and is counted as living, or it
    /// failed to start.
    pub fn end(&mut self, guest: GuestId) {
        let place = self.places.get(&guest);
        if place.is_some_and(|place| place.holder == Holder::Operator) {
            self.places.remove(&guest);
        }
    }

    fn place(&self, guest: GuestId, now: Instant) -> Option<&Place> {
        let place = self.places.get(&guest);
        place.filter(|place| !place.is_over(&self.quota, now))
    }

    /// The places of all guests but this one.
    fn others(&self, guest: GuestId, now: Instant) -> impl Iterator<Item = &Place> {
        let places = self.places.iter();
        places
            .filter(move |(id, place)| **id != guest && !place.is_over(&self.quota, now))
            .map(|(_, place)| place)
    }

    /// Checks that the quota has room for one more guest.
    fn check_room(
        &self,
        guest: GuestId,
        memory_bytes: u64,
        living: &[Living],
        now: Instant,
    ) -> Result<(), Fault> {
        let has_no_place =
            |other: &&Living| other.guest != guest && self.place(other.guest, now).is_none();
        let living = || living.iter().filter(has_no_place);
        let count = self.others(guest, now).count() + living().count();
        if count >= self.quota.guest_count_max {
            let max = self.quota.guest_count_max;
            let detail =
                format!("{count} guests of {max} are here or on their way: raise quota.guests");
            return Err(Fault::new(Code::Quota, detail));
        }
        let expected = self.others(guest, now).map(|place| place.memory_bytes);
        let all = expected.chain(living().map(|guest| guest.memory_bytes));
        let used_bytes = all.fold(0, u64::saturating_add);
        let max_bytes = self.quota.memory_bytes_max;
        if memory_bytes > max_bytes.saturating_sub(used_bytes) {
            let [wanted, used, most] = [memory_bytes, used_bytes, max_bytes].map(Size::from_bytes);
            let detail = format!(
                "memory of {wanted} is wanted, {used} of {most} are used: raise quota.memory"
            );
            return Err(Fault::new(Code::Quota, detail));
        }
        Ok(())
    }

    fn put(&mut self, guest: GuestId, holder: Holder, memory_bytes: u64, now: Instant) {
        self.places
            .retain(|_, place| !place.is_over(&self.quota, now));
        let place = Place {
            holder,
            memory_bytes,
        };
        self.places.insert(guest, place);
    }

    /// Notes that data of an attempt came, which extends the time its place is kept.
    pub fn touch(&mut self, guest: GuestId, attempt: AttemptId, now: Instant) {
        if let Some(place) = self.places.get_mut(&guest)
            && let Holder::Peer {
                attempt: known,
                has_data,
                used_last,
                ..
            } = &mut place.holder
            && *known == attempt
        {
            *has_data = true;
            *used_last = now;
        }
    }

    /// Frees the place of an attempt: it is over, or its guest runs here and is counted as living.
    pub fn release(&mut self, guest: GuestId, attempt: AttemptId) {
        if self
            .places
            .get(&guest)
            .is_some_and(|place| place.is_for(attempt))
        {
            self.places.remove(&guest);
        }
    }
}

fn begins(guest: GuestId) -> Fault {
    Fault::new(
        Code::Busy,
        format!("guest {guest} begins here at the moment"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    const PER_PEER_MAX: usize = 4;

    fn room_for(memory_bytes_max: u64) -> Admission {
        Admission::new(Quota {
            memory_bytes_max,
            guest_count_max: 1000,
            per_peer_count_max: PER_PEER_MAX,
            offer_wait: Duration::from_secs(60),
        })
    }

    fn lives(number: u128, memory_bytes: u64) -> Living {
        Living {
            guest: GuestId(number),
            memory_bytes,
        }
    }

    fn peer(name: &str) -> HostIdentity {
        HostIdentity {
            trust_domain: "shop.example".parse().unwrap(),
            site: "edge".parse().unwrap(),
            host: name.parse().unwrap(),
        }
    }

    fn at(seconds: u64) -> Instant {
        Instant::ZERO + Duration::from_secs(seconds)
    }

    fn admit(
        admission: &mut Admission,
        name: &str,
        number: u128,
        memory_bytes: u64,
        now: Instant,
    ) -> Option<Code> {
        let (guest, attempt) = (GuestId(number), AttemptId(number));
        let result = admission.admit(&peer(name), guest, attempt, memory_bytes, &[], now);
        result.err().map(|fault| fault.code)
    }

    /// Asserts that exactly this many bytes are left for the next guest.
    fn assert_leaves(admission: &Admission, bytes: u64, now: Instant) {
        let comes = |memory_bytes| {
            let mut admission = admission.clone();
            admit(&mut admission, "next", 77_777, memory_bytes, now)
        };
        assert_eq!(comes(bytes), None);
        assert_eq!(comes(bytes + 1), Some(Code::Quota));
    }

    #[test]
    fn h10_a_thousand_offers_without_data_hold_four_places_for_a_minute() {
        let mut admission = room_for(64 * MIB);
        let admitted = (0..1_000).filter(|&n| admit(&mut admission, "a", n, MIB, at(0)).is_none());
        assert_eq!(admitted.count(), PER_PEER_MAX);
        assert_leaves(&admission, 60 * MIB, at(0));
        assert_eq!(
            admit(&mut admission, "a", 9_999, MIB, at(59)),
            Some(Code::Busy)
        );
        assert_eq!(admit(&mut admission, "b", 5_000, MIB, at(59)), None);
        // Asking again does not extend the time.
        assert_eq!(admit(&mut admission, "a", 0, MIB, at(59)), None);
        assert_leaves(&admission, 59 * MIB, at(59));
        assert_leaves(&admission, 63 * MIB, at(60));
        assert_eq!(admit(&mut admission, "a", 9_999, MIB, at(60)), None);
    }

    #[test]
    fn h10_places_that_are_over_do_not_count_even_before_they_are_freed() {
        let mut admission = room_for(4 * MIB);
        for number in 0..4 {
            assert_eq!(admit(&mut admission, "a", number, MIB, at(0)), None);
        }
        assert_eq!(admit(&mut admission, "a", 9, 4 * MIB, at(60)), None);
        assert_leaves(&admission, 0, at(60));
    }

    #[test]
    fn f11_memory_above_the_quota_is_refused_and_reserves_nothing() {
        let mut admission = room_for(4 * MIB);
        assert_eq!(
            admit(&mut admission, "a", 1, u64::MAX, at(0)),
            Some(Code::Quota)
        );
        assert_eq!(admit(&mut admission, "a", 1, 3 * MIB, at(0)), None);
        assert_eq!(
            admit(&mut admission, "b", 2, 2 * MIB, at(0)),
            Some(Code::Quota)
        );
        assert_leaves(&admission, MIB, at(0));
        admission.release(GuestId(1), AttemptId(9));
        assert_leaves(&admission, MIB, at(0));
        admission.release(GuestId(1), AttemptId(1));
        assert_eq!(admit(&mut admission, "b", 2, 2 * MIB, at(0)), None);
    }

    #[test]
    fn memory_that_is_not_left_is_told_in_the_units_it_is_configured_in() {
        let mut admission = room_for(16 << 30);
        assert_eq!(admit(&mut admission, "a", 1, 3 << 29, at(0)), None);
        let (peer, guest, attempt) = (peer("a"), GuestId(2), AttemptId(2));
        let refused = admission.admit(&peer, guest, attempt, 64 << 30, &[], at(0));
        let fault = refused.unwrap_err();
        let told = "memory of 64GiB is wanted, 1.5GiB of 16GiB are used";
        assert!(fault.detail.contains(told), "{fault}");
    }

    #[test]
    fn data_keeps_a_place_through_an_outage_of_minutes() {
        let mut admission = room_for(4 * MIB);
        assert_eq!(admit(&mut admission, "a", 1, MIB, at(0)), None);
        admission.touch(GuestId(1), AttemptId(1), at(30));
        assert_leaves(&admission, 3 * MIB, at(630));
        // The lanes come back and the source offers the same attempt again.
        assert_eq!(admit(&mut admission, "a", 1, MIB, at(630)), None);
        assert_leaves(&admission, 3 * MIB, at(29) + IDLE_TTL);
        assert_leaves(&admission, 4 * MIB, at(30) + IDLE_TTL);
    }

    #[test]
    fn h06_a_guest_has_one_place_and_one_peer() {
        let mut admission = room_for(4 * MIB);
        let guest = GuestId(1);
        let mut admit = |name, number, now| {
            let attempt = AttemptId(number);
            let result = admission.admit(&peer(name), guest, attempt, 3 * MIB, &[], now);
            result.map_err(|fault| fault.code)
        };
        assert_eq!(admit("a", 1, at(0)), Ok(()));
        assert_eq!(admit("b", 2, at(0)), Err(Code::DoubleOffer));
        assert_eq!(admit("a", 3, at(0)), Ok(()));
        assert_eq!(admit("b", 2, at(60)), Ok(()));
        assert_leaves(&admission, MIB, at(60));
    }

    #[test]
    fn all_peers_together_have_a_limit() {
        let mut admission = room_for(u64::MAX);
        for number in 0..OPEN_MAX {
            let name = format!("host-{}", number / PER_PEER_MAX);
            assert_eq!(admit(&mut admission, &name, number as u128, 1, at(0)), None);
        }
        assert_eq!(
            admit(&mut admission, "another", 9_999, 1, at(0)),
            Some(Code::Busy)
        );
    }

    #[test]
    fn f11_memory_is_counted_once_over_all_who_live_begin_and_arrive() {
        let mut admission = room_for(8 * MIB);
        let living = [lives(1, 3 * MIB)];
        let begin = |admission: &mut Admission, number, memory_bytes| {
            let result = admission.begin(GuestId(number), memory_bytes, &living, at(0));
            result.map_err(|fault| fault.code)
        };
        let arrive = |admission: &mut Admission, number, memory_bytes| {
            let (guest, attempt) = (GuestId(number), AttemptId(number));
            let edge = peer("a");
            let result = admission.admit(&edge, guest, attempt, memory_bytes, &living, at(0));
            result.map_err(|fault| fault.code)
        };
        assert_eq!(arrive(&mut admission, 2, 3 * MIB), Ok(()));
        // Each alone fits beside the guest that lives here; both together do not.
        assert_eq!(arrive(&mut admission, 3, 3 * MIB), Err(Code::Quota));
        assert_eq!(begin(&mut admission, 4, 3 * MIB), Err(Code::Quota));
        assert_eq!(begin(&mut admission, 4, 2 * MIB), Ok(()));
        assert_eq!(arrive(&mut admission, 5, 1), Err(Code::Quota));
        assert_eq!(begin(&mut admission, 4, 1), Err(Code::Busy));
        // A guest that has a place and lives already counts once.
        admission.end(GuestId(4));
        let living = [lives(1, 3 * MIB), lives(2, 3 * MIB)];
        let result = admission.begin(GuestId(6), 2 * MIB, &living, at(0));
        assert_eq!(result, Ok(()));
        let more = admission.begin(GuestId(7), 1, &living, at(0));
        assert_eq!(more.unwrap_err().code, Code::Quota);
    }

    #[test]
    fn guests_are_counted_once_over_all_who_live_begin_and_arrive() {
        let mut admission = Admission::new(Quota {
            memory_bytes_max: u64::MAX,
            guest_count_max: 3,
            per_peer_count_max: PER_PEER_MAX,
            offer_wait: Duration::from_secs(60),
        });
        let living = [lives(1, u64::MAX / 2)];
        let edge = peer("a");
        let (guest, attempt) = (GuestId(2), AttemptId(2));
        assert_eq!(
            admission.admit(&edge, guest, attempt, 1, &living, at(0)),
            Ok(())
        );
        assert_eq!(admission.begin(GuestId(3), 1, &living, at(0)), Ok(()));
        let arrived = admission.admit(&edge, GuestId(4), AttemptId(4), 1, &living, at(0));
        assert_eq!(arrived.unwrap_err().code, Code::Quota);
        let begun = admission.begin(GuestId(4), 1, &living, at(0));
        assert!(begun.unwrap_err().detail.contains("quota.guests"));
        // Repeating an offer counts nothing twice, and neither does booting a guest that lives
        // here.
        assert_eq!(
            admission.admit(&edge, guest, attempt, 1, &living, at(0)),
            Ok(())
        );
        assert_eq!(admission.begin(GuestId(1), 1, &living, at(0)), Ok(()));
        // An expired place does not count. An operator's place never expires.
        assert_eq!(admission.begin(GuestId(4), 1, &living, at(60)), Ok(()));
        let again = admission.begin(GuestId(4), 1, &living, at(999_999));
        assert_eq!(again.unwrap_err().code, Code::Busy);
    }

    #[test]
    fn attempts_from_before_a_restart_count_against_their_peer() {
        let mut admission = room_for(64 * MIB);
        let count = PER_PEER_MAX as u128;
        for number in 0..count {
            let attempt = (GuestId(number), AttemptId(number));
            admission.readmit(&peer("a"), attempt, MIB, true, at(0));
        }
        let more = |admission: &mut Admission, name| admit(admission, name, 9, MIB, at(61));
        assert_eq!(more(&mut admission, "a"), Some(Code::Busy));
        admission.release(GuestId(0), AttemptId(0));
        assert_eq!(more(&mut admission, "a"), None);
    }

    #[test]
    fn h10_a_restart_makes_no_data_of_an_offer_without() {
        let mut admission = room_for(64 * MIB);
        let attempt = (GuestId(1), AttemptId(1));
        admission.readmit(&peer("a"), attempt, MIB, false, at(0));
        assert_leaves(&admission, 63 * MIB, at(59));
        assert_leaves(&admission, 64 * MIB, at(60));
    }
}
