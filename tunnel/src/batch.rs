//! A UDP socket whose batches fit the kernel: many packets go and come in one call, but no more than a
//! datagram's 64 KiB.
//!
//! The library sends ten packets at once whatever their size; ten of a jumbo path's are more than a
//! datagram can hold, the kernel refuses them, and to the library that looks like a path that carries
//! nothing.

use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};

/// Most bytes of one batch: a datagram of IPv6 with all its headers.
const BATCH_BYTES_MAX: usize = 65_535 - 40 - 8;

/// Least bytes of a packet that is no last one of a batch: below the least QUIC packet of a path.
const PACKET_BYTES_MIN: usize = 1200;

/// The socket.
#[derive(Debug)]
pub(crate) struct Batched {
    socket: Arc<dyn AsyncUdpSocket>,
    /// Bytes of each packet of the last batch.
    packet_bytes: AtomicUsize,
}

impl Batched {
    pub(crate) fn new(socket: Arc<dyn AsyncUdpSocket>) -> Self {
        Self {
            socket,
            packet_bytes: AtomicUsize::new(PACKET_BYTES_MIN),
        }
    }
}

/// Packets of so many bytes that fit one batch.
const fn packets_per_batch(packet_bytes: usize) -> usize {
    BATCH_BYTES_MAX / packet_bytes
}

impl AsyncUdpSocket for Batched {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        let Some(packet_bytes) = transmit.segment_size else {
            return self.socket.try_send(transmit);
        };
        let usual = packet_bytes.max(PACKET_BYTES_MIN);
        self.packet_bytes.store(usual, Ordering::Relaxed);
        if transmit.contents.len() <= BATCH_BYTES_MAX {
            return self.socket.try_send(transmit);
        }
        // The first batch since packets got larger.
        let part_bytes = packets_per_batch(packet_bytes) * packet_bytes;
        for contents in transmit.contents.chunks(part_bytes) {
            // If the socket is full between two parts, all of it goes again: a packet that arrives
            // twice counts once.
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

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.socket.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let fitting = packets_per_batch(self.packet_bytes.load(Ordering::Relaxed));
        fitting.min(self.socket.max_transmit_segments())
    }

    fn max_receive_segments(&self) -> usize {
        self.socket.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.socket.may_fragment()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    /// Remembers what was sent.
    #[derive(Debug, Default)]
    struct Sent(Mutex<Vec<(usize, Option<usize>)>>);

    impl AsyncUdpSocket for Sent {
        fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
            unreachable!("nobody waits here")
        }

        fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
            let sent = (transmit.contents.len(), transmit.segment_size);
            self.0.lock().unwrap().push(sent);
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
            10
        }
    }

    #[test]
    fn a_batch_of_large_packets_goes_in_parts_and_the_next_one_is_smaller() {
        let sent = Arc::new(Sent::default());
        let socket = Batched::new(Arc::clone(&sent) as Arc<dyn AsyncUdpSocket>);
        let send = |bytes: usize, segment_size| {
            let contents = vec![0; bytes];
            let transmit = Transmit {
                destination: SocketAddr::from(([127, 0, 0, 1], 2)),
                ecn: None,
                contents: &contents,
                segment_size,
                src_ip: None,
            };
            socket.try_send(&transmit).unwrap();
            std::mem::take(&mut *sent.0.lock().unwrap())
        };
        assert_eq!(socket.max_transmit_segments(), 10);
        assert_eq!(send(14_520, Some(1452)), [(14_520, Some(1452))]);
        assert_eq!(send(8952, None), [(8952, None)], "a probe goes alone");
        assert_eq!(socket.max_transmit_segments(), 10);
        let parts = send(10 * 8952 - 5, Some(8952));
        assert_eq!(parts, [(7 * 8952, Some(8952)), (3 * 8952 - 5, Some(8952))]);
        assert_eq!(socket.max_transmit_segments(), 7);
        // A path that got narrower has its batches back.
        send(2400, Some(1200));
        assert_eq!(socket.max_transmit_segments(), 10);
    }
}
