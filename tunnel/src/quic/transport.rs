//! Every setting of QUIC and of its sockets, each ours and each with its reason.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{
    ClientConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, ServerConfig, TransportConfig,
    VarInt,
};
use socket2::{Domain, Protocol, Socket, Type};
use towpath_daemon::activation;
use towpath_protocol::channel::Leg;
use towpath_protocol::fault::{Code, Fault};

use crate::config::Limits;
use crate::congestion::Delay;
use crate::windows;

/// How long QUIC keeps a connection that hears nothing: as long as streams wait for their peer, for they go on
/// soonest over what they have. That a path is down shows long before, see [`crate::watch`]; a stranger whose
/// handshake has no end and a link that was replaced are let go of sooner. What it asks meanwhile is kept with it, some
/// thousand packets' numbers: more a peer that has gone for good is not worth.
const IDLE_TIMEOUT_MAX: Duration = Duration::from_mins(10);
const IDLE_TIMEOUT_MIN: Duration = Duration::from_secs(4);

/// Silence after which a connection asks whether the peer is there: soon enough for a cut to show, and small against
/// the least rate we allow.
const KEEP_ALIVE: Duration = Duration::from_millis(500);

/// Bytes of datagrams that wait to be sent, and to be read: the oldest are lost beyond it. A tenth of a
/// second at 20 Mbit/s; what is older is late.
const DATAGRAM_BYTES: usize = 256 * 1024;

/// Bytes of handshake that arrive out of order (T08): a chain of four certificates is below 8 KiB.
const CRYPTO_BUFFER_BYTES: usize = 16 * 1024;

/// Handshakes that wait to be looked at (T03); the library's 65,536 would be a flood's own queue.
const INCOMING_COUNT_MAX: usize = 256;

/// Bytes kept for one handshake that waits, and for all of them (T03).
const INCOMING_BYTES_MAX: u64 = 32 * 1024;
const INCOMING_TOTAL_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Round trip assumed before one is measured: a lost first packet is repeated after 300 ms, where the
/// library's 333 ms would wait a second, which an edge that comes back cannot spare.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The same for an attempt beside which another begins before it could be repeated: it is not.
const QUIET_INITIAL_RTT: Duration = Duration::from_secs(2);

/// Time between two tries for a larger packet, and after one that a changed path lost.
const MTU_INTERVAL: Duration = Duration::from_mins(2);
const MTU_COOLDOWN: Duration = Duration::from_secs(10);

/// The part of the streams allowed of which the library keeps to itself that they have ended.
const UNTOLD_PART: u32 = 8;

/// Socket buffers: bulk at 5 Gbit/s fills 4 MiB in 7 ms, which a busy host may sleep through;
/// urgent bytes are few, and a long queue of them would be a wait of its own.
const BULK_SOCKET_BYTES: usize = 4 * 1024 * 1024;
const URGENT_SOCKET_BYTES: usize = 1024 * 1024;

/// Settings that both sides of a connection share.
pub(crate) fn transport(limits: &Limits, leg: Option<Leg>) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery
        .upper_bound(limits.udp_payload_bytes)
        .interval(MTU_INTERVAL)
        .black_hole_cooldown(MTU_COOLDOWN);
    let outage = limits.outage_wait.duration();
    let idle = outage.clamp(IDLE_TIMEOUT_MIN, IDLE_TIMEOUT_MAX);
    let idle = IdleTimeout::try_from(idle).expect("a few minutes fit");
    let mut config = TransportConfig::default();
    config
        // The first stream is the one that joins the link; uni streams have no use.
        .max_concurrent_bidi_streams(VarInt::from_u32(allowed_count(limits.peer_streams + 1)))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES)
        // The connection's window bounds them all, and grows with the path; a stream's is made once.
        .stream_receive_window(window(windows::receive_bytes_max(
            limits.window_memory.bytes(),
        )))
        .receive_window(window(windows::RECEIVE_BYTES))
        .send_window(windows::SEND_BYTES_MIN)
        .send_fairness(true)
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .initial_rtt(INITIAL_RTT)
        .crypto_buffer_size(CRYPTO_BUFFER_BYTES)
        // 1200 is what every path carries; discovery finds more within a few round trips.
        .initial_mtu(1200)
        .min_mtu(1200)
        .mtu_discovery_config(Some(discovery))
        // The spin bit tells onlookers our round trips and us nothing.
        .allow_spin(false)
        .congestion_controller_factory(Arc::new(Delay::factory(leg)));
    config
}

/// How many streams QUIC has to allow so that `count` may be open at any time: of those that have ended it tells
/// the peer only once they are more than an eighth of all.
const fn allowed_count(count: u32) -> u32 {
    count + (count - 1) / (UNTOLD_PART - 1)
}

fn window(bytes: u64) -> VarInt {
    VarInt::from_u64(bytes).unwrap_or(VarInt::MAX)
}

/// Settings of a UDP endpoint.
pub(crate) fn endpoint(limits: &Limits) -> EndpointConfig {
    let mut config = EndpointConfig::default();
    config
        .max_udp_payload_size(limits.udp_payload_bytes.max(1472))
        .expect("the configuration was checked");
    config.supported_versions(vec![1]);
    config
}

/// Settings of the side that is dialled.
///
/// # Errors
///
/// `E_CONFIG` if the TLS settings are none that QUIC can use.
pub fn server(tls: rustls::ServerConfig, limits: &Limits) -> Result<ServerConfig, Fault> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| unusable(&error))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport(limits, None)))
        // T18: a link whose address changes is dialled anew, which takes one round trip more and
        // leaves off-path packets nothing to try.
        .migration(false)
        .max_incoming(INCOMING_COUNT_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_TOTAL_BYTES_MAX);
    Ok(config)
}

/// Settings of the side that dials.
///
/// # Errors
///
/// `E_CONFIG` if the TLS settings are none that QUIC can use.
pub fn client(tls: rustls::ClientConfig, limits: &Limits, leg: Leg) -> Result<ClientConfig, Fault> {
    dialling(tls, transport(limits, Some(leg)))
}

/// The same for an urgent connection to a peer that has been silent for long.
pub(crate) fn quiet_client(
    tls: rustls::ClientConfig,
    limits: &Limits,
) -> Result<ClientConfig, Fault> {
    let mut transport = transport(limits, Some(Leg::Urgent));
    transport.initial_rtt(QUIET_INITIAL_RTT);
    dialling(tls, transport)
}

fn dialling(tls: rustls::ClientConfig, transport: TransportConfig) -> Result<ClientConfig, Fault> {
    let crypto = QuicClientConfig::try_from(tls).map_err(|error| unusable(&error))?;
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// A socket to dial from: a port of its own, so that no cache on the way knows it.
pub(crate) fn dialling_socket(target: SocketAddr, leg: Leg) -> Result<UdpSocket, Fault> {
    let any = if target.is_ipv4() {
        SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))
    } else {
        SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0))
    };
    let bytes = match leg {
        Leg::Urgent => URGENT_SOCKET_BYTES,
        Leg::Bulk => BULK_SOCKET_BYTES,
    };
    socket(any, bytes)
}

/// The socket where links are accepted; both legs of every link arrive here. The service manager's is
/// taken if it passed one for the address: its unit may give it larger buffers than we may ask for.
pub(crate) fn listening_socket(address: SocketAddr) -> Result<UdpSocket, Fault> {
    let Some(passed) = activation::take_udp(address) else {
        return socket(address, BULK_SOCKET_BYTES);
    };
    let socket = Socket::from(passed);
    size_buffers(&socket, BULK_SOCKET_BYTES).map_err(|error| {
        Fault::new(Code::Io, format!("passed UDP socket at {address}: {error}"))
    })?;
    Ok(socket.into())
}

fn socket(address: SocketAddr, buffer_bytes: usize) -> Result<UdpSocket, Fault> {
    let failed =
        |error: std::io::Error| Fault::new(Code::Io, format!("UDP socket at {address}: {error}"));
    let domain = Domain::for_address(address);
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).map_err(failed)?;
    if address.is_ipv6() {
        socket.set_only_v6(false).map_err(failed)?;
    }
    socket.bind(&address.into()).map_err(failed)?;
    size_buffers(&socket, buffer_bytes).map_err(failed)?;
    Ok(socket.into())
}

/// Asks for large buffers, by force where we may, and says how to allow them where we may not.
fn size_buffers(socket: &Socket, bytes: usize) -> std::io::Result<()> {
    use rustix::net::sockopt;
    let has_enough = socket.recv_buffer_size()? / 2 >= bytes;
    if !has_enough && sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.set_send_buffer_size(bytes)?;
    // The kernel doubles what it is told, for its own bookkeeping, and reports the double.
    let granted = socket.recv_buffer_size()? / 2;
    if granted < bytes {
        static ONCE: std::sync::Once = std::sync::Once::new();
        ONCE.call_once(|| {
            tracing::warn!(
                granted_bytes = granted,
                wanted_bytes = bytes,
                "UDP receive buffers are small and fast links will lose packets in them; \
                 run: sysctl -w net.core.rmem_max={bytes}"
            );
        });
    }
    Ok(())
}

fn unusable(error: &quinn::crypto::rustls::NoInitialCipherSuite) -> Fault {
    Fault::new(Code::Certificate, format!("the TLS settings: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_streams_may_be_open_whatever_the_peer_has_not_heard_yet() {
        for count in 1..=1025 {
            let allowed = allowed_count(count);
            assert!(allowed - allowed / UNTOLD_PART >= count, "{count}");
            let fewer = allowed - 1;
            assert!(fewer - fewer / UNTOLD_PART < count, "{count}");
        }
    }
}
