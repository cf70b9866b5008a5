//! `towpath tunnel bench`: measures what a link carries, how long other traffic waits meanwhile,
//! and the cost in processor time.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use towpath_daemon::stream::open_stream;
use towpath_daemon::units::Span;
use towpath_protocol::amounts::{micros, millis, per_second};
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::preamble::{BENCH_SERVICE, Open};
use towpath_tunnel::bench_service::{BenchRequest, USAGE_BYTES, Usage};

use crate::args::{OutputOption, class, span_within};
use crate::connection::{TunnelSocket, block_on};
use crate::failure::Failure;
use crate::follow::LiveLine;
use crate::show::{self, bits_per_second, bytes, fields};

use super::probe::{of_service, progress};

const EXAMPLES: &str = "\
Examples:
  towpath tunnel bench region                    send bulk traffic for 10 s, and ping meanwhile
  towpath tunnel bench region --reverse --time 30s
  towpath tunnel bench region --class app --parallel 4 -o json

The peer must allow it in the configuration of its tunnel:
  [[services]]
  name = \"bench\"
  socket = \"builtin:bench\"
  allow = [\"edge\"]";

/// Longest time for a stream to open, and for the peer to answer or read.
const ANSWER_WAIT: Duration = Duration::from_secs(30);

/// Longest bench: the peer ends its streams after five minutes.
const TIME_MAX: Duration = Duration::from_mins(4);

/// Bytes written or read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Bytes in flight that a load begins with, and the pause before it looks again whether some have
/// arrived.
const UNDER_WAY_BYTES_MIN: u64 = 2 * CHUNK_BYTES as u64;
const FEED_PAUSE: Duration = Duration::from_micros(500);

/// Pings before the load, and the time between two under it.
const IDLE_PING_COUNT: usize = 20;
const PING_INTERVAL: Duration = Duration::from_millis(20);

/// Bytes of a ping: the size of a small request between programs.
const PING_BYTES: usize = 64;

/// The arguments of `towpath tunnel bench`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Site of the peer
    peer: Name,
    /// Class of the load: control, demand, app, switch, bulk or scavenger
    #[arg(long, value_name = "CLASS", default_value = "bulk", value_parser = class)]
    class: Class,
    /// Duration of the load, 1s to 4m
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    time: Duration,
    /// Receive the load from the peer in place of sending it
    #[arg(long)]
    reverse: bool,
    /// Number of parallel streams, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    parallel: u16,
    /// Socket of the tunnel for streams
    #[arg(
        long,
        value_name = "PATH",
        env = "TOWPATH_STREAM_SOCKET",
        default_value = "/run/towpath/tunnel.sock",
        hide_env_values = true
    )]
    stream_socket: PathBuf,
    #[command(flatten)]
    tunnel_socket: TunnelSocket,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

fn time(text: &str) -> Result<Duration, Fault> {
    span_within(text, Duration::from_secs(1)..=TIME_MAX).map(Span::duration)
}

/// The result of a bench.
#[derive(Debug, Serialize)]
struct Outcome {
    peer: Name,
    class: &'static str,
    reverse: bool,
    parallel: u16,
    bytes: u64,
    time_ms: u64,
    goodput_bytes_per_second: u64,
    /// The goodput in bits per second, as in other documents.
    goodput_bits_per_second: u64,
    /// The cap that limits the load, in bytes per second on the wire: the lower one of the link's
    /// and the class's. With `reverse`, the cap on what the peer sends.
    cap_bytes_per_second: Option<u64>,
    /// What that cap is set for.
    cap_of: Option<CapOf>,
    idle_ping: Pings,
    loaded_ping: Pings,
    /// Ratio of packets lost to packets sent by the sending side.
    loss_ratio: Option<f64>,
    /// The loss per million packets, as in other documents.
    lost_per_million: Option<u64>,
    cpu_seconds_per_gib: Cost,
}

/// A cap that limits a load.
#[derive(Debug, Clone, Copy)]
struct Cap {
    of: CapOf,
    bytes_per_second: u64,
}

/// What a cap is set for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum CapOf {
    /// The whole link in the direction of the load.
    Link,
    /// The class of the load.
    Class,
}

/// Round trips of small requests in the class `demand`.
#[derive(Debug, Serialize)]
struct Pings {
    count: usize,
    p50_us: u64,
    p99_us: u64,
    max_us: u64,
}

/// Processor time of each tunnel per GiB carried, including everything else it did meanwhile.
#[derive(Debug, Serialize)]
struct Cost {
    near: Option<f64>,
    far: Option<f64>,
}

/// The counters of both tunnels, before and after the load.
struct Ends {
    near: (Near, Near),
    far: (Usage, Usage),
}

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let outcome =
        measure(options).map_err(|why| of_service(why, &options.tunnel_socket, &options.peer))?;
    show::show(options.output.format, "tunnel-bench", &outcome, || {
        table(&outcome)
    })
}

fn measure(options: &Options) -> Result<Outcome, Failure> {
    let near = Near::look(options)?;
    let far = far_usage(options)?;
    let cap = cap_of_load(options, &near, &far);
    if let Some(cap) = cap {
        note_cap(options, cap);
    }
    let mut pinged = open(options, Class::Demand, BenchRequest::Echo)?;
    let idle = (0..IDLE_PING_COUNT).map(|_| ping(&mut pinged));
    let idle = idle.collect::<Result<Vec<_>, _>>()?;
    let load = Load::run(options, pinged)?;
    let far = (far, far_usage(options)?);
    let near = (near, Near::look(options)?);
    let ends = Ends { near, far };
    Ok(Outcome::of(options, cap, idle, load, &ends))
}

/// The cap that limits the load. A sending peer reports the cap of the link that it keeps to, the
/// lower one of its own and the one we ask for.
fn cap_of_load(options: &Options, near: &Near, far: &Usage) -> Option<Cap> {
    let of = |of, rate: Option<u64>| {
        rate.map(|bytes_per_second| Cap {
            of,
            bytes_per_second,
        })
    };
    let index = options.class.index();
    let (link, class) = if options.reverse {
        let is_set = |cap: u64| Some(cap).filter(|cap| *cap > 0);
        let class = far.class_caps_bytes_per_second[index];
        (is_set(far.cap_bytes_per_second), is_set(class))
    } else {
        (near.cap, near.class_caps[index])
    };
    let caps = [of(CapOf::Link, link), of(CapOf::Class, class)];
    caps.into_iter()
        .flatten()
        .min_by_key(|cap| cap.bytes_per_second)
}

fn note_cap(options: &Options, cap: Cap) {
    let (peer, time, class) = (&options.peer, options.time, options.class.as_str());
    let (direction, rate) = (options.direction(), bits_per_second(cap.bytes_per_second));
    let what = match cap.of {
        CapOf::Link => "the link".to_owned(),
        CapOf::Class => format!("the class {class}"),
    };
    show::note(&format!(
        "note: {what} {direction} {peer} is capped at {rate}; this fills it for {time:?}"
    ));
}

impl Options {
    /// The direction of the load, as in `to region`.
    const fn direction(&self) -> &'static str {
        if self.reverse { "from" } else { "to" }
    }
}

impl Outcome {
    fn of(
        options: &Options,
        cap: Option<Cap>,
        idle: Vec<Duration>,
        load: Load,
        ends: &Ends,
    ) -> Self {
        let gib = load.bytes as f64 / f64::from(1 << 30);
        let cost = |seconds: f64| (gib > 0.0).then(|| seconds / gib);
        let (far_before, far_after) = &ends.far;
        let far = Duration::from_nanos(far_after.cpu_nanos.saturating_sub(far_before.cpu_nanos));
        let (near_before, near_after) = &ends.near;
        let near = near_after.cpu.zip(near_before.cpu);
        let near = near.map(|(after, before)| after - before);
        let lost = if options.reverse {
            lost_between(Packets::of(far_before), Packets::of(far_after))
        } else {
            let both = near_before.packets.zip(near_after.packets);
            both.and_then(|(before, after)| lost_between(before, after))
        };
        let goodput = per_second(load.bytes, load.time);
        Self {
            peer: options.peer.clone(),
            class: options.class.as_str(),
            reverse: options.reverse,
            parallel: options.parallel,
            bytes: load.bytes,
            time_ms: millis(load.time),
            goodput_bytes_per_second: goodput,
            goodput_bits_per_second: goodput.saturating_mul(8),
            cap_bytes_per_second: cap.map(|cap| cap.bytes_per_second),
            cap_of: cap.map(|cap| cap.of),
            idle_ping: Pings::of(idle),
            loaded_ping: Pings::of(load.pings),
            loss_ratio: lost.map(|(lost, sent)| lost as f64 / sent as f64),
            lost_per_million: lost.map(|(lost, sent)| per_million(lost, sent)),
            cpu_seconds_per_gib: Cost {
                near: near.and_then(cost),
                far: cost(far.as_secs_f64()),
            },
        }
    }
}

/// Packets that a tunnel has sent so far, and how many of them were lost.
#[derive(Debug, Clone, Copy)]
struct Packets {
    sent: u64,
    lost: u64,
}

impl Packets {
    const fn of(usage: &Usage) -> Self {
        Self {
            sent: usage.sent_packets,
            lost: usage.lost_packets,
        }
    }
}

/// Packets lost and packets sent between two readings. `None` if none were sent, or if the counters
/// went back because the tunnel restarted.
fn lost_between(before: Packets, after: Packets) -> Option<(u64, u64)> {
    let lost = after.lost.checked_sub(before.lost)?;
    let sent = after.sent.checked_sub(before.sent)?;
    (sent > 0).then_some((lost, sent))
}

fn per_million(part: u64, whole: u64) -> u64 {
    let millionths = u128::from(part) * 1_000_000 / u128::from(whole.max(1));
    u64::try_from(millionths).unwrap_or(u64::MAX)
}

/// The measurements of a load.
struct Load {
    bytes: u64,
    time: Duration,
    pings: Vec<Duration>,
}

impl Load {
    /// Loads the link and pings over it at the same time.
    fn run(options: &Options, mut pinged: UnixStream) -> Result<Self, Failure> {
        let wish = if options.reverse {
            BenchRequest::Source
        } else {
            BenchRequest::Count
        };
        let opened = (0..options.parallel).map(|_| open(options, options.class, wish));
        let streams = opened.collect::<Result<Vec<_>, _>>()?;
        let is_over = AtomicBool::new(false);
        let begun = Instant::now();
        let until = begun + options.time;
        let came: Vec<_> = streams.iter().map(|_| AtomicU64::new(0)).collect();
        let (counts, pings) = std::thread::scope(|scope| {
            let carry = if options.reverse { receive } else { send };
            let loads: Vec<_> = streams
                .into_iter()
                .zip(&came)
                .map(|(stream, came)| scope.spawn(move || carry(stream, until, came)))
                .collect();
            let (is_over, came) = (&is_over, &*came);
            scope.spawn(move || show_until(options, (begun, until), came, is_over));
            let pinging = scope.spawn(move || ping_until(&mut pinged, is_over));
            let counts: Vec<_> = loads.into_iter().map(|load| load.join()).collect();
            is_over.store(true, Ordering::Relaxed);
            (counts, pinging.join())
        });
        let broken = |_| Fault::new(Code::State, "a part of the bench panicked");
        let mut bytes = 0;
        let mut time = Duration::ZERO;
        for count in counts {
            let (carried, at) = count.map_err(broken)??;
            bytes += carried;
            time = time.max(at.saturating_duration_since(begun));
        }
        Ok(Self {
            bytes,
            time,
            pings: pings.map_err(broken)??,
        })
    }
}

/// Sends so that everything arrives by `until`. Returns how much the far end counted, and when that
/// count arrived.
fn send(mut stream: UnixStream, until: Instant, came: &AtomicU64) -> Result<(u64, Instant), Fault> {
    let counts = stream.try_clone().map_err(|error| broken(&error))?;
    std::thread::scope(|scope| {
        let hearing = scope.spawn(|| hear(counts, came));
        let sent = feed(&mut stream, came, until).map_err(|error| broken(&error));
        let panicked = |_| Fault::new(Code::State, "a part of the bench panicked");
        let heard = hearing.join().map_err(panicked)?;
        sent.and(heard)
    })
}

/// Writes as long as the data in flight will arrive by `until`, then ends the stream. Once past the
/// start, no more is in flight than has arrived already, so that data in buffers does not outlast a
/// short bench.
fn feed(stream: &mut UnixStream, came: &AtomicU64, until: Instant) -> std::io::Result<()> {
    let chunk = vec![0; CHUNK_BYTES];
    let (begun, mut written) = (Instant::now(), 0_u64);
    loop {
        let now = Instant::now();
        let came = came.load(Ordering::Relaxed);
        let under_way = written.saturating_sub(came);
        let more = under_way + chunk.len() as u64;
        let comes_in_time = time_left(more, came, now - begun)
            .is_none_or(|left| left <= until.saturating_duration_since(now));
        if now >= until || under_way == 0 && !comes_in_time {
            return stream.shutdown(Shutdown::Write);
        }
        if comes_in_time && more <= came.max(UNDER_WAY_BYTES_MIN) {
            stream.write_all(&chunk)?;
            written += chunk.len() as u64;
        } else {
            std::thread::sleep(FEED_PAUSE);
        }
    }
}

/// Time until `under_way` bytes have arrived, at the mean rate so far; `None` while nothing has
/// arrived.
fn time_left(under_way: u64, came: u64, elapsed: Duration) -> Option<Duration> {
    let nanos = elapsed.as_nanos() * u128::from(under_way)
        / u128::from(Some(came).filter(|came| *came > 0)?);
    Some(Duration::from_nanos(
        u64::try_from(nanos).unwrap_or(u64::MAX),
    ))
}

/// Reads the far end's counts until the last one. Returns the highest count, and when it arrived.
fn hear(mut stream: UnixStream, came: &AtomicU64) -> Result<(u64, Instant), Fault> {
    let mut count = [0; 8];
    let mut last = None;
    loop {
        match stream.read_exact(&mut count) {
            Ok(()) => {
                let so_far = u64::from_le_bytes(count);
                came.store(so_far, Ordering::Relaxed);
                if last.is_none_or(|(before, _)| so_far > before) {
                    last = Some((so_far, Instant::now()));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(broken(&error)),
        }
    }
    last.ok_or_else(|| Fault::new(Code::Unreachable, "the peer does not say what came"))
}

/// Receives until `until`. Returns the bytes received, and the time of the end.
fn receive(
    mut stream: UnixStream,
    until: Instant,
    came: &AtomicU64,
) -> Result<(u64, Instant), Fault> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut count = 0;
    while Instant::now() < until {
        match stream.read(&mut chunk).map_err(|error| broken(&error))? {
            0 => return Err(Fault::new(Code::Unreachable, "the peer stopped sending")),
            more => count += more as u64,
        }
        came.store(count, Ordering::Relaxed);
    }
    Ok((count, Instant::now()))
}

/// Shows the time left and the mean rate so far, if standard error is a terminal.
fn show_until(
    options: &Options,
    (begun, until): (Instant, Instant),
    came: &[AtomicU64],
    is_over: &AtomicBool,
) {
    let line = LiveLine::new();
    let what = format!("bench {} {}", options.direction(), options.peer);
    while line.is_watched() && !is_over.load(Ordering::Relaxed) {
        let now = Instant::now();
        let bytes = came.iter().map(|came| came.load(Ordering::Relaxed)).sum();
        let so_far = bits_per_second(per_second(bytes, now - begun));
        let left = until.saturating_duration_since(now);
        line.say(&what, &progress(left, &so_far));
        std::thread::sleep(PING_INTERVAL);
    }
}

fn ping_until(stream: &mut UnixStream, is_over: &AtomicBool) -> Result<Vec<Duration>, Fault> {
    let mut pings = Vec::new();
    while !is_over.load(Ordering::Relaxed) {
        pings.push(ping(stream)?);
        std::thread::sleep(PING_INTERVAL);
    }
    Ok(pings)
}

fn ping(stream: &mut UnixStream) -> Result<Duration, Fault> {
    let mut bytes = [7; PING_BYTES];
    let begun = Instant::now();
    stream
        .write_all(&bytes)
        .and_then(|()| stream.read_exact(&mut bytes))
        .map_err(|error| broken(&error))?;
    Ok(begun.elapsed())
}

/// Opens a stream to the peer's bench service.
fn open(options: &Options, class: Class, wish: BenchRequest) -> Result<UnixStream, Fault> {
    let open = Open {
        peer: options.peer.clone(),
        service: BENCH_SERVICE.parse().expect("the service's name is a name"),
        class,
    };
    let (mut stream, _) = open_stream(&options.stream_socket, &open, ANSWER_WAIT)?;
    // A peer that is gone ends the stream. One that is stuck must not block the bench for ever.
    stream
        .set_read_timeout(Some(ANSWER_WAIT))
        .and_then(|()| stream.set_write_timeout(Some(ANSWER_WAIT)))
        .and_then(|()| stream.write_all(&[wish.byte()]))
        .map_err(|error| broken(&error))?;
    Ok(stream)
}

/// The fault for an error of a stream. A timeout after [`ANSWER_WAIT`] appears as `WouldBlock`.
fn broken(error: &std::io::Error) -> Fault {
    match error.kind() {
        std::io::ErrorKind::WouldBlock => {
            let seconds = ANSWER_WAIT.as_secs();
            Fault::new(Code::Stalled, format!("nothing came for {seconds} s"))
        }
        _ => Fault::new(Code::Unreachable, format!("the bench's stream: {error}")),
    }
}

/// Reads the counters of the peer's tunnel.
fn far_usage(options: &Options) -> Result<Usage, Fault> {
    let stream = open(options, Class::Control, BenchRequest::Usage)?;
    let mut bytes = Vec::new();
    // An older tunnel sends less, and a newer one may send more.
    stream
        .take(USAGE_BYTES as u64)
        .read_to_end(&mut bytes)
        .map_err(|error| broken(&error))?;
    let cut_off = || Fault::new(Code::Unreachable, "the peer does not say what it has used");
    Usage::decode(&bytes).ok_or_else(cut_off)
}

/// The counters and caps of this host's tunnel, for its links to the peer.
struct Near {
    cpu: Option<f64>,
    cap: Option<u64>,
    /// The cap of each class, in the order of [`Class::ALL`].
    class_caps: [Option<u64>; Class::ALL.len()],
    packets: Option<Packets>,
}

impl Near {
    fn look(options: &Options) -> Result<Self, Failure> {
        let client = options.tunnel_socket.client();
        let text = block_on(client.text("/metrics"))??;
        Ok(Self::of(&text, &options.peer))
    }

    fn of(text: &str, peer: &Name) -> Self {
        let cap = format!("towpath_tunnel_rate_limit_bytes_per_second{{peer=\"{peer}\"}}");
        let class_cap = |class: Class| {
            let name = "towpath_tunnel_class_rate_limit_bytes_per_second";
            let labels = format!("{{class=\"{}\",peer=\"{peer}\"}}", class.as_str());
            value(text, &format!("{name}{labels}")).map(whole)
        };
        // Both legs, because a peer also counts the packets of all its connections.
        let count = |name: &str| {
            let of_leg = |leg: &Leg| {
                let labels = format!("{{leg=\"{}\",peer=\"{peer}\"}}", leg.as_str());
                value(text, &format!("{name}{labels}")).map(whole)
            };
            Leg::ALL.iter().map(of_leg).sum::<Option<u64>>()
        };
        let sent = count("towpath_tunnel_packets_sent_total");
        let lost = count("towpath_tunnel_packets_lost_total");
        Self {
            cpu: value(text, "towpath_tunnel_cpu_seconds_total"),
            cap: value(text, &cap).map(whole),
            class_caps: Class::ALL.map(class_cap),
            packets: sent.zip(lost).map(|(sent, lost)| Packets { sent, lost }),
        }
    }
}

/// Converts a metric that is a whole number, far below the limits of both types.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "see above"
)]
const fn whole(value: f64) -> u64 {
    value as u64
}

/// The value of a metric in Prometheus's text format.
fn value(text: &str, metric: &str) -> Option<f64> {
    let mut lines = text.lines();
    let line = lines.find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

impl Pings {
    fn of(mut pings: Vec<Duration>) -> Self {
        pings.sort_unstable();
        let at = |hundredths: usize| {
            let index = (pings.len() * hundredths / 100).min(pings.len().saturating_sub(1));
            let ping = pings.get(index).copied().unwrap_or_default();
            micros(ping)
        };
        Self {
            count: pings.len(),
            p50_us: at(50),
            p99_us: at(99),
            max_us: at(100),
        }
    }
}

fn table(outcome: &Outcome) -> String {
    let pings = |pings: &Pings| {
        let ms = |us: u64| us as f64 / 1000.0;
        let (p50, p99, max) = (ms(pings.p50_us), ms(pings.p99_us), ms(pings.max_us));
        Some(format!("p50 {p50:.2} ms  p99 {p99:.2} ms  max {max:.2} ms"))
    };
    let cost = |cost: Option<f64>| cost.map(|seconds| format!("{seconds:.2} s"));
    let direction = if outcome.reverse { "from" } else { "to" };
    let what = format!(
        "{} {direction} {}, {} side by side",
        outcome.class, outcome.peer, outcome.parallel
    );
    let loss = outcome.loss_ratio;
    let capped = outcome.cap_bytes_per_second.map(bits_per_second);
    let capped = capped.map(|rate| match outcome.cap_of {
        Some(CapOf::Class) => format!("{rate}, of the class {}", outcome.class),
        _ => rate,
    });
    fields(&[
        ("load", Some(what)),
        ("carried", Some(bytes(outcome.bytes))),
        ("in", Some(show::milliseconds(outcome.time_ms))),
        (
            "goodput",
            Some(bits_per_second(outcome.goodput_bytes_per_second)),
        ),
        ("cap", capped),
        ("ping, idle", pings(&outcome.idle_ping)),
        ("ping, loaded", pings(&outcome.loaded_ping)),
        ("loss", loss.map(|loss| format!("{:.2} %", loss * 100.0))),
        ("CPU per GiB here", cost(outcome.cpu_seconds_per_gib.near)),
        ("CPU per GiB there", cost(outcome.cpu_seconds_per_gib.far)),
    ])
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn a_metric_is_found_by_its_whole_name() {
        let text = "# HELP a_b x\na_b 3.5\na_bc 4\na{peer=\"x\"} 7\na{peer=\"xy\"} 8\n";
        assert_eq!(value(text, "a_b"), Some(3.5));
        assert_eq!(value(text, "a{peer=\"x\"}"), Some(7.0));
        assert_eq!(value(text, "a"), None);
    }

    #[test]
    fn what_is_under_way_takes_as_long_as_what_came_did() {
        let second = Duration::from_secs(1);
        assert_eq!(time_left(500, 1000, second), Some(second / 2));
        assert_eq!(time_left(0, 1000, second), Some(Duration::ZERO));
        assert_eq!(time_left(500, 0, second), None, "nothing has come yet");
        assert!(time_left(u64::MAX, 1, second * 1000).is_some());
    }

    #[test]
    fn losses_are_those_of_the_time_between_and_of_the_side_that_sends() {
        let at = |sent, lost| Packets { sent, lost };
        assert_eq!(lost_between(at(100, 50), at(300, 60)), Some((10, 200)));
        assert_eq!(lost_between(at(100, 50), at(100, 50)), None, "nothing sent");
        assert_eq!(lost_between(at(100, 50), at(30, 0)), None, "started again");
        // The loss of the last second is far higher than that of the run, and must not count.
        let near = |(sent, lost): (u64, u64)| {
            let text = format!(
                "towpath_tunnel_loss_ratio{{peer=\"region\"}} 0.9\n\
                 towpath_tunnel_packets_lost_total{{leg=\"bulk\",peer=\"region\"}} {lost}\n\
                 towpath_tunnel_packets_lost_total{{leg=\"urgent\",peer=\"region\"}} 5\n\
                 towpath_tunnel_packets_sent_total{{leg=\"bulk\",peer=\"region\"}} {sent}\n\
                 towpath_tunnel_packets_sent_total{{leg=\"urgent\",peer=\"region\"}} 10\n"
            );
            Near::of(&text, &"region".parse().unwrap())
        };
        let far = |sent_packets, lost_packets| Usage {
            sent_packets,
            lost_packets,
            ..Usage::default()
        };
        for (reverse, loss_ratio, millionths) in [(false, 0.02, 20_000), (true, 0.25, 250_000)] {
            let words = ["bench", "region", "--reverse"];
            let words = &words[..2 + usize::from(reverse)];
            let options = Line::try_parse_from(words).unwrap().options;
            let load = Load {
                bytes: 1,
                time: Duration::from_secs(1),
                pings: Vec::new(),
            };
            let ends = Ends {
                near: (near((700, 7)), near((1700, 27))),
                far: (far(100, 50), far(300, 100)),
            };
            let outcome = Outcome::of(&options, None, Vec::new(), load, &ends);
            assert_eq!(outcome.loss_ratio, Some(loss_ratio), "{reverse}");
            assert_eq!(outcome.lost_per_million, Some(millionths), "{reverse}");
        }
    }

    #[test]
    fn a_stream_over_which_nothing_comes_is_stalled() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let wait = Some(Duration::from_millis(1));
        near.set_read_timeout(wait).unwrap();
        let fault = ping(&mut near).unwrap_err();
        assert_eq!(
            (fault.code, &*fault.detail),
            (Code::Stalled, "nothing came for 30 s")
        );
        drop(far);
        assert_eq!(ping(&mut near).unwrap_err().code, Code::Unreachable);
    }

    #[test]
    fn percentiles_of_few_and_of_none() {
        let ms = |count: u64| (1..=count).map(Duration::from_millis).collect();
        let pings = Pings::of(ms(100));
        assert_eq!(
            (pings.p50_us, pings.p99_us, pings.max_us),
            (51_000, 100_000, 100_000)
        );
        assert_eq!(Pings::of(ms(1)).p99_us, 1000);
        assert_eq!(Pings::of(Vec::new()).max_us, 0);
    }

    #[test]
    fn times_and_classes_that_cannot_be_meant_are_refused() {
        assert!(time("10s").is_ok() && time("10m").is_err() && time("5ms").is_err());
        assert!(class("demand").is_ok() && class("fast").is_err());
    }
}
