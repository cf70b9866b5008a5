//! Metrics in Prometheus's text form; every name and its help stands here and nowhere else.
//!
//! The numbers live where they arise, and a scrape collects them into a registry of its own: nothing
//! has to be kept in step, and no global state exists.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::{Counter, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};
use towpath_certs::Rejection;
use towpath_forecast::forecaster::{Forecaster, Horizon};
use towpath_protocol::channel::Class;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::rate::Rate;

use crate::built_in;
use crate::core::Core;
use crate::dial::Cause;
use crate::link::Link;
use crate::outlook::Direction;
use crate::peer::Peer;
use crate::status::{self, LinkState};
use crate::streams::Tally;

/// Why a handshake came to nothing for which no certificate was at fault: most before it cost a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// Too many were under way.
    TooMany,
    /// Too many came from one source.
    TooFast,
    /// The source was asked to prove its address first.
    Retried,
    /// It took too long.
    Late,
    /// It was no packet of QUIC.
    Malformed,
    /// It was none that TLS or QUIC could go on with, and no certificate was at fault.
    Failed,
}

impl DropReason {
    const ALL: [Self; 6] = [
        Self::TooMany,
        Self::TooFast,
        Self::Retried,
        Self::Late,
        Self::Malformed,
        Self::Failed,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::TooFast => "too_fast",
            Self::Retried => "retried",
            Self::Late => "late",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
        }
    }
}

/// How often each reason occurred.
#[derive(Debug, Default)]
pub(crate) struct Dropped([AtomicU64; DropReason::ALL.len()]);

impl Dropped {
    pub(crate) fn count(&self, reason: DropReason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}

/// All metrics as text.
///
/// # Errors
///
/// `E_STATE` if a metric is defined twice, which a test would have found.
pub(crate) fn render(core: &Core) -> Result<String, Fault> {
    collect(core).map_err(|error| Fault::new(Code::State, format!("metrics: {error}")))
}

/// What was sent and received is one metric with a direction.
const BYTES: (&str, &str) = (
    "towpath_tunnel_bytes_total",
    "Bytes of local programs through a link.",
);

fn collect(core: &Core) -> prometheus::Result<String> {
    let registry = Registry::new();
    host(core, &registry)?;
    refusals(core, &registry)?;
    links(core, &registry)?;
    efforts(core, &registry)?;
    channels(core, &registry)?;
    forecasts(core, &registry)?;
    TextEncoder::new().encode_to_string(&registry.gather())
}

fn host(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let build = gauges(
        registry,
        "towpath_build_info",
        "Always 1; the release is a label.",
        &["component", "version"],
    )?;
    let version = env!("CARGO_PKG_VERSION");
    build.with_label_values(&["tunnel", version]).set(1);
    let used = Counter::new(
        "towpath_tunnel_cpu_seconds_total",
        "Processor time the tunnel has used since it was started.",
    )?;
    registry.register(Box::new(used.clone()))?;
    used.inc_by(Duration::from_nanos(built_in::used_nanos()).as_secs_f64());
    let expiry = gauges(
        registry,
        "towpath_cert_expiry_timestamp_seconds",
        "When the host's certificate ends, in seconds since 1970.",
        &[],
    )?;
    let identity = core.trust.current();
    let until = identity.view().not_after_unix_seconds;
    let none = &[] as &[&str];
    expiry.with_label_values(none).set(signed(until));
    let due = gauges(
        registry,
        "towpath_crl_next_update_timestamp_seconds",
        "When the list of revoked certificates ends, in seconds since 1970; absent without one.",
        &[],
    )?;
    if let Some(next) = identity.revocations().next_update_unix_seconds() {
        due.with_label_values(none).set(signed(next));
    }
    let windows = gauges(
        registry,
        "towpath_tunnel_window_memory_bytes",
        "Memory taken for what is under way over long and fast paths, of what the configuration allows.",
        &[],
    )?;
    let taken = core.window_memory.taken_bytes();
    windows.with_label_values(none).set(signed(taken));
    let changes = counters(
        registry,
        "towpath_network_changes_total",
        "Times the kernel said that the host's network had changed.",
        &[],
    )?;
    let count = core.network.count();
    changes.with_label_values(none).inc_by(count);
    let reloads = counters(
        registry,
        "towpath_cert_reloads_total",
        "Changed certificates, keys and lists that were taken into use, or refused.",
        &["result"],
    )?;
    let rollbacks = counters(
        registry,
        "towpath_crl_rollbacks_total",
        "Lists of revoked certificates that were older than the one in use, and refused.",
        &[],
    )?;
    let count = core.trust.rollback_count();
    rollbacks.with_label_values(none).inc_by(count);
    let (taken, refused) = core.trust.counts();
    reloads.with_label_values(&["taken"]).inc_by(taken);
    reloads.with_label_values(&["refused"]).inc_by(refused);
    Ok(())
}

fn refusals(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let rejected = counters(
        registry,
        "towpath_tls_rejected_total",
        "Handshakes refused because of what the peer showed.",
        &["reason"],
    )?;
    for reason in Rejection::ALL {
        let count = core.rejections.of(reason);
        rejected.with_label_values(&[reason.as_str()]).inc_by(count);
    }
    let dropped = counters(
        registry,
        "towpath_quic_incoming_dropped_total",
        "Handshakes that were dropped, or came to nothing though no certificate was at fault.",
        &["reason"],
    )?;
    for reason in DropReason::ALL {
        let count = core.dropped.of(reason);
        dropped.with_label_values(&[reason.as_str()]).inc_by(count);
    }
    Ok(())
}

fn channels(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let label = &["channel"];
    let bytes = counters(
        registry,
        "towpath_channel_bytes_total",
        "Bytes of local programs through a channel.",
        &["channel", "dir"],
    )?;
    let rate = gauges(
        registry,
        "towpath_channel_bytes_per_second",
        "Bytes of local programs through a channel over the last second.",
        &["channel", "dir"],
    )?;
    let connections = gauges(
        registry,
        "towpath_channel_connections",
        "Connections, or sources of datagrams, there are now.",
        label,
    )?;
    let errors = counters(
        registry,
        "towpath_channel_errors_total",
        "Connections of a channel that did not end as they should.",
        label,
    )?;
    let open = ratios(
        registry,
        "towpath_channel_open_seconds",
        "How long the last connection waited for the service.",
        label,
    )?;
    let generation = gauges(
        registry,
        "towpath_channel_generation",
        "Generation of the channel's metadata.",
        label,
    )?;
    let cap = gauges(
        registry,
        "towpath_channel_rate_limit_bytes_per_second",
        "Cap on what goes out through the channel, counted on the wire; absent without one.",
        label,
    )?;
    let dropped = counters(
        registry,
        "towpath_channel_datagrams_dropped_total",
        "Datagrams that were to go out through the channel and were too many.",
        label,
    )?;
    for view in status::channels(core).channels {
        let name = &*view.name;
        let of = |dir| bytes.with_label_values(&[name, dir]);
        of("out").inc_by(view.sent_bytes);
        of("in").inc_by(view.received_bytes);
        let of = |dir, bits: u64| rate.with_label_values(&[name, dir]).set(signed(bits / 8));
        of("out", view.out_bits_per_second);
        of("in", view.in_bits_per_second);
        let name = &[name];
        connections
            .with_label_values(name)
            .set(signed(view.connections));
        errors.with_label_values(name).inc_by(view.errors);
        let waited = Duration::from_micros(view.open_us);
        open.with_label_values(name).set(waited.as_secs_f64());
        generation
            .with_label_values(name)
            .set(signed(view.generation));
        if let Some(bits) = view.cap_bits_per_second {
            cap.with_label_values(name).set(signed(bits / 8));
        }
        dropped
            .with_label_values(name)
            .inc_by(view.datagrams_dropped);
    }
    Ok(())
}

fn links(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let peer = &["peer"];
    let up = gauges(
        registry,
        "towpath_tunnel_up",
        "Whether the link is up.",
        peer,
    )?;
    let states = gauges(
        registry,
        "towpath_tunnel_state",
        "1 for the state the link is in, 0 for the others.",
        &["peer", "state"],
    )?;
    let streams = gauges(
        registry,
        "towpath_tunnel_streams",
        "Streams open now.",
        peer,
    )?;
    let cap = gauges(
        registry,
        "towpath_tunnel_rate_limit_bytes_per_second",
        "Cap on what is sent, counted on the wire; absent without one.",
        peer,
    )?;
    let receive_cap = gauges(
        registry,
        "towpath_tunnel_receive_rate_limit_bytes_per_second",
        "Most that we want the peer to send, counted on the wire; absent without one.",
        peer,
    )?;
    let path = gauges(
        registry,
        "towpath_tunnel_path_bytes_per_second",
        "What the path is believed to carry; 0 while unknown.",
        peer,
    )?;
    let rtt = ratios(
        registry,
        "towpath_tunnel_rtt_seconds",
        "Smoothed round trip of the urgent connection.",
        peer,
    )?;
    let queue = ratios(
        registry,
        "towpath_tunnel_queue_seconds",
        "Queue at the bottleneck in the last round trip.",
        peer,
    )?;
    let loss = ratios(
        registry,
        "towpath_tunnel_loss_ratio",
        "Share of packets lost over the last second.",
        peer,
    )?;
    let legs = Legs::new(registry)?;
    let bytes = counters(registry, BYTES.0, BYTES.1, &["peer", "dir", "class"])?;
    let shares = Shares::new(registry)?;
    let fates = Fates::new(registry)?;
    for peer in core.peers.values() {
        let site = peer.site.as_str();
        let label = &[site];
        let state = peer.state();
        up.with_label_values(label)
            .set(i64::from(state.is_usable()));
        let verdict = status::verdict(peer);
        for each in LinkState::ALL {
            let is_it = i64::from(verdict.state == each);
            states.with_label_values(&[site, each.as_str()]).set(is_it);
        }
        for class in Class::ALL {
            let of = |dir| bytes.with_label_values(&[site, dir, class.as_str()]);
            of("out").inc_by(peer.counters.sent(class));
            of("in").inc_by(peer.counters.received(class));
            shares.show(peer, class);
        }
        let rate = state
            .link
            .as_ref()
            .map_or_else(|| peer.send_rate(), |link| link.pace.rate());
        if let Some(rate) = rate.map(Rate::bytes_per_second) {
            cap.with_label_values(label).set(signed(rate));
        }
        if let Some(rate) = peer.receive_rate().map(Rate::bytes_per_second) {
            receive_cap.with_label_values(label).set(signed(rate));
        }
        let link = state.link.as_deref();
        streams
            .with_label_values(label)
            .set(signed(peer.streams.count()));
        fates.show(label, &peer.streams.tally);
        let Some(link) = link else { continue };
        let estimate = link.estimate();
        path.with_label_values(label)
            .set(signed(estimate.rate_bytes_per_second));
        rtt.with_label_values(label).set(link.rtt().as_secs_f64());
        queue
            .with_label_values(label)
            .set(estimate.queue_delay.as_secs_f64());
        let lost = u32::try_from(link.measured().lost_per_million).unwrap_or(u32::MAX);
        loss.with_label_values(label).set(f64::from(lost) / 1e6);
        legs.show(site, link);
    }
    Ok(())
}

/// What the classes of each of a link's connections see.
struct Legs {
    rtt: GaugeVec,
    base_rtt: GaugeVec,
    queue: GaugeVec,
    loss: GaugeVec,
}

impl Legs {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let of = |name, help| ratios(registry, name, help, &["peer", "leg"]);
        Ok(Self {
            rtt: of(
                "towpath_tunnel_leg_rtt_seconds",
                "Smoothed round trip of one of the link's connections.",
            )?,
            base_rtt: of(
                "towpath_tunnel_leg_base_rtt_seconds",
                "Round trip without a queue, as one of the link's connections knows it.",
            )?,
            queue: of(
                "towpath_tunnel_leg_queue_seconds",
                "Queue at the bottleneck in the last round trip of one of the link's connections.",
            )?,
            loss: of(
                "towpath_tunnel_leg_loss_ratio",
                "Share of packets that one of the link's connections lost over the last second.",
            )?,
        })
    }

    fn show(&self, site: &str, link: &Link) {
        for standing in link.legs() {
            let label = &[site, standing.leg.as_str()];
            let lost = u32::try_from(standing.lost_per_million).unwrap_or(u32::MAX);
            for (gauge, value) in [
                (&self.rtt, standing.rtt.as_secs_f64()),
                (&self.base_rtt, standing.base_rtt.as_secs_f64()),
                (&self.queue, standing.queue.as_secs_f64()),
                (&self.loss, f64::from(lost) / 1e6),
            ] {
                gauge.with_label_values(label).set(value);
            }
        }
    }
}

/// What was done to have a link, and to know what it carries.
fn efforts(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let peer = &["peer"];
    let dials = counters(
        registry,
        "towpath_tunnel_dials_total",
        "Attempts to reach a peer, by what they were made for.",
        &["peer", "cause"],
    )?;
    let probes = counters(
        registry,
        "towpath_tunnel_probes_total",
        "Measurements of the way to a peer, by how they ended.",
        &["peer", "result"],
    )?;
    let probe_bytes = counters(
        registry,
        "towpath_tunnel_probe_bytes_total",
        "Bytes sent to measure the way to a peer.",
        peer,
    )?;
    for peer in core.peers.values() {
        let site = peer.site.as_str();
        let label = &[site];
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let ended = |result| probes.with_label_values(&[site, result]);
        ended("done").inc_by(of(&peer.probes.done));
        ended("failed").inc_by(of(&peer.probes.failed));
        probe_bytes
            .with_label_values(label)
            .inc_by(of(&peer.probes.bytes));
        for cause in Cause::ALL {
            let made = peer.dials[cause as usize].load(Ordering::Relaxed);
            dials
                .with_label_values(&[site, cause.as_str()])
                .inc_by(made);
        }
    }
    Ok(())
}

fn forecasts(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let predicted = ratios(
        registry,
        "towpath_tunnel_predicted_bytes_per_second",
        "What the link is expected to carry, under its cap; absent while unknown.",
        &["peer", "direction", "horizon", "percentile"],
    )?;
    let scored = &["peer", "direction", "horizon"];
    let error = ratios(
        registry,
        "towpath_tunnel_prediction_error_ratio",
        "Mean distance of p50 from what came, as a share of it.",
        scored,
    )?;
    let pinball = ratios(
        registry,
        "towpath_tunnel_prediction_pinball_ratio",
        "Mean pinball loss of p10, p50 and p90, as a share of what came.",
        scored,
    )?;
    let coverage = ratios(
        registry,
        "towpath_tunnel_prediction_coverage_ratio",
        "Share of outcomes from p10 to p90; 0.8 is right.",
        scored,
    )?;
    for peer in core.peers.values() {
        for direction in Direction::ALL {
            let (site, way) = (peer.site.as_str(), direction.as_str());
            for (horizon, made) in core.outlook.predictions(peer, direction) {
                let band = made.band;
                for (percentile, rate) in [("p10", band.p10), ("p50", band.p50), ("p90", band.p90)]
                {
                    let labels = &[site, way, horizon, percentile];
                    predicted.with_label_values(labels).set(rate);
                }
            }
            for horizon in Horizon::ALL {
                let labels = &[site, way, horizon.as_str()];
                let score = |forecaster: &Forecaster| *forecaster.score(horizon);
                let Some(score) = core.outlook.with(&peer.site, direction, score) else {
                    continue;
                };
                if let (Some(off), Some(loss)) = (score.error_ratio(), score.pinball_ratio()) {
                    error.with_label_values(labels).set(off);
                    pinball.with_label_values(labels).set(loss);
                    coverage.with_label_values(labels).set(score.within);
                }
            }
        }
    }
    Ok(())
}

/// What the classes get of a link.
struct Shares {
    weight: IntGaugeVec,
    floor: IntGaugeVec,
    cap: IntGaugeVec,
    dropped: IntCounterVec,
}

impl Shares {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let label = &["peer", "class"];
        Ok(Self {
            weight: gauges(
                registry,
                "towpath_tunnel_class_weight",
                "Weight of a class under the cap; absent for those that go first.",
                label,
            )?,
            floor: gauges(
                registry,
                "towpath_tunnel_class_floor_bytes_per_second",
                "What a class gets at least under a cap, counted on the wire; absent without one.",
                label,
            )?,
            cap: gauges(
                registry,
                "towpath_tunnel_class_rate_limit_bytes_per_second",
                "Cap of a class, counted on the wire; absent without one.",
                label,
            )?,
            dropped: counters(
                registry,
                "towpath_tunnel_datagrams_dropped_total",
                "Datagrams that were to be sent and were too many.",
                label,
            )?,
        })
    }

    fn show(&self, peer: &Peer, class: Class) {
        let label = &[peer.site.as_str(), class.as_str()];
        let shaped = peer.shaped();
        let shares = &shaped.rules.shares;
        if let Some(weight) = shares.weight(class) {
            self.weight.with_label_values(label).set(weight.into());
        }
        let share = shares.of(class);
        for (metric, rate) in [(&self.floor, share.floor), (&self.cap, share.cap)] {
            if let Some(rate) = rate.map(Rate::bytes_per_second) {
                metric.with_label_values(label).set(signed(rate));
            }
        }
        let dropped = self.dropped.with_label_values(label);
        dropped.inc_by(peer.counters.dropped(class));
    }
}

/// What became of streams whose link was lost.
struct Fates {
    paused: IntGaugeVec,
    resumed: IntCounterVec,
    lost: IntCounterVec,
    resent: IntCounterVec,
    links_lost: IntCounterVec,
}

impl Fates {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let count = |name, help| counters(registry, name, help, &["peer"]);
        Ok(Self {
            paused: gauges(
                registry,
                "towpath_tunnel_streams_paused",
                "Streams that wait for the next link.",
                &["peer"],
            )?,
            resumed: count(
                "towpath_tunnel_streams_resumed_total",
                "Times a stream went on over another connection.",
            )?,
            lost: count(
                "towpath_tunnel_streams_lost_total",
                "Streams that no link came for in time, or that the peer had forgotten.",
            )?,
            resent: count(
                "towpath_tunnel_resent_bytes_total",
                "Bytes sent again because a connection was lost.",
            )?,
            links_lost: count(
                "towpath_tunnel_links_lost_total",
                "Times the link was lost.",
            )?,
        })
    }

    fn show(&self, peer: &[&str], tally: &Tally) {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let paused = self.paused.with_label_values(peer);
        paused.set(signed(of(&tally.paused)));
        for (metric, counter) in [
            (&self.resumed, &tally.resumed),
            (&self.lost, &tally.lost),
            (&self.resent, &tally.resent_bytes),
            (&self.links_lost, &tally.links_lost),
        ] {
            metric.with_label_values(peer).inc_by(of(counter));
        }
    }
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    let made = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn ratios(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<GaugeVec> {
    let made = GaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    let made = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
