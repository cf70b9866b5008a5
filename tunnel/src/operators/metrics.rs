//! Metrics in Prometheus's text format. All names and help texts of the tunnel are in this file.
//!
//! The values live where they are counted. Each scrape collects them into a new registry, so there
//! is no global state and nothing to keep in step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Counter, CounterVec, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use towpath_certs::Rejection;
use towpath_forecast::forecaster::{Forecaster, Horizon};
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::rate::Rate;

use crate::core::Core;
use crate::links::dial::Cause;
use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::measuring::bench_service;
use crate::measuring::outlook::Direction;
use crate::operators::status::{self, ChannelView, LinkState};
use crate::trust::dropped::DropReason;

/// All metrics as text.
///
/// # Errors
///
/// `E_STATE` if a metric is defined twice; a test makes sure that none is.
pub(crate) fn render(core: &Core) -> Result<String, Fault> {
    collect(core).map_err(|error| Fault::new(Code::State, format!("metrics: {error}")))
}

/// No labels: for metrics with a single series.
const NONE: &[&str] = &[];

/// Name and help of the byte counter; the direction is a label.
const BYTES: (&str, &str) = (
    "towpath_tunnel_bytes_total",
    "Bytes of local programs carried by a link.",
);

fn collect(core: &Core) -> prometheus::Result<String> {
    let registry = Registry::new();
    host(core, &registry)?;
    problems(core, &registry)?;
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
        "Release of the daemon, as a label; always 1.",
        &["component", "version"],
    )?;
    let version = env!("CARGO_PKG_VERSION");
    build.with_label_values(&["tunnel", version]).set(1);
    let used = Counter::new(
        "towpath_tunnel_cpu_seconds_total",
        "Processor time used by the tunnel since its start, in seconds.",
    )?;
    let used = registered(registry, used)?;
    used.inc_by(Duration::from_nanos(bench_service::used_nanos()).as_secs_f64());
    let (trust, identity) = (&core.trust, core.trust.current());
    let lists = identity.revocations();
    for (name, help, value) in [
        (
            "towpath_cert_expiry_timestamp_seconds",
            "Expiry of the host's certificate, in seconds since 1970.",
            Some(identity.view().not_after_unix_seconds),
        ),
        (
            "towpath_crl_next_update_timestamp_seconds",
            "Expiry of the list of revoked certificates, in seconds since 1970; absent without a list.",
            lists.next_update_unix_seconds(),
        ),
        (
            "towpath_tunnel_window_memory_bytes",
            "Memory in use for data in flight over long and fast paths, of limits.window_memory, in bytes.",
            Some(core.window_memory.taken_bytes()),
        ),
    ] {
        let gauge = gauges(registry, name, help, &[])?;
        if let Some(value) = value {
            gauge.with_label_values(NONE).set(signed(value));
        }
    }
    for (name, help, count) in [
        (
            "towpath_network_changes_total",
            "Changes of the host's network reported by the kernel.",
            core.network.count(),
        ),
        (
            "towpath_crl_rollbacks_total",
            "Lists of revoked certificates refused because they were older than the one in use.",
            trust.rollback_count(),
        ),
    ] {
        let counter = counters(registry, name, help, &[])?;
        counter.with_label_values(NONE).inc_by(count);
    }
    reloads(core, registry)
}

/// Gauges that are 1 while a problem lasts. A counter of refusals does not show when the problem is
/// mended.
fn problems(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    for (name, help, is_so) in [
        (
            "towpath_cert_problem",
            "Whether there is a problem with the host's certificates or their files: 1 or 0.",
            core.trust.problem().is_some(),
        ),
        (
            "towpath_crl_rollback",
            "Whether the file's list of revoked certificates is older than the newest one, which stays in use: 1 or 0.",
            core.trust.is_rolled_back(),
        ),
        (
            "towpath_config_problem",
            "Whether the present configuration file cannot be used: 1 or 0.",
            core.reloads.view().problem.is_some(),
        ),
        (
            "towpath_state_problem",
            "Whether the last write to the state folder failed: 1 or 0.",
            core.state_problem().is_some(),
        ),
    ] {
        let gauge = gauges(registry, name, help, &[])?;
        gauge.with_label_values(NONE).set(i64::from(is_so));
    }
    Ok(())
}

fn reloads(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let reloads = counters(
        registry,
        "towpath_cert_reloads_total",
        "Reloads of changed certificates, keys and revocation lists, by result: taken or refused.",
        &["result"],
    )?;
    let (taken, refused) = core.trust.counts();
    reloads.with_label_values(&["taken"]).inc_by(taken);
    reloads.with_label_values(&["refused"]).inc_by(refused);
    let reloads = counters(
        registry,
        "towpath_config_reloads_total",
        "Reloads of the configuration, by result: taken, partly or refused.",
        &["result"],
    )?;
    for (result, count) in core.reloads.counts() {
        reloads.with_label_values(&[result]).inc_by(count);
    }
    Ok(())
}

fn refusals(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let rejected = counters(
        registry,
        "towpath_tls_rejected_total",
        "Handshakes refused because of the peer's certificate or protocol, by reason.",
        &["reason"],
    )?;
    for reason in Rejection::ALL {
        let count = core.rejections.of(reason);
        rejected.with_label_values(&[reason.as_str()]).inc_by(count);
    }
    let dropped = counters(
        registry,
        "towpath_quic_incoming_dropped_total",
        "Handshakes dropped or failed for a reason other than a certificate, by reason.",
        &["reason"],
    )?;
    for reason in DropReason::ALL {
        let count = core.dropped.of(reason);
        dropped.with_label_values(&[reason.as_str()]).inc_by(count);
    }
    Ok(())
}

/// Metrics of channels.
struct Channels {
    up: IntGaugeVec,
    rtt: GaugeVec,
    bytes: IntCounterVec,
    rate: IntGaugeVec,
    connections: IntGaugeVec,
    errors: IntCounterVec,
    open: GaugeVec,
    generation: IntGaugeVec,
    cap: IntGaugeVec,
    dropped: IntCounterVec,
}

impl Channels {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let (each, by_way) = (&["channel"], &["channel", "dir"]);
        // With the peer, so that an alert rule can leave out channels whose link is down.
        let with_peer = &["channel", "peer"];
        let gauge = |name, help| gauges(registry, name, help, each);
        let count = |name, help| counters(registry, name, help, each);
        Ok(Self {
            up: gauges(
                registry,
                "towpath_channel_up",
                "Whether the channel listens, its link is up, and its last connection reached the service: 1 or 0.",
                with_peer,
            )?,
            rtt: ratios(
                registry,
                "towpath_channel_rtt_seconds",
                "Smoothed round trip of the connection that carries the channel's class, in seconds; absent without a link.",
                with_peer,
            )?,
            bytes: counters(
                registry,
                "towpath_channel_bytes_total",
                "Bytes of local programs carried by the channel.",
                by_way,
            )?,
            rate: gauges(
                registry,
                "towpath_channel_bytes_per_second",
                "Bytes of local programs carried by the channel over the last second.",
                by_way,
            )?,
            connections: gauge(
                "towpath_channel_connections",
                "Open connections, or sources of datagrams, of the channel.",
            )?,
            errors: count(
                "towpath_channel_errors_total",
                "Connections of the channel that failed to open or broke off.",
            )?,
            open: ratios(
                registry,
                "towpath_channel_open_seconds",
                "Time the channel's last connection waited for the service, in seconds.",
                each,
            )?,
            generation: gauge(
                "towpath_channel_generation",
                "Generation of the channel's definition.",
            )?,
            cap: gauge(
                "towpath_channel_rate_limit_bytes_per_second",
                "Cap on the rate sent through the channel, in bytes per second on the wire; absent without a cap.",
            )?,
            dropped: count(
                "towpath_channel_datagrams_dropped_total",
                "Datagrams of the channel dropped because too many were waiting to be sent.",
            )?,
        })
    }

    fn show(&self, view: &ChannelView) {
        let name = &*view.name;
        for (way, bytes, bits) in [
            ("out", view.sent_bytes, view.out_bits_per_second),
            ("in", view.received_bytes, view.in_bits_per_second),
        ] {
            let label = &[name, way];
            self.bytes.with_label_values(label).inc_by(bytes);
            self.rate.with_label_values(label).set(signed(bits / 8));
        }
        let with_peer = &[name, view.peer.as_str()];
        let up = self.up.with_label_values(with_peer);
        up.set(i64::from(view.state.is_up()));
        if view.rtt_us > 0 {
            let rtt = Duration::from_micros(view.rtt_us).as_secs_f64();
            self.rtt.with_label_values(with_peer).set(rtt);
        }
        let waited = Duration::from_micros(view.open_us).as_secs_f64();
        self.open.with_label_values(&[name]).set(waited);
        let cap = view.cap_bits_per_second.map(|bits| bits / 8);
        for (metric, value) in [
            (&self.connections, Some(view.connections)),
            (&self.generation, Some(view.generation)),
            (&self.cap, cap),
        ] {
            if let Some(value) = value {
                metric.with_label_values(&[name]).set(signed(value));
            }
        }
        for (metric, count) in [
            (&self.errors, view.errors),
            (&self.dropped, view.datagrams_dropped),
        ] {
            metric.with_label_values(&[name]).inc_by(count);
        }
    }
}

fn channels(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let metrics = Channels::new(registry)?;
    for view in &status::channels(core).channels {
        metrics.show(view);
    }
    Ok(())
}

fn links(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let (links, legs) = (Links::new(registry)?, Legs::new(registry)?);
    let (shares, fates) = (Shares::new(registry)?, Fates::new(registry)?);
    for peer in core.peers.all().values() {
        links.show(peer);
        for class in Class::ALL {
            shares.show(peer, class);
        }
        fates.show(peer);
        if let Some(link) = peer.state().up() {
            legs.show(peer.site.as_str(), link);
        }
    }
    Ok(())
}

/// Metrics of links and their traffic.
struct Links {
    up: IntGaugeVec,
    states: IntGaugeVec,
    streams: IntGaugeVec,
    cap: IntGaugeVec,
    receive_cap: IntGaugeVec,
    path: IntGaugeVec,
    rtt: GaugeVec,
    queue: GaugeVec,
    loss: GaugeVec,
    bytes: IntCounterVec,
    packets_sent: IntCounterVec,
    packets_lost: IntCounterVec,
}

impl Links {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let gauge = |name, help| gauges(registry, name, help, &["peer"]);
        let ratio = |name, help| ratios(registry, name, help, &["peer"]);
        Ok(Self {
            up: gauge(
                "towpath_tunnel_up",
                "Whether the link is up and the peer answers: 1 or 0.",
            )?,
            states: gauges(
                registry,
                "towpath_tunnel_state",
                "State of the link, as a label: 1 for the present state, 0 for the others.",
                &["peer", "state"],
            )?,
            streams: gauge("towpath_tunnel_streams", "Open streams of the link.")?,
            cap: gauge(
                "towpath_tunnel_rate_limit_bytes_per_second",
                "Cap on the rate sent to the peer, in bytes per second on the wire; absent without a cap.",
            )?,
            receive_cap: gauge(
                "towpath_tunnel_receive_rate_limit_bytes_per_second",
                "Cap on the rate received, which the peer is asked to keep to, in bytes per second on the wire; absent without a cap.",
            )?,
            path: gauge(
                "towpath_tunnel_path_bytes_per_second",
                "Estimated rate of the path to the peer, in bytes per second; 0 while unknown.",
            )?,
            rtt: ratio(
                "towpath_tunnel_rtt_seconds",
                "Smoothed round trip of the urgent connection, in seconds.",
            )?,
            queue: ratio(
                "towpath_tunnel_queue_seconds",
                "Queue at the bottleneck in the last round trip, in seconds.",
            )?,
            loss: ratio(
                "towpath_tunnel_loss_ratio",
                "Ratio of packets lost to packets sent over the last second, 0 to 1.",
            )?,
            bytes: counters(registry, BYTES.0, BYTES.1, &["peer", "dir", "class"])?,
            packets_sent: counters(
                registry,
                "towpath_tunnel_packets_sent_total",
                "Packets sent to the peer, by connection of the link.",
                &["peer", "leg"],
            )?,
            packets_lost: counters(
                registry,
                "towpath_tunnel_packets_lost_total",
                "Packets sent to the peer and lost, by connection of the link.",
                &["peer", "leg"],
            )?,
        })
    }

    fn show(&self, peer: &Peer) {
        let (site, state) = (peer.site.as_str(), peer.state());
        let label = &[site];
        let up = self.up.with_label_values(label);
        up.set(i64::from(state.is_usable()));
        let verdict = status::verdict(peer);
        for each in LinkState::ALL {
            let is_it = i64::from(verdict.state == each);
            let labels = &[site, each.as_str()];
            self.states.with_label_values(labels).set(is_it);
        }
        for class in Class::ALL {
            let of = |dir| self.bytes.with_label_values(&[site, dir, class.as_str()]);
            of("out").inc_by(peer.counters.sent(class));
            of("in").inc_by(peer.counters.received(class));
        }
        for leg in Leg::ALL {
            let (labels, (sent, lost)) = (&[site, leg.as_str()], peer.counters.packets(leg));
            self.packets_sent.with_label_values(labels).inc_by(sent);
            self.packets_lost.with_label_values(labels).inc_by(lost);
        }
        let link = state.up().map(Arc::as_ref);
        let cap = link.map_or_else(|| peer.send_rate(), |link| link.pace.rate());
        for (metric, rate) in [(&self.cap, cap), (&self.receive_cap, peer.receive_rate())] {
            if let Some(rate) = rate.map(Rate::bytes_per_second) {
                metric.with_label_values(label).set(signed(rate));
            }
        }
        let streams = self.streams.with_label_values(label);
        streams.set(signed(peer.streams.count()));
        if let Some(link) = link {
            self.show_path(label, link);
        }
    }

    /// Sets the metrics of the path, which exist only while there is a link.
    fn show_path(&self, label: &[&str], link: &Link) {
        let estimate = link.estimate();
        let path = self.path.with_label_values(label);
        path.set(signed(estimate.rate_bytes_per_second));
        let lost = u32::try_from(link.measured().lost_per_million).unwrap_or(u32::MAX);
        for (metric, value) in [
            (&self.rtt, link.rtt().as_secs_f64()),
            (&self.queue, estimate.queue_delay.as_secs_f64()),
            (&self.loss, f64::from(lost) / 1e6),
        ] {
            metric.with_label_values(label).set(value);
        }
    }
}

/// Metrics of each of a link's two connections.
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
                "Smoothed round trip of one connection of the link, in seconds.",
            )?,
            base_rtt: of(
                "towpath_tunnel_leg_base_rtt_seconds",
                "Round trip without a queue of one connection of the link, in seconds; 0 while unknown.",
            )?,
            queue: of(
                "towpath_tunnel_leg_queue_seconds",
                "Queue at the bottleneck in the last round trip of one connection of the link, in seconds.",
            )?,
            loss: of(
                "towpath_tunnel_leg_loss_ratio",
                "Ratio of packets lost to packets sent by one connection of the link over the last second, 0 to 1.",
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

/// Metrics of dials and probes.
fn efforts(core: &Core, registry: &Registry) -> prometheus::Result<()> {
    let peer = &["peer"];
    let dials = counters(
        registry,
        "towpath_tunnel_dials_total",
        "Attempts to dial the peer, by cause: clock or network.",
        &["peer", "cause"],
    )?;
    let probes = counters(
        registry,
        "towpath_tunnel_probes_total",
        "Probes of the path to the peer, by result: done or failed.",
        &["peer", "result"],
    )?;
    let probe_bytes = counters(
        registry,
        "towpath_tunnel_probe_bytes_total",
        "Bytes sent by probes of the path to the peer.",
        peer,
    )?;
    for peer in core.peers.all().values() {
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
        "Forecast rate of the link under its cap, in bytes per second; absent while unknown.",
        &["peer", "direction", "horizon", "percentile"],
    )?;
    let scored = &["peer", "direction", "horizon"];
    let error = ratios(
        registry,
        "towpath_tunnel_prediction_error_ratio",
        "Mean distance of the p50 forecast from the outcome, as a ratio of the outcome.",
        scored,
    )?;
    let pinball = ratios(
        registry,
        "towpath_tunnel_prediction_pinball_ratio",
        "Mean pinball loss of the p10, p50 and p90 forecasts, as a ratio of the outcome.",
        scored,
    )?;
    let coverage = ratios(
        registry,
        "towpath_tunnel_prediction_coverage_ratio",
        "Ratio of outcomes between the p10 and p90 forecasts, 0 to 1; ideally 0.8.",
        scored,
    )?;
    for peer in core.peers.all().values() {
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

/// Metrics of the classes' shares of a link.
struct Shares {
    weight: IntGaugeVec,
    floor: IntGaugeVec,
    cap: IntGaugeVec,
    dropped: IntCounterVec,
    waits: IntCounterVec,
    wait_seconds: CounterVec,
}

impl Shares {
    fn new(registry: &Registry) -> prometheus::Result<Self> {
        let label = &["peer", "class"];
        Ok(Self {
            weight: gauges(
                registry,
                "towpath_tunnel_class_weight",
                "Weight of the class; absent for classes that go first.",
                label,
            )?,
            floor: gauges(
                registry,
                "towpath_tunnel_class_floor_bytes_per_second",
                "Least rate of the class under a cap, in bytes per second on the wire; absent without a floor.",
                label,
            )?,
            cap: gauges(
                registry,
                "towpath_tunnel_class_rate_limit_bytes_per_second",
                "Cap on the rate of the class, in bytes per second on the wire; absent without a cap.",
                label,
            )?,
            dropped: counters(
                registry,
                "towpath_tunnel_datagrams_dropped_total",
                "Datagrams of channels dropped because too many were waiting to be sent.",
                label,
            )?,
            waits: counters(
                registry,
                "towpath_tunnel_class_waits_total",
                "Pieces of streams and datagrams sent, each of which may have waited in the tunnel.",
                label,
            )?,
            wait_seconds: seconds(
                registry,
                "towpath_tunnel_class_wait_seconds_total",
                "Total wait of pieces of streams and datagrams in the tunnel for caps, shares and room on the path, in seconds.",
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
        let (count, time) = peer.counters.waits(class);
        self.waits.with_label_values(label).inc_by(count);
        let seconds = self.wait_seconds.with_label_values(label);
        seconds.inc_by(time.as_secs_f64());
    }
}

/// Metrics of streams whose link was lost.
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
                "Streams that wait for the link to come back.",
                &["peer"],
            )?,
            resumed: count(
                "towpath_tunnel_streams_resumed_total",
                "Resumptions of streams over another connection.",
            )?,
            lost: count(
                "towpath_tunnel_streams_lost_total",
                "Streams lost because no link came in time or the peer no longer had them.",
            )?,
            resent: count(
                "towpath_tunnel_resent_bytes_total",
                "Bytes sent again after the loss of a connection.",
            )?,
            links_lost: count("towpath_tunnel_links_lost_total", "Losses of the link.")?,
        })
    }

    fn show(&self, peer: &Peer) {
        let (label, tally) = (&[peer.site.as_str()], &peer.streams.tally);
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let paused = self.paused.with_label_values(label);
        paused.set(signed(peer.paused_count()));
        for (metric, counter) in [
            (&self.resumed, &tally.resumed),
            (&self.lost, &tally.lost),
            (&self.resent, &tally.resent_bytes),
            (&self.links_lost, &tally.links_lost),
        ] {
            metric.with_label_values(label).inc_by(of(counter));
        }
    }
}

fn registered<M: Collector + Clone + 'static>(
    registry: &Registry,
    made: M,
) -> prometheus::Result<M> {
    registry.register(Box::new(made.clone()))?;
    Ok(made)
}

fn gauges(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntGaugeVec> {
    registered(registry, IntGaugeVec::new(Opts::new(name, help), labels)?)
}

fn ratios(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<GaugeVec> {
    registered(registry, GaugeVec::new(Opts::new(name, help), labels)?)
}

fn counters(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<IntCounterVec> {
    registered(registry, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn seconds(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> prometheus::Result<CounterVec> {
    registered(registry, CounterVec::new(Opts::new(name, help), labels)?)
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
