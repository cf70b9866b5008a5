//! A UDP socket that sends and receives packets in batches that the kernel accepts. One call
//! handles many packets, but at most the 64 KiB of one datagram. Received batches are passed on
//! packet by packet (`arrivals`).
//!
//! Quinn sends ten packets at once, whatever their size. On a path with jumbo frames, ten packets
//! exceed a datagram: the kernel refuses them, and quinn concludes that the path carries nothing.
//! On an ordinary path, ten packets fill a quarter of a datagram, and each batch costs the kernel
//! more than its packets do, at both ends. So a batch of ten full packets is *held* for packets
//! that probably follow, until a datagram is full, a smaller packet ends it, or the thread has
//! nothing to add.

mod arrivals;

use std::future::poll_fn;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, Waker, ready};

use parking_lot::{Mutex, MutexGuard};
use quinn::udp::{EcnCodepoint, RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

use arrivals::Arrivals;

/// Most bytes of one batch: the largest payload of a datagram over IPv6.
const BATCH_BYTES_MAX: usize = 65_535 - 40 - 8;

/// Least size assumed for the packets of a batch: the least QUIC packet of a path.
const PACKET_BYTES_MIN: usize = 1200;

/// Packets that quinn sends at once. A full ten means that more may follow.
const LIBRARY_PACKETS: usize = 10;

/// A UDP socket that sends in larger batches.
#[derive(Debug)]
pub(crate) struct Batched(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    socket: Arc<dyn AsyncUdpSocket>,
    /// Size of each packet of the last batch.
    packet_bytes: AtomicUsize,
    held: Mutex<HeldBatch>,
    arrivals: Mutex<Arrivals>,
}

/// Packets held until others of the same size to the same destination join them.
#[derive(Debug, Default)]
struct HeldBatch {
    contents: Vec<u8>,
    packet_bytes: usize,
    way: Option<Way>,
    /// Whether packets were added since the last sweep.
    is_growing: bool,
    sweep: Option<Waker>,
}

/// What all packets of a batch have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Way {
    destination: SocketAddr,
    ecn: Option<EcnCodepoint>,
    src_ip: Option<IpAddr>,
}

impl Batched {
    /// Creates a socket and its sweep, a future that must run on the sending thread. Nothing is
    /// held before it runs.
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>) -> (Self, impl Future<Output = ()> + use<>) {
        let mut poller = Arc::clone(&socket).create_io_poller();
        let shared = Arc::new(Shared {
            socket,
            packet_bytes: AtomicUsize::new(PACKET_BYTES_MIN),
            held: Mutex::default(),
            arrivals: Mutex::default(),
        });
        let seen = Arc::downgrade(&shared);
        let sweep = poll_fn(move |context| sweep(&seen, &mut poller, context));
        (Self(shared), sweep)
    }
}

impl Drop for Batched {
    fn drop(&mut self) {
        // Wakes the sweep, which ends when the socket is gone.
        let sweep = self.0.held().sweep.take();
        if let Some(sweep) = sweep {
            sweep.wake();
        }
    }
}

/// Sends the held batch once a round of the thread's tasks has added nothing to it.
fn sweep(
    shared: &Weak<Shared>,
    poller: &mut Pin<Box<dyn UdpPoller>>,
    context: &mut Context<'_>,
) -> Poll<()> {
    let Some(shared) = shared.upgrade() else {
        return Poll::Ready(());
    };
    let mut held = shared.held();
    let mine = context.waker();
    if !held.sweep.as_ref().is_some_and(|one| one.will_wake(mine)) {
        held.sweep = Some(mine.clone());
    }
    if std::mem::take(&mut held.is_growing) {
        mine.wake_by_ref();
        return Poll::Pending;
    }
    while !held.contents.is_empty() && held.send(&*shared.socket).is_err() {
        // An error of the poller ends the connection too, and is reported there.
        if ready!(poller.as_mut().poll_writable(context)).is_err() {
            held.contents.clear();
        }
    }
    Poll::Pending
}

impl HeldBatch {
    /// Whether these packets may be added to the held batch.
    fn fits(&self, transmit: &Transmit<'_>) -> bool {
        let bytes = transmit.contents.len();
        let is_alike = match transmit.segment_size {
            Some(packet_bytes) => packet_bytes == self.packet_bytes,
            // The last packet of a batch may be smaller.
            None => bytes <= self.packet_bytes,
        };
        is_alike
            && self.way == Some(Way::of(transmit))
            && self.contents.len() + bytes <= BATCH_BYTES_MAX
    }

    fn add(&mut self, transmit: &Transmit<'_>) {
        if self.contents.is_empty() {
            self.way = Some(Way::of(transmit));
            self.packet_bytes = transmit.segment_size.unwrap_or(transmit.contents.len());
        }
        self.contents.extend_from_slice(transmit.contents);
    }

    /// Sends the held batch; keeps it if the socket is full.
    fn send(&mut self, socket: &dyn AsyncUdpSocket) -> io::Result<()> {
        let Some(way) = self.way else { return Ok(()) };
        let sent = socket.try_send(&Transmit {
            destination: way.destination,
            ecn: way.ecn,
            contents: &self.contents,
            segment_size: Some(self.packet_bytes),
            src_ip: way.src_ip,
        });
        if !matches!(&sent, Err(error) if error.kind() == io::ErrorKind::WouldBlock) {
            self.contents.clear();
        }
        sent
    }
}

impl Way {
    const fn of(transmit: &Transmit<'_>) -> Self {
        Self {
            destination: transmit.destination,
            ecn: transmit.ecn,
            src_ip: transmit.src_ip,
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, HeldBatch> {
        self.held.lock()
    }

    /// Sends a batch in parts that the kernel accepts.
    fn send_in_parts(&self, transmit: &Transmit<'_>, packet_bytes: usize) -> io::Result<()> {
        let part_bytes = packets_per_batch(packet_bytes) * packet_bytes;
        for contents in transmit.contents.chunks(part_bytes) {
            // If the socket fills up between two parts, quinn sends all of them again; QUIC ignores
            // packets that arrive twice.
            self.socket.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size: Some(packet_bytes),
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }
}

/// How many packets of this size fit one batch.
const fn packets_per_batch(packet_bytes: usize) -> usize {
    BATCH_BYTES_MAX / packet_bytes
}

/// Whether there is room for another full call by quinn.
const fn has_room(held_bytes: usize, packet_bytes: usize) -> bool {
    held_bytes + LIBRARY_PACKETS * packet_bytes <= BATCH_BYTES_MAX
}

impl AsyncUdpSocket for Batched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.0.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Shared {
            socket,
            packet_bytes: last_packet_bytes,
            ..
        } = &*self.0;
        let bytes = transmit.contents.len();
        let mut held = self.0.held();
        if !held.contents.is_empty() && !held.fits(transmit) {
            held.send(&**socket)?;
        }
        if let Some(packet_bytes) = transmit.segment_size {
            let usual = packet_bytes.max(PACKET_BYTES_MIN);
            last_packet_bytes.store(usual, Ordering::Relaxed);
            if bytes > BATCH_BYTES_MAX {
                // The first batch since packets became larger.
                return self.0.send_in_parts(transmit, packet_bytes);
            }
            let before_bytes = held.contents.len();
            let is_full = bytes == LIBRARY_PACKETS * packet_bytes;
            if is_full
                && has_room(before_bytes + bytes, packet_bytes)
                && let Some(sweep) = held.sweep.clone()
            {
                held.add(transmit);
                held.is_growing = true;
                if before_bytes == 0 {
                    sweep.wake();
                }
                return Ok(());
            }
        }
        if held.contents.is_empty() {
            return socket.try_send(transmit);
        }
        let before_bytes = held.contents.len();
        held.add(transmit);
        let sent = held.send(&**socket);
        if sent.is_err() {
            // Quinn will send this packet again.
            held.contents.truncate(before_bytes);
        }
        sent
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let arrivals = &self.0.arrivals;
        let mut arrivals = arrivals.lock();
        arrivals.poll(&*self.0.socket, context, (buffers, meta))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let fitting = packets_per_batch(self.0.packet_bytes.load(Ordering::Relaxed));
        fitting.min(self.0.socket.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.0.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    const PACKET: usize = 1452;
    const FULL: usize = LIBRARY_PACKETS * PACKET;

    /// Records what was sent.
    #[derive(Debug, Default)]
    struct Sent {
        batches: Mutex<Vec<(usize, Option<usize>)>>,
        bytes: Mutex<Vec<u8>>,
        is_full: AtomicBool,
    }

    #[derive(Debug)]
    struct Poller(Arc<Sent>);

    impl UdpPoller for Poller {
        fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.0.is_full.load(Ordering::Relaxed) {
                return Poll::Pending;
            }
            Poll::Ready(Ok(()))
        }
    }

    impl AsyncUdpSocket for Sent {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            Box::pin(Poller(self))
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            if self.is_full.load(Ordering::Relaxed) {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            let sent = (transmit.contents.len(), transmit.segment_size);
            self.batches.lock().push(sent);
            self.bytes.lock().extend_from_slice(transmit.contents);
            Ok(())
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            _: &mut [IoSliceMut<'_>],
            _: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            Poll::Pending
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
        }

        fn max_transmit_segments(&self) -> usize {
            LIBRARY_PACKETS
        }
    }

    impl Sent {
        fn take(&self) -> Vec<(usize, Option<usize>)> {
            std::mem::take(&mut *self.batches.lock())
        }
    }

    fn transmit(contents: &[u8], segment_size: Option<usize>, port: u16) -> Transmit<'_> {
        Transmit {
            destination: SocketAddr::from(([127, 0, 0, 1], port)),
            ecn: None,
            contents,
            segment_size,
            src_ip: None,
        }
    }

    /// A socket whose sweep has started, and the sweep.
    fn swept(sent: &Arc<Sent>) -> (Batched, Pin<Box<impl Future<Output = ()>>>) {
        let (socket, sweep) = Batched::new(Arc::clone(sent) as Arc<dyn AsyncUdpSocket>);
        let mut sweep = Box::pin(sweep);
        assert!(turn(&mut sweep).is_pending());
        (socket, sweep)
    }

    fn turn(sweep: &mut Pin<Box<impl Future<Output = ()>>>) -> Poll<()> {
        sweep.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_batch_of_large_packets_goes_in_parts_and_the_next_one_is_smaller() {
        let sent = Arc::new(Sent::default());
        let (socket, _sweep) = Batched::new(Arc::clone(&sent) as Arc<dyn AsyncUdpSocket>);
        let send = |bytes: usize, segment_size| {
            let contents = vec![0; bytes];
            socket
                .try_send(&transmit(&contents, segment_size, 2))
                .unwrap();
            sent.take()
        };
        assert_eq!(socket.max_transmit_segments(), 10);
        assert_eq!(send(14_520, Some(1452)), [(14_520, Some(1452))]);
        assert_eq!(send(8952, None), [(8952, None)], "a probe goes alone");
        assert_eq!(socket.max_transmit_segments(), 10);
        let parts = send(10 * 8952 - 5, Some(8952));
        assert_eq!(parts, [(7 * 8952, Some(8952)), (3 * 8952 - 5, Some(8952))]);
        assert_eq!(socket.max_transmit_segments(), 7);
        // A path that became narrower has full batches again.
        send(2400, Some(1200));
        assert_eq!(socket.max_transmit_segments(), 10);
    }

    #[test]
    fn full_batches_go_together_with_what_ends_them() {
        let sent = Arc::new(Sent::default());
        let (socket, mut sweep) = swept(&sent);
        let mut number = 0_u8;
        let mut all = Vec::new();
        let mut send = |bytes: usize, segment_size, port| {
            number += 1;
            let contents = vec![number; bytes];
            socket
                .try_send(&transmit(&contents, segment_size, port))
                .unwrap();
            all.extend_from_slice(&contents);
        };
        let packet = Some(PACKET);
        for _ in 0..4 {
            send(FULL, packet, 2);
        }
        assert_eq!(sent.take(), [(4 * FULL, packet)], "a datagram is full");
        send(FULL, packet, 2);
        send(3 * PACKET - 7, packet, 2);
        assert_eq!(sent.take(), [(FULL + 3 * PACKET - 7, packet)]);
        send(FULL, packet, 2);
        send(100, None, 2);
        assert_eq!(sent.take(), [(FULL + 100, packet)], "one packet");
        send(FULL, packet, 2);
        send(PACKET + 8, None, 2);
        assert_eq!(sent.take(), [(FULL, packet), (PACKET + 8, None)], "a probe");
        send(FULL, packet, 2);
        send(12_000, Some(1200), 2);
        send(100, None, 3);
        let alone = [(FULL, packet), (12_000, Some(1200)), (100, None)];
        assert_eq!(sent.take(), alone, "another size, and another peer");
        assert!(turn(&mut sweep).is_pending());
        assert!(turn(&mut sweep).is_pending());
        assert_eq!(sent.take(), []);
        assert!(*sent.bytes.lock() == all, "in order and once");
    }

    #[test]
    fn what_is_held_goes_once_nothing_follows_it() {
        let sent = Arc::new(Sent::default());
        let (socket, mut sweep) = swept(&sent);
        let contents = vec![0; FULL];
        let send = || socket.try_send(&transmit(&contents, Some(PACKET), 2));
        send().unwrap();
        assert!(turn(&mut sweep).is_pending());
        send().unwrap();
        assert!(turn(&mut sweep).is_pending());
        assert_eq!(sent.take(), [], "it grows");
        assert!(turn(&mut sweep).is_pending());
        assert_eq!(sent.take(), [(2 * FULL, Some(PACKET))]);
        drop(socket);
        assert!(turn(&mut sweep).is_ready());
    }

    #[test]
    fn a_socket_that_is_full_loses_and_repeats_nothing() {
        let sent = Arc::new(Sent::default());
        let (socket, mut sweep) = swept(&sent);
        let (full, rest) = (vec![1; FULL], vec![2; 500]);
        let packet = Some(PACKET);
        socket.try_send(&transmit(&full, packet, 2)).unwrap();
        sent.is_full.store(true, Ordering::Relaxed);
        for _ in 0..2 {
            let error = socket.try_send(&transmit(&rest, None, 2)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            let error = socket.try_send(&transmit(&rest, None, 3)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
            assert!(turn(&mut sweep).is_pending());
        }
        sent.is_full.store(false, Ordering::Relaxed);
        assert!(turn(&mut sweep).is_pending());
        socket.try_send(&transmit(&rest, None, 2)).unwrap();
        assert_eq!(sent.take(), [(FULL, packet), (500, None)]);
    }
}
