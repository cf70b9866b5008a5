//! What operators see of a tunnel: the `/status` document.

use std::borrow::Cow;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rustls::NamedGroup;
use serde::{Deserialize, Serialize};
use towpath_certs::{Freshness, tls};
use towpath_forecast::moment::Moment;
use towpath_protocol::channel::Class;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;
use utoipa::ToSchema;

use crate::channel::Channel;
use crate::core::{Core, Service};
use crate::distrust::{self, Refused};
use crate::health::{self, Signs, Verdict, Whose};
use crate::link::{LegStanding, Link, Measured};
pub use crate::outlook::{ForecastDocument, ForecastView, QuantilesView};
use crate::peer::{Peer, State};
use crate::timetable;
use crate::trust::{self, Trust};

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
    /// The last handshake that was refused here, for some minutes: whoever it was has proved nothing.
    pub refused: Option<RefusedView>,
}

/// A handshake that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RefusedView {
    /// Why, as in the metric `towpath_tls_rejected_total`; `refused_by_peer` if whoever dialled refused what we
    /// showed; or `unknown_site` for a host of our authority whose site is no peer.
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

/// Whose certificate keeps a link away because it is revoked: the peer's, which we refuse, or ours, of which only
/// the peer's words tell.
fn whose_is_revoked(state: &State) -> Option<Whose> {
    let is_told = |words| state.reason.contains(words);
    let barred = state.barred.as_ref();
    if barred.is_some_and(|barred| barred.code == Code::Denied) {
        return Some(Whose::Peers);
    }
    (is_told(trust::REVOKED) || is_told(distrust::OURS_REVOKED)).then_some(Whose::Ours)
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
    /// Round trip without a queue, in microseconds.
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
    /// Smoothed round trip to the peer, in microseconds; 0 without a link.
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
    /// Why what the files hold now is not in use, if it is not.
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

/// A tunnel's status now.
pub(crate) fn status(core: &Core) -> StatusView {
    let host = core.trust.host();
    let services = core.services.iter();
    let services = services.map(|(name, service)| service_view(name, service));
    let channels = channels(core);
    StatusView {
        schema: SCHEMA.to_owned(),
        site: host.site.to_string(),
        host: host.host.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: core.began.elapsed().as_secs(),
        links: core
            .peers
            .values()
            .map(|peer| link_view(core, peer))
            .collect(),
        services: services.collect(),
        channels: channels.channels,
        channels_closed_by_hand: channels.closed_by_hand,
        certificate: certificate_view(&core.trust),
        refused: core.refused.last().map(refused_view),
    }
}

fn refused_view(refused: Refused) -> RefusedView {
    RefusedView {
        reason: refused.reason.to_owned(),
        detail: refused.detail,
        from: refused.from.to_string(),
        at_unix_seconds: unix_seconds(refused.at),
        remedy: refused.remedy,
    }
}

/// A service now.
pub(crate) fn service_view(name: &Name, service: &Service) -> ServiceView {
    ServiceView {
        name: name.to_string(),
        socket: service.reach.to_string(),
        allow: service.allow.iter().map(ToString::to_string).collect(),
        sent_bytes: service.meter.sent.load(Ordering::Relaxed),
        received_bytes: service.meter.received.load(Ordering::Relaxed),
        cap_bits_per_second: service.meter.quota.cap().map(Rate::bits_per_second),
    }
}

fn certificate_view(trust: &Trust) -> CertificateStatusView {
    let (identity, reading) = (trust.current(), trust.reading());
    let now = SystemTime::now();
    let certificate = identity.view();
    let lists = identity
        .revocations()
        .views()
        .map(|list| RevocationListView {
            issuer: list.issuer.clone(),
            number: list.number,
            next_update: list.next_update.clone(),
            next_update_unix_seconds: list.next_update_unix_seconds,
            revoked_count: list.revoked_count,
            state: Freshness::until(list.next_update_unix_seconds, now)
                .as_str()
                .to_owned(),
        });
    let lists: Vec<_> = lists.collect();
    CertificateStatusView {
        uri: trust.host().uri(),
        not_after: certificate.not_after.clone(),
        not_after_unix_seconds: certificate.not_after_unix_seconds,
        serial: certificate.serial.clone(),
        authorities: identity.authorities().map(|one| one.issuer).collect(),
        since_unix_seconds: reading.since.map_or(0, unix_seconds),
        problem: reading.problem,
        revocation_lists: lists,
    }
}

/// All channels now.
pub(crate) fn channels(core: &Core) -> ChannelList {
    let channels = core.channels.list();
    let views = channels.iter().map(|channel| channel_view(core, channel));
    let closed = core.channels.closed_by_hand();
    ChannelList {
        channels: views.collect(),
        closed_by_hand: closed.iter().map(ToString::to_string).collect(),
    }
}

/// A channel now.
pub(crate) fn channel_view(core: &Core, channel: &Channel) -> ChannelView {
    let (spec, figures) = (channel.spec(), &channel.figures);
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let peer = core.peers.get(&spec.peer);
    let verdict = peer.map(|peer| verdict(peer));
    let link = peer.and_then(|peer| peer.state().link);
    let last_error = figures.last_error.lock();
    let (state, reason) = match verdict {
        _ if !channel.is_listening() => {
            let reason = format!("does not listen at {} any more", channel.listen);
            (ChannelState::Down, reason)
        }
        Some(verdict) => match figures.failing() {
            Some(why) if verdict.state != LinkState::Down => (ChannelState::Failing, why),
            _ => (verdict.state.into(), verdict.reason),
        },
        None => (ChannelState::Down, String::new()),
    };
    ChannelView {
        name: spec.name.to_string(),
        listen: channel.listen.to_string(),
        peer: spec.peer.to_string(),
        service: spec.service.to_string(),
        class: spec.class.to_string(),
        generation: spec.generation,
        expires_unix_seconds: spec.expires_unix_seconds,
        origin: core.channels.origin(&spec.name),
        state,
        reason,
        connections: of(&figures.connections),
        connections_total: of(&figures.connections_total),
        errors: of(&figures.errors),
        last_error: last_error.unwrap_or_else(PoisonError::into_inner).clone(),
        open_us: of(&figures.open_us),
        rtt_us: link.map_or(0, |link| micros(link.rtt())),
        sent_bytes: of(&figures.meter.sent),
        received_bytes: of(&figures.meter.received),
        out_bits_per_second: of(&figures.sent_per_second).saturating_mul(8),
        in_bits_per_second: of(&figures.received_per_second).saturating_mul(8),
        cap_bits_per_second: figures.meter.quota.cap().map(Rate::bits_per_second),
        datagrams_dropped: of(&figures.meter.dropped),
    }
}

/// How the way to a peer is.
pub(crate) fn verdict(peer: &Peer) -> Verdict {
    let state = peer.state();
    let trouble = state.link.as_deref().map(Link::trouble).unwrap_or_default();
    health::judge(&Signs {
        is_linked: state.link.is_some(),
        is_stalled: state.is_stalled,
        is_dialled: peer.address.is_some(),
        revoked: whose_is_revoked(&state),
        is_unspoken: state
            .barred
            .as_ref()
            .is_some_and(|barred| barred.code == Code::Version),
        why_down: state.reason,
        remedy_down: state.remedy,
        lost_per_million: trouble.lost_per_million,
        queue: trouble.queue,
        lost_count: peer.recent_loss_count(),
    })
}

fn link_view(core: &Core, peer: &Peer) -> LinkView {
    let state = peer.state();
    let link = state.link.as_deref();
    let estimate = link.map(Link::estimate).unwrap_or_default();
    let measured = link.map(Link::measured).unwrap_or_default();
    let cap = link.map_or_else(|| peer.send_rate(), |link| link.pace.rate());
    let (verdict, tally) = (verdict(peer), &peer.streams.tally);
    // Who was refused is not known: it may be a stranger.
    let is_waited_for = state.link.is_none() && peer.address.is_none() && state.remedy.is_none();
    let refused = core.refused.last().filter(|_| is_waited_for);
    let waiting = refused.map(|refused| refused.remedy_of_peer());
    let groups = link.and_then(Link::key_exchanges);
    let classes = Class::ALL
        .iter()
        .map(|class| class_view(peer, *class, &measured));
    LinkView {
        peer: peer.site.to_string(),
        host: link.map(|link| link.peer.host.to_string()),
        state: verdict.state,
        reason: verdict.reason,
        remedy: waiting.or_else(|| verdict.remedy.map(Cow::into_owned)),
        since_unix_seconds: unix_seconds(state.since),
        rtt_us: link.map_or(0, |link| micros(link.rtt())),
        base_rtt_us: micros(estimate.base_rtt),
        queue_us: micros(estimate.queue_delay),
        path_bits_per_second: estimate.rate_bytes_per_second.saturating_mul(8),
        goodput_out_bits_per_second: measured.sent_per_second.saturating_mul(8),
        goodput_in_bits_per_second: measured.received_per_second.saturating_mul(8),
        cap_bits_per_second: cap.map(|rate| rate.bits_per_second()),
        receive_cap_bits_per_second: peer.receive_rate().map(Rate::bits_per_second),
        cap_changes_unix_seconds: cap_change(peer),
        forecasts: core.outlook.views(peer, timetable::now()),
        lost_per_million: measured.lost_per_million,
        streams: peer.streams.count(),
        streams_paused: tally.paused.load(Ordering::Relaxed),
        streams_resumed: tally.resumed.load(Ordering::Relaxed),
        streams_lost: tally.lost.load(Ordering::Relaxed),
        resent_bytes: tally.resent_bytes.load(Ordering::Relaxed),
        links_lost: tally.links_lost.load(Ordering::Relaxed),
        classes: classes.collect(),
        legs: link.map_or_else(Vec::new, |link| link.legs().map(leg_view).to_vec()),
        peer_certificate_not_after_unix_seconds: link.and_then(trust::peer_not_after),
        key_exchange: groups.map(|groups| names(&groups)),
        key_exchange_is_hybrid: groups.map(|groups| groups.iter().all(|one| tls::is_hybrid(*one))),
        cipher_suite: link.map(|_| tls::CIPHER_SUITE.to_owned()),
    }
}

/// What both connections of a link negotiated: one name, unless they differ.
fn names(groups: &[NamedGroup; 2]) -> String {
    match groups {
        [urgent, bulk] if urgent == bulk => format!("{urgent:?}"),
        [urgent, bulk] => format!("{urgent:?}, {bulk:?}"),
    }
}

fn leg_view(standing: LegStanding) -> LegView {
    let classes = Class::ALL
        .iter()
        .filter(|class| class.leg() == standing.leg);
    LegView {
        leg: standing.leg.as_str().to_owned(),
        classes: classes.map(ToString::to_string).collect(),
        rtt_us: micros(standing.rtt),
        base_rtt_us: micros(standing.base_rtt),
        queue_us: micros(standing.queue),
        lost_per_million: standing.lost_per_million,
    }
}

fn class_view(peer: &Peer, class: Class, measured: &Measured) -> ClassView {
    let shaped = peer.shaped();
    let shares = &shaped.rules.shares;
    let share = shares.of(class);
    let (sent, received) = measured.classes[class.index()];
    ClassView {
        class: class.to_string(),
        sent_bytes: peer.counters.sent(class),
        received_bytes: peer.counters.received(class),
        out_bits_per_second: sent.saturating_mul(8),
        in_bits_per_second: received.saturating_mul(8),
        weight: shares.weight(class),
        floor_bits_per_second: share.floor.map(Rate::bits_per_second),
        cap_bits_per_second: share.cap.map(Rate::bits_per_second),
        datagrams_dropped: peer.counters.dropped(class),
    }
}

fn cap_change(peer: &Peer) -> Option<u64> {
    let shaped = peer.shaped();
    let next = shaped
        .timetable
        .as_ref()?
        .next_change_after(timetable::now());
    next.map(Moment::unix_seconds)
}

fn micros(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
