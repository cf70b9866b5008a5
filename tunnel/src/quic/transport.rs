//! Every setting of QUIC and of its sockets, each chosen here and with its reason.

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
use towpath_protocol::class::Leg;
use towpath_protocol::fault::{Code, Fault};

use crate::config::Limits;
use crate::path::windows;
use crate::quic::congestion::DelayController;

/// How long QUIC keeps a silent connection: as long as streams wait for their peer, because they go
/// on soonest over the connection they have. A path that is down is noticed long before, see
/// [`crate::links::watchdog`]; unfinished handshakes of strangers and replaced links are dropped sooner. The
/// connection remembers all that it asks meanwhile, some thousand packet numbers: a peer that is
/// gone for good is not worth more, hence the limit.
pub(crate) const IDLE_TIMEOUT_MAX: Duration = Duration::from_mins(10);
const IDLE_TIMEOUT_MIN: Duration = Duration::from_secs(4);

/// Silence after which a connection probes its peer: soon enough to notice a cut, and small against
/// the lowest rate we allow.
const KEEP_ALIVE: Duration = Duration::from_millis(500);

/// Bytes of datagrams that may wait to be sent, and to be read; beyond it the oldest are dropped. A
/// tenth of a second at 20 Mbit/s: older datagrams are late.
const DATAGRAM_BYTES: usize = 256 * 1024;

/// Bytes of out-of-order handshake data (T08); a chain of four certificates is below 8 KiB.
const CRYPTO_BUFFER_BYTES: usize = 16 * 1024;

/// Handshakes that may wait to be examined (T03). With the library's 65,536 a flood would fill the
/// queue.
const INCOMING_COUNT_MAX: usize = 256;

/// Bytes kept for one waiting handshake, and for all of them (T03).
const INCOMING_BYTES_MAX: u64 = 32 * 1024;
const INCOMING_TOTAL_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Round trip assumed until one is measured. A lost first packet is retransmitted after 300 ms;
/// with the library's 333 ms it would be a second, too long for an edge whose link comes back.
const INITIAL_RTT: Duration = Duration::from_millis(100);

/// The same for an attempt next to which another one starts before this could retransmit; it does
/// not retransmit at all.
const QUIET_INITIAL_RTT: Duration = Duration::from_secs(2);

/// Time between two attempts at a larger packet size.
const MTU_INTERVAL: Duration = Duration::from_mins(2);
/// Time until the next attempt after the path got narrower.
const MTU_COOLDOWN: Duration = Duration::from_secs(10);

/// The library announces ended streams only once they are more than one part in so many of those
/// allowed.
const UNTOLD_PART: u32 = 8;

/// Socket buffer of bulk. 5 Gbit/s fill 4 MiB in 7 ms, for which a busy host may not be scheduled.
const BULK_SOCKET_BYTES: usize = 4 * 1024 * 1024;
/// Socket buffer of the urgent leg: its bytes are few, and a long queue of them would be a wait of
/// its own.
const URGENT_SOCKET_BYTES: usize = 1024 * 1024;

/// Settings common to both sides of a connection.
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
        // The first stream joins the link; unidirectional streams are not used.
        .max_concurrent_bidi_streams(VarInt::from_u32(allowed_count(limits.peer_streams + 1)))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES)
        // The connection's window limits them all, and grows with the path; a stream's is fixed.
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
        // Every path carries 1200; discovery finds more within a few round trips.
        .initial_mtu(1200)
        .min_mtu(1200)
        .mtu_discovery_config(Some(discovery))
        // The spin bit would tell onlookers our round trips, and us nothing.
        .allow_spin(false)
        .congestion_controller_factory(Arc::new(DelayController::factory(leg)));
    config
}

/// The stream limit to give QUIC so that `count` may be open at any time. It tells the peer of
/// ended streams only once they are more than an eighth of the limit.
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

/// Settings of the accepting side.
///
/// # Errors
///
/// `E_CONFIG` if QUIC cannot use the TLS settings.
pub fn server(tls: rustls::ServerConfig, limits: &Limits) -> Result<ServerConfig, Fault> {
    let crypto = QuicServerConfig::try_from(tls).map_err(|error| unusable(&error))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    config
        .transport_config(Arc::new(transport(limits, None)))
        // T18: a link whose address changes is dialled anew. That takes one more round trip and
        // leaves off-path packets nothing to try.
        .migration(false)
        .max_incoming(INCOMING_COUNT_MAX)
        .incoming_buffer_size(INCOMING_BYTES_MAX)
        .incoming_buffer_size_total(INCOMING_TOTAL_BYTES_MAX);
    Ok(config)
}

/// Settings of the dialling side.
///
/// # Errors
///
/// `E_CONFIG` if QUIC cannot use the TLS settings.
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

/// A socket to dial from. Its port is new, so that no middlebox has state for it.
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

/// The socket that accepts links; both legs of every link arrive here. Takes the service manager's
/// socket if one was passed for the address, since its unit may allow larger buffers than we may
/// ask for.
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

/// Asks for large buffers, by force where permitted. If they stay small, logs how to allow them.
fn size_buffers(socket: &Socket, bytes: usize) -> std::io::Result<()> {
    use rustix::net::sockopt;
    let has_enough = socket.recv_buffer_size()? / 2 >= bytes;
    if !has_enough && sockopt::set_socket_recv_buffer_size_force(socket, bytes).is_err() {
        socket.set_recv_buffer_size(bytes)?;
    }
    socket.set_send_buffer_size(bytes)?;
    // The kernel doubles the value for its own bookkeeping, and reports the double.
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
