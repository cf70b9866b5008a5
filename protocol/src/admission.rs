//! Whom a target lets begin to send a guest: nothing is reserved before this says yes.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fault::{Code, Fault};
use crate::identity::{AttemptId, GuestId, HostIdentity};
use crate::time::Instant;

/// Most guests one peer may be sending at a time: a drain keeps a thin link busy with fewer, and a
/// peer that only says `Prepare` cannot hold more than these.
pub const OPEN_PER_PEER_MAX: usize = 4;

/// Most guests being received at a time, over all peers: bounds the table when guests are tiny.
pub const OPEN_MAX: usize = 256;

/// How long a place is kept for an attempt that has sent no data.
pub const NO_DATA_TTL: Duration = Duration::from_secs(60);

/// How long a place is kept for an attempt that has sent data and stopped: an outage of minutes is no
/// reason to begin again from nothing, a day's is.
pub const IDLE_TTL: Duration = Duration::from_secs(3600);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    peer: HostIdentity,
    attempt: AttemptId,
    memory_bytes: u64,
    has_data: bool,
    used_last: Instant,
}

impl Place {
    fn expires(&self) -> Instant {
        self.used_last + if self.has_data { IDLE_TTL } else { NO_DATA_TTL }
    }
}

/// The guests a target is receiving, and what they may take.
#[derive(Debug, Clone)]
pub struct Admission {
    memory_bytes_max: u64,
    places: BTreeMap<GuestId, Place>,
}

impl Admission {
    /// A target that spares `memory_bytes_max` bytes for guests being received.
    #[must_use]
    pub const fn new(memory_bytes_max: u64) -> Self {
        Self {
            memory_bytes_max,
            places: BTreeMap::new(),
        }
    }

    /// Gives an attempt its place; again for the same attempt is harmless, a newer attempt of the same
    /// peer takes the place of the older.
    ///
    /// # Errors
    ///
    /// `E_DOUBLE_OFFER` if another peer is sending the guest, `E_BUSY` if the peer or all peers
    /// together send as many as they may, `E_QUOTA` if the memory is not to be had. Nothing changes then.
    pub fn admit(
        &mut self,
        peer: &HostIdentity,
        guest: GuestId,
        attempt: AttemptId,
        memory_bytes: u64,
        now: Instant,
    ) -> Result<(), Fault> {
        let live = |place: &Place| place.expires() > now;
        let mut used_last = now;
        let mut has_data = false;
        if let Some(place) = self.places.get(&guest).filter(|place| live(place)) {
            if place.peer != *peer {
                let detail = format!("{peer} offers a guest that {} is sending", place.peer);
                return Err(Fault::new(Code::DoubleOffer, detail));
            }
            // Asking again is not data: it does not lengthen the stay.
            if place.attempt == attempt {
                (used_last, has_data) = (place.used_last, place.has_data);
            }
        }
        let others = || {
            let is_other = |(id, place): &(&GuestId, &Place)| **id != guest && live(place);
            self.places.iter().filter(is_other).map(|(_, place)| place)
        };
        let open_count = others().count();
        let peer_count = others().filter(|place| place.peer == *peer).count();
        if peer_count >= OPEN_PER_PEER_MAX || open_count >= OPEN_MAX {
            let detail = format!("{peer} is sending {peer_count} guests, all peers {open_count}");
            return Err(Fault::new(Code::Busy, detail));
        }
        let taken_bytes: u64 = others().map(|place| place.memory_bytes).sum();
        let free_bytes = self.memory_bytes_max.saturating_sub(taken_bytes);
        if memory_bytes > free_bytes {
            let detail = format!("{memory_bytes} bytes of memory wanted, {free_bytes} free");
            return Err(Fault::new(Code::Quota, detail));
        }
        self.places.retain(|_, place| live(place));
        let place = Place {
            peer: peer.clone(),
            attempt,
            memory_bytes,
            has_data,
            used_last,
        };
        self.places.insert(guest, place);
        Ok(())
    }

    /// Data of an attempt came: its place is kept on.
    pub fn touch(&mut self, guest: GuestId, attempt: AttemptId, now: Instant) {
        if let Some(place) = self.places.get_mut(&guest)
            && place.attempt == attempt
        {
            place.has_data = true;
            place.used_last = now;
        }
    }

    /// An attempt is over, or its guest runs here now and is counted with those: its place is free.
    pub fn release(&mut self, guest: GuestId, attempt: AttemptId) {
        if self
            .places
            .get(&guest)
            .is_some_and(|place| place.attempt == attempt)
        {
            self.places.remove(&guest);
        }
    }

    /// Frees the places of attempts that went silent and names them, for their owner to give up.
    pub fn expire(&mut self, now: Instant) -> Vec<(GuestId, AttemptId)> {
        let is_over = |place: &Place| place.expires() <= now;
        let places = self.places.iter().filter(|(_, place)| is_over(place));
        let over = places
            .map(|(guest, place)| (*guest, place.attempt))
            .collect();
        self.places.retain(|_, place| !is_over(place));
        over
    }

    /// When [`Admission::expire`] has something to do, if nothing changes.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.places.values().map(Place::expires).min()
    }

    /// Bytes of memory given to attempts now.
    #[must_use]
    pub fn reserved_bytes(&self) -> u64 {
        self.places.values().map(|place| place.memory_bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

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
        let result = admission.admit(&peer(name), guest, attempt, memory_bytes, now);
        result.err().map(|fault| fault.code)
    }

    #[test]
    fn h10_a_thousand_offers_without_data_hold_four_places_for_a_minute() {
        let mut admission = Admission::new(64 * MIB);
        let admitted = (0..1_000).filter(|&n| admit(&mut admission, "a", n, MIB, at(0)).is_none());
        assert_eq!(admitted.count(), OPEN_PER_PEER_MAX);
        assert_eq!(admission.reserved_bytes(), 4 * MIB);
        assert_eq!(
            admit(&mut admission, "a", 9_999, MIB, at(59)),
            Some(Code::Busy)
        );
        assert_eq!(admit(&mut admission, "b", 5_000, MIB, at(59)), None);
        // Asking again does not lengthen the stay.
        assert_eq!(admit(&mut admission, "a", 0, MIB, at(59)), None);
        assert_eq!(admission.deadline(), Some(at(60)));
        assert_eq!(admission.expire(at(60)).len(), 4);
        assert_eq!(admission.reserved_bytes(), MIB);
        assert_eq!(admit(&mut admission, "a", 9_999, MIB, at(60)), None);
    }

    #[test]
    fn h10_places_that_are_over_do_not_count_even_before_they_are_freed() {
        let mut admission = Admission::new(4 * MIB);
        for number in 0..4 {
            assert_eq!(admit(&mut admission, "a", number, MIB, at(0)), None);
        }
        assert_eq!(admit(&mut admission, "a", 9, 4 * MIB, at(60)), None);
        assert_eq!(admission.reserved_bytes(), 4 * MIB);
    }

    #[test]
    fn f11_memory_above_the_quota_is_refused_and_reserves_nothing() {
        let mut admission = Admission::new(4 * MIB);
        assert_eq!(
            admit(&mut admission, "a", 1, u64::MAX, at(0)),
            Some(Code::Quota)
        );
        assert_eq!(admit(&mut admission, "a", 1, 3 * MIB, at(0)), None);
        assert_eq!(
            admit(&mut admission, "b", 2, 2 * MIB, at(0)),
            Some(Code::Quota)
        );
        assert_eq!(admission.reserved_bytes(), 3 * MIB);
        admission.release(GuestId(1), AttemptId(9));
        assert_eq!(admission.reserved_bytes(), 3 * MIB);
        admission.release(GuestId(1), AttemptId(1));
        assert_eq!(admit(&mut admission, "b", 2, 2 * MIB, at(0)), None);
    }

    #[test]
    fn data_keeps_a_place_through_an_outage_of_minutes() {
        let mut admission = Admission::new(4 * MIB);
        assert_eq!(admit(&mut admission, "a", 1, MIB, at(0)), None);
        admission.touch(GuestId(1), AttemptId(1), at(30));
        assert_eq!(admission.expire(at(630)), []);
        // The lanes come back and the source offers the same attempt again.
        assert_eq!(admit(&mut admission, "a", 1, MIB, at(630)), None);
        assert_eq!(
            admission.expire(at(30) + IDLE_TTL),
            [(GuestId(1), AttemptId(1))]
        );
    }

    #[test]
    fn h06_a_guest_has_one_place_and_one_peer() {
        let mut admission = Admission::new(4 * MIB);
        let guest = GuestId(1);
        let mut admit = |name, number, now| {
            let result = admission.admit(&peer(name), guest, AttemptId(number), 3 * MIB, now);
            result.map_err(|fault| fault.code)
        };
        assert_eq!(admit("a", 1, at(0)), Ok(()));
        assert_eq!(admit("b", 2, at(0)), Err(Code::DoubleOffer));
        assert_eq!(admit("a", 3, at(0)), Ok(()));
        assert_eq!(admit("b", 2, at(60)), Ok(()));
        assert_eq!(admission.reserved_bytes(), 3 * MIB);
    }

    #[test]
    fn all_peers_together_have_a_limit() {
        let mut admission = Admission::new(u64::MAX);
        for number in 0..OPEN_MAX {
            let name = format!("host-{}", number / OPEN_PER_PEER_MAX);
            assert_eq!(admit(&mut admission, &name, number as u128, 1, at(0)), None);
        }
        assert_eq!(
            admit(&mut admission, "another", 9_999, 1, at(0)),
            Some(Code::Busy)
        );
    }
}
