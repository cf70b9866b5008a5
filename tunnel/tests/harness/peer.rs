//! A handmade peer: connections and links that keep to the protocol only as far as a test wants.

use std::net::SocketAddr;
use std::sync::Arc;

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, RecvStream, SendStream, TransportConfig};
use towpath_protocol::class::Leg;
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::preamble::{Join, LINK_VERSIONS, LinkId, Preamble, RunId};

use super::{Door, soon};

impl Door {
    pub async fn connect(
        &self,
        client: rustls::ClientConfig,
    ) -> Result<Connection, ConnectionError> {
        self.connect_to(client, self.address()).await
    }

    pub async fn connect_to(
        &self,
        client: rustls::ClientConfig,
        address: SocketAddr,
    ) -> Result<Connection, ConnectionError> {
        self.connect_with(client, address, TransportConfig::default())
            .await
    }

    pub async fn connect_with(
        &self,
        client: rustls::ClientConfig,
        address: SocketAddr,
        transport: TransportConfig,
    ) -> Result<Connection, ConnectionError> {
        let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
        let crypto = QuicClientConfig::try_from(client).unwrap();
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        config.transport_config(Arc::new(transport));
        let connecting = endpoint
            .connect_with(config, address, "towpath.invalid")
            .unwrap();
        soon(connecting).await
    }
}

/// Sends a join on a new connection's first stream.
pub async fn join(
    connection: &Connection,
    change: impl FnOnce(&mut Join),
) -> (SendStream, RecvStream) {
    let mut join = Join {
        versions: LINK_VERSIONS,
        link: LinkId(7),
        leg: Leg::Urgent,
        receive_rate_max: None,
        run: RunId(7),
    };
    change(&mut join);
    let (mut send, recv) = soon(connection.open_bi()).await.unwrap();
    send.write_all(&Preamble::Join(join).encode())
        .await
        .unwrap();
    (send, recv)
}

pub async fn answer(recv: &mut RecvStream) -> Preamble {
    answer_if_any(recv).await.expect("an answer, and no reset")
}

/// `None` if the stream is reset instead of answered.
pub async fn answer_if_any(recv: &mut RecvStream) -> Option<Preamble> {
    let mut header = [0; HEADER_BYTES];
    soon(recv.read_exact(&mut header)).await.ok()?;
    let header = Preamble::parse_header(&header).unwrap();
    let mut body = vec![0; header.body_bytes as usize];
    soon(recv.read_exact(&mut body)).await.ok()?;
    Some(Preamble::decode_body(&header, &body).unwrap())
}

/// A handmade link, with the streams that joined it.
pub struct Joined {
    pub urgent: Connection,
    pub bulk: Connection,
    pub control: [(SendStream, RecvStream); 2],
}

pub async fn joined(door: &Door, link: LinkId) -> Joined {
    joined_with(door, link, TransportConfig::default).await
}

pub async fn joined_with(door: &Door, link: LinkId, how: fn() -> TransportConfig) -> Joined {
    let connect = || door.connect_with(door.client(), door.address(), how());
    let urgent = connect().await.unwrap();
    let bulk = connect().await.unwrap();
    let join = |connection, leg| join(connection, move |join| (join.link, join.leg) = (link, leg));
    let mut control = [
        join(&urgent, Leg::Urgent).await,
        join(&bulk, Leg::Bulk).await,
    ];
    for (_, recv) in &mut control {
        assert!(matches!(answer(recv).await, Preamble::Joined(_)));
    }
    Joined {
        urgent,
        bulk,
        control,
    }
}

pub async fn closed_with(connection: &Connection, word: &str) {
    let closed = soon(connection.closed()).await.to_string();
    assert!(closed.contains(word), "{closed}");
}
