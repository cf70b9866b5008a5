//! The relay's thread: sockets, address translation, and the clock of both directions.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::time::Timespec;

use super::line::Line;
use super::{Door, Shared, Side, Wishes};

/// Most source addresses translated at a time; beyond that the oldest is forgotten.
const FLOWS_MAX: usize = 256;

/// Most datagrams read from one socket before the others get their turn.
const BATCH_COUNT_MAX: usize = 64;

/// Largest datagram over IPv4 or IPv6, in bytes.
const DATAGRAM_BYTES_MAX: usize = 65_535;

/// Socket buffers, in bytes: room for a burst at 1 Gbit/s of 60 ms while the thread does not run.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;

/// Most events taken from the kernel at a time.
const EVENT_COUNT_MAX: usize = 64;

/// The epoll key of the control's wake-up; sockets are numbered from 0.
const WAKE: u64 = u64::MAX;

/// A datagram in flight, and its exit.
#[derive(Debug)]
struct Parcel {
    bytes: Box<[u8]>,
    exit: Exit,
}

/// The socket through which a datagram leaves the relay.
#[derive(Debug, Clone, Copy)]
enum Exit {
    /// The socket of a flow, connected to the other side.
    Flow(u64),
    /// A door, to the client address of a flow.
    Door { door: usize, client: SocketAddr },
}

/// A client's address behind a door, and the socket that stands for it.
#[derive(Debug)]
struct Flow {
    door: usize,
    client: SocketAddr,
    socket: UdpSocket,
}

/// Everything that the relay's thread owns.
#[derive(Debug)]
pub(super) struct Engine {
    doors: Vec<(Door, UdpSocket)>,
    /// By number. Numbers are never reused, so a late datagram cannot leave through a newer flow.
    flows: BTreeMap<u64, Flow>,
    by_client: BTreeMap<(usize, SocketAddr), u64>,
    ages: VecDeque<u64>,
    next_number: u64,
    lines: [Line<Parcel>; 2],
    moves: u64,
    epoll: OwnedFd,
    start: Instant,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
}

impl Engine {
    pub(super) fn bind(
        doors: &[Door],
        wishes: &Wishes,
        seed: u64,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let readable = epoll::EventFlags::IN;
        epoll::add(
            &epoll,
            &shared.wake,
            epoll::EventData::new_u64(WAKE),
            readable,
        )?;
        let mut bound = Vec::with_capacity(doors.len());
        for (number, door) in doors.iter().enumerate() {
            let socket = bind(door.listen)?;
            let data = epoll::EventData::new_u64(number as u64);
            epoll::add(&epoll, &socket, data, readable)?;
            bound.push((*door, socket));
        }
        let [from_a, from_b] = wishes.directions;
        Ok(Self {
            next_number: bound.len() as u64,
            doors: bound,
            flows: BTreeMap::new(),
            by_client: BTreeMap::new(),
            ages: VecDeque::new(),
            lines: [
                Line::new(from_a, seed),
                Line::new(from_b, seed ^ 0x5bd1_e995),
            ],
            moves: wishes.moves,
            epoll,
            start: Instant::now(),
            shared,
            buffer: vec![0; DATAGRAM_BYTES_MAX],
        })
    }

    pub(super) fn door_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.doors
            .iter()
            .map(|(_, socket)| socket.local_addr())
            .collect()
    }

    /// Runs until the handle is dropped.
    pub(super) fn run(mut self) {
        let mut events = Vec::with_capacity(EVENT_COUNT_MAX);
        while !self.shared.is_stopping.load(Ordering::Acquire) {
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("epoll on descriptors that we own: {error}"),
            }
            for event in &events {
                match event.data.u64() {
                    WAKE => self.take_wishes(),
                    number => self.receive(number),
                }
            }
            self.send_due();
            self.publish();
        }
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Time until the next datagram is due; `None` to wait for events only.
    fn timeout(&self) -> Option<Timespec> {
        let due = self.lines.iter().filter_map(Line::due).min()?;
        Timespec::try_from(due.saturating_sub(self.now())).ok()
    }

    fn take_wishes(&mut self) {
        let mut count = [0; 8];
        // The count does not matter: all requested settings are in one place.
        let _ = rustix::io::read(&self.shared.wake, &mut count);
        let wishes = self.shared.wishes.lock().clone();
        let now = self.now();
        for (index, line) in self.lines.iter_mut().enumerate() {
            line.set(wishes.directions[index]);
            line.set_cut(wishes.is_cut[index], now);
            line.set_payload_max(wishes.payload_bytes_max);
        }
        if std::mem::replace(&mut self.moves, wishes.moves) != wishes.moves {
            while !self.flows.is_empty() {
                self.forget_oldest();
            }
        }
    }

    fn publish(&self) {
        for (line, counters) in self.lines.iter().zip(&self.shared.counters) {
            *counters.lock() = line.counters();
        }
    }

    /// Reads from a socket, up to a batch; epoll reports it again if there is more.
    fn receive(&mut self, number: u64) {
        for _ in 0..BATCH_COUNT_MAX {
            let Some((side, count, exit)) = self.receive_one(number) else {
                return;
            };
            let parcel = Parcel {
                bytes: self.buffer[..count].into(),
                exit,
            };
            let now = self.now();
            self.lines[side.index()].push(count, parcel, now);
        }
    }

    /// Reads one datagram into the buffer. Returns the side it came from, its length and its exit.
    fn receive_one(&mut self, number: u64) -> Option<(Side, usize, Exit)> {
        if let Some(flow) = self.flows.get(&number) {
            // An error on a connected socket is a port that does not answer: that side has not
            // started yet.
            let count = flow.socket.recv(&mut self.buffer).ok()?;
            let (door, client) = (flow.door, flow.client);
            let side = self.doors[door].0.from.other();
            return Some((side, count, Exit::Door { door, client }));
        }
        let door = usize::try_from(number).ok()?;
        let (about, socket) = self.doors.get(door)?;
        let from = about.from;
        let (count, client) = socket.recv_from(&mut self.buffer).ok()?;
        let flow = self.flow_of(door, client).ok()?;
        Some((from, count, Exit::Flow(flow)))
    }

    /// The number of a client's flow, which is created if it is new.
    fn flow_of(&mut self, door: usize, client: SocketAddr) -> io::Result<u64> {
        if let Some(number) = self.by_client.get(&(door, client)) {
            return Ok(*number);
        }
        if self.flows.len() >= FLOWS_MAX {
            self.forget_oldest();
        }
        let to = self.doors[door].0.to;
        let any: SocketAddr = if to.is_ipv4() {
            (Ipv4Addr::UNSPECIFIED, 0).into()
        } else {
            (Ipv6Addr::UNSPECIFIED, 0).into()
        };
        let socket = bind(any)?;
        socket.connect(to)?;
        let number = self.next_number;
        let data = epoll::EventData::new_u64(number);
        epoll::add(&self.epoll, &socket, data, epoll::EventFlags::IN)?;
        self.next_number += 1;
        let flow = Flow {
            door,
            client,
            socket,
        };
        self.flows.insert(number, flow);
        self.by_client.insert((door, client), number);
        self.ages.push_back(number);
        Ok(number)
    }

    fn forget_oldest(&mut self) {
        if let Some(number) = self.ages.pop_front()
            && let Some(flow) = self.flows.remove(&number)
        {
            self.by_client.remove(&(flow.door, flow.client));
        }
    }

    fn send_due(&mut self) {
        let now = self.now();
        for line in &mut self.lines {
            while let Some(parcel) = line.pop(now) {
                // If the socket is full or the port does not answer, the datagram is lost, as in a
                // network.
                let _ = match parcel.exit {
                    Exit::Flow(number) => match self.flows.get(&number) {
                        Some(flow) => flow.socket.send(&parcel.bytes),
                        None => Ok(0),
                    },
                    Exit::Door { door, client } => {
                        self.doors[door].1.send_to(&parcel.bytes, client)
                    }
                };
            }
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    // Only root may exceed the system's limit; other users get as much as it allows.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BUFFER_BYTES)
        .is_err()
    {
        rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    }
    rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BUFFER_BYTES)?;
    Ok(socket)
}
