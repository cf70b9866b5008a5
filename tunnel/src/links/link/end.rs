//! How a link ends: one side ends it, one of its connections is over, or another link takes them
//! over.

use std::sync::atomic::Ordering;
use std::time::Duration;

use quinn::{Connection, ConnectionError, VarInt};
use tokio::time::timeout;
use towpath_protocol::fault::Code;

use super::Link;
use crate::quic::congestion::DelayController;
use crate::quic::wire;

/// Bounds of the time to wait for the peer's reason on the other connection. The wait is one round
/// trip, since the peer closes both at once. The minimum covers a busy host that reads two sockets;
/// the maximum is below what programs notice.
const REASON_WAIT_MIN: Duration = Duration::from_millis(50);
const REASON_WAIT_MAX: Duration = Duration::from_millis(500);

impl Link {
    /// Whether both links are made of the same two connections.
    pub(crate) fn has_connections_of(&self, other: &Self) -> bool {
        self.connections.urgent.stable_id() == other.connections.urgent.stable_id()
    }

    /// Ends the link without closing its connections, which another link has taken over.
    pub(crate) fn let_go(&self) {
        self.let_go.send_replace(true);
    }

    fn is_let_go(&self) -> bool {
        *self.let_go.borrow()
    }

    /// Waits until another link has taken over the connections.
    pub(super) async fn until_let_go(&self) {
        // Fails only if the sender is dropped, and `self` owns it.
        let _ = self
            .let_go
            .subscribe()
            .wait_for(|is_let_go| *is_let_go)
            .await;
    }

    /// Whether the link is over: a connection is closed, or another link has taken them over.
    pub(crate) fn is_over(&self) -> bool {
        self.is_let_go()
            || self.connections.urgent.close_reason().is_some()
            || self.connections.bulk.close_reason().is_some()
    }

    /// Waits until one of the connections is over. Does not return because another link has taken
    /// the connections over: such a link carried no stream that waits.
    pub(crate) async fn over(&self) {
        tokio::select! {
            _ = self.connections.urgent.closed() => {}
            _ = self.connections.bulk.closed() => {}
        }
    }

    /// Whether one side has ended the link together with its streams.
    pub(crate) fn is_farewell(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed) || self.is_closed_with(Code::Gone)
    }

    /// Whether the peer has ended the link because our certificate is revoked. The peer closes a
    /// link that is up with this code for no other reason.
    pub(crate) fn is_denied(&self) -> bool {
        self.is_joined() && self.is_closed_with(Code::Denied)
    }

    /// Whether the peer has closed one of the connections with the given code.
    fn is_closed_with(&self, code: Code) -> bool {
        let code: VarInt = wire::code(code);
        self.connections.iter().any(|connection| {
            let reason = connection.close_reason();
            matches!(reason, Some(ConnectionError::ApplicationClosed(close)) if close.error_code == code)
        })
    }

    /// Ends the link and tells the peer why. Unless the reason is temporary, the streams end with
    /// it.
    pub(crate) fn close(&self, why: Code, words: &str) {
        if self.is_let_go() {
            return;
        }
        let is_passing = matches!(why, Code::State | Code::Unreachable | Code::Stalled);
        // Read first: the peer's close reason is lost as soon as we close the connection.
        let is_final = !is_passing || self.is_farewell();
        self.is_given_up.fetch_or(is_final, Ordering::Relaxed);
        let (why, words) = self.last_word(why, words);
        for connection in self.connections.iter() {
            close(connection, *why, words);
        }
    }

    /// The reason that the peer is given on both connections: that of the first caller. The link's
    /// watcher sees the first connection closed, and may call `close` before the second one is
    /// closed.
    fn last_word(&self, why: Code, words: &str) -> &(Code, String) {
        self.last_word.get_or_init(|| (why, words.to_owned()))
    }

    /// Waits for the peer's reason, if one connection only says that the other is over: then the
    /// reason arrives on the other.
    pub(crate) async fn hear_out(&self) {
        if self.is_farewell() || !self.is_closed_with(Code::Unreachable) {
            return;
        }
        let both = async {
            tokio::join!(
                self.connections.urgent.closed(),
                self.connections.bulk.closed()
            )
        };
        let wait = self.rtt().clamp(REASON_WAIT_MIN, REASON_WAIT_MAX);
        // Without a reason the streams outlive the link.
        let _ = timeout(wait, both).await;
    }

    /// Waits until one side is known to have ended the link together with its streams; for ever if
    /// neither has.
    pub(crate) async fn farewell(&self) {
        self.hear_out().await;
        if !self.is_farewell() {
            std::future::pending::<()>().await;
        }
    }
}

/// Closes a connection and tells the peer why, however full the path is.
pub(crate) fn close(connection: &Connection, why: Code, words: &str) {
    let code: VarInt = wire::code(why);
    if let Some(delay) = DelayController::of(connection) {
        delay.part();
    }
    connection.close(code, words.as_bytes());
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::SystemTime;

    use quinn::Endpoint;
    use tempfile::TempDir;
    use towpath_certs::authority::LEAF_VALIDITY;
    use towpath_certs::{Authority, Identity, Rejections, Validity, tls};
    use towpath_protocol::class::{Leg, PerLeg};
    use towpath_protocol::identity::{HostIdentity, Name};
    use towpath_protocol::preamble::{LINK_VERSIONS, LinkId, RunId};

    use super::super::Joint;
    use super::*;
    use crate::config::{Limits, PeerConfig};
    use crate::links::peer::Peer;
    use crate::path::windows::Memory;
    use crate::quic::transport;
    use crate::streams::table::Party;

    /// A link from the edge to the region, and the region's ends of both connections.
    struct Linked {
        link: Arc<Link>,
        urgent: Connection,
        bulk: Connection,
        _endpoints: [Endpoint; 2],
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn host(site: &str) -> HostIdentity {
        HostIdentity {
            trust_domain: name("shop.example"),
            site: name(site),
            host: name("box-1"),
        }
    }

    async fn linked() -> Linked {
        let (folder, limits) = (TempDir::new().unwrap(), Limits::default());
        let authority = Authority::init(&folder.path().join("ca"), &name("shop.example")).unwrap();
        let [edge, region] = ["edge", "region"].map(|site| {
            let validity = Validity::lasting(LEAF_VALIDITY, SystemTime::now());
            let folder = folder.path().join(site);
            let files = authority.issue(&host(site), validity, &folder).unwrap();
            Identity::load(&files.paths()).unwrap()
        });
        let rejections = Arc::new(Rejections::default());
        let local = "127.0.0.1:0".parse().unwrap();
        let server = tls::server_config(&region, &rejections).unwrap();
        let server = transport::server(server, &limits).unwrap();
        let (server, client) = (
            Endpoint::server(server, local).unwrap(),
            Endpoint::client(local).unwrap(),
        );
        let dial = async |leg| {
            let tls = tls::client_config(&edge, &name("region"), &rejections).unwrap();
            let tls = transport::client(tls, &limits, leg).unwrap();
            let to = server.local_addr().unwrap();
            let connecting = client.connect_with(tls, to, "towpath.invalid").unwrap();
            let accepting = async { server.accept().await.unwrap().await.unwrap() };
            let (ours, theirs) = tokio::join!(connecting, accepting);
            (ours.unwrap(), theirs)
        };
        let (urgent, their_urgent) = dial(Leg::Urgent).await;
        let (bulk, their_bulk) = dial(Leg::Bulk).await;
        let config = PeerConfig::new(name("region"));
        let zone = towpath_forecast::zone::Zone::default();
        let peer = Peer::new(&config, &name("edge"), &edge, &rejections, &limits, &zone).unwrap();
        let peer = Arc::new(peer);
        let joint = Joint {
            id: LinkId(7),
            version: LINK_VERSIONS.max,
            party: Party {
                host: host("region"),
                run: RunId(7),
            },
            dialler: name("edge"),
            connections: PerLeg { urgent, bulk },
            told: None,
            theirs: None,
        };
        let link = Arc::new(Link::new(joint, &peer, &Memory::new(1 << 20)));
        peer.adopt(&link).unwrap();
        Linked {
            link,
            urgent: their_urgent,
            bulk: their_bulk,
            _endpoints: [server, client],
        }
    }

    #[tokio::test]
    async fn a_goodbye_is_the_same_on_both_connections() {
        let Linked {
            link, urgent, bulk, ..
        } = &linked().await;
        // The watcher sees the first connection closed before the second one is.
        let (why, words) = link.last_word(Code::Gone, "the tunnel stops");
        close(&link.connections.urgent, *why, words);
        for connection in [urgent, bulk] {
            let told = connection.closed().await.to_string();
            assert!(told.contains("the tunnel stops"), "{told}");
        }
    }

    #[tokio::test]
    async fn a_goodbye_is_heard_though_the_other_connection_says_less_before() {
        let Linked {
            link, urgent, bulk, ..
        } = &linked().await;
        close(
            bulk,
            Code::Unreachable,
            "the link's other connection is over",
        );
        link.connections.bulk.closed().await;
        let hearing = tokio::spawn({
            let link = Arc::clone(link);
            async move { link.farewell().await }
        });
        // The watcher is here before the reason arrives.
        tokio::time::sleep(Duration::from_millis(5)).await;
        close(urgent, Code::Gone, "the tunnel stops");
        let heard = timeout(Duration::from_secs(5), hearing).await;
        heard.expect("streams hear of it").unwrap();
        assert!(link.is_farewell());
    }
}
