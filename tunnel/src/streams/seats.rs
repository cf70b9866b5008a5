//! How many streams this side has with a peer: each keeps a seat from its begin to its end.
//!
//! A peer takes so many streams on each connection of a link, and a stream goes on over the next link. With its
//! seat it finds room there whenever it comes, however many wait to begin; and what is free of the seats is
//! free at the peer. Some seats of each leg are not for applications: those of moves must not wait for them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use towpath_protocol::channel::{Class, Leg};

/// Seats of a leg that applications leave free: each move needs three of one leg and one of the other.
const KEPT_COUNT: usize = 16;

/// The part of a leg's seats that is kept at most, where there are few.
const KEPT_PART: usize = 4;

/// Once less than this part of a leg's seats for applications is free, they are few.
const FEW_PART: usize = 4;

/// The seats with one peer.
#[derive(Debug)]
pub(crate) struct Seats([Row; Leg::ALL.len()]);

#[derive(Debug)]
struct Row {
    all: Arc<Semaphore>,
    /// Those of them that are for everybody.
    open: Arc<Semaphore>,
    /// With less of them free they are few.
    few: usize,
}

/// A stream's seat, until it is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    _of_all: OwnedSemaphorePermit,
    _of_open: Option<OwnedSemaphorePermit>,
}

/// For whom a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guest {
    /// An application: it takes the seats that are for everybody, and its programs read when they like.
    Application,
    /// A move, or what measures the path: it takes any seat, and who reads nothing for too long ends it.
    Move,
}

impl Guest {
    /// For whom a stream of a class is, unless it is known to be an application's.
    pub(crate) const fn of(class: Class) -> Self {
        match class {
            Class::Control | Class::Demand | Class::Switch | Class::Bulk => Self::Move,
            Class::App | Class::Scavenger => Self::Application,
        }
    }
}

impl Seats {
    /// So many for each leg.
    pub(crate) fn new(count: usize) -> Self {
        let kept = KEPT_COUNT.min(count / KEPT_PART);
        Self(Leg::ALL.map(|_| Row {
            all: Arc::new(Semaphore::new(count)),
            open: Arc::new(Semaphore::new(count - kept)),
            few: (count - kept).div_ceil(FEW_PART),
        }))
    }

    /// Waits for a seat; who came first has the next one.
    pub(crate) async fn take(&self, leg: Leg, guest: Guest) -> Seat {
        let row = &self.0[leg as usize];
        let take = async |seats: &Arc<Semaphore>| {
            let taken = Arc::clone(seats).acquire_owned().await;
            taken.expect("seats are never closed")
        };
        // In this order whoever has one that is for everybody finds one of all, or waits for a move's alone.
        let of_open = match guest {
            Guest::Application => Some(take(&row.open).await),
            Guest::Move => None,
        };
        Seat {
            _of_all: take(&row.all).await,
            _of_open: of_open,
        }
    }

    /// Whether an application would have to wait.
    pub(crate) fn are_short(&self, leg: Leg) -> bool {
        let row = &self.0[leg as usize];
        row.open.available_permits() == 0 || row.all.available_permits() == 0
    }

    /// Whether applications may soon have to wait: who does not need a seat gives it back now.
    pub(crate) fn are_few(&self, leg: Leg) -> bool {
        let row = &self.0[leg as usize];
        row.open.available_permits() < row.few || row.all.available_permits() < row.few
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;

    const SOON: Duration = Duration::from_millis(10);

    #[tokio::test]
    async fn applications_leave_moves_their_seats_and_wait_in_a_row() {
        let seats = Seats::new(64);
        let take = |leg, guest| timeout(SOON, seats.take(leg, guest));
        let mut held = Vec::new();
        for taken in 0..48 {
            assert!(!seats.are_short(Leg::Urgent));
            assert_eq!(seats.are_few(Leg::Urgent), taken > 36);
            held.push(take(Leg::Urgent, Guest::Application).await.unwrap());
        }
        assert!(seats.are_short(Leg::Urgent) && !seats.are_short(Leg::Bulk));
        assert!(!seats.are_few(Leg::Bulk));
        assert!(take(Leg::Urgent, Guest::Application).await.is_err());
        let moves: Vec<_> = [(); 16].map(|()| take(Leg::Urgent, Guest::Move)).into();
        let mut lanes = Vec::new();
        for lane in moves {
            lanes.push(lane.await.unwrap());
        }
        assert!(
            take(Leg::Urgent, Guest::Move).await.is_err(),
            "the peer takes 64"
        );
        drop(lanes);
        held.pop();
        assert!(take(Leg::Urgent, Guest::Application).await.is_ok());
        assert!(take(Leg::Bulk, Guest::Application).await.is_ok());
    }

    #[tokio::test]
    async fn a_move_may_have_every_seat_that_is_free() {
        let seats = Seats::new(4);
        let take = |guest| timeout(SOON, seats.take(Leg::Bulk, guest));
        let mut held = Vec::new();
        for _ in 0..4 {
            held.push(take(Guest::Move).await.unwrap());
        }
        assert!(take(Guest::Application).await.is_err());
        held.pop();
        // Who gave up waiting holds nothing.
        assert!(take(Guest::Move).await.is_ok());
        let one = Seats::new(1);
        assert!(!one.are_few(Leg::Urgent));
        let only = timeout(SOON, one.take(Leg::Urgent, Guest::Application)).await;
        assert!(only.is_ok(), "of one seat none is kept");
    }
}
