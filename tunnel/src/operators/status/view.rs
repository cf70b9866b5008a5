//! The tunnel's JSON documents for operators. The unit stands at the end of each field's name.

use serde::{Deserialize, Serialize};
use towpath_daemon::problem::Problem;
use utoipa::ToSchema;

use crate::measuring::outlook::ForecastView;

/// The schema's name in [`StatusView::schema`].
pub const SCHEMA: &str = "towpath.v1.status";

/// The status of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The site this tunnel serves.
    pub site: String,
    /// The host this tunnel runs on.
    pub host: String,
    /// The tunnel's release.
    pub version: String,
    /// Seconds since the tunnel started.
    pub uptime_seconds: u64,
    /// The links, one for each configured peer.
    pub links: Vec<LinkView>,
    /// Local services that peers may reach.
    pub services: Vec<ServiceView>,
    /// Local listeners joined to services at peers.
    pub channels: Vec<ChannelView>,
    /// Names of configured channels that were closed on request.
    #[serde(default)]
    pub channels_closed_by_hand: Vec<String>,
    /// The host's certificate.
    pub certificate: CertificateStatusView,
    /// The last reload of the configuration.
    #[serde(default)]
    pub configuration: ConfigurationView,
    /// Why the last write to the state folder failed, and the remedy; absent if it succeeded.
    #[serde(default)]
    pub state_problem: Option<String>,
    /// The last handshake refused here, for ten minutes or until a peer's link comes up from the
    /// same address. The other side is not authenticated, so it may be a stranger.
    pub refused: Option<RefusedView>,
}

/// The last reload of the configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ConfigurationView {
    /// Why the file's present contents are not in use, and the remedy; absent if they are.
    pub problem: Option<String>,
    /// Keys changed in the file that take effect at the next start.
    pub waiting_keys: Vec<String>,
}

/// A handshake that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedView {
    /// Why: a reason of the metric `towpath_tls_rejected_total`; `refused_by_peer` if the dialling
    /// side refused our certificate; `unknown_site` for a host of our authority whose site is not a
    /// peer; or `not_taken` for a host whose site has its link with another tunnel.
    pub reason: String,
    /// Details of the refusal, with the values found.
    pub detail: String,
    /// The address the handshake came from.
    pub from: String,
    /// Time of the refusal, in seconds since 1970.
    pub at_unix_seconds: u64,
    /// What to do if the address is a peer's.
    pub remedy: String,
}

/// The state of the link to a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// The link is up, without trouble.
    Healthy,
    /// The link is up, but something is wrong with it.
    Degraded,
    /// There is no link.
    Down,
}

impl LinkState {
    /// Every state.
    pub const ALL: [Self; 3] = [Self::Healthy, Self::Degraded, Self::Down];

    /// The state's name in tables, metrics and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Down => "down",
        }
    }
}

/// The link to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkView {
    /// The peer's site.
    pub peer: String,
    /// The peer's host, while there is a link.
    pub host: Option<String>,
    /// The link's state.
    pub state: LinkState,
    /// The reason for the state.
    pub reason: String,
    /// What to do about the state; absent for a healthy link.
    pub remedy: Option<String>,
    /// Time at which this link came up or the last one went down, in seconds since 1970.
    pub since_unix_seconds: u64,
    /// Smoothed round trip of the urgent connection, in microseconds.
    pub rtt_us: u64,
    /// Round trip without a queue, in microseconds: the lower value of the two connections, at most
    /// `rtt_us`; 0 while unknown.
    pub base_rtt_us: u64,
    /// Queue at the bottleneck in the last round trip, in microseconds.
    pub queue_us: u64,
    /// Estimated rate of the path to the peer, in bits per second; 0 while unknown.
    pub path_bits_per_second: u64,
    /// Programs' bytes sent over the last second, in bits per second.
    pub goodput_out_bits_per_second: u64,
    /// Programs' bytes received over the last second, in bits per second.
    pub goodput_in_bits_per_second: u64,
    /// Cap on the rate sent, in bits per second on the wire; absent without a cap.
    pub cap_bits_per_second: Option<u64>,
    /// Cap on the rate received, which the peer is asked to keep to, in bits per second on the
    /// wire; absent without a cap.
    pub receive_cap_bits_per_second: Option<u64>,
    /// Time of the timetable's next change of the cap on the rate sent, in seconds since 1970.
    pub cap_changes_unix_seconds: Option<u64>,
    /// Forecasts of the rate the link will carry.
    pub forecasts: Vec<ForecastView>,
    /// Packets lost per million over the last second.
    pub lost_per_million: u64,
    /// Streams open now.
    pub streams: u64,
    /// Open streams that wait for the link to come back.
    pub streams_paused: u64,
    /// Times a stream was resumed over another connection, since the tunnel started.
    pub streams_resumed: u64,
    /// Streams lost: no link came in time, or the peer no longer had the stream; since the tunnel
    /// started.
    pub streams_lost: u64,
    /// Bytes sent again after the loss of a connection, since the tunnel started.
    pub resent_bytes: u64,
    /// Times the link was lost, since the tunnel started.
    pub links_lost: u64,
    /// Traffic and limits of each class.
    pub classes: Vec<ClassView>,
    /// The link's two connections, while there is a link; else empty.
    pub legs: Vec<LegView>,
    /// Expiry of the peer's certificate, in seconds since 1970, while there is a link.
    pub peer_certificate_not_after_unix_seconds: Option<u64>,
    /// The negotiated key exchange, while there is a link.
    pub key_exchange: Option<String>,
    /// Whether the key exchange is hybrid: an elliptic curve combined with a lattice, as strong as
    /// the stronger of the two, so that recorded traffic stays secret from future quantum
    /// computers.
    pub key_exchange_is_hybrid: Option<bool>,
    /// The cipher suite, while there is a link.
    pub cipher_suite: Option<String>,
}

/// One of a link's two connections, as all classes on it see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LegView {
    /// `urgent` or `bulk`.
    pub leg: String,
    /// The classes that the connection carries.
    pub classes: Vec<String>,
    /// Smoothed round trip, in microseconds.
    pub rtt_us: u64,
    /// Round trip without a queue, in microseconds; 0 while unknown.
    pub base_rtt_us: u64,
    /// Queue at the bottleneck in the last round trip, in microseconds.
    pub queue_us: u64,
    /// Packets lost per million sent, over the last second.
    pub lost_per_million: u64,
}

/// One class of traffic with one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ClassView {
    /// The class's name.
    pub class: String,
    /// Bytes sent since the tunnel started.
    pub sent_bytes: u64,
    /// Bytes received since the tunnel started.
    pub received_bytes: u64,
    /// Rate sent over the last second, in bits per second.
    pub out_bits_per_second: u64,
    /// Rate received over the last second, in bits per second.
    pub in_bits_per_second: u64,
    /// The class's share of the remaining rate, relative to the other weights; absent for the
    /// classes that go first.
    pub weight: Option<u32>,
    /// Least rate of the class under a cap, in bits per second on the wire; absent without a floor.
    pub floor_bits_per_second: Option<u64>,
    /// Most rate of the class, in bits per second on the wire; absent without a cap.
    pub cap_bits_per_second: Option<u64>,
    /// Datagrams dropped because too many were waiting to be sent.
    pub datagrams_dropped: u64,
    /// Mean wait in the tunnel before sending, for caps, shares and room on the path, over the last
    /// second, in microseconds.
    #[serde(default)]
    pub wait_us: u64,
}

/// A service that peers may reach here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// Address of the service on this host.
    pub socket: String,
    /// Sites that may reach the service.
    pub allow: Vec<String>,
    /// Open streams from peers to the service.
    #[serde(default)]
    pub streams: u64,
    /// Bytes that the service sent to peers.
    pub sent_bytes: u64,
    /// Bytes that the service received from peers.
    pub received_bytes: u64,
    /// Cap on the rate the service sends to all peers together, in bits per second on the wire;
    /// absent without a cap.
    pub cap_bits_per_second: Option<u64>,
}

/// The state of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChannelState {
    /// The channel listens, and the link to the peer is healthy.
    Healthy,
    /// The channel listens, and the link to the peer is degraded.
    Degraded,
    /// The last connection could not be opened although the link is up: the service at the peer
    /// does not answer or does not let this site in.
    Failing,
    /// The channel does not listen, or there is no link.
    Down,
}

impl ChannelState {
    /// The state's name in tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Failing => "failing",
            Self::Down => "down",
        }
    }

    /// Whether the channel is likely to carry traffic now.
    #[must_use]
    pub const fn is_up(self) -> bool {
        matches!(self, Self::Healthy | Self::Degraded)
    }
}

impl From<LinkState> for ChannelState {
    fn from(state: LinkState) -> Self {
        match state {
            LinkState::Healthy => Self::Healthy,
            LinkState::Degraded => Self::Degraded,
            LinkState::Down => Self::Down,
        }
    }
}

/// Where a channel's present definition comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrigin {
    /// From the configuration.
    Configured,
    /// From a request while the tunnel ran.
    Pushed,
    /// From a request, in place of the configuration's definition, which takes effect again after a
    /// reset or under a higher generation.
    Overriding,
}

impl ChannelOrigin {
    /// The origin's name in tables and JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Configured => "configured",
            Self::Pushed => "pushed",
            Self::Overriding => "overriding",
        }
    }
}

/// A channel: a local listener joined to a service at a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChannelView {
    /// Its name.
    pub name: String,
    /// Address where local programs reach the channel, with the actual port.
    pub listen: String,
    /// The site of the service.
    pub peer: String,
    /// The service's name.
    pub service: String,
    /// The class of the channel's traffic.
    pub class: String,
    /// The generation of the channel's definition.
    pub generation: u64,
    /// Time at which the channel closes by itself, in seconds since 1970; absent if it does not.
    pub expires_unix_seconds: Option<u64>,
    /// Where the definition comes from.
    pub origin: ChannelOrigin,
    /// The channel's state.
    pub state: ChannelState,
    /// The reason for the state.
    pub reason: String,
    /// Open connections, or sources of datagrams.
    pub connections: u64,
    /// Connections, or sources of datagrams, since the channel was opened.
    pub connections_total: u64,
    /// Connections that failed to open or broke off.
    pub errors: u64,
    /// The last of those errors.
    pub last_error: Option<String>,
    /// Time the last connection waited for the service, in microseconds.
    pub open_us: u64,
    /// Smoothed round trip of the link's connection that carries the channel's class, in
    /// microseconds; 0 without a link.
    pub rtt_us: u64,
    /// Bytes of local programs sent.
    pub sent_bytes: u64,
    /// Bytes of local programs received.
    pub received_bytes: u64,
    /// Rate sent over the last second, in bits per second.
    pub out_bits_per_second: u64,
    /// Rate received over the last second, in bits per second.
    pub in_bits_per_second: u64,
    /// Cap on the rate sent, in bits per second on the wire; absent without a cap.
    pub cap_bits_per_second: Option<u64>,
    /// Datagrams dropped because too many were waiting to be sent.
    pub datagrams_dropped: u64,
}

/// The result of a test of a channel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrialView {
    /// The channel's name.
    pub channel: String,
    /// The site of the service.
    pub peer: String,
    /// The service's name.
    pub service: String,
    /// Whether the service takes datagrams. If so, the test shows that the peer lets this site
    /// reach the service, but not that the service answers.
    pub is_datagrams: bool,
    /// Whether the peer connected a stream to the service.
    pub is_reached: bool,
    /// Time until the stream was connected or failed, in microseconds.
    pub took_us: u64,
    /// Why the service was not reached; absent if it was.
    pub problem: Option<Problem>,
}

/// All channels, as the API lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChannelList {
    /// The channels, sorted by name.
    pub channels: Vec<ChannelView>,
    /// Names of configured channels that were closed on request. They stay closed until they are
    /// reset or the configuration has a higher generation.
    #[serde(default)]
    pub closed_by_hand: Vec<String>,
}

/// The host's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateStatusView {
    /// The URI of the identity in the certificate.
    pub uri: String,
    /// Expiry, in RFC 3339.
    pub not_after: String,
    /// Expiry, in seconds since 1970.
    pub not_after_unix_seconds: u64,
    /// The serial number, in hexadecimal.
    pub serial: String,
    /// The trusted authorities, whose hosts are let in.
    pub authorities: Vec<String>,
    /// Time at which the present files were taken into use, in seconds since 1970.
    pub since_unix_seconds: u64,
    /// Why the files' present contents are not in use; or, if they are, that this host's own
    /// certificate is revoked. Absent if neither holds.
    pub problem: Option<String>,
    /// The revocation lists in use, one for each authority that has signed one.
    pub revocation_lists: Vec<RevocationListView>,
}

/// A revocation list in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevocationListView {
    /// The authority that signed the list.
    pub issuer: String,
    /// The list's number.
    pub number: u64,
    /// Time at which the next list is due, in RFC 3339.
    pub next_update: String,
    /// Time at which the next list is due, in seconds since 1970.
    pub next_update_unix_seconds: u64,
    /// Number of revoked certificates.
    pub revoked_count: u64,
    /// Age of the list: `fresh`; `aging` in its last seven days; or `stale` after its end, when new
    /// moves are refused.
    #[serde(default)]
    pub state: String,
}
