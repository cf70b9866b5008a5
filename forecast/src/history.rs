//! The measurements of a link, kept for years in bounded space: slots of five minutes for a week,
//! of an hour for half a year, of a day for five years.
//!
//! ```text
//!  "TOWPATHF" | version | 3 x (grain, count, first index, count x slot) | crc32c of all before
//! ```

use std::collections::VecDeque;

use towpath_protocol::fault::{Code, Fault};

use crate::moment::Moment;
use crate::season::Hour;

/// The first bytes of a history file.
const MAGIC: [u8; 8] = *b"TOWPATHF";

/// The version of the file format.
const VERSION: u32 = 1;

/// Grains: seconds per slot, and the number of slots kept, for a week, half a year and five years.
const GRAINS: [(u64, usize); 3] = [(300, 2016), (HOUR_SECONDS, 4368), (86_400, 1830)];

/// Seconds of an hour.
pub const HOUR_SECONDS: u64 = 3600;

const SLOT_BYTES: usize = 36;

/// Largest encoded history, in bytes.
pub const ENCODED_BYTES_MAX: usize = 320 * 1024;

/// Samples stamped before 2024 come from a clock that was not set.
pub(crate) const CLOCK_SET: Moment = Moment::from_unix_seconds(1_704_067_200);

/// Seconds of samples that are enough to count for a whole slot.
pub(crate) const SEEN_SECONDS_MIN: u32 = 5;

/// Share of the observed seconds without a link from which on a slot counts as an outage.
const OUTAGE_SHARE: f64 = 0.9;

/// What one measurement of a short interval found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sample {
    /// The path was the limit: it carries this rate, in bytes per second.
    Capacity(f64),
    /// The programs were the limit: the path carries this rate or more. Never counts as capacity.
    ApplicationLimited(f64),
    /// Our own cap, of this rate, was the limit: the path carries this rate or more.
    CapLimited(f64),
    /// There was no link.
    Down,
}

/// What is kept of one span of time. Rates are in bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Slot {
    /// Mean rate over the seconds in which the path was the limit.
    capacity: f32,
    /// Mean rate over the seconds in which the programs were the limit.
    bound: f32,
    seen_seconds: u32,
    bound_seconds: u32,
    down_seconds: u32,
    /// Mean cap over the seconds in which the cap was the limit.
    capped: f32,
    capped_seconds: u32,
    /// The highest mean rate over [`SEEN_SECONDS_MIN`] seconds.
    peak: f32,
    /// The highest cap that [`SEEN_SECONDS_MIN`] capped seconds in a row all reached.
    held: f32,
}

impl Slot {
    fn observe(&mut self, sample: Sample, seconds: u32) {
        let follow = |mean: &mut f32, count: &mut u32, rate: f64| {
            *count = count.saturating_add(seconds);
            let share = f64::from(seconds) / f64::from((*count).max(1));
            let new = f64::from(*mean) + (sane(rate) - f64::from(*mean)) * share;
            *mean = short(new);
        };
        match sample {
            Sample::Capacity(rate) => follow(&mut self.capacity, &mut self.seen_seconds, rate),
            Sample::ApplicationLimited(rate) => {
                follow(&mut self.bound, &mut self.bound_seconds, rate);
            }
            Sample::CapLimited(rate) => follow(&mut self.capped, &mut self.capped_seconds, rate),
            Sample::Down => self.down_seconds = self.down_seconds.saturating_add(seconds),
        }
    }

    /// The rate of the span. Time without a link counts as zero.
    #[must_use]
    pub fn told(&self) -> Hour {
        let [seen, bound, capped] =
            [self.seen_seconds, self.bound_seconds, self.capped_seconds].map(f64::from);
        let up = seen + bound + capped;
        let down = f64::from(self.down_seconds);
        let up_share = if up + down > 0.0 {
            up / (up + down)
        } else {
            1.0
        };
        let (capacity, reached) = (f64::from(self.capacity), f64::from(self.capped));
        if self.seen_seconds >= SEEN_SECONDS_MIN {
            // The path is the limit only while it is slower than the cap. Those seconds alone would
            // not be representative.
            let rate = if reached > capacity {
                (capacity * seen + reached * capped) / (seen + capped)
            } else {
                capacity
            };
            Hour::Rate(rate * up_share)
        } else if down > 0.0 && up_share <= 1.0 - OUTAGE_SHARE {
            Hour::Rate(0.0)
        } else {
            let reached = (self.capped_seconds >= SEEN_SECONDS_MIN).then_some(reached);
            let most = [reached, self.bound()].into_iter().flatten();
            let most = most.max_by(f64::total_cmp);
            most.map_or(Hour::Unknown, |most| Hour::AtLeast(most * up_share))
        }
    }

    /// The mean rate that programs sent at, in bytes per second, if they sent for long enough.
    fn bound(&self) -> Option<f64> {
        let is_bound = self.bound > 0.0 && self.bound_seconds >= SEEN_SECONDS_MIN;
        is_bound.then_some(self.bound.into())
    }

    /// The highest rate that the path was seen to carry for long enough, in bytes per second.
    fn carried(&self) -> Option<f64> {
        let known = [
            (self.seen_seconds >= SEEN_SECONDS_MIN).then_some(self.capacity.into()),
            (self.held > 0.0).then_some(self.held.into()),
            self.bound(),
        ];
        known.into_iter().flatten().max_by(f64::total_cmp)
    }

    /// The highest mean rate over a few seconds, in bytes per second.
    fn peak(&self) -> Option<f64> {
        (self.peak > 0.0).then_some(self.peak.into())
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.capacity.to_le_bytes());
        bytes.extend(self.bound.to_le_bytes());
        for seconds in [self.seen_seconds, self.bound_seconds, self.down_seconds] {
            bytes.extend(seconds.to_le_bytes());
        }
        bytes.extend(self.capped.to_le_bytes());
        bytes.extend(self.capped_seconds.to_le_bytes());
        bytes.extend(self.peak.to_le_bytes());
        bytes.extend(self.held.to_le_bytes());
    }

    fn decode(bytes: &mut Bytes<'_>) -> Result<Self, Fault> {
        let rate = |bytes: &mut Bytes<'_>| {
            let rate = f32::from_le_bytes(bytes.take()?);
            let is_rate = rate.is_finite() && rate >= 0.0;
            is_rate.then_some(rate).ok_or_else(|| damaged("a rate"))
        };
        Ok(Self {
            capacity: rate(bytes)?,
            bound: rate(bytes)?,
            seen_seconds: u32::from_le_bytes(bytes.take()?),
            bound_seconds: u32::from_le_bytes(bytes.take()?),
            down_seconds: u32::from_le_bytes(bytes.take()?),
            capped: rate(bytes)?,
            capped_seconds: u32::from_le_bytes(bytes.take()?),
            peak: rate(bytes)?,
            held: rate(bytes)?,
        })
    }
}

/// Limits a rate to what may be kept: from zero to a thousand times the fastest link.
fn sane(rate: f64) -> f64 {
    if rate.is_nan() {
        0.0
    } else {
        rate.clamp(0.0, 1e14)
    }
}

/// A rate in the precision of a slot.
#[expect(clippy::cast_possible_truncation, reason = "seven digits are enough")]
fn short(rate: f64) -> f32 {
    sane(rate) as f32
}

/// The slots of one grain, oldest first, without gaps.
#[derive(Debug, Clone, PartialEq)]
struct Ring {
    grain_seconds: u64,
    count_max: usize,
    first: u64,
    slots: VecDeque<Slot>,
}

impl Ring {
    const fn new((grain_seconds, count_max): (u64, usize)) -> Self {
        Self {
            grain_seconds,
            count_max,
            first: 0,
            slots: VecDeque::new(),
        }
    }

    /// The slot of a moment, made if it is new; `None` if the moment is too old to be kept.
    fn slot(&mut self, at: Moment) -> Option<&mut Slot> {
        let index = at.unix_seconds() / self.grain_seconds;
        let end = self.first + self.slots.len() as u64;
        if self.slots.is_empty() || index >= end + self.count_max as u64 {
            self.slots.clear();
            self.first = index;
        }
        while self.first + self.slots.len() as u64 <= index {
            if self.slots.len() == self.count_max {
                self.slots.pop_front();
                self.first += 1;
            }
            self.slots.push_back(Slot::default());
        }
        let place = index.checked_sub(self.first)?;
        self.slots.get_mut(usize::try_from(place).ok()?)
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend(self.grain_seconds.to_le_bytes());
        bytes.extend((self.slots.len() as u64).to_le_bytes());
        bytes.extend(self.first.to_le_bytes());
        for slot in &self.slots {
            slot.encode(bytes);
        }
    }

    fn decode(grain: (u64, usize), bytes: &mut Bytes<'_>) -> Result<Self, Fault> {
        let mut ring = Self::new(grain);
        let grain_seconds = u64::from_le_bytes(bytes.take()?);
        let count = u64::from_le_bytes(bytes.take()?);
        ring.first = u64::from_le_bytes(bytes.take()?);
        let last = crate::moment::MOMENT_MAX.unix_seconds() / ring.grain_seconds;
        let count = usize::try_from(count).map_err(|_| damaged("a count"))?;
        if grain_seconds != ring.grain_seconds || count > ring.count_max || ring.first > last {
            return Err(damaged("a grain, a count or a time"));
        }
        for _ in 0..count {
            ring.slots.push_back(Slot::decode(bytes)?);
        }
        Ok(ring)
    }
}

/// The history of one direction of a link to one peer.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    rings: [Ring; 3],
}

impl Default for History {
    fn default() -> Self {
        Self {
            rings: GRAINS.map(Ring::new),
        }
    }
}

impl History {
    /// Takes a sample that ended at a moment and covers this many seconds.
    pub fn observe(&mut self, at: Moment, sample: Sample, seconds: u32) {
        self.note(at, |slot| slot.observe(sample, seconds));
    }

    /// Notes a cap that was the limit for long enough.
    pub(crate) fn hold(&mut self, at: Moment, cap: f64) {
        self.note(at, |slot| slot.held = slot.held.max(short(cap)));
    }

    /// Notes a mean rate over enough seconds, in bytes per second.
    pub(crate) fn peak(&mut self, at: Moment, rate: f64) {
        self.note(at, |slot| slot.peak = slot.peak.max(short(rate)));
    }

    /// Changes the slot of a moment in each ring, unless the moment is from a clock that was not
    /// set.
    fn note(&mut self, at: Moment, change: impl Fn(&mut Slot)) {
        if at < CLOCK_SET {
            return;
        }
        for ring in &mut self.rings {
            if let Some(slot) = ring.slot(at) {
                change(slot);
            }
        }
    }

    /// Drops the slots after a moment: they were stamped by a wrong clock.
    pub fn forget_after(&mut self, at: Moment) {
        for ring in &mut self.rings {
            let index = at.unix_seconds() / ring.grain_seconds;
            let kept = (index + 1).saturating_sub(ring.first);
            ring.slots
                .truncate(usize::try_from(kept).unwrap_or(usize::MAX));
        }
    }

    /// The kept hours, oldest first, each with its number since 1970.
    pub fn hours(&self) -> impl Iterator<Item = (u64, Hour)> + '_ {
        let ring = &self.rings[1];
        (ring.first..).zip(ring.slots.iter().map(Slot::told))
    }

    /// The rate of an hour, by its number since 1970.
    #[must_use]
    pub fn hour(&self, number: u64) -> Hour {
        let ring = &self.rings[1];
        let place = number.checked_sub(ring.first);
        let place = place.and_then(|place| usize::try_from(place).ok());
        let slot = place.and_then(|place| ring.slots.get(place));
        slot.map_or(Hour::Unknown, Slot::told)
    }

    /// The end of the newest slot of five minutes in which the path was the limit for long enough.
    pub(crate) fn newest_capacity(&self) -> Option<Moment> {
        let slots = self.slots_since(Moment::default());
        let full = slots.filter(|(_, slot)| matches!(slot.told(), Hour::Rate(rate) if rate > 0.0));
        full.map(|(end, _)| end).last()
    }

    /// The rates carried for long enough, in bytes per second, of the slots of five minutes that
    /// end after a moment, each with its end.
    pub(crate) fn carried_since(&self, from: Moment) -> impl Iterator<Item = (Moment, f64)> + '_ {
        let slots = self.slots_since(from);
        slots.filter_map(|(end, slot)| Some((end, slot.carried()?)))
    }

    /// The highest rate of a few seconds, in bytes per second, in the slots of five minutes that
    /// end after a moment.
    pub(crate) fn peak_since(&self, from: Moment) -> Option<f64> {
        let peaks = self.slots_since(from).filter_map(|(_, slot)| slot.peak());
        peaks.max_by(f64::total_cmp)
    }

    /// The slots of five minutes that end after a moment, each with its end.
    fn slots_since(&self, from: Moment) -> impl Iterator<Item = (Moment, &Slot)> + '_ {
        let ring = &self.rings[0];
        let ends = (ring.first + 1..).map(|i| Moment::from_unix_seconds(i * ring.grain_seconds));
        ends.zip(&ring.slots).filter(move |(end, _)| *end > from)
    }

    /// The rates carried for long enough in the kept hours, each with the hour's number since 1970.
    pub(crate) fn hours_carried(&self) -> impl Iterator<Item = (u64, f64)> + '_ {
        let ring = &self.rings[1];
        let slots = (ring.first..).zip(&ring.slots);
        slots.filter_map(|(number, slot)| Some((number, slot.carried()?)))
    }

    /// Number of days of which anything is known.
    #[must_use]
    pub fn day_count(&self) -> usize {
        let told = self.rings[2].slots.iter().map(Slot::told);
        told.filter(|day| *day != Hour::Unknown).count()
    }

    /// Encodes the history, with a version and a checksum.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let slot_count: usize = self.rings.iter().map(|ring| ring.slots.len()).sum();
        let mut bytes = Vec::with_capacity(slot_count * SLOT_BYTES + 128);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        for ring in &self.rings {
            ring.encode(&mut bytes);
        }
        bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
        bytes
    }

    /// Decodes a history.
    ///
    /// # Errors
    ///
    /// `E_META` if they are damaged, `E_VERSION` if another release has written them.
    pub fn decode(bytes: &[u8]) -> Result<Self, Fault> {
        if bytes.len() > ENCODED_BYTES_MAX {
            return Err(damaged("its length"));
        }
        let Some((content, checksum)) = bytes.split_last_chunk::<4>() else {
            return Err(damaged("its length"));
        };
        if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
            return Err(damaged("its checksum"));
        }
        let mut rest = Bytes(content);
        if rest.take()? != MAGIC {
            return Err(damaged("its beginning"));
        }
        let version = u32::from_le_bytes(rest.take()?);
        if version != VERSION {
            let detail = format!("a history of version {version}; this release knows {VERSION}");
            return Err(Fault::new(Code::Version, detail));
        }
        let mut history = Self::default();
        for (ring, grain) in history.rings.iter_mut().zip(GRAINS) {
            *ring = Ring::decode(grain, &mut rest)?;
        }
        if !rest.0.is_empty() {
            return Err(damaged("bytes after its end"));
        }
        Ok(history)
    }
}

fn damaged(what: &str) -> Fault {
    Fault::new(Code::Meta, format!("a damaged history: {what}"))
}

/// The bytes that are not read yet.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let (taken, rest) = self
            .0
            .split_first_chunk::<N>()
            .ok_or_else(|| damaged("it ends early"))?;
        self.0 = rest;
        Ok(*taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_780_000_200;

    fn at(seconds: u64) -> Moment {
        Moment::from_unix_seconds(NOW + seconds)
    }

    fn hour_of(samples: &[(Sample, u32)]) -> Hour {
        let mut slot = Slot::default();
        for (sample, seconds) in samples {
            slot.observe(*sample, *seconds);
        }
        slot.told()
    }

    #[test]
    fn application_limited_samples_never_count_as_capacity() {
        let idle = Sample::ApplicationLimited(1e3);
        let full = Sample::Capacity(8e6);
        assert_eq!(hour_of(&[(idle, 3590), (full, 10)]), Hour::Rate(8e6));
        assert_eq!(hour_of(&[(idle, 3600)]), Hour::AtLeast(1e3));
        assert_eq!(hour_of(&[(idle, 3598), (full, 2)]), Hour::AtLeast(1e3));
        assert_eq!(hour_of(&[(idle, 4)]), Hour::Unknown, "too short to tell");
        assert_eq!(hour_of(&[(full, 4), (idle, 4)]), Hour::Unknown);
        assert_eq!(hour_of(&[]), Hour::Unknown);
    }

    #[test]
    fn outages_count_by_the_time_they_took() {
        let full = Sample::Capacity(8e6);
        assert_eq!(
            hour_of(&[(full, 900), (Sample::Down, 2700)]),
            Hour::Rate(2e6)
        );
        assert_eq!(hour_of(&[(Sample::Down, 3600)]), Hour::Rate(0.0));
    }

    #[test]
    fn a_cap_that_was_reached_is_a_bound_beside_whatever_else_was_seen() {
        let idle = Sample::ApplicationLimited(1e3);
        let reached = Sample::CapLimited(2e6);
        assert_eq!(hour_of(&[(idle, 3590), (reached, 10)]), Hour::AtLeast(2e6));
        assert_eq!(hour_of(&[(idle, 3598), (reached, 2)]), Hour::AtLeast(1e3));
        // A path that is slower than the cap only at times is seen only then.
        let slow = Sample::Capacity(1e6);
        assert_eq!(hour_of(&[(reached, 30), (slow, 10)]), Hour::Rate(1.75e6));
        let fast = Sample::Capacity(8e6);
        assert_eq!(hour_of(&[(reached, 30), (fast, 10)]), Hour::Rate(8e6));
        assert_eq!(
            hour_of(&[(reached, 900), (Sample::Down, 2700)]),
            Hour::AtLeast(5e5)
        );
    }

    #[test]
    fn years_take_no_more_than_their_bound() {
        let mut history = History::default();
        for hour in 0..6 * 8766 {
            history.observe(at(hour * HOUR_SECONDS), Sample::Capacity(1e6), 3600);
        }
        assert!(history.encode().len() <= ENCODED_BYTES_MAX);
        assert_eq!(history.hours().count(), 4368);
        assert_eq!(history.day_count(), 1830);
    }

    #[test]
    fn a_clock_that_was_not_set_or_goes_back_spoils_nothing() {
        let mut history = History::default();
        history.observe(Moment::from_unix_seconds(5), Sample::Capacity(1.0), 1);
        assert_eq!(history, History::default());
        history.observe(at(20_000_000), Sample::Capacity(1e6), 10);
        let kept = history.clone();
        history.observe(at(0), Sample::Capacity(1.0), 10);
        let hours = |history: &History| history.hours().collect::<Vec<_>>();
        assert_eq!(
            hours(&history),
            hours(&kept),
            "too old for the hours that are kept"
        );
    }

    #[test]
    fn what_a_wrong_clock_stamped_is_forgotten_and_the_rest_is_kept() {
        let mut history = History::default();
        history.observe(at(0), Sample::Capacity(1e6), 10);
        let kept = history.clone();
        history.observe(at(7 * HOUR_SECONDS), Sample::Capacity(1e6), 10);
        history.forget_after(at(0));
        assert_eq!(history, kept);
        history.observe(at(90_000 * HOUR_SECONDS), Sample::Capacity(1e6), 10);
        history.forget_after(at(0));
        history.observe(at(0), Sample::Capacity(2e6), 10);
        assert_eq!(
            history.hours().map(|(_, hour)| hour).last(),
            Some(Hour::Rate(2e6))
        );
    }

    #[test]
    fn every_damage_shows() {
        let mut history = History::default();
        for hour in 0..50 {
            history.observe(at(hour * 1800), Sample::Capacity(1e6), 60);
        }
        let bytes = history.encode();
        assert_eq!(History::decode(&bytes).unwrap(), history);
        for place in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x10;
            assert_eq!(History::decode(&damaged).unwrap_err().code, Code::Meta);
            assert!(History::decode(&bytes[..place]).is_err());
        }
    }

    #[test]
    fn a_right_checksum_does_not_make_nonsense_right() {
        let seal = |mut bytes: Vec<u8>| {
            bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
            bytes
        };
        let good = History::default().encode();
        let content = &good[..good.len() - 4];
        assert!(History::decode(&seal(content.to_vec())).is_ok());
        let mut version = content.to_vec();
        version[8] = 9;
        assert!(
            History::decode(&seal(version))
                .unwrap_err()
                .detail
                .contains("version 9")
        );
        let mut count = content.to_vec();
        count[20..28].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(History::decode(&seal(count)).is_err());
        assert!(History::decode(&seal([content, &[0]].concat())).is_err());
    }

    proptest! {
        #[test]
        fn what_was_kept_is_read_back(
            samples in proptest::collection::vec((0_u64..40_000_000, 0_u8..4, 0.0..1e12_f64, 1_u32..4000), 0..60),
        ) {
            let mut history = History::default();
            for (after, kind, rate, seconds) in samples {
                let sample = match kind {
                    0 => Sample::Capacity(rate),
                    1 => Sample::ApplicationLimited(rate),
                    2 => Sample::CapLimited(rate),
                    _ => Sample::Down,
                };
                history.observe(at(after), sample, seconds);
            }
            prop_assert_eq!(History::decode(&history.encode()).unwrap(), history);
        }

        #[test]
        fn foreign_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(History::decode(&bytes).is_err());
        }
    }
}
