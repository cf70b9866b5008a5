//! What a link reads from its connections' counters, and keeps from one tick to the next.

use std::net::IpAddr;
use std::time::Instant;

use quinn::{ConnectionStats, FrameStats, UdpStats};
use towpath_protocol::class::PerLeg;

use super::measured::Totals;
use crate::links::watchdog::{Counted, Hearing, Watch};
use crate::quic::congestion::DelayController;

/// Bytes an IP packet adds to a UDP payload: the headers of UDP and of IPv4, or IPv6.
const PACKET_HEADER_BYTES: u64 = 28;
const PACKET_HEADER_BYTES_IPV6: u64 = 48;

/// State of a link between two ticks.
#[derive(Debug)]
pub(super) struct Rounds {
    pub(super) began: Instant,
    pub(super) watches: PerLeg<Watch>,
    pub(super) hearing: Hearing,
    /// Ticks since the peer last answered.
    pub(super) silent_ticks: u32,
    pub(super) ticks: u32,
    pub(super) totals: Option<Totals>,
    /// Packets sent and lost that are already counted, by leg.
    pub(super) packets: PerLeg<(u64, u64)>,
    /// Whether the peer has changed the cap and the change is not logged yet.
    pub(super) is_cap_news: bool,
}

impl Default for Rounds {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            watches: PerLeg::default(),
            hearing: Hearing::default(),
            silent_ticks: 0,
            ticks: 0,
            totals: None,
            packets: PerLeg::default(),
            is_cap_news: false,
        }
    }
}

/// Bytes on the wire in one direction between here and an address.
pub(super) fn wire_bytes(counted: &UdpStats, peer: IpAddr) -> u64 {
    counted.bytes + header_bytes(peer) * counted.datagrams
}

/// Bytes of the headers around a UDP payload to an address.
fn header_bytes(peer: IpAddr) -> u64 {
    if peer.to_canonical().is_ipv4() {
        PACKET_HEADER_BYTES
    } else {
        PACKET_HEADER_BYTES_IPV6
    }
}

/// Ack-eliciting frames sent. A probe of QUIC can be any of them, and most are not stream frames.
const fn asked(sent: &FrameStats) -> u64 {
    let kept_up =
        sent.ping + sent.immediate_ack + sent.datagram + sent.crypto + sent.new_connection_id;
    let streams = sent.stream + sent.reset_stream + sent.stop_sending;
    let windows = sent.max_data + sent.max_stream_data + sent.max_streams_bidi;
    let blocked = sent.data_blocked + sent.stream_data_blocked + sent.streams_blocked_bidi;
    kept_up + streams + windows + blocked
}

pub(super) fn seen(delay: Option<&DelayController>, stats: &ConnectionStats) -> Counted {
    Counted {
        arrived: delay.map_or(0, DelayController::arrived),
        asked: asked(&stats.frame_tx),
        rtt: stats.path.rtt,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_costs_what_its_protocol_adds() {
        for (peer, bytes) in [
            ("192.0.2.7", 28),
            ("::ffff:192.0.2.7", 28),
            ("2001:db8::7", 48),
        ] {
            assert_eq!(header_bytes(peer.parse().unwrap()), bytes, "{peer}");
        }
    }
}
