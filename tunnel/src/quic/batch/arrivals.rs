//! Hands received batches on packet by packet.
//!
//! The kernel merges packets into batches of up to 64 KiB, and quinn keeps a batch in one piece of
//! memory as long as any of its bytes waits. A packet whose program does not read would so keep the
//! whole batch in memory, forty times what any limit counts. So each packet is handed on as if it
//! had arrived alone. That takes one more copy, made while the batch is in the processor's cache.
//!
//! The buffer of one receive call has 2 MiB, and a tunnel that dials a silent peer has dozens of
//! sockets. So the sockets of a thread share a buffer: each holds it only while batches of its own
//! wait in it.

use std::cell::Cell;
use std::fmt;
use std::io::{self, IoSliceMut};
use std::task::{Context, Poll, ready};

use quinn::AsyncUdpSocket;
use quinn::udp::{BATCH_SIZE, RecvMeta};

/// Most bytes of a batch from the kernel.
const BYTES_MAX: usize = 64 * 1024;

/// Room for the batches of one receive call.
type Buffers = Box<[u8]>;

thread_local! {
    /// The buffer that no socket of the thread uses now. One is kept; others are freed.
    static SPARE: Cell<Option<Buffers>> = const { Cell::new(None) };
}

/// Batches of one receive call, and how far they have been handed on.
#[derive(Default)]
pub(super) struct Arrivals {
    /// `None` while no packet waits.
    buffers: Option<Buffers>,
    batches: [RecvMeta; BATCH_SIZE],
    count: usize,
    /// The batch whose packets are next.
    next: usize,
    /// Bytes of that batch already handed on.
    done_bytes: usize,
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = formatter.debug_struct("Arrivals");
        shown.field("count", &self.count).field("next", &self.next);
        shown.finish_non_exhaustive()
    }
}

impl Arrivals {
    /// Hands on as many packets as there are `places`, each with its own metadata in `words`.
    pub(super) fn poll(
        &mut self,
        socket: &dyn AsyncUdpSocket,
        context: &mut Context<'_>,
        (places, words): (&mut [IoSliceMut<'_>], &mut [RecvMeta]),
    ) -> Poll<io::Result<usize>> {
        let buffers = match self.buffers.take() {
            Some(buffers) => buffers,
            None => ready!(self.receive(socket, context))?,
        };
        let mut filled = 0;
        for (place, word) in places.iter_mut().zip(words) {
            if self.next == self.count {
                break;
            }
            let batch = self.batches[self.next];
            let from = self.next * BYTES_MAX + self.done_bytes;
            let bytes = batch.stride.min(batch.len - self.done_bytes);
            // A packet larger than the peer was told to send is truncated, and no longer a valid
            // packet.
            let kept = bytes.min(place.len());
            place[..kept].copy_from_slice(&buffers[from..from + kept]);
            *word = batch;
            (word.len, word.stride) = (kept, kept);
            filled += 1;
            self.done_bytes += bytes;
            if self.done_bytes == batch.len {
                self.next += 1;
                self.done_bytes = 0;
            }
        }
        if self.next == self.count {
            SPARE.set(Some(buffers));
        } else {
            self.buffers = Some(buffers);
        }
        Poll::Ready(Ok(filled))
    }

    /// Receives the batches of one call; returns the buffer that holds them.
    fn receive(
        &mut self,
        socket: &dyn AsyncUdpSocket,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<Buffers>> {
        (self.count, self.next) = (0, 0);
        let mut buffers = SPARE
            .take()
            .unwrap_or_else(|| vec![0; BATCH_SIZE * BYTES_MAX].into_boxed_slice());
        let mut parts = buffers.chunks_mut(BYTES_MAX).map(IoSliceMut::new);
        let mut parts: [_; BATCH_SIZE] =
            std::array::from_fn(|_| parts.next().expect("one part for each batch"));
        let received = socket.poll_recv(context, &mut parts, &mut self.batches);
        let Poll::Ready(Ok(count)) = received else {
            SPARE.set(Some(buffers));
            return received.map_ok(|_| Buffers::default());
        };
        self.count = count;
        Poll::Ready(Ok(buffers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::sync::{Arc, Mutex};
    use std::task::Waker;

    use quinn::UdpPoller;
    use quinn::udp::Transmit;

    /// A socket that has received these batches: source port, bytes, and bytes per packet.
    #[derive(Debug, Default)]
    struct Came(Mutex<Vec<(u16, Vec<u8>, usize)>>);

    impl AsyncUdpSocket for Came {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nothing is sent")
        }

        fn try_send(&self, _: &Transmit<'_>) -> io::Result<()> {
            unreachable!("nothing is sent")
        }

        fn poll_recv(
            &self,
            _: &mut Context<'_>,
            places: &mut [IoSliceMut<'_>],
            words: &mut [RecvMeta],
        ) -> Poll<io::Result<usize>> {
            let batches = std::mem::take(&mut *self.0.lock().unwrap());
            if batches.is_empty() {
                return Poll::Pending;
            }
            let count = batches.len();
            for ((place, word), (port, bytes, stride)) in places.iter_mut().zip(words).zip(batches)
            {
                place[..bytes.len()].copy_from_slice(&bytes);
                word.addr = SocketAddr::from(([127, 0, 0, 1], port));
                (word.len, word.stride) = (bytes.len(), stride);
            }
            Poll::Ready(Ok(count))
        }

        fn local_addr(&self) -> io::Result<SocketAddr> {
            Ok(SocketAddr::from(([127, 0, 0, 1], 1)))
        }
    }

    /// Packets handed on at once with so many places: each packet's port and bytes.
    fn handed(arrivals: &mut Arrivals, socket: &Came, places: usize) -> Vec<(u16, Vec<u8>)> {
        let mut memory = vec![[0; 5]; places];
        let mut slices: Vec<_> = memory.iter_mut().map(|one| IoSliceMut::new(one)).collect();
        let mut words = vec![RecvMeta::default(); places];
        let mut context = Context::from_waker(Waker::noop());
        let both = (&mut slices[..], &mut words[..]);
        let count = match arrivals.poll(socket, &mut context, both) {
            Poll::Ready(count) => count.unwrap(),
            Poll::Pending => 0,
        };
        let packets = memory.iter().zip(&words).take(count);
        let shown = packets.map(|(bytes, word)| {
            assert_eq!(word.stride, word.len, "one packet");
            (word.addr.port(), bytes[..word.len].to_vec())
        });
        shown.collect()
    }

    #[test]
    fn each_packet_comes_alone_in_order_and_once() {
        let socket = Came::default();
        let came = [
            (2, b"aaaabbbbcc".to_vec(), 4),
            (3, Vec::new(), 0),
            (4, b"d".to_vec(), 1),
            // Larger than its place.
            (5, b"eeeeeeee".to_vec(), 8),
        ];
        socket.0.lock().unwrap().extend(came);
        let mut arrivals = Arrivals::default();
        let packet = |port, bytes: &[u8]| (port, bytes.to_vec());
        let first = [packet(2, b"aaaa"), packet(2, b"bbbb")];
        assert_eq!(handed(&mut arrivals, &socket, 2), first);
        let rest = [
            packet(2, b"cc"),
            packet(3, b""),
            packet(4, b"d"),
            packet(5, b"eeeee"),
        ];
        assert_eq!(handed(&mut arrivals, &socket, 32), rest);
        assert_eq!(handed(&mut arrivals, &socket, 32), []);
        socket.0.lock().unwrap().push((2, b"ff".to_vec(), 2));
        assert_eq!(handed(&mut arrivals, &socket, 32), [packet(2, b"ff")]);
    }

    #[test]
    fn sockets_of_a_thread_share_the_buffers_of_which_none_has_more_than_it_needs() {
        let (socket, silent) = (Came::default(), Came::default());
        let came = [(2, b"aabb".to_vec(), 2)];
        socket.0.lock().unwrap().extend(came);
        let [mut one, mut other] = [(); 2].map(|()| Arrivals::default());
        assert_eq!(handed(&mut one, &socket, 1), [(2, b"aa".to_vec())]);
        assert!(one.buffers.is_some(), "a packet waits");
        assert_eq!(handed(&mut other, &silent, 1), []);
        assert!(other.buffers.is_none(), "nothing has come");
        assert_eq!(handed(&mut one, &socket, 1), [(2, b"bb".to_vec())]);
        assert!(one.buffers.is_none(), "all is handed on");
        let spare = SPARE.take().expect("it is there for the next");
        let address = spare.as_ptr();
        SPARE.set(Some(spare));
        assert_eq!(handed(&mut other, &silent, 1), []);
        let same = SPARE.take().expect("it is back");
        assert_eq!(same.as_ptr(), address, "taken and given back");
    }
}
