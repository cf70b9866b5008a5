//! Limits the streams that this side begins with a peer: each holds a seat from its begin to its
//! end.
//!
//! A peer accepts a limited number of streams on each connection of a link, and a stream goes on
//! over the next link. A stream with a seat always finds room there, however many others wait to
//! begin; and as many streams are free at the peer as there are free seats. Some seats of each leg
//! are reserved for moves, so that moves need not wait for applications.
//!
//! Channels share the seats for applications by a *dynamic threshold*: a channel takes another seat
//! only while more seats are free than it holds, or more than a quarter of all. So one channel with
//! many idle connections leaves a quarter free, two of them leave less, and a channel without any
//! takes its first seat as long as one is free. A channel that shares its leg with no other may
//! take all of them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use towpath_protocol::class::{Class, Leg, PerLeg};
use towpath_protocol::identity::Name;

/// Seats of a leg reserved for moves: each move needs three on one leg and one on the other.
const KEPT_COUNT: usize = 16;

/// Divisor: at most one of so many seats of a leg is reserved, where there are few seats.
const KEPT_PART: usize = 4;

/// Divisor: seats are *few* when less than one of so many of a leg's seats for applications is
/// free. No channel has to leave more than that to others.
const FEW_PART: usize = 4;

/// The seats with one peer.
#[derive(Debug)]
pub(crate) struct Seats(PerLeg<Row>);

#[derive(Debug)]
struct Row {
    all: Arc<Semaphore>,
    /// The seats that are not reserved for moves.
    open: Arc<Open>,
}

/// A stream's seat; dropping it frees the seat.
#[derive(Debug)]
pub(crate) struct Seat {
    _of_all: OwnedSemaphorePermit,
    _of_open: Option<OpenSeat>,
}

/// The application that asks for a seat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Share {
    /// The channel. All programs without a channel count as one.
    pub channel: Option<Name>,
    /// Whether other channels lead to the same peer over the same leg.
    pub has_others: bool,
}

/// What a stream is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SeatUse {
    /// An application: it takes only seats that are not reserved, and may stop reading for as long
    /// as it likes.
    Application,
    /// A move, or a measurement of the path: it takes any seat, and is ended if it reads nothing
    /// for too long.
    Move,
}

impl SeatUse {
    /// What a stream of a class is for, unless it is known to be an application's.
    pub(crate) const fn of(class: Class) -> Self {
        match class {
            Class::Control | Class::Demand | Class::Switch | Class::Bulk => Self::Move,
            Class::App | Class::Scavenger => Self::Application,
        }
    }
}

impl Seats {
    /// Creates `count` seats for each leg.
    pub(crate) fn new(count: usize) -> Self {
        let kept = KEPT_COUNT.min(count / KEPT_PART);
        Self(PerLeg::of(|_| Row {
            all: Arc::new(Semaphore::new(count)),
            open: Arc::new(Open::new(count - kept)),
        }))
    }

    /// Waits for a seat: for an application if `share` is given, for a move otherwise. The longest
    /// waiting of those that may have a free seat gets it.
    pub(crate) async fn take(&self, leg: Leg, share: Option<Share>) -> Seat {
        let row = &self.0[leg];
        // In this order, an application that holds an unreserved seat waits at most for a move to
        // free one.
        let of_open = match share {
            Some(share) => Some(row.open.take(share).await),
            None => None,
        };
        let of_all = Arc::clone(&row.all).acquire_owned().await;
        Seat {
            _of_all: of_all.expect("seats are never closed"),
            _of_open: of_open,
        }
    }

    /// Whether an application would have to wait for a seat.
    pub(crate) fn are_short(&self, leg: Leg, share: &Share) -> bool {
        let row = &self.0[leg];
        row.open.free_for(share) == 0 || row.all.available_permits() == 0
    }

    /// Whether an application may soon have to wait. Idle connections should then give their seats
    /// back.
    pub(crate) fn are_few(&self, leg: Leg, share: &Share) -> bool {
        let row = &self.0[leg];
        let few = row.open.few;
        row.open.free_for(share) < few || row.all.available_permits() < few
    }
}

/// The seats of a leg that are not reserved for moves.
#[derive(Debug)]
struct Open {
    /// Seats are few when less than this number is free.
    few: usize,
    seated: Mutex<Seated>,
}

/// Who holds unreserved seats, and who waits for one.
#[derive(Debug)]
struct Seated {
    free: usize,
    held: BTreeMap<Option<Name>, usize>,
    waiting: VecDeque<(Share, oneshot::Sender<OpenSeat>)>,
}

/// An unreserved seat; dropping it gives it back.
#[derive(Debug)]
struct OpenSeat {
    open: Arc<Open>,
    channel: Option<Name>,
}

impl Drop for OpenSeat {
    fn drop(&mut self) {
        let untaken = self.open.seated().give_back(&self.open, &self.channel);
        // Seats given to waiters that have gone: dropping each hands it to the next waiter.
        drop(untaken);
    }
}

impl Open {
    fn new(count: usize) -> Self {
        Self {
            few: count.div_ceil(FEW_PART),
            seated: Mutex::new(Seated {
                free: count,
                held: BTreeMap::new(),
                waiting: VecDeque::new(),
            }),
        }
    }

    async fn take(self: &Arc<Self>, share: Share) -> OpenSeat {
        let heard = {
            let mut seated = self.seated();
            // Waiters are those over their threshold, so a channel below its own may pass them.
            if seated.free_for(&share, self.few) > 0 {
                return seated.seat(self, share.channel);
            }
            let (giver, heard) = oneshot::channel();
            seated.waiting.retain(|(_, giver)| !giver.is_closed());
            seated.waiting.push_back((share, giver));
            heard
        };
        heard.await.expect("whoever waits is given a seat")
    }

    /// Seats that an application may take now.
    fn free_for(&self, share: &Share) -> usize {
        self.seated().free_for(share, self.few)
    }

    fn seated(&self) -> MutexGuard<'_, Seated> {
        self.seated.lock()
    }
}

impl Seated {
    /// Seats that an application may take: it leaves as many free for others as it holds, up to a
    /// quarter of all.
    fn free_for(&self, share: &Share, few: usize) -> usize {
        let held = self.held.get(&share.channel).copied().unwrap_or(0);
        let left = if share.has_others { held.min(few) } else { 0 };
        self.free.saturating_sub(left)
    }

    /// Takes a free seat.
    fn seat(&mut self, open: &Arc<Open>, channel: Option<Name>) -> OpenSeat {
        self.free -= 1;
        *self.held.entry(channel.clone()).or_default() += 1;
        OpenSeat {
            open: Arc::clone(open),
            channel,
        }
    }

    /// Takes a seat back and hands free seats to waiters. Returns the seats whose waiters have
    /// gone.
    fn give_back(&mut self, open: &Arc<Open>, channel: &Option<Name>) -> Vec<OpenSeat> {
        self.free += 1;
        if let Some(held) = self.held.get_mut(channel) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(channel);
            }
        }
        let mut untaken = Vec::new();
        for (share, giver) in std::mem::take(&mut self.waiting) {
            if giver.is_closed() {
                continue;
            }
            if self.free_for(&share, open.few) == 0 {
                self.waiting.push_back((share, giver));
                continue;
            }
            let seat = self.seat(open, share.channel);
            untaken.extend(giver.send(seat).err());
        }
        untaken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(10);

    /// A channel's share beside other channels.
    fn beside(channel: &str) -> Share {
        Share {
            channel: Some(channel.parse().unwrap()),
            has_others: true,
        }
    }

    /// The share of the only application.
    fn alone() -> Share {
        Share {
            channel: None,
            has_others: false,
        }
    }

    #[tokio::test]
    async fn a_channel_with_many_connections_leaves_seats_to_channels_with_none() {
        let seats = Seats::new(64);
        let mut held = Vec::new();
        for channel in ["logs", "till", "cash", "cams"] {
            let share = beside(channel);
            let before = held.len();
            while let Ok(seat) = timeout(SOON, seats.take(Leg::Urgent, Some(share.clone()))).await {
                held.push(seat);
            }
            assert!(seats.are_short(Leg::Urgent, &share));
            assert!(held.len() > before, "{channel} has none");
            assert_eq!(seats.are_few(Leg::Urgent, &share), held.len() > 24);
        }
        assert!(held.len() < 48, "{}", held.len());
        assert!(!seats.are_short(Leg::Urgent, &beside("dns")));
        // Alone, the first channel leaves a quarter free.
        let first = held.iter().filter(|seat| {
            let of_open = seat._of_open.as_ref();
            of_open.is_some_and(|seat| seat.channel == beside("logs").channel)
        });
        assert_eq!(first.count(), 36);
    }

    #[tokio::test]
    async fn who_waits_for_its_share_keeps_nobody_else_waiting_and_is_next() {
        let seats = Arc::new(Seats::new(64));
        let take = |channel: &str| seats.take(Leg::Bulk, Some(beside(channel)));
        let mut held = Vec::new();
        for _ in 0..36 {
            held.push(take("logs").await);
        }
        assert!(timeout(SOON, take("logs")).await.is_err(), "gives up");
        let (waiter, share) = (Arc::clone(&seats), beside("logs"));
        let waiting = tokio::spawn(async move { waiter.take(Leg::Bulk, Some(share)).await });
        tokio::task::yield_now().await;
        let other = timeout(SOON, take("till")).await.unwrap();
        drop(other);
        assert!(!waiting.is_finished(), "a quarter is left, and no more");
        held.pop();
        timeout(SOON, waiting).await.unwrap().unwrap();
        assert!(timeout(SOON, take("logs")).await.is_ok());
    }

    #[tokio::test]
    async fn applications_leave_moves_their_seats_and_wait_in_a_row() {
        let seats = Seats::new(64);
        let take = |leg, seat_use| {
            let share = (seat_use == SeatUse::Application).then(alone);
            timeout(SOON, seats.take(leg, share))
        };
        let mut held = Vec::new();
        for taken in 0..48 {
            assert!(!seats.are_short(Leg::Urgent, &alone()));
            assert_eq!(seats.are_few(Leg::Urgent, &alone()), taken > 36);
            held.push(take(Leg::Urgent, SeatUse::Application).await.unwrap());
        }
        assert!(seats.are_short(Leg::Urgent, &alone()) && !seats.are_short(Leg::Bulk, &alone()));
        assert!(!seats.are_few(Leg::Bulk, &alone()));
        assert!(take(Leg::Urgent, SeatUse::Application).await.is_err());
        let moves: Vec<_> = [(); 16].map(|()| take(Leg::Urgent, SeatUse::Move)).into();
        let mut lanes = Vec::new();
        for lane in moves {
            lanes.push(lane.await.unwrap());
        }
        assert!(
            take(Leg::Urgent, SeatUse::Move).await.is_err(),
            "the peer takes 64"
        );
        drop(lanes);
        held.pop();
        assert!(take(Leg::Urgent, SeatUse::Application).await.is_ok());
        assert!(take(Leg::Bulk, SeatUse::Application).await.is_ok());
    }

    #[tokio::test]
    async fn a_move_may_have_every_seat_that_is_free() {
        let seats = Seats::new(4);
        let take = |seat_use| {
            let share = (seat_use == SeatUse::Application).then(alone);
            timeout(SOON, seats.take(Leg::Bulk, share))
        };
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(take(SeatUse::Move).await.unwrap());
        }
        assert!(take(SeatUse::Application).await.is_err());
        held.pop();
        // A waiter that gave up holds nothing.
        assert!(take(SeatUse::Move).await.is_ok());
        let one = Seats::new(1);
        assert!(!one.are_few(Leg::Urgent, &alone()));
        let only = timeout(SOON, one.take(Leg::Urgent, Some(alone()))).await;
        assert!(only.is_ok(), "of one seat none is kept");
    }
}
