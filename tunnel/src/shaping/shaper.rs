//! The shaper: whose bytes go to a peer next, and when, so that caps, floors and shares hold.
//!
//! Pure: time is an argument. Streams ask ([`Shaper::ask`]), grants come out ([`Shaper::poll`]),
//! and [`Shaper::deadline`] says when to poll again. A stream sends what it was granted and asks
//! again, so all streams of a class take turns, one piece each.
//!
//! ```text
//!             no credit of the link, or of the class's own cap
//!   ask ─► Waiting ◄────────────┐
//!             │  poll: first of │
//!             │   1. classes whose floor is overdue      may run into debt
//!             │   2. control, demand                     may run into debt, and always have a tenth
//!             │   3. classes below their floor
//!             │   4. the class furthest behind its weight
//!             │   5. weight 0, if no class with a weight has bytes to send
//!             ▼
//!          Granted ─► the wire ─► observe: charges headers, acknowledgements and retransmissions
//! ```
//!
//! *The cap.* Credit grows at the capped rate, and a grant takes it. What really left is known only
//! afterwards, from QUIC's own counters; [`Shaper::observe`] charges the difference. The credit,
//! plus the debt that urgent bytes may run into, is 16 ms of the rate. That is the largest burst,
//! and with retransmissions it stays below 20 ms. On links so thin that a few packets take longer,
//! a grant is one packet, and urgent bytes may run two packets ahead.
//!
//! *Weights.* Each class has a virtual time that advances by its bytes divided by its weight; the
//! class that is furthest back goes next (start-time fair queueing). Between a grant and its next
//! wish a stream is briefly away. So a class that is furthest back and away is *awaited*, for less
//! time than credit can be saved up, so that the link loses nothing. A class that sends nothing
//! saves up no more than a few pieces.
//!
//! *Without a cap* there is no credit to wait for: every wish is granted at once, except where bulk
//! and scavenger compete for the connection that they share.

mod bucket;
mod unseen;

use std::collections::VecDeque;
use std::time::Duration;

use towpath_protocol::class::{Class, Leg, PerLeg};
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::shaping::shares::Shares;
use bucket::BILLION;
pub(crate) use bucket::Bucket;
pub(crate) use unseen::Unseen;

/// Most bytes in one grant. A piece of this size delays an urgent one by at most 5 ms at 100
/// Mbit/s.
pub const PIECE_BYTES_MAX: u64 = 64 * 1024;

/// A packet that every path carries. With less in one, headers would eat the link.
const PACKET_BYTES: u64 = 1200;

/// Least packets in one grant, except below [`THIN_BYTES_PER_SECOND`].
const PIECE_PACKETS_MIN: u64 = 2;
/// The rate below which a grant is one packet: two would take so long that, with the credit for
/// late timers, they would be a burst of more than 20 ms.
const THIN_BYTES_PER_SECOND: u64 = 375_000;

/// Least packets that urgent bytes may run ahead by: one, behind another whose headers are still to
/// be paid.
const DEBT_PACKETS_MIN: u64 = 2;

/// Duration of one grant on the wire. Timers fire to the millisecond, so pieces of 4 ms keep the
/// rate smooth and the wake-ups few.
const PIECE_TIME: Duration = Duration::from_millis(4);

/// How far urgent bytes may run ahead of the rate before they have to wait too. With the saved
/// credit, at most 16 ms of the rate leave at once.
const DEBT_TIME: Duration = Duration::from_millis(7);

/// Most debt that retransmissions and headers can leave; more is forgiven, because a link with
/// heavy losses must not stand still afterwards.
const DEBT_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a class with a weight is awaited between a grant and its next wish: about half of the
/// time for which credit is saved, so that the link loses nothing.
const AWAIT_TIME: Duration = Duration::from_millis(5);

/// The same without a cap, and always for classes of weight 0: the time that a slow link takes for
/// a piece.
const YIELD_TIME: Duration = Duration::from_millis(50);

/// Bursts that a floor saves up; from half of them on it is overdue.
const FLOOR_BURSTS: u8 = 4;

/// Pieces by which a class may be ahead of an awaited one, so that two threads need not run in lock
/// step.
const AHEAD_PIECES: u64 = 4;

/// Pieces that a class may catch up on after it was away.
const BEHIND_PIECES: u64 = 2 * AHEAD_PIECES;

/// Bytes on the wire per thousand granted, until measured: 1452-byte packets over IPv4.
pub(crate) const WIRE_BYTES_PER_THOUSAND: u64 = 1042;

/// Most bytes on the wire that caps of classes count per thousand granted. More would be
/// acknowledgements of the other direction, which are not the class's.
const WIRE_BYTES_PER_THOUSAND_MAX: u64 = 1250;

/// Granted bytes after which the counts are halved.
const WIRE_SAMPLE_BYTES: u64 = 4 << 20;

/// Granted bytes below which the counts say little.
const WIRE_SAMPLE_BYTES_MIN: u64 = 256 << 10;

/// A wish to send, until it is granted or withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wish(u64);

/// Shapes what is sent to one peer.
#[derive(Debug)]
pub struct Shaper {
    shares: Shares,
    /// The cap of the link.
    root: Option<Bucket>,
    /// The part of the cap reserved for control and demand, however deep in debt it is; none if the
    /// cap is too thin.
    ranked: Option<Bucket>,
    queues: [Queue; Class::ALL.len()],
    wish_count: u64,
    /// Virtual time at which the last class served by weight began.
    reached: i128,
    /// Bytes granted that the wire's counters have not shown yet.
    unseen: Unseen,
    wires: PerLeg<Wire>,
    wake: Option<Instant>,
}

/// The wishes of one class, oldest first.
#[derive(Debug, Default)]
struct Queue {
    /// `None` for the classes that go first.
    weight: Option<u32>,
    floor: Option<Bucket>,
    cap: Option<Bucket>,
    waiting: VecDeque<(Wish, u64)>,
    /// Streams that have bytes to send, whether they are asking now or not.
    backlog_count: u64,
    /// When a stream of it last entered or was granted something.
    seen: Instant,
    /// Virtual time up to which it has been served, in billionths of a byte per unit of weight.
    finish: i128,
}

/// What went through one of the link's legs.
#[derive(Debug, Default)]
struct Wire {
    total: u64,
    /// Recently granted bytes, and recent bytes on the wire.
    granted: u64,
    left: u64,
}

impl Wire {
    /// Removes granted bytes that never leave, so that they do not distort the ratio.
    const fn take_back(&mut self, bytes: u64) {
        self.granted = self.granted.saturating_sub(bytes);
    }
}

/// Why a class goes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    /// It has less than its floor.
    Floor,
    /// It goes ahead of all others.
    Rank,
    /// It goes ahead of all others, and has had less than the part reserved for it.
    Least,
    /// It is furthest behind its weight.
    Weight,
    /// No class with a weight has bytes to send.
    Rest,
}

impl Shaper {
    /// A shaper with the credit of one burst.
    #[must_use]
    pub fn new(rate: Option<Rate>, shares: Shares, now: Instant) -> Self {
        let mut shaper = Self {
            shares: Shares::default(),
            root: None,
            ranked: None,
            queues: Default::default(),
            wish_count: 0,
            reached: 0,
            unseen: Unseen::default(),
            wires: PerLeg::default(),
            wake: None,
        };
        shaper.set_rate(rate, now);
        shaper.set_shares(shares, now);
        shaper
    }

    /// The shares of the classes.
    #[must_use]
    pub const fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Changes the shares of the classes; what was served before still counts.
    pub fn set_shares(&mut self, shares: Shares, now: Instant) {
        self.shares = shares;
        for class in Class::ALL {
            let queue = &mut self.queues[class.index()];
            queue.weight = self.shares.weight(class);
            match (&mut queue.cap, self.shares.of(class).cap) {
                (Some(bucket), Some(cap)) => bucket.set_rate(cap, now),
                (bucket, cap) => *bucket = cap.map(|cap| Bucket::new(cap, now)),
            }
        }
        self.set_floors(now);
    }

    /// The cap, if there is one.
    #[must_use]
    pub fn rate(&self) -> Option<Rate> {
        self.root.as_ref().map(Bucket::rate)
    }

    /// Changes the cap; credit and debt of the old one stay, within the limits of the new.
    pub fn set_rate(&mut self, rate: Option<Rate>, now: Instant) {
        // No reserve if it would be below the lowest rate: that would be most of so thin a cap.
        let rest = |cap: Rate| {
            let bytes_per_second = cap.bytes_per_second() - floors_max(cap);
            Rate::from_bytes_per_second(bytes_per_second).ok()
        };
        let ranked = rate.and_then(rest);
        for (bucket, rate) in [(&mut self.root, rate), (&mut self.ranked, ranked)] {
            match (bucket, rate) {
                (Some(bucket), Some(rate)) => bucket.set_rate(rate, now),
                (bucket, rate) => *bucket = rate.map(|rate| Bucket::new(rate, now)),
            }
        }
        self.set_floors(now);
    }

    /// Records that a stream of this class now has bytes to send.
    pub fn enter(&mut self, class: Class, now: Instant) {
        let queue = &mut self.queues[class.index()];
        queue.backlog_count += 1;
        queue.seen = now;
    }

    /// Records that a stream of this class that had entered has no bytes to send for now.
    ///
    /// # Panics
    ///
    /// If it had not entered.
    pub fn leave(&mut self, class: Class) {
        let queue = &mut self.queues[class.index()];
        assert!(
            queue.backlog_count > 0,
            "a {class} stream leaves that never came"
        );
        queue.backlog_count -= 1;
    }

    /// Asks to send `bytes` of a class, or as many of them as are granted at once.
    ///
    /// # Panics
    ///
    /// If `bytes` is zero.
    pub fn ask(&mut self, class: Class, bytes: u64) -> Wish {
        assert!(bytes > 0, "a wish for no bytes");
        let wish = Wish(self.wish_count);
        self.wish_count += 1;
        self.queues[class.index()].waiting.push_back((wish, bytes));
        wish
    }

    /// Grants a whole wish at once if nothing competes: there is no cap, and no other class uses
    /// the connection. Returns whether it did.
    pub fn pass(&mut self, class: Class, bytes: u64, now: Instant) -> bool {
        let is_alone = |other: Class| {
            other == class
                || !self.share_a_way(other, class)
                || self.queue(other).backlog_count == 0
        };
        let queue = self.queue(class);
        let is_free = self.root.is_none() && queue.cap.is_none() && queue.waiting.is_empty();
        let is_passed = is_free && Class::ALL.into_iter().all(is_alone);
        if is_passed {
            self.queues[class.index()].seen = now;
            self.wires[class.leg()].granted += bytes;
        }
        is_passed
    }

    /// Withdraws a wish; returns whether it was still waiting.
    pub fn withdraw(&mut self, class: Class, wish: Wish) -> bool {
        let waiting = &mut self.queues[class.index()].waiting;
        let position = waiting.iter().position(|(one, _)| *one == wish);
        position.and_then(|at| waiting.remove(at)).is_some()
    }

    /// Gives back bytes that were granted and will not be sent.
    pub fn refund(&mut self, class: Class, bytes: u64, now: Instant) {
        let on_wire = self.on_wire(class.leg(), bytes);
        if let Some(root) = &mut self.root {
            root.gain(bytes);
        }
        if let Some(cap) = &mut self.queues[class.index()].cap {
            cap.gain(on_wire);
        }
        self.wires[class.leg()].take_back(bytes);
        self.unseen.take(now, bytes);
    }

    /// The next wish that is granted, with the number of bytes: at least one, at most as many as
    /// were asked for. Call until it returns `None`.
    pub fn poll(&mut self, now: Instant) -> Option<(Wish, u64)> {
        for bucket in [&mut self.root, &mut self.ranked].into_iter().flatten() {
            bucket.fill(now);
        }
        for queue in &mut self.queues {
            for bucket in [&mut queue.floor, &mut queue.cap].into_iter().flatten() {
                bucket.fill(now);
            }
        }
        self.wake = None;
        let turn = self.choose(now)?;
        Some(self.give(turn, now))
    }

    /// When to poll again if nothing is asked before.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.wake
    }

    /// Records the total bytes that have left on the wire, by leg, and charges what the grants did
    /// not foresee.
    pub fn observe(&mut self, wire_bytes: PerLeg<u64>, now: Instant) {
        let mut left = 0;
        for (wire, total) in self.wires.iter_mut().zip(wire_bytes) {
            let news = total.saturating_sub(wire.total);
            wire.total = total;
            wire.left += news;
            left += news;
            if wire.granted > WIRE_SAMPLE_BYTES {
                wire.granted /= 2;
                wire.left /= 2;
            }
        }
        let Some(root) = &mut self.root else { return };
        root.fill(now);
        let foreseen = self.unseen.take(now, left);
        let debt_max = root.earned_in(DEBT_TIME_MAX);
        root.charge(i128::from(left - foreseen) * BILLION, debt_max);
    }

    /// Records that granted bytes, by leg, will never leave. Their credit is not given back.
    pub fn forget(&mut self, bytes: PerLeg<u64>, now: Instant) {
        for (wire, bytes) in self.wires.iter_mut().zip(bytes) {
            wire.take_back(bytes);
        }
        self.unseen.take(now, bytes.iter().sum());
    }

    /// Converts bytes of a leg to bytes on the wire, by what was measured.
    #[must_use]
    pub fn on_wire(&self, leg: Leg, bytes: u64) -> u64 {
        let wire = &self.wires[leg];
        let per_thousand = if wire.granted < WIRE_SAMPLE_BYTES_MIN {
            WIRE_BYTES_PER_THOUSAND
        } else {
            let counted = wire.left.saturating_mul(1000) / wire.granted;
            counted.clamp(1000, WIRE_BYTES_PER_THOUSAND_MAX)
        };
        bytes.saturating_mul(per_thousand) / 1000
    }

    /// Sets the floors, which hold under a cap only. Floors that leave less than a tenth of it
    /// shrink in proportion.
    fn set_floors(&mut self, now: Instant) {
        let floor = |class: Class| self.shares.of(class).floor;
        let promised = Class::ALL.iter().filter_map(|class| floor(*class));
        let promised: u64 = promised.map(Rate::bytes_per_second).sum();
        let floors = Class::ALL.map(|class| {
            let (floor, rate) = (floor(class)?, self.rate()?);
            let most = floors_max(rate);
            let share = u128::from(floor.bytes_per_second()) * u128::from(most);
            let shrunk = u64::try_from(share / u128::from(promised.max(most))).ok()?;
            Some(Rate::clamped(shrunk))
        });
        for (queue, floor) in self.queues.iter_mut().zip(floors) {
            match (&mut queue.floor, floor) {
                (Some(bucket), Some(floor)) => bucket.set_rate(floor, now),
                (bucket, floor) => {
                    *bucket = floor.map(|floor| Bucket::deep(floor, FLOOR_BURSTS, now));
                }
            }
        }
    }

    fn queue(&self, class: Class) -> &Queue {
        &self.queues[class.index()]
    }

    /// Size of a class's next grant.
    fn piece(&self, class: Class, by: By) -> u64 {
        let queue = self.queue(class);
        let asked = queue.waiting.front().map_or(u64::MAX, |(_, bytes)| *bytes);
        let floor = queue.floor.as_ref().filter(|_| by == By::Floor);
        let ranked = self.ranked.as_ref().filter(|_| by == By::Least);
        let buckets = [self.root.as_ref(), queue.cap.as_ref(), floor, ranked];
        let pieces = buckets
            .into_iter()
            .flatten()
            .map(|bucket| piece_bytes(bucket.rate()));
        pieces.fold(asked, u64::min)
    }

    /// The class that goes next, and why. If `None`, `wake` is set.
    fn choose(&mut self, now: Instant) -> Option<(Class, By)> {
        let ready = Class::ALL.map(|class| self.is_ready(class));
        let first = |shaper: &Self, is_meant: fn(&Queue) -> bool| {
            let mut ready = Class::ALL.into_iter().filter(|class| ready[class.index()]);
            ready.find(|class| is_meant(shaper.queue(*class)))
        };
        if let Some(class) = first(self, |queue| {
            queue.floor.as_ref().is_some_and(Bucket::is_half_full)
        }) {
            let paid = self.pay(class, By::Floor, self.debt());
            return paid.or_else(|| self.pay_ranked(&ready));
        }
        if let Some(class) = first(self, |queue| queue.weight.is_none()) {
            let paid = self.pay(class, By::Rank, self.debt());
            return paid.or_else(|| self.pay_ranked(&ready));
        }
        if let Some(class) = self.below_floor(&ready) {
            return self.pay(class, By::Floor, 0);
        }
        if let Some((class, awaited)) = self.furthest_back(&ready, now) {
            if let Some(then) = awaited {
                self.wake_at(then);
                return None;
            }
            let is_owed = class.leg() == Leg::Urgent && self.is_owed(class);
            let debt = if is_owed { self.debt() } else { 0 };
            return self.pay(class, By::Weight, debt);
        }
        let class = first(self, |queue| queue.weight == Some(0))?;
        if let Some(then) = self.competition(class, now) {
            self.wake_at(then);
            return None;
        }
        self.pay(class, By::Rest, 0)
    }

    /// Whether a class has a wish that its own cap allows. If only the cap forbids it, sets `wake`.
    fn is_ready(&mut self, class: Class) -> bool {
        if self.queue(class).waiting.is_empty() {
            return false;
        }
        let Some(then) = self.capped_until(class) else {
            return true;
        };
        self.wake_at(then);
        false
    }

    /// When a class's own cap allows its next piece; `None` if it does now.
    fn capped_until(&self, class: Class) -> Option<Instant> {
        let cap = self.queue(class).cap.as_ref()?;
        cap.until(self.piece(class, By::Rank))
    }

    /// A ready class that has less than its floor. Sets `wake` for those that have theirs.
    fn below_floor(&mut self, ready: &[bool]) -> Option<Class> {
        for class in Class::ALL {
            let Some(floor) = self.queue(class).floor.as_ref() else {
                continue;
            };
            if !ready[class.index()] {
                continue;
            }
            let Some(then) = floor.until(self.piece(class, By::Floor)) else {
                return Some(class);
            };
            self.wake_at(then);
        }
        None
    }

    /// Returns the class if the link has credit for its next piece; else sets `wake`.
    fn pay(&mut self, class: Class, by: By, debt: i128) -> Option<(Class, By)> {
        let needed = i128::from(self.piece(class, by)) * BILLION;
        let Some(root) = &self.root else {
            return Some((class, by));
        };
        if root.has(needed, debt) {
            return Some((class, by));
        }
        let then = root.instant_of(needed, debt);
        self.wake_at(then);
        None
    }

    /// Returns control or demand if their reserved part is not used up; else sets `wake`.
    fn pay_ranked(&mut self, ready: &[bool]) -> Option<(Class, By)> {
        let mut ranked = Class::ALL.into_iter().filter(|class| ready[class.index()]);
        let class = ranked.find(|class| self.queue(*class).weight.is_none())?;
        match self.ranked.as_ref()?.until(self.piece(class, By::Least)) {
            None => Some((class, By::Least)),
            Some(then) => {
                self.wake_at(then);
                None
            }
        }
    }

    /// How far urgent bytes may run ahead of the rate; at least two packets.
    fn debt(&self) -> i128 {
        let packets = i128::from(DEBT_PACKETS_MIN * PACKET_BYTES) * BILLION;
        let time = self
            .root
            .as_ref()
            .map_or(0, |root| root.earned_in(DEBT_TIME));
        time.max(packets)
    }

    /// The class with a weight that goes next, and until when another class is awaited in its
    /// place.
    fn furthest_back(&self, ready: &[bool], now: Instant) -> Option<(Class, Option<Instant>)> {
        let waiting = self.weighted().filter(|class| ready[class.index()]);
        // Without a cap the connections are independent, and urgent classes wait for nobody.
        let next = waiting.min_by_key(|class| {
            let is_later = self.root.is_none() && class.leg() == Leg::Bulk;
            (is_later, self.start(*class))
        })?;
        let patience = match self.root {
            Some(_) => AWAIT_TIME,
            None => YIELD_TIME,
        };
        let until = self
            .weighted()
            .filter(|class| *class != next && self.queue(*class).waiting.is_empty())
            .filter(|class| self.share_a_way(*class, next))
            .filter(|class| self.start(*class) + self.ahead_max(*class, next) < self.start(next))
            .filter_map(|class| self.busy_until(class, patience, now));
        Some((next, until.min()))
    }

    /// Until when a class of weight 0 waits for classes with a weight.
    fn competition(&self, class: Class, now: Instant) -> Option<Instant> {
        self.weighted()
            .filter(|other| self.share_a_way(*other, class))
            .filter_map(|other| self.busy_until(other, YIELD_TIME, now))
            .max()
    }

    fn weighted(&self) -> impl Iterator<Item = Class> {
        let has_weight = |class: &Class| self.queue(*class).weight.is_some_and(|weight| weight > 0);
        Class::ALL.into_iter().filter(has_weight)
    }

    /// Whether bytes sent by one class are lacking to the other.
    fn share_a_way(&self, one: Class, other: Class) -> bool {
        self.root.is_some() || (one.leg() == Leg::Bulk && other.leg() == Leg::Bulk)
    }

    /// Until when a class without a wish is assumed to have one soon. `None` if its own cap holds
    /// it back.
    fn busy_until(&self, class: Class, patience: Duration, now: Instant) -> Option<Instant> {
        let queue = self.queue(class);
        let until = queue.seen + patience;
        let is_busy = queue.backlog_count > 0 && until > now;
        (is_busy && self.capped_until(class).is_none()).then_some(until)
    }

    /// Virtual time at which a class's next bytes start.
    fn start(&self, class: Class) -> i128 {
        let queue = self.queue(class);
        queue.finish.max(self.reached - self.behind_max(queue))
    }

    /// Whether a class has recently used less than its share.
    fn is_owed(&self, class: Class) -> bool {
        let queue = self.queue(class);
        queue.finish + self.behind_max(queue) / 2 <= self.reached
    }

    /// How far behind a class may be after it was away.
    fn behind_max(&self, queue: &Queue) -> i128 {
        self.virtual_time(BEHIND_PIECES, queue.weight)
    }

    /// How far one class may be ahead of another that is away: always less than that one may catch
    /// up on.
    fn ahead_max(&self, away: Class, next: Class) -> i128 {
        let weight = self.queue(away).weight.max(self.queue(next).weight);
        self.virtual_time(AHEAD_PIECES, weight)
    }

    /// Virtual time that this many of the largest pieces take at a weight.
    fn virtual_time(&self, pieces: u64, weight: Option<u32>) -> i128 {
        let root = self.root.as_ref();
        let piece = root.map_or(PIECE_BYTES_MAX, |root| piece_bytes(root.rate()));
        i128::from(pieces * piece) * BILLION / i128::from(weight.unwrap_or(1).max(1))
    }

    fn give(&mut self, (class, by): (Class, By), now: Instant) -> (Wish, u64) {
        let bytes = self.piece(class, by);
        let (start, behind_max) = (self.start(class), self.behind_max(self.queue(class)));
        let on_wire = self.on_wire(class.leg(), bytes);
        let billionths = i128::from(bytes) * BILLION;
        let queue = &mut self.queues[class.index()];
        let (wish, _) = queue.waiting.pop_front().expect("a ready class waits");
        queue.seen = now;
        if let Some(cap) = &mut queue.cap {
            cap.spend(on_wire);
        }
        if let Some(floor) = &mut queue.floor {
            // What it gets beyond its floor must not block the floor for long.
            let debt_max = floor.earned_in(bucket::BURST_TIME);
            floor.charge(i128::from(on_wire) * BILLION, debt_max);
        }
        if queue.weight.is_none()
            && let Some(ranked) = &mut self.ranked
        {
            let debt_max = ranked.earned_in(bucket::BURST_TIME);
            ranked.charge(i128::from(on_wire) * BILLION, debt_max);
        }
        if by == By::Weight {
            self.reached = self.reached.max(start);
        }
        if let Some(weight) = queue.weight.filter(|weight| *weight > 0) {
            // What the floor gave it is counted, but never makes it wait longer than any other
            // class.
            let finish = start + billionths / i128::from(weight);
            queue.finish = finish.min(self.reached + behind_max);
        }
        self.wires[class.leg()].granted += bytes;
        if let Some(root) = &mut self.root {
            root.spend(bytes);
            self.unseen.add(now, bytes);
        }
        (wish, bytes)
    }

    fn wake_at(&mut self, then: Instant) {
        self.wake = Some(self.wake.map_or(then, |wake| wake.min(then)));
    }
}

/// Size of one grant at a rate.
#[must_use]
pub fn piece_bytes(rate: Rate) -> u64 {
    if rate.bytes_per_second() < THIN_BYTES_PER_SECOND {
        return PACKET_BYTES;
    }
    rate.bytes_in(PIECE_TIME)
        .clamp(PIECE_PACKETS_MIN * PACKET_BYTES, PIECE_BYTES_MAX)
}

/// Most bytes per second that floors may promise under a cap; the rest is for control and demand.
pub(crate) const fn floors_max(cap: Rate) -> u64 {
    cap.bytes_per_second() / 10 * 9
}

#[cfg(test)]
mod tests;
