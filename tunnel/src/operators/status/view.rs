//! The documents that operators read of a tunnel. Units stand at the end of each name.

use serde::{Deserialize, Serialize};
use towpath_daemon::problem::Problem;
use utoipa::ToSchema;

use crate::measuring::outlook::ForecastView;

/// The schema's name in [`StatusView::schema`].
pub const SCHEMA: &str = "towpath.v1.status";

/// A tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StatusView {
    /// Always [`SCHEMA`].
    pub schema: String,
    /// The site this tunnel serves.
    pub site: String,
    /// The host it runs on.
    pub host: String,
    /// The release it is.
    pub version: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// The way to each peer.
    pub links: Vec<LinkView>,
    /// What peers may reach here.
    pub services: Vec<ServiceView>,
    /// Listeners here that are joined to services at peers.
    pub channels: Vec<ChannelView>,
    /// Channels that the configuration names and that somebody has closed.
    #[serde(default)]
    pub channels_closed_by_hand: Vec<String>,
    /// The host's certificate.
    pub certificate: CertificateStatusView,
    /// How the configuration was read again.
    #[serde(default)]
    pub configuration: ConfigurationView,
    /// Why nothing can be kept in the state folder, if the last write there failed; with what mends it.
    #[serde(default)]
    pub state_problem: Option<String>,
    /// The last handshake that was refused here, for some minutes: whoever it was has proved nothing.
    pub refused: Option<RefusedView>,
}

/// The configuration's file, as it was read again last.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct ConfigurationView {
    /// Why nothing of what the file says now is in use, if so; with what mends it.
    pub problem: Option<String>,
    /// Keys that have changed in the file and wait for the next start.
    pub waiting_keys: Vec<String>,
}

/// A handshake that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedView {
    /// Why, as in the metric `towpath_tls_rejected_total`; `refused_by_peer` if whoever dialled refused what we
    /// showed; `unknown_site` for a host of our authority whose site is no peer; or `not_taken` for one whose site
    /// has its link with another tunnel.
    pub reason: String,
    /// What was found, with its values.
    pub detail: String,
    /// The address it came from.
    pub from: String,
    /// When, in seconds since 1970.
    pub at_unix_seconds: u64,
    /// What to do about it if a peer's host is there.
    pub remedy: String,
}

/// How the way to a peer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// The link is up and carries what it should.
    Healthy,
    /// The link is there and something is wrong with it.
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

/// The way to one peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LinkView {
    /// The peer's site.
    pub peer: String,
    /// The peer's host, while there is a link.
    pub host: Option<String>,
    /// How it is.
    pub state: LinkState,
    /// Why it is so.
    pub reason: String,
    /// What to do about it; nothing for a healthy one.
    pub remedy: Option<String>,
    /// Since when there is this link, or none, in seconds since 1970.
    pub since_unix_seconds: u64,
    /// Smoothed round trip of the urgent connection, in microseconds.
    pub rtt_us: u64,
    /// Round trip without a queue, in microseconds: the lesser of both connections'; 0 while unknown.
    pub base_rtt_us: u64,
    /// Queue at the bottleneck in the last round trip, in microseconds.
    pub queue_us: u64,
    /// What the path is believed to carry from here, in bits per second; 0 while unknown.
    pub path_bits_per_second: u64,
    /// Programs' bytes sent over the last second, in bits per second.
    pub goodput_out_bits_per_second: u64,
    /// Programs' bytes received over the last second, in bits per second.
    pub goodput_in_bits_per_second: u64,
    /// The cap on what we send, in bits per second on the wire.
    pub cap_bits_per_second: Option<u64>,
    /// Most that we want to be sent, in bits per second on the wire.
    pub receive_cap_bits_per_second: Option<u64>,
    /// When the timetable changes the cap next, in seconds since 1970.
    pub cap_changes_unix_seconds: Option<u64>,
    /// What the link is expected to carry.
    pub forecasts: Vec<ForecastView>,
    /// Packets lost per million over the last second.
    pub lost_per_million: u64,
    /// Streams open now.
    pub streams: u64,
    /// Those of them that wait for the next link.
    pub streams_paused: u64,
    /// Times a stream went on over another connection, since the tunnel started.
    pub streams_resumed: u64,
    /// Streams that no link came for in time, or that the peer had forgotten.
    pub streams_lost: u64,
    /// Bytes that were sent again because a connection was lost.
    pub resent_bytes: u64,
    /// Times the link was lost.
    pub links_lost: u64,
    /// Bytes per class since the tunnel started.
    pub classes: Vec<ClassView>,
    /// Its two connections, while there is a link.
    pub legs: Vec<LegView>,
    /// Last moment of the certificate the peer showed, in seconds since 1970, while there is a link.
    pub peer_certificate_not_after_unix_seconds: Option<u64>,
    /// The key exchange that was negotiated, while there is a link.
    pub key_exchange: Option<String>,
    /// Whether that is hybrid: as strong as the better one of an elliptic curve and a lattice, so that
    /// traffic recorded today stays closed to the quantum computers of tomorrow.
    pub key_exchange_is_hybrid: Option<bool>,
    /// The cipher suite, while there is a link.
    pub cipher_suite: Option<String>,
}

/// One of a link's two connections: what all classes that it carries see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LegView {
    /// `urgent` or `bulk`.
    pub leg: String,
    /// Its classes.
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
    /// The class.
    pub class: String,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Bits per second sent, over the last second.
    pub out_bits_per_second: u64,
    /// Bits per second received, over the last second.
    pub in_bits_per_second: u64,
    /// Its part of what is left under the cap, beside the others' weights; none for those that go first.
    pub weight: Option<u32>,
    /// What it gets at least under a cap, in bits per second on the wire.
    pub floor_bits_per_second: Option<u64>,
    /// What it gets at most, in bits per second on the wire.
    pub cap_bits_per_second: Option<u64>,
    /// Datagrams that were to be sent and were too many.
    pub datagrams_dropped: u64,
    /// How long what was sent waited in the tunnel before, for caps, shares and room on the path, in microseconds: the
    /// mean of the last second.
    #[serde(default)]
    pub wait_us: u64,
}

/// A service that peers may reach here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServiceView {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub socket: String,
    /// Sites that may reach it.
    pub allow: Vec<String>,
    /// Streams that peers have open to it now.
    #[serde(default)]
    pub streams: u64,
    /// Bytes it sent to peers.
    pub sent_bytes: u64,
    /// Bytes it got from peers.
    pub received_bytes: u64,
    /// Most it sends to all peers together, in bits per second on the wire.
    pub cap_bits_per_second: Option<u64>,
}

/// How a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChannelState {
    /// It listens, and the link to the peer is up.
    Healthy,
    /// Something is wrong with the link.
    Degraded,
    /// The last connection could not be opened, though there is a link: the service at the peer is not there, or does
    /// not let us in.
    Failing,
    /// It does not listen, or there is no link.
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

    /// Whether it is likely to carry what programs bring now.
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

/// Who says what a channel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrigin {
    /// The configuration.
    Configured,
    /// Somebody who asked for it while the tunnel ran.
    Pushed,
    /// The same, and the configuration names it too: what it says counts again after a reset, or under a higher
    /// generation.
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

/// A channel: a listener here, joined to a service at a peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChannelView {
    /// Its name.
    pub name: String,
    /// Where local programs reach it, with the port it really has.
    pub listen: String,
    /// The site where the service is.
    pub peer: String,
    /// The service.
    pub service: String,
    /// The class of its bytes.
    pub class: String,
    /// The generation of its metadata.
    pub generation: u64,
    /// When it ends by itself, in seconds since 1970.
    pub expires_unix_seconds: Option<u64>,
    /// Who says so.
    pub origin: ChannelOrigin,
    /// How it is.
    pub state: ChannelState,
    /// Why it is so.
    pub reason: String,
    /// Connections, or sources of datagrams, there are now.
    pub connections: u64,
    /// Those there were since it was opened.
    pub connections_total: u64,
    /// Connections that did not end as they should.
    pub errors: u64,
    /// The last of these errors.
    pub last_error: Option<String>,
    /// How long the last connection waited for the service, in microseconds.
    pub open_us: u64,
    /// Smoothed round trip of the connection that carries its class, in microseconds; 0 without a link.
    pub rtt_us: u64,
    /// Bytes of local programs sent.
    pub sent_bytes: u64,
    /// Bytes of local programs received.
    pub received_bytes: u64,
    /// Bits a second sent, over the last second.
    pub out_bits_per_second: u64,
    /// Bits a second received, over the last second.
    pub in_bits_per_second: u64,
    /// Most that goes out, in bits per second on the wire.
    pub cap_bits_per_second: Option<u64>,
    /// Datagrams that were to be sent and were too many.
    pub datagrams_dropped: u64,
}

/// What a trial of a channel has shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TrialView {
    /// The channel.
    pub channel: String,
    /// The site where the service is.
    pub peer: String,
    /// The service.
    pub service: String,
    /// Whether it takes datagrams: then a trial shows that the peer lets this site reach it, and not that it answers.
    pub is_datagrams: bool,
    /// Whether the peer has connected a stream to it.
    pub is_reached: bool,
    /// How long that took, or until it had failed, in microseconds.
    pub took_us: u64,
    /// Why it was not reached.
    pub problem: Option<Problem>,
}

/// All channels, as the API lists them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ChannelList {
    /// By name.
    pub channels: Vec<ChannelView>,
    /// Channels that the configuration names and that somebody has closed: they stay so until they are reset, or the
    /// configuration names a higher generation.
    #[serde(default)]
    pub closed_by_hand: Vec<String>,
}

/// The host's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CertificateStatusView {
    /// Who it says we are.
    pub uri: String,
    /// Last moment, RFC 3339.
    pub not_after: String,
    /// Last moment in seconds since 1970.
    pub not_after_unix_seconds: u64,
    /// Its number, in hexadecimal.
    pub serial: String,
    /// The authorities whose hosts are let in.
    pub authorities: Vec<String>,
    /// Since when these files are in use, in seconds since 1970.
    pub since_unix_seconds: u64,
    /// Why what the files hold now is not in use, if it is not; else, if this host's own certificate is revoked, that.
    pub problem: Option<String>,
    /// The lists of revoked certificates, one for each authority that has signed one.
    pub revocation_lists: Vec<RevocationListView>,
}

/// A list of revoked certificates in use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevocationListView {
    /// The authority that signed it.
    pub issuer: String,
    /// Its number.
    pub number: u64,
    /// When the next one is due, RFC 3339.
    pub next_update: String,
    /// When the next one is due, in seconds since 1970.
    pub next_update_unix_seconds: u64,
    /// Certificates it revokes.
    pub revoked_count: u64,
    /// How old it is: `fresh`, `aging` in its last seven days, or `stale` once it has ended, and then new moves are
    /// refused.
    #[serde(default)]
    pub state: String,
}
