//! An active measurement of the path to a peer: sends a limited number of bytes to see what it
//! carries.
//!
//! A path that is not full shows only that it carries at least what was sent. A probe fills it
//! while its budget lasts, in the class that gives way to every other. It uses the peer's built-in
//! bench service, which the peer's configuration has to allow.
//!
//! The result is the rate that the estimator counts while the path is the limit, and the forecasts
//! take it as capacity. If the budget ends before the path is full, the result is only a lower
//! bound, and marked as one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{
    Instant as TokioInstant, MissedTickBehavior, interval, sleep_until, timeout, timeout_at,
};
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::amounts::{micros, millis, per_second};
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::preamble::{BENCH_SERVICE, Open};
use towpath_protocol::size::Size;
use utoipa::ToSchema;

use crate::config::ProbeConfig;
use crate::core::Core;
use crate::links::link::{Link, per_million};
use crate::links::peer::Peer;
use crate::measuring::bench_service::BenchRequest;
use crate::path::estimate::Estimate;
use crate::streams::local;

/// Bytes of a probe by default: a second of 32 Mbit/s.
pub const BYTES_DEFAULT: Size = Size::from_bytes(4 << 20);

/// Least bytes of a probe: a few packets.
pub const BYTES_MIN: u64 = 64 << 10;
/// Most bytes of a probe: what 250 Mbit/s carry in half a minute.
pub const BYTES_MAX: u64 = 1 << 30;

/// Duration of a probe by default.
pub const TIME_DEFAULT: Duration = Duration::from_secs(10);
/// Longest duration of a probe.
pub const TIME_MAX: Duration = Duration::from_secs(30);

/// How long the peer may take to answer after the last byte was written.
pub const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// Time between two samples: a few round trips of most paths.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// Most samples: those of the longest probe and the wait for its answer.
const SAMPLE_COUNT_MAX: usize = 500;

/// How long the path must have been the limit for the rate to count as its capacity: three rounds
/// of a path across a continent.
const FILLED_MIN: Duration = Duration::from_millis(200);

/// A rate within this part of the cap counts as limited by the cap.
const CAP_REACHED: u64 = 8;

/// Bytes written at once; bulk is sent in pieces of this size.
const CHUNK_BYTES: usize = 64 * 1024;

/// The budget of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ProbeRequest {
    /// Most bytes to send, from 64 KiB to 1 GiB.
    #[serde(default = "bytes_default")]
    pub bytes: u64,
    /// Longest time to send, in milliseconds, from 1 to 30000.
    #[serde(default = "time_default")]
    pub time_ms: u64,
}

const fn bytes_default() -> u64 {
    BYTES_DEFAULT.bytes()
}

fn time_default() -> u64 {
    millis(TIME_DEFAULT)
}

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ProbeView {
    /// The peer's site.
    pub peer: String,
    /// The budget in bytes.
    pub budget_bytes: u64,
    /// Bytes that arrived, as the peer counted them.
    pub bytes: u64,
    /// Time from the first byte to the peer's answer, in milliseconds.
    pub time_ms: u64,
    /// Rate the path carries if `is_capacity`, else a lower bound of it, in bits per second.
    pub bits_per_second: u64,
    /// Whether the path was full for long enough. If so, `bits_per_second` is its capacity, and the
    /// forecasts use it. If not, it is the rate of the probe.
    pub is_capacity: bool,
    /// What kept the probe from filling the path; absent if it did.
    pub limited_by: Option<ProbeLimit>,
    /// Cap on the rate sent, beyond which a probe cannot measure, in bits per second on the wire;
    /// absent without a cap.
    pub cap_bits_per_second: Option<u64>,
    /// Round trip without a queue, in microseconds.
    pub base_rtt_us: u64,
    /// Median of the smoothed round trip of the urgent connection during the probe, in
    /// microseconds.
    pub rtt_p50_us: u64,
    /// Longest smoothed round trip of the urgent connection during the probe, in microseconds.
    pub rtt_max_us: u64,
    /// Packets lost per million sent on the bulk connection during the probe.
    pub lost_per_million: u64,
    /// Samples taken during the probe.
    pub samples: Vec<ProbeSample>,
}

/// What kept a probe from filling the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProbeLimit {
    /// All bytes of the budget were sent.
    Budget,
    /// The time ran out.
    Time,
    /// The cap on the rate sent was reached.
    Cap,
    /// Other classes, which go first, sent more than the probe.
    Traffic,
}

/// What limited a probe that has not filled the path.
#[derive(Debug, Clone, Copy)]
struct ProbeBounds {
    /// Bytes per second of the probe, and of all other classes to the peer meanwhile.
    rates: (u64, u64),
    cap: Option<u64>,
    is_out_of_time: bool,
}

impl ProbeBounds {
    /// The most likely limit. Other traffic comes first, because it explains more than too small a
    /// budget.
    fn by(self) -> ProbeLimit {
        let (probe, others) = self.rates;
        let is_reached = |cap: u64| probe.saturating_add(others) >= cap - cap / CAP_REACHED;
        if others > probe {
            ProbeLimit::Traffic
        } else if self.cap.is_some_and(is_reached) {
            ProbeLimit::Cap
        } else if self.is_out_of_time {
            ProbeLimit::Time
        } else {
            ProbeLimit::Budget
        }
    }
}

/// One moment of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProbeSample {
    /// Time since the first byte, in milliseconds.
    pub at_ms: u64,
    /// Bytes handed to the link so far.
    pub sent_bytes: u64,
    /// Estimated rate of the path, in bits per second.
    pub path_bits_per_second: u64,
    /// Smoothed round trip of the urgent connection, in microseconds.
    pub rtt_us: u64,
    /// Queue at the bottleneck, in microseconds.
    pub queue_us: u64,
}

/// Counts of the probes of one peer.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    is_running: AtomicBool,
    pub bytes: AtomicU64,
    pub done: AtomicU64,
    pub failed: AtomicU64,
}

/// The right to probe a peer, one at a time because two probes would measure each other. Dropping
/// it counts the probe, since the bytes were sent even if the requester is gone.
struct Place<'a> {
    tally: &'a Tally,
    sent: AtomicU64,
    is_done: bool,
}

impl<'a> Place<'a> {
    /// Takes the right to probe, if it is free.
    fn take(tally: &'a Tally) -> Option<Self> {
        let is_taken = tally.is_running.swap(true, Ordering::Acquire);
        (!is_taken).then(|| Self {
            tally,
            sent: AtomicU64::new(0),
            is_done: false,
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let (tally, sent) = (self.tally, *self.sent.get_mut());
        tally.bytes.fetch_add(sent, Ordering::Relaxed);
        let ended = if self.is_done {
            &tally.done
        } else {
            &tally.failed
        };
        ended.fetch_add(1, Ordering::Relaxed);
        tally.is_running.store(false, Ordering::Release);
    }
}

/// Measures the path to a peer once.
///
/// # Errors
///
/// `E_USAGE` for an invalid budget, `E_NOT_FOUND` for a site that is no peer, `E_BUSY` while
/// another probe runs, `E_DENIED` if the peer does not allow it, `E_UNREACHABLE` without a link or
/// if it is lost meanwhile, `E_STALLED` without an answer.
pub(crate) async fn run(
    core: &Arc<Core>,
    site: &Name,
    budget: ProbeRequest,
) -> Result<ProbeView, Fault> {
    check(budget)?;
    let peer = core.peer(site)?;
    let Some(mut place) = Place::take(&peer.probes) else {
        let detail = format!("the way to {site} is being measured already");
        let remedy = "try again when that is done, within half a minute; `peers.probe` of the configuration measures too";
        return Err(Fault::new(Code::Busy, detail).remedy(remedy));
    };
    let probed = probe(core, &peer, budget, &place.sent).await;
    place.is_done = probed.is_ok();
    match &probed {
        Ok(view) => {
            if view.is_capacity {
                core.outlook.note_probe(site, view.bits_per_second / 8);
            }
            let (bits, is_capacity) = (view.bits_per_second, view.is_capacity);
            tracing::info!(peer = %site, bytes = view.bytes, bits, is_capacity, "way measured");
        }
        Err(fault) => {
            tracing::info!(peer = %site, %fault, "way not measured");
        }
    }
    probed
}

fn check(budget: ProbeRequest) -> Result<(), Fault> {
    let time = Duration::from_millis(budget.time_ms);
    if !(BYTES_MIN..=BYTES_MAX).contains(&budget.bytes) {
        let (least, most) = (Size::from_bytes(BYTES_MIN), Size::from_bytes(BYTES_MAX));
        let detail = format!("bytes is {} and must be {least} to {most}", budget.bytes);
        let remedy =
            "choose another --bytes; what a probe is to cost is said by whoever asks for it";
        return Err(Fault::new(Code::Usage, detail).remedy(remedy));
    }
    if time.is_zero() || time > TIME_MAX {
        let detail = format!("time_ms is {} and must be 1 to 30000", budget.time_ms);
        return Err(Fault::new(Code::Usage, detail).remedy("choose another --time, up to 30s"));
    }
    Ok(())
}

/// Measures once; `sent` counts the bytes sent, however it ends.
async fn probe(
    core: &Arc<Core>,
    peer: &Peer,
    budget: ProbeRequest,
    sent: &AtomicU64,
) -> Result<ProbeView, Fault> {
    let open = Open {
        peer: peer.site.clone(),
        service: BENCH_SERVICE.parse().expect("the service's name is a name"),
        class: Class::Scavenger,
    };
    let link = peer.link()?;
    let begun = local::begin(core, &open, local::StreamOrigin::default()).await?;
    let (ours, theirs) = UnixStream::pair().map_err(|error| broken(&error))?;
    let carrying = {
        let (core, mut theirs) = (Arc::clone(core), theirs);
        tokio::spawn(async move { begun.live(&core, theirs.split()).await })
    };
    let mut looks = Looks::begin(peer, &link);
    let exchange = exchange(ours, budget, sent);
    let exchanged = tokio::select! {
        exchanged = exchange => exchanged,
        () = looks.keep(&link, sent) => Err(Fault::new(Code::State, "a probe without an end")),
    };
    match exchanged {
        Ok((bytes, time)) => {
            let is_out_of_time = sent.load(Ordering::Relaxed) < budget.bytes;
            let came = (bytes, time, is_out_of_time);
            Ok(looks.end(peer, &link, budget, came))
        }
        Err(fault) => {
            // The stream's own error says more than the failed exchange.
            let carried = timeout(Duration::from_secs(1), carrying).await;
            Err(carried
                .ok()
                .and_then(Result::ok)
                .and_then(Result::err)
                .unwrap_or(fault))
        }
    }
}

/// Sends the budget and reads the answer. Returns the bytes that arrived, and in what time.
async fn exchange(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    budget: ProbeRequest,
    sent: &AtomicU64,
) -> Result<(u64, Duration), Fault> {
    let began = Instant::now();
    let until = TokioInstant::now() + Duration::from_millis(budget.time_ms);
    let chunk = [0; CHUNK_BYTES];
    let sending = async {
        stream.write_all(&[BenchRequest::Sink.byte()]).await?;
        let mut left = budget.bytes;
        while left > 0 && TokioInstant::now() < until {
            let count = left.min(CHUNK_BYTES as u64);
            let piece = &chunk[..usize::try_from(count).unwrap_or(CHUNK_BYTES)];
            // A path that carries nothing at all must not block the probe.
            match timeout_at(until, stream.write_all(piece)).await {
                Ok(written) => written?,
                Err(_) => break,
            }
            left -= count;
            sent.fetch_add(count, Ordering::Relaxed);
        }
        stream.shutdown().await?;
        Ok(())
    };
    sending
        .await
        .map_err(|error: std::io::Error| broken(&error))?;
    let answered = timeout(ANSWER_WAIT, stream.read_u64_le()).await;
    let answered = answered.map_err(|_| Fault::new(Code::Stalled, "no word of what came"))?;
    Ok((answered.map_err(|error| broken(&error))?, began.elapsed()))
}

fn broken(error: &std::io::Error) -> Fault {
    Fault::new(Code::Unreachable, format!("the probe's stream: {error}"))
}

/// State of a measurement while bytes flow.
struct Looks {
    began: Instant,
    before: Estimate,
    /// Bulk packets lost and sent before it.
    packets: (u64, u64),
    /// Bytes of other classes sent to the peer before it.
    others: u64,
    samples: Vec<ProbeSample>,
}

/// Total bytes sent to a peer, except in the class of probes.
fn others(peer: &Peer) -> u64 {
    let (sent, _) = peer.counters.totals();
    sent.saturating_sub(peer.counters.sent(Class::Scavenger))
}

impl Looks {
    fn begin(peer: &Peer, link: &Link) -> Self {
        Self {
            others: others(peer),
            began: Instant::now(),
            before: link.estimate(),
            packets: packets(link),
            samples: Vec::new(),
        }
    }

    /// Takes samples until dropped.
    async fn keep(&mut self, link: &Link, sent: &AtomicU64) {
        let mut ticks = interval(SAMPLE_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if self.samples.len() < SAMPLE_COUNT_MAX {
                let estimate = link.estimate();
                self.samples.push(ProbeSample {
                    at_ms: millis(self.began.elapsed()),
                    sent_bytes: sent.load(Ordering::Relaxed),
                    path_bits_per_second: estimate.rate_bytes_per_second.saturating_mul(8),
                    rtt_us: micros(link.rtt()),
                    queue_us: micros(estimate.queue_delay),
                });
            }
        }
    }

    fn end(
        self,
        peer: &Peer,
        link: &Link,
        budget: ProbeRequest,
        (bytes, time, is_out_of_time): (u64, Duration, bool),
    ) -> ProbeView {
        let (after, packets) = (link.estimate(), packets(link));
        let lost = packets.0.saturating_sub(self.packets.0);
        let sent = packets.1.saturating_sub(self.packets.1);
        let goodput = per_second(bytes, time);
        let filled = filled(&self.before, &after).or_else(|| link.capacity_shown_by(goodput));
        let rate = filled.unwrap_or(goodput);
        let held = ProbeBounds {
            rates: (
                goodput,
                per_second(others(peer).saturating_sub(self.others), time),
            ),
            cap: link.pace.rate().map(|rate| rate.bytes_per_second()),
            is_out_of_time,
        };
        let mut rtts: Vec<_> = self.samples.iter().map(|sample| sample.rtt_us).collect();
        rtts.sort_unstable();
        ProbeView {
            peer: peer.site.to_string(),
            budget_bytes: budget.bytes,
            bytes,
            time_ms: millis(time),
            bits_per_second: rate.saturating_mul(8),
            is_capacity: filled.is_some(),
            limited_by: filled.is_none().then(|| held.by()),
            cap_bits_per_second: link.pace.rate().map(|rate| rate.bits_per_second()),
            base_rtt_us: micros(after.base_rtt),
            rtt_p50_us: rtts.get(rtts.len() / 2).copied().unwrap_or(0),
            rtt_max_us: rtts.last().copied().unwrap_or(0),
            lost_per_million: per_million(lost, sent),
            samples: self.samples,
        }
    }
}

/// Rate in bytes per second while the path was the limit; `None` if that was too short.
fn filled(before: &Estimate, after: &Estimate) -> Option<u64> {
    let bytes = after.filled_bytes.checked_sub(before.filled_bytes)?;
    let time = after.filled_time.checked_sub(before.filled_time)?;
    (time >= FILLED_MIN).then(|| per_second(bytes, time))
}

/// Total bulk packets lost and sent.
fn packets(link: &Link) -> (u64, u64) {
    let path = link.connection(Leg::Bulk).stats().path;
    (path.lost_packets, path.sent_packets)
}

/// Measures the path to a peer repeatedly, while configured, until the tunnel stops.
pub(crate) async fn keep(core: Arc<Core>, peer: Arc<Peer>, mut stop: Shutdown) {
    let measure = |budget| {
        let (core, peer) = (&core, &peer);
        async move {
            if peer.state().is_usable() {
                // The result is in the log and in the metrics.
                let _ = run(core, &peer.site, budget).await;
            }
        }
    };
    tokio::select! {
        () = stop.requested() => {}
        () = again(peer.probe_configs(), measure) => {}
    }
}

/// Measures at each interval with the configured budget, until dropped. Another interval counts
/// from the last measurement; one under way is not affected.
async fn again<F: Future<Output = ()>>(
    mut configs: watch::Receiver<Option<ProbeConfig>>,
    measure: impl Fn(ProbeRequest) -> F,
) {
    let mut last = TokioInstant::now();
    loop {
        let config = *configs.borrow_and_update();
        let due = async {
            match config {
                Some(config) => sleep_until(last + config.interval.duration()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            changed = configs.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
        }
        if let Some(config) = config {
            measure(ProbeRequest {
                bytes: config.bytes.bytes(),
                time_ms: time_default(),
            })
            .await;
        }
        last = TokioInstant::now();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::io::duplex;
    use tokio::sync::Notify;
    use tokio::time::sleep;
    use towpath_daemon::units::Span;

    use super::*;

    #[test]
    fn only_a_path_that_was_full_for_long_enough_has_a_rate() {
        let at = |filled_bytes, millis| Estimate {
            filled_bytes,
            filled_time: Duration::from_millis(millis),
            ..Estimate::default()
        };
        assert_eq!(filled(&at(0, 0), &at(1_000_000, 500)), Some(2_000_000));
        assert_eq!(filled(&at(0, 0), &at(1_000_000, 100)), None);
        assert_eq!(filled(&at(500, 900), &at(0, 0)), None, "another connection");
    }

    #[test]
    fn what_kept_a_probe_from_filling_the_path_is_told() {
        let held = ProbeBounds {
            rates: (1000, 0),
            cap: None,
            is_out_of_time: false,
        };
        assert_eq!(held.by(), ProbeLimit::Budget);
        let late = ProbeBounds {
            is_out_of_time: true,
            ..held
        };
        assert_eq!(late.by(), ProbeLimit::Time);
        let capped = |cap| ProbeBounds {
            cap: Some(cap),
            ..late
        };
        assert_eq!(capped(1100).by(), ProbeLimit::Cap);
        assert_eq!(capped(2000).by(), ProbeLimit::Time);
        let beside = ProbeBounds {
            rates: (1000, 1001),
            ..capped(2000)
        };
        assert_eq!(beside.by(), ProbeLimit::Traffic);
        let share = ProbeBounds {
            rates: (1000, 900),
            ..capped(2000)
        };
        assert_eq!(share.by(), ProbeLimit::Cap);
    }

    /// A peer's service that reads a probe to its end; `None` if more than `most` bytes arrive.
    async fn hear(mut stream: impl AsyncRead + AsyncWrite + Unpin, most: usize) -> Option<u64> {
        let (mut came, mut chunk) = (0, [0; 4096]);
        loop {
            match stream.read(&mut chunk).await.unwrap() {
                0 => break,
                more => came += more,
            }
            if came > most {
                return None;
            }
        }
        stream.write_u64_le(came as u64 - 1).await.unwrap();
        Some(came as u64)
    }

    #[tokio::test]
    async fn a_probe_in_the_background_costs_at_each_interval_what_it_may_and_no_more() {
        let config = ProbeConfig {
            interval: Span::new(Duration::from_millis(20)),
            bytes: Size::from_bytes(BYTES_MIN + 1000),
        };
        let (costs, all) = (Mutex::new(Vec::new()), Notify::new());
        let measure = |budget| {
            let (costs, all) = (&costs, &all);
            async move {
                let (near, far) = duplex(10_000);
                let sent = AtomicU64::new(0);
                // Ends a probe that does not stop by itself.
                let hearing = hear(far, 1 << 20);
                let (told, came) = tokio::join!(exchange(near, budget, &sent), hearing);
                let mut costs = costs.lock().unwrap();
                costs.push((told.ok().map(|(bytes, _)| bytes), came, sent.into_inner()));
                if costs.len() == 5 {
                    all.notify_one();
                }
            }
        };
        let (_kept, configs) = watch::channel(Some(config));
        let began = Instant::now();
        tokio::select! {
            () = again(configs, measure) => {}
            () = all.notified() => {}
        }
        assert!(began.elapsed() >= 5 * config.interval.duration());
        let budget = config.bytes.bytes();
        // The byte that selects the service adds one.
        let cost = (Some(budget), Some(budget + 1), budget);
        assert_eq!(costs.into_inner().unwrap(), [cost; 5]);
    }

    #[tokio::test]
    async fn a_probe_over_a_path_that_takes_nothing_ends_with_its_time() {
        let (near, far) = duplex(10_000);
        let budget = ProbeRequest {
            bytes: BYTES_MIN,
            time_ms: 50,
        };
        let sent = AtomicU64::new(0);
        let hearing = async {
            sleep(2 * Duration::from_millis(budget.time_ms)).await;
            hear(far, 1 << 20).await
        };
        let (told, came) = tokio::join!(exchange(near, budget, &sent), hearing);
        assert_eq!(told.map(|(bytes, _)| bytes), Ok(9_999));
        assert_eq!((came, sent.into_inner()), (Some(10_000), 0));
    }

    #[test]
    fn budgets_that_cannot_be_meant_are_refused() {
        let checked = |bytes, time_ms| check(ProbeRequest { bytes, time_ms }).is_ok();
        assert!(checked(BYTES_MIN, 1) && checked(BYTES_MAX, 30_000));
        assert!(!checked(BYTES_MIN - 1, 1) && !checked(BYTES_MAX + 1, 1));
        assert!(!checked(BYTES_MIN, 0) && !checked(BYTES_MIN, 30_001));
        let said: ProbeRequest = serde_json::from_str("{}").unwrap();
        assert_eq!((said.bytes, said.time_ms), (4 << 20, 10_000));
        assert!(serde_json::from_str::<ProbeRequest>("{\"rate\":1}").is_err());
    }
}
