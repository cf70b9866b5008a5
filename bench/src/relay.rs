//! The link emulator: a UDP relay with a bottleneck, a delay and a queue in each direction.
//!
//! ```text
//!  side A's sockets ──► door ─┐                        ┌─► a socket of the relay's own ──► side B
//!  side A's sockets ──► door ─┴► loss ► queue ► rate ► delay
//! ```
//!
//! A *door* is the address that one side sends to in order to reach an address of the other. Behind
//! it the relay translates addresses like a home router: each source address gets a socket of its
//! own towards the other side, and replies to that socket leave through the door. All flows of one
//! direction share one bottleneck, as they would on a real access link.
//!
//! The queue is drop-tail: a datagram that would have to wait longer than the queue is deep is
//! dropped. Order is kept. One thread does all the work. It computes each datagram's times from
//! when it was read and when the bottleneck is free, so a late wake-up delays one delivery, and
//! delays do not add up.

mod line;
mod nat;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::OwnedFd;

pub use line::{Counters, HEADER_BYTES};

/// One of the two sides of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The first.
    A,
    /// The second.
    B,
}

impl Side {
    /// The other side.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    /// This side's index in a pair.
    const fn index(self) -> usize {
        match self {
            Self::A => 0,
            Self::B => 1,
        }
    }
}

/// The depth of a direction's queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// A number of bytes.
    Bytes(u64),
    /// The bytes that the bottleneck sends in this time.
    Time(Duration),
}

/// What one direction of the link does to datagrams.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Direction {
    /// Bits per second, headers of UDP and IP included; `None` for no limit.
    pub bits_per_second: Option<u64>,
    /// One-way delay.
    pub delay: Duration,
    /// Depth of the queue in front of the bottleneck.
    pub queue: Queue,
    /// Probability that a datagram is lost, 0 to 1.
    pub loss: f64,
}

impl Default for Direction {
    fn default() -> Self {
        Self {
            bits_per_second: None,
            delay: Duration::ZERO,
            queue: Queue::Time(Duration::from_millis(50)),
            loss: 0.0,
        }
    }
}

/// The address that one side sends to in order to reach an address of the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    /// The side that uses it.
    pub from: Side,
    /// The address on which the relay listens; port 0 for any.
    pub listen: SocketAddr,
    /// The address of the other side that it stands for.
    pub to: SocketAddr,
}

/// The settings of a whole link.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Its doors; at least one.
    pub doors: Vec<Door>,
    /// Treatment of datagrams from side A.
    pub from_a: Direction,
    /// Treatment of datagrams from side B.
    pub from_b: Direction,
    /// Seed of the random losses.
    pub seed: u64,
}

impl Options {
    /// A link with the same rate and queue in each direction, and half of the round trip as delay
    /// in each.
    #[must_use]
    pub fn symmetric(doors: Vec<Door>, bits_per_second: u64, round_trip: Duration) -> Self {
        let direction = Direction {
            bits_per_second: Some(bits_per_second),
            delay: round_trip / 2,
            ..Direction::default()
        };
        Self {
            doors,
            from_a: direction,
            from_b: direction,
            seed: 1,
        }
    }
}

/// State shared by the handle and the relay's thread.
#[derive(Debug)]
struct Shared {
    wishes: Mutex<Wishes>,
    counters: [Mutex<Counters>; 2],
    is_stopping: AtomicBool,
    wake: OwnedFd,
}

/// The requested settings; the thread applies them when it is woken.
#[derive(Debug, Clone, PartialEq)]
struct Wishes {
    directions: [Direction; 2],
    is_cut: [bool; 2],
    /// Datagrams with a larger payload are lost, in both directions.
    payload_bytes_max: usize,
    /// How often new addresses were requested for all flows.
    moves: u64,
}

/// A running relay; it stops when this value is dropped.
#[derive(Debug)]
pub struct Relay {
    shared: Arc<Shared>,
    doors: Vec<SocketAddr>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    /// Binds the doors and starts the relay.
    ///
    /// # Errors
    ///
    /// If a door cannot be bound, a direction's numbers are invalid, or there are no doors.
    pub fn start(options: &Options) -> io::Result<Self> {
        for direction in [&options.from_a, &options.from_b] {
            check(direction)?;
        }
        if options.doors.is_empty() {
            return Err(invalid("a relay needs a door"));
        }
        let wishes = Wishes {
            directions: [options.from_a, options.from_b],
            is_cut: [false; 2],
            payload_bytes_max: usize::MAX,
            moves: 0,
        };
        let shared = Arc::new(Shared {
            wishes: Mutex::new(wishes.clone()),
            counters: Default::default(),
            is_stopping: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        });
        let engine = nat::Engine::bind(&options.doors, &wishes, options.seed, Arc::clone(&shared))?;
        let doors = engine.door_addresses()?;
        let thread = std::thread::Builder::new()
            .name("relay".to_owned())
            .spawn(move || engine.run())?;
        Ok(Self {
            shared,
            doors,
            thread: Some(thread),
        })
    }

    /// The address of each door, in the order they were given.
    #[must_use]
    pub fn doors(&self) -> &[SocketAddr] {
        &self.doors
    }

    /// A handle for changing the link, which can be cloned.
    #[must_use]
    pub fn control(&self) -> Control {
        Control {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been reported.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn wake(&self) {
        // The write fails only if the counter is full, and then the thread is about to wake anyway.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

/// Changes a running link.
#[derive(Debug, Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

impl Control {
    /// Cuts one direction: loses what side `from` sends, and what is in flight.
    pub fn cut(&self, from: Side) {
        self.wish(|wishes| wishes.is_cut[from.index()] = true);
    }

    /// Cuts both directions.
    pub fn cut_both(&self) {
        self.wish(|wishes| wishes.is_cut = [true; 2]);
    }

    /// Ends all cuts.
    pub fn heal(&self) {
        self.wish(|wishes| wishes.is_cut = [false; 2]);
    }

    /// Silently loses datagrams with a larger payload than this, like a path whose MTU has just
    /// become smaller.
    pub fn lose_above(&self, payload_bytes: usize) {
        self.wish(|wishes| wishes.payload_bytes_max = payload_bytes);
    }

    /// Gives every flow another address towards the other side, like a router that lost its table
    /// or whose line got a new address. Datagrams to the old addresses are lost.
    pub fn change_addresses(&self) {
        self.wish(|wishes| wishes.moves += 1);
    }

    /// Changes the treatment of datagrams that side `from` sends from now on.
    ///
    /// # Errors
    ///
    /// If the numbers are invalid.
    pub fn set(&self, from: Side, direction: Direction) -> io::Result<()> {
        check(&direction)?;
        self.wish(|wishes| wishes.directions[from.index()] = direction);
        Ok(())
    }

    /// Counters of the datagrams that side `from` sent.
    #[must_use]
    pub fn counters(&self, from: Side) -> Counters {
        *self.shared.counters[from.index()].lock()
    }

    fn wish(&self, change: impl FnOnce(&mut Wishes)) {
        change(&mut self.shared.wishes.lock());
        self.shared.wake();
    }
}

fn check(direction: &Direction) -> io::Result<()> {
    if direction.bits_per_second == Some(0) {
        return Err(invalid("a rate of zero is a cut: cut the link instead"));
    }
    if !(0.0..=1.0).contains(&direction.loss) {
        return Err(invalid("a loss is between 0 and 1"));
    }
    Ok(())
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests;
