//! The shaper: whose bytes go to a link next, and when, so that caps, floors and shares hold.
//!
//! Pure: time is an argument. Streams say what they have ([`Shaper::ask`]), grants come out
//! ([`Shaper::poll`]), and [`Shaper::deadline`] says when to look again. One who is granted bytes sends
//! them and asks anew, so that all streams of a class take turns, a piece each.
//!
//! ```text
//!             no credit of the link, or of the class's own cap
//!   ask ─► Waiting ◄────────────┐
//!             │  poll: first of │
//!             │   1. classes whose floor is overdue      may run into debt
//!             │   2. control, demand                     may run into debt, and have a tenth whatever it is
//!             │   3. classes below their floor
//!             │   4. the class furthest behind its weight
//!             │   5. weight 0: nobody else wants anything
//!             ▼
//!          Granted ─► the wire ─► observe: what headers, acknowledgements and repeats cost beyond it
//! ```
//!
//! *The cap.* Credit grows at the capped rate, and a grant takes it. What really left is only known
//! afterwards, from QUIC's own counters; [`Shaper::observe`] charges the difference. Credit and the
//! debt that urgent bytes may run into are 16 ms of the rate together: the largest burst there is, and
//! with what retransmissions add to it below 20 ms. On links so thin that a few packets take longer, a grant is
//! one packet, and urgent bytes may run two ahead.
//!
//! *Weights.* Each class has a virtual time, which its bytes drive ahead by their number divided by its
//! weight; the one that is furthest back goes next (start-time fair queueing). A stream is away for a
//! moment between a grant and its next wish. A class that is away while it is furthest back is therefore
//! *awaited*, for less time than credit can be saved up, and so nothing of the link is lost by it. What a
//! class had no use for is not saved up either, but for a few pieces.
//!
//! *Without a cap* there is no credit to wait for: every wish is granted at once, but where bulk and
//! scavenger compete for the connection that both use.

mod bucket;
mod unseen;

use std::collections::VecDeque;
use std::time::Duration;

use towpath_protocol::channel::{Class, Leg};
use towpath_protocol::rate::Rate;
use towpath_protocol::time::Instant;

use crate::shares::Shares;
use bucket::BILLION;
pub(crate) use bucket::Bucket;
pub(crate) use unseen::Unseen;

/// Most bytes in one grant: a piece this small holds an urgent one up by 5 ms at 100 Mbit/s at most.
pub const PIECE_BYTES_MAX: u64 = 64 * 1024;

/// A packet that every path carries: less in one makes headers eat the link.
const PACKET_BYTES: u64 = 1200;

/// Packets in one grant at least, and below which rate, in bytes per second, it is one: there two take so long
/// that, with the credit for timers that are late, they would be a burst of more than 20 ms.
const PIECE_PACKETS_MIN: u64 = 2;
const THIN_BYTES_PER_SECOND: u64 = 375_000;

/// Packets that urgent bytes may run ahead by at least: one, behind another whose headers are to be paid.
const DEBT_PACKETS_MIN: u64 = 2;

/// What one grant lasts on the wire. Timers fire to the millisecond, so pieces of four keep the rate
/// smooth and the wake-ups few.
const PIECE_TIME: Duration = Duration::from_millis(4);

/// How far urgent bytes may run ahead of the rate before they, too, wait: with the credit that was saved
/// up, 16 ms of the rate leave at once.
const DEBT_TIME: Duration = Duration::from_millis(7);

/// Most debt that retransmissions and headers can leave: beyond it, they are forgiven, because a
/// link that was mostly loss for a while must not stand still afterwards.
const DEBT_TIME_MAX: Duration = Duration::from_secs(1);

/// How long a class with a weight is awaited between a grant and its next wish: half of what credit is
/// saved up for, so that the link loses nothing by it.
const AWAIT_TIME: Duration = Duration::from_millis(5);

/// The same without a cap, and for classes of weight 0 always: what a slow link takes for a piece.
const YIELD_TIME: Duration = Duration::from_millis(50);

/// Bursts that floors save up; above half of them they are overdue.
const FLOOR_BURSTS: u8 = 4;

/// Pieces a class may be ahead of one that is awaited: two threads need not run in lock step.
const AHEAD_PIECES: u64 = 4;

/// Pieces a class that was away may catch up with.
const BEHIND_PIECES: u64 = 2 * AHEAD_PIECES;

/// Bytes on the wire for a thousand granted, before any were counted: 1452-byte packets over IPv4.
pub(crate) const WIRE_BYTES_PER_THOUSAND: u64 = 1042;

/// Most bytes on the wire that caps of classes count for a thousand granted: acknowledgements of what the
/// other direction carries are not theirs.
const WIRE_BYTES_PER_THOUSAND_MAX: u64 = 1250;

/// Granted bytes after which the older half of what was counted is forgotten.
const WIRE_SAMPLE_BYTES: u64 = 4 << 20;

/// Granted bytes below which the count says little.
const WIRE_SAMPLE_BYTES_MIN: u64 = 256 << 10;

/// A wish to send, until it is granted or withdrawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Wish(u64);

/// Shapes what one side of a link sends to its peer.
#[derive(Debug)]
pub struct Shaper {
    shares: Shares,
    /// The cap of the link.
    root: Option<Bucket>,
    /// What control and demand have of it, however deep others have run into debt; none of a cap that is too thin.
    ranked: Option<Bucket>,
    queues: [Queue; Class::ALL.len()],
    wish_count: u64,
    /// Virtual time: where the class was that was served last by its weight.
    reached: i128,
    /// Bytes granted that the wire's counters have not shown yet.
    unseen: Unseen,
    wires: [Wire; 2],
    wake: Option<Instant>,
}

/// The wishes of one class, in the order they came.
#[derive(Debug, Default)]
struct Queue {
    /// None for the classes that go first.
    weight: Option<u32>,
    floor: Option<Bucket>,
    cap: Option<Bucket>,
    waiting: VecDeque<(Wish, u64)>,
    /// Streams that have bytes to send, whether they ask just now or not.
    backlog_count: u64,
    /// When it last came or was granted something.
    seen: Instant,
    /// Virtual time up to which it has been served: billionths of a byte by weight.
    finish: i128,
}

/// What went through one of the link's connections.
#[derive(Debug, Default)]
struct Wire {
    total: u64,
    /// Of late: bytes granted, and bytes on the wire.
    granted: u64,
    left: u64,
}

impl Wire {
    /// So many of the bytes granted never leave: what left is compared with the others.
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
    /// It does, and has less than it has in any case.
    Least,
    /// It is furthest behind its weight.
    Weight,
    /// Nobody else wants anything.
    Rest,
}

impl Shaper {
    /// A shaper that begins with the credit of one burst.
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
            wires: Default::default(),
            wake: None,
        };
        shaper.set_rate(rate, now);
        shaper.set_shares(shares, now);
        shaper
    }

    /// What the classes get.
    #[must_use]
    pub const fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Changes what the classes get; what they had of late still counts.
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
        // Where that is less than any rate there is, they have none: the least would be most of so thin a cap.
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

    /// A stream of this class has bytes to send from now on.
    pub fn enter(&mut self, class: Class, now: Instant) {
        let queue = &mut self.queues[class.index()];
        queue.backlog_count += 1;
        queue.seen = now;
    }

    /// A stream of this class that had entered has no bytes to send for now.
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

    /// Asks to send `bytes` of a class, or as many of them as come at once.
    ///
    /// # Panics
    ///
    /// If `bytes` is zero: nobody asks for nothing.
    pub fn ask(&mut self, class: Class, bytes: u64) -> Wish {
        assert!(bytes > 0, "a wish for no bytes");
        let wish = Wish(self.wish_count);
        self.wish_count += 1;
        self.queues[class.index()].waiting.push_back((wish, bytes));
        wish
    }

    /// Grants all of a wish at once where no other has to be thought of: without a cap, when nobody else has a
    /// use for the connection. Says whether it did.
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
            self.wires[class.leg() as usize].granted += bytes;
        }
        is_passed
    }

    /// Takes a wish back; says whether it was there still.
    pub fn withdraw(&mut self, class: Class, wish: Wish) -> bool {
        let waiting = &mut self.queues[class.index()].waiting;
        let position = waiting.iter().position(|(one, _)| *one == wish);
        position.and_then(|at| waiting.remove(at)).is_some()
    }

    /// Gives back what was granted and will not be sent.
    pub fn refund(&mut self, class: Class, bytes: u64, now: Instant) {
        let on_wire = self.on_wire(class.leg(), bytes);
        if let Some(root) = &mut self.root {
            root.gain(bytes);
        }
        if let Some(cap) = &mut self.queues[class.index()].cap {
            cap.gain(on_wire);
        }
        self.wires[class.leg() as usize].take_back(bytes);
        self.unseen.take(now, bytes);
    }

    /// The next wish that is granted, and how many bytes: at least one, at most as many as were asked
    /// for. To be called until there is none.
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

    /// When to poll again if nothing is asked until then.
    #[must_use]
    pub const fn deadline(&self) -> Option<Instant> {
        self.wake
    }

    /// Takes note of all bytes that have ever left on the wire, by leg, and charges what no grant
    /// foresaw.
    pub fn observe(&mut self, wire_bytes: [u64; 2], now: Instant) {
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

    /// Takes note that so many bytes that were granted, by leg, will never leave: no others may go for them.
    pub fn forget(&mut self, bytes: [u64; 2], now: Instant) {
        for (wire, bytes) in self.wires.iter_mut().zip(bytes) {
            wire.take_back(bytes);
        }
        self.unseen.take(now, bytes.iter().sum());
    }

    /// What so many bytes of a leg come to on the wire, as far as was seen.
    #[must_use]
    pub fn on_wire(&self, leg: Leg, bytes: u64) -> u64 {
        let wire = &self.wires[leg as usize];
        let per_thousand = if wire.granted < WIRE_SAMPLE_BYTES_MIN {
            WIRE_BYTES_PER_THOUSAND
        } else {
            let counted = wire.left.saturating_mul(1000) / wire.granted;
            counted.clamp(1000, WIRE_BYTES_PER_THOUSAND_MAX)
        };
        bytes.saturating_mul(per_thousand) / 1000
    }

    /// Floors hold under a cap only; those that leave less than a tenth of it shrink alike.
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

    /// Bytes of a class's next grant.
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

    /// The class that goes next, and why; if there is none, `wake` is set.
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

    /// Whether a class has a wish that its own cap allows; if only that stands in the way, `wake` is set.
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

    /// When a class's own cap lets its next piece go, if it does not now.
    fn capped_until(&self, class: Class) -> Option<Instant> {
        let cap = self.queue(class).cap.as_ref()?;
        cap.until(self.piece(class, By::Rank))
    }

    /// A class that has less than its floor; for those that have theirs, `wake` is set.
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

    /// The class, if the link has credit for its next piece; else `wake` is set.
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

    /// Control or demand, if what they have of the cap in any case is not used up; else `wake` is set.
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

    /// How far urgent bytes may run ahead of the rate; two packets also where that is more.
    fn debt(&self) -> i128 {
        let packets = i128::from(DEBT_PACKETS_MIN * PACKET_BYTES) * BILLION;
        let time = self
            .root
            .as_ref()
            .map_or(0, |root| root.earned_in(DEBT_TIME));
        time.max(packets)
    }

    /// Of the classes with a weight the one that is to go next, and until when another one is awaited
    /// in its place.
    fn furthest_back(&self, ready: &[bool], now: Instant) -> Option<(Class, Option<Instant>)> {
        let waiting = self.weighted().filter(|class| ready[class.index()]);
        // Without a cap the connections are apart, and urgent classes have nobody to wait for.
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

    /// Until when a class of weight 0 waits for those that have one.
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

    /// Whether what one class sends is missing to the other.
    fn share_a_way(&self, one: Class, other: Class) -> bool {
        self.root.is_some() || (one.leg() == Leg::Bulk && other.leg() == Leg::Bulk)
    }

    /// Until when a class is taken to want more that has not asked; not if its own cap holds it back.
    fn busy_until(&self, class: Class, patience: Duration, now: Instant) -> Option<Instant> {
        let queue = self.queue(class);
        let until = queue.seen + patience;
        let is_busy = queue.backlog_count > 0 && until > now;
        (is_busy && self.capped_until(class).is_none()).then_some(until)
    }

    /// Virtual time from which a class's next bytes count.
    fn start(&self, class: Class) -> i128 {
        let queue = self.queue(class);
        queue.finish.max(self.reached - self.behind_max(queue))
    }

    /// Whether a class has used less than its share of late.
    fn is_owed(&self, class: Class) -> bool {
        let queue = self.queue(class);
        queue.finish + self.behind_max(queue) / 2 <= self.reached
    }

    /// How far behind a class may be that was away.
    fn behind_max(&self, queue: &Queue) -> i128 {
        self.virtual_time(BEHIND_PIECES, queue.weight)
    }

    /// How far one class may be ahead of another that is away: always less than that can catch up with.
    fn ahead_max(&self, away: Class, next: Class) -> i128 {
        let weight = self.queue(away).weight.max(self.queue(next).weight);
        self.virtual_time(AHEAD_PIECES, weight)
    }

    /// What so many of the largest pieces take of a weight's virtual time.
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
            // What it gets beyond its floor is no reason to keep that from it for long.
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
            // What floors gave is counted, but nobody is kept waiting for it longer than others.
            let finish = start + billionths / i128::from(weight);
            queue.finish = finish.min(self.reached + behind_max);
        }
        self.wires[class.leg() as usize].granted += bytes;
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

/// Bytes in one grant at a rate.
#[must_use]
pub fn piece_bytes(rate: Rate) -> u64 {
    if rate.bytes_per_second() < THIN_BYTES_PER_SECOND {
        return PACKET_BYTES;
    }
    rate.bytes_in(PIECE_TIME)
        .clamp(PIECE_PACKETS_MIN * PACKET_BYTES, PIECE_BYTES_MAX)
}

/// Most bytes a second that floors may promise under a cap: control and demand need the rest.
pub(crate) const fn floors_max(cap: Rate) -> u64 {
    cap.bytes_per_second() / 10 * 9
}

#[cfg(test)]
mod tests;
