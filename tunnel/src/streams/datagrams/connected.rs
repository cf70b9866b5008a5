//! The side of a flow where the service is: a socket that knows one address.

use std::io::ErrorKind;
use std::net::SocketAddr;

use bytes::Bytes;
use tokio::net::UdpSocket;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::fault::{Code, Fault};

use super::{DATAGRAM_BYTES_MAX, Side, Waiting};

/// A socket to a service on this host.
#[derive(Debug)]
pub(crate) struct Connected {
    socket: UdpSocket,
    buffer: Box<[u8]>,
    address: SocketAddr,
    /// Whether the service's host has said that nobody takes its datagrams.
    is_refused: bool,
}

impl Connected {
    /// A socket to a service on this host.
    ///
    /// # Errors
    ///
    /// What the system says.
    pub(crate) async fn to(address: SocketAddr) -> std::io::Result<Self> {
        let own = if address.is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let socket = UdpSocket::bind(own).await?;
        socket.connect(address).await?;
        // Until the runtime has seen that it can be written to, it seems to be full, and loses the first datagram.
        socket.writable().await?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM_BYTES_MAX].into_boxed_slice(),
            address,
            is_refused: false,
        })
    }

    /// Where the service is, if its host has said that nobody takes its datagrams.
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
                // Other errors of a connected socket are of a path that may be mended.
                Err(error) => self.is_refused = error.kind() == ErrorKind::ConnectionRefused,
            }
        }
        let detail = "the service takes no datagrams: connection refused";
        Err(Fault::new(Code::Unreachable, detail))
    }

    fn hand(&mut self, datagram: &[u8]) {
        // A full socket loses it. The system tells of a refusal once, to whichever call comes next.
        if let Err(error) = self.socket.try_send(datagram) {
            self.is_refused |= error.kind() == ErrorKind::ConnectionRefused;
        }
    }

    fn has_few(&self) -> bool {
        // A stream that the peer began is the peer's to give back.
        false
    }
}
