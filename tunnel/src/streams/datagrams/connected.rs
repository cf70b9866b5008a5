//! The service's end of a flow: a UDP socket connected to one address.

use std::io::ErrorKind;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::UdpSocket;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};

use super::{DATAGRAM_BYTES_MAX, Side, Waiting};

/// A UDP socket connected to a service on this host.
#[derive(Debug)]
pub(crate) struct Connected {
    socket: UdpSocket,
    buffer: Box<[u8]>,
    address: SocketAddr,
    /// Whether the service's host has refused datagrams (ICMP port unreachable).
    is_refused: bool,
}

impl Connected {
    /// Connects a socket to a service on this host.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub(crate) async fn to(address: SocketAddr) -> std::io::Result<Self> {
        let own = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(own).await?;
        socket.connect(address).await?;
        // Until the runtime has seen that the socket is writable, `try_send` fails as if it were
        // full, and the first datagram would be lost.
        socket.writable().await?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM_BYTES_MAX].into_boxed_slice(),
            address,
            is_refused: false,
        })
    }

    /// Returns the service's address if its host has refused datagrams.
    pub(crate) fn refused_at(&self) -> Option<Endpoint> {
        self.is_refused.then_some(Endpoint::Udp(self.address))
    }
}

impl Side for Connected {
    async fn next(&mut self) -> Result<Option<Waiting>, Fault> {
        while !self.is_refused {
            match self.socket.recv(&mut self.buffer).await {
                Ok(count) => {
                    let datagram = Bytes::copy_from_slice(&self.buffer[..count]);
                    return Ok(Some(Waiting::new(datagram)));
                }
                // Other errors of a connected socket come from a path that may recover.
                Err(error) => self.is_refused = error.kind() == ErrorKind::ConnectionRefused,
            }
        }
        let detail = "the service takes no datagrams: connection refused";
        Err(Fault::new(Code::Unreachable, detail))
    }

    fn hand(&mut self, datagram: &[u8]) {
        // Dropped if the socket is full. The system reports a refusal once, to whichever call comes
        // next.
        if let Err(error) = self.socket.try_send(datagram) {
            self.is_refused |= error.kind() == ErrorKind::ConnectionRefused;
        }
    }

    fn has_few(&self) -> bool {
        // The peer began the stream, so it is the peer that gives it back.
        false
    }
}
