//! Wraps the listening socket to count datagrams that are not QUIC packets, which quinn drops
//! silently.
//!
//! Only long headers are parsed, which only handshakes use; behind a short header any bytes are
//! possible. A datagram that parses but cannot be decrypted is not counted either, since only quinn
//! knows the keys.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::BytesMut;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime as Driver, UdpPoller};
use quinn_proto::{FixedLengthConnectionIdParser, PacketDecodeError, PartialDecode};

use crate::core::Core;
use crate::quic::lingering;
use crate::trust::dropped::DropReason;

/// The QUIC version in use.
const VERSION: u32 = 1;

/// Bits of the first byte: the one that marks a long header, and those of the packet type, which
/// are zero for an Initial (RFC 9000, 17.2).
const LONG: u8 = 0x80;
const TYPE: u8 = 0x30;

/// Least size of a datagram that can begin a handshake, in bytes (RFC 9000, 14.1).
const INITIAL_BYTES_MIN: usize = 1200;

/// Whether a datagram can belong neither to a handshake nor to a connection.
pub(crate) fn is_malformed(datagram: &[u8]) -> bool {
    let Some(first) = datagram.first() else {
        return true;
    };
    if first & LONG == 0 {
        return false;
    }
    let is_short = datagram.len() < INITIAL_BYTES_MIN;
    let parser = FixedLengthConnectionIdParser::new(0);
    // The last argument permits a zero fixed bit (RFC 9287).
    match PartialDecode::new(BytesMut::from(datagram), &parser, &[VERSION], true) {
        Ok(_) => is_short && first & TYPE == 0,
        // Answered with a version negotiation packet, unless it is too short for an Initial.
        Err(PacketDecodeError::UnsupportedVersion { .. }) => is_short,
        Err(_) => true,
    }
}

/// Wraps a driver: counts malformed datagrams, and lets [`lingering`] end closed connections.
#[derive(Debug)]
pub(crate) struct Counting {
    pub driver: Arc<dyn Driver>,
    pub core: Arc<Core>,
}

impl Driver for Counting {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        self.driver.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.driver.spawn(Box::pin(lingering::driving(task)));
    }

    fn now(&self) -> Instant {
        self.driver.now() + lingering::ahead()
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Ok(Arc::new(Counted {
            socket: self.driver.wrap_udp_socket(socket)?,
            core: Arc::clone(&self.core),
        }))
    }
}

#[derive(Debug)]
struct Counted {
    socket: Arc<dyn AsyncUdpSocket>,
    core: Arc<Core>,
}

impl AsyncUdpSocket for Counted {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Arc::clone(&self.socket).create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        self.socket.try_send(transmit)
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let count = ready!(self.socket.poll_recv(context, buffers, meta))?;
        for (buffer, meta) in buffers.iter().zip(&*meta).take(count) {
            let received = buffer.get(..meta.len).unwrap_or_default();
            for datagram in received.chunks(meta.stride.max(1)) {
                if is_malformed(datagram) {
                    self.core.dropped.count(DropReason::Malformed);
                }
            }
        }
        Poll::Ready(Ok(count))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.socket.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.socket.max_transmit_segments()
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

    /// An Initial of `bytes` bytes without a token, whose length field says `length`.
    fn initial(bytes: usize, length: u16) -> Vec<u8> {
        let head = [0xc3, 0, 0, 0, 1, 8];
        let length = (length | 0x4000).to_be_bytes();
        let mut datagram = [&head[..], &[7; 8], &[8], &[9; 8], &[0], &length].concat();
        datagram.resize(bytes, 5);
        datagram
    }

    #[test]
    fn t01_what_is_no_packet_is_told_from_what_may_be_one() {
        assert!(!is_malformed(&initial(1200, 1174)));
        assert!(is_malformed(&initial(1199, 1173)), "below the least");
        assert!(is_malformed(&initial(1200, 1175)), "cut short");
        assert!(is_malformed(&initial(1200, 1174)[..9]), "within its ids");
        let mut other = initial(1200, 1174);
        other[4] = 2;
        assert!(!is_malformed(&other), "another version has an answer");
        assert!(is_malformed(&other[..1199]));
        assert!(
            !is_malformed(&[0x40, 1, 2]) && !is_malformed(&[0x00, 1, 2]),
            "short headers"
        );
        assert!(is_malformed(&[]));
    }
}
