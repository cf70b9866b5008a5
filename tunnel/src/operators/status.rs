//! Builds the `/status` document: the state of the tunnel for operators.

mod view;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustls::NamedGroup;
use towpath_certs::{Freshness, tls};
use towpath_forecast::moment::Moment;
use towpath_protocol::amounts::micros;
use towpath_protocol::class::{Class, Leg, PerLeg};
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;

use crate::channels::Channel;
use crate::core::Core;
use crate::links::link::{LegStanding, Link, Measured};
use crate::links::peer::{Barred, Peer};
use crate::links::watchdog::Hearing;
pub use crate::measuring::outlook::{ForecastDocument, ForecastView, QuantilesView};
use crate::operators::health::{self, Signs, Verdict};
use crate::shaping::timetable;
use crate::streams::services::Service;
use crate::trust::failures::Refused;
use crate::trust::{self, Trust, with_remedy};

pub use view::*;

/// The tunnel's current status.
pub(crate) fn status(core: &Core) -> StatusView {
    let host = core.trust.host();
    let services = core.services.all();
    let services = services.iter();
    let services = services.map(|(name, service)| service_view(core, name, service));
    let channels = channels(core);
    StatusView {
        schema: SCHEMA.to_owned(),
        site: host.site.to_string(),
        host: host.host.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: core.began.elapsed().as_secs(),
        links: core
            .peers
            .all()
            .values()
            .map(|peer| link_view(core, peer))
            .collect(),
        services: services.collect(),
        channels: channels.channels,
        channels_closed_by_hand: channels.closed_by_hand,
        certificate: certificate_view(&core.trust),
        configuration: core.reloads.view(),
        state_problem: core.state_problem().as_ref().map(with_remedy),
        refused: core
            .refused
            .last()
            .filter(|refused| !is_over(core, refused))
            .map(refused_view),
    }
}

/// Whether a peer has since made a link from the same address, so that the refusal is history.
fn is_over(core: &Core, refused: &Refused) -> bool {
    core.peers.all().values().any(|peer| {
        let state = peer.state();
        let from = state
            .link
            .map(|link| link.connection(Leg::Urgent).remote_address().ip());
        from == Some(refused.from.ip()) && state.since >= refused.at
    })
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

/// The current state of a service.
pub(crate) fn service_view(core: &Core, name: &Name, service: &Service) -> ServiceView {
    let peers = core.peers.all();
    ServiceView {
        name: name.to_string(),
        socket: service.reach.to_string(),
        allow: service.allow.iter().map(ToString::to_string).collect(),
        streams: peers.values().map(|peer| peer.streams.count_to(name)).sum(),
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
        problem: trust.problem().as_ref().map(with_remedy),
        revocation_lists: lists,
    }
}

/// The current state of all channels.
pub(crate) fn channels(core: &Core) -> ChannelList {
    let channels = core.channels.list();
    let views = channels.iter().map(|channel| channel_view(core, channel));
    let closed = core.channels.closed_by_hand();
    ChannelList {
        channels: views.collect(),
        closed_by_hand: closed.iter().map(ToString::to_string).collect(),
    }
}

/// The current state of a channel.
pub(crate) fn channel_view(core: &Core, channel: &Channel) -> ChannelView {
    let (spec, figures) = (channel.spec(), &channel.figures);
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let peer = core.peers.get(&spec.peer);
    let verdict = peer.as_ref().map(|peer| verdict(peer));
    let link = peer.and_then(|peer| peer.state().link);
    let (state, reason) = match (channel.why_silent(), verdict) {
        (Some(why), _) => (ChannelState::Down, why),
        (None, Some(verdict)) => match figures.failing() {
            Some(why) if verdict.state != LinkState::Down => (ChannelState::Failing, why),
            _ => (verdict.state.into(), verdict.reason),
        },
        (None, None) => {
            let reason = format!("{} is no peer of this tunnel", spec.peer);
            (ChannelState::Down, reason)
        }
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
        last_error: figures.last_error.lock().clone(),
        open_us: of(&figures.open_us),
        rtt_us: link.map_or(0, |link| micros(link.rtt_of(spec.class.leg()))),
        sent_bytes: of(&figures.meter.sent),
        received_bytes: of(&figures.meter.received),
        out_bits_per_second: of(&figures.sent_per_second).saturating_mul(8),
        in_bits_per_second: of(&figures.received_per_second).saturating_mul(8),
        cap_bits_per_second: figures.meter.quota.cap().map(Rate::bits_per_second),
        datagrams_dropped: of(&figures.meter.dropped),
    }
}

/// The state of the link to a peer, with its reason and remedy.
pub(crate) fn verdict(peer: &Peer) -> Verdict {
    let state = peer.state();
    let trouble = state.link.as_deref().map(Link::trouble).unwrap_or_default();
    health::judge(&Signs {
        is_linked: state.up().is_some(),
        is_stalled: state.hearing != Hearing::Heard,
        is_dialled: peer.is_dialled(),
        revoked: match state.barred {
            Some(Barred::Revoked(whose)) => Some(whose),
            _ => None,
        },
        is_unspoken: state.barred == Some(Barred::NoVersion),
        why_down: state.reason,
        remedy_down: state.remedy,
        lost_per_million: trouble.lost_per_million,
        queue: trouble.queue,
        lost_count: peer.recent_loss_count(),
        rivals: peer.rivals_shown(),
    })
}

fn link_view(core: &Core, peer: &Peer) -> LinkView {
    let state = peer.state();
    let link = state.up().map(Arc::as_ref);
    let estimate = link.map(Link::estimate).unwrap_or_default();
    let measured = link.map(Link::measured).unwrap_or_default();
    let cap = link.map_or_else(|| peer.send_rate(), |link| link.pace.rate());
    let (verdict, tally) = (verdict(peer), &peer.streams.tally);
    // A refused host is unidentified. While we wait for a peer to dial, it may be that peer, so its
    // remedy is shown here.
    let is_waited_for = link.is_none() && !peer.is_dialled() && state.remedy.is_none();
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
        base_rtt_us: link.map_or(0, |link| micros(base_rtt(link))),
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
        streams_paused: peer.paused_count(),
        streams_resumed: tally.resumed.load(Ordering::Relaxed),
        streams_lost: tally.lost.load(Ordering::Relaxed),
        resent_bytes: tally.resent_bytes.load(Ordering::Relaxed),
        links_lost: tally.links_lost.load(Ordering::Relaxed),
        classes: classes.collect(),
        legs: link.map_or_else(Vec::new, |link| {
            link.legs().into_iter().map(leg_view).collect()
        }),
        peer_certificate_not_after_unix_seconds: link.and_then(trust::peer_not_after),
        key_exchange: groups.map(|groups| names(&groups)),
        key_exchange_is_hybrid: groups.map(|groups| groups.iter().all(|one| tls::is_hybrid(*one))),
        cipher_suite: link.map(|_| tls::CIPHER_SUITE.to_owned()),
    }
}

/// A link's round trip without a queue: the lower value of its two connections. Both take the same
/// path, but an idle one measures it less well. At most the current round trip.
fn base_rtt(link: &Link) -> Duration {
    let known = link.legs().map(|standing| standing.base_rtt);
    least_known(known, link.rtt())
}

/// The lower of the known times, at most `most`; zero while none is known. A time of zero is
/// unknown.
fn least_known(times: impl IntoIterator<Item = Duration>, most: Duration) -> Duration {
    let known = times.into_iter().filter(|time| !time.is_zero());
    known.min().map_or(Duration::ZERO, |least| least.min(most))
}

/// The key exchanges of a link's two connections: one name if they are the same.
fn names(groups: &PerLeg<NamedGroup>) -> String {
    let PerLeg { urgent, bulk } = groups;
    if urgent == bulk {
        format!("{urgent:?}")
    } else {
        format!("{urgent:?}, {bulk:?}")
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
        wait_us: micros(measured.waits[class.index()]),
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

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_trip_without_a_queue_is_no_longer_than_the_one_with_it() {
        let least = |times: [u64; 2], most| {
            let least = least_known(
                times.map(Duration::from_micros),
                Duration::from_micros(most),
            );
            least.as_micros()
        };
        assert_eq!(least([0, 0], 700), 0);
        assert_eq!(least([0, 500], 700), 500);
        assert_eq!(least([900, 500], 700), 500);
        assert_eq!(least([900, 0], 700), 700);
    }
}
