//! How exactly caps and shares are kept on the wire, compared with the kernel's own token bucket.
//!
//! ```text
//!  program ─Unix─► tunnel ══ veth ══► tunnel ─Unix─► program      capped by the tunnel
//!  program ─TCP──► tbf    ══ veth ══► program                     capped by the kernel
//! ```
//!
//! Both run in network namespaces of the bench's own. The kernel counts what arrives on the wire,
//! and the counters are read every millisecond. This needs root; without it the bench reports that
//! it was skipped. `--smoke` plays one cap for a moment, `--cap RATE` one in full.

mod kept;

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::lab::{CABLE, Host, Lab, report_skipped};
use towpath_bench::program::{Process, READY_WAIT, finish, run_tunnel, until_ready, write_config};
use towpath_bench::sites::{Failure, sites_that_meet};
use towpath_daemon::stream;
use towpath_protocol::class::Class;
use towpath_protocol::preamble::Open;
use towpath_protocol::rate::Rate;
use towpath_tunnel::config::Config;
use towpath_tunnel::shares::Share;

use kept::{Kept, Sample};

const SCHEMA: &str = "towpath.v1.bench.rate";

/// Caps, in bits per second, and how long each is measured.
const FULL: (&[u64], Duration) = (
    &[
        10_000_000,
        50_000_000,
        200_000_000,
        500_000_000,
        1_000_000_000,
        2_000_000_000,
    ],
    Duration::from_secs(8),
);
const SMOKE: (&[u64], Duration) = (&[20_000_000], Duration::from_millis(1500));

/// Time for the streams to fill the path before anything is counted.
const WARM: Duration = Duration::from_millis(1500);

/// Weights of the two classes that share a link.
const WEIGHTS: [(Class, u32); 2] = [(Class::App, 1), (Class::Bulk, 3)];

/// Streams of each class that share a link.
const STREAM_COUNT: usize = 2;

/// Bytes per write and per read.
const CHUNK_BYTES: usize = 256 * 1024;

const SERVICE_PORT: u16 = 7411;

/// MTU of the cable, in bytes.
const MTU: u16 = 1500;

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    goal_wire_off: f64,
    goal_burst_ms: f64,
    goal_share_off: f64,
    goal_used: f64,
    caps: Vec<Point>,
}

/// The results of one cap.
#[derive(Debug, Serialize)]
struct Point {
    bits_per_second: u64,
    /// One bulk stream through the tunnels.
    tunnel: Kept,
    /// Streams of two classes through the tunnels.
    tunnel_shared: Kept,
    /// Share of the class with the smaller weight, and the larger deviation of the two shares from
    /// the weights, relative to them.
    light_part: f64,
    share_off: f64,
    /// One TCP stream behind the kernel's token bucket.
    kernel_tbf: Kept,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["tunnel", config] => run_tunnel(Path::new(config)),
        ["watch", millis] => kept::watch(millis),
        ["sink", address] => sink(address),
        ["source", address] => source(address),
        [] => measure(FULL),
        ["--smoke"] => measure(SMOKE),
        ["--cap", cap] => cap
            .parse::<Rate>()
            .map_err(Into::into)
            .and_then(|cap| measure((&[cap.bits_per_second()], FULL.1))),
        _ => Err("usage: rate [--smoke | --cap RATE]".into()),
    };
    finish(done)
}

fn measure((caps, time): (&[u64], Duration)) -> Result<(), Failure> {
    let lab = match Lab::new(MTU) {
        Ok(lab) => lab,
        Err(why) => return Ok(report_skipped(SCHEMA, &why.to_string())?),
    };
    for host in Host::PAIR {
        // Segmentation offload is off, so that packets are counted one by one as on a real wire.
        lab.ip(host, &["link", "set", CABLE, "gso_max_segs", "1"])?;
    }
    let mut report = Report {
        schema: SCHEMA,
        goal_wire_off: 0.01,
        goal_burst_ms: 20.0,
        goal_share_off: 0.02,
        goal_used: 0.98,
        caps: Vec::new(),
    };
    for bits_per_second in caps {
        let cap = Rate::from_bytes_per_second(bits_per_second / 8)?;
        let (tunnel, _) = through_tunnels(&lab, cap, &[Class::Bulk], time)?;
        let shared = WEIGHTS.map(|(class, _)| [class; STREAM_COUNT]).concat();
        let (tunnel_shared, bytes) = through_tunnels(&lab, cap, &shared, time)?;
        let (light_part, share_off) = parts(bytes);
        report.caps.push(Point {
            bits_per_second: *bits_per_second,
            tunnel,
            tunnel_shared,
            light_part,
            share_off,
            kernel_tbf: through_kernel(&lab, cap, time)?,
        });
    }
    Goals::judge(&report, (time == FULL.1).then(|| report.goals()))
}

impl Report {
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        for point in &self.caps {
            let at = format!("at {} Mbit/s", point.bits_per_second / 1_000_000);
            for kept in [&point.tunnel, &point.tunnel_shared] {
                let off = format!("the distance from the cap {at}");
                goals.at_most(off, kept.wire_off_p95, self.goal_wire_off);
                goals.at_most(format!("the burst {at}"), kept.burst_ms, self.goal_burst_ms);
                goals.at_least(format!("what is used {at}"), kept.used, self.goal_used);
            }
            let off = format!("the distance from the weights {at}");
            goals.at_most(off, point.share_off, self.goal_share_off);
        }
        goals
    }
}

/// The first class's share, and the larger deviation of the two from the weights.
#[allow(clippy::cast_precision_loss, reason = "a few GiB are exact in 53 bits")]
fn parts(bytes: [u64; Class::ALL.len()]) -> (f64, f64) {
    let weight_sum: u32 = WEIGHTS.iter().map(|(_, weight)| weight).sum();
    let total: u64 = bytes.iter().sum();
    let offs = WEIGHTS.map(|(class, weight)| {
        let expected = total as f64 * f64::from(weight) / f64::from(weight_sum);
        (bytes[class.index()] as f64 / expected - 1.0).abs()
    });
    let light = bytes[WEIGHTS[0].0.index()] as f64 / total as f64;
    (light, offs.into_iter().fold(0.0, f64::max))
}

/// Bytes that have arrived, by class.
type Arrived = Arc<[AtomicU64; Class::ALL.len()]>;

/// Fills a capped link with streams; returns how the cap was kept, and the bytes of each class.
fn through_tunnels(
    lab: &Lab,
    cap: Rate,
    classes: &[Class],
    time: Duration,
) -> Result<(Kept, [u64; Class::ALL.len()]), Failure> {
    let folder = tempfile::TempDir::new()?;
    let [mut edge, region] = sites_that_meet(folder.path(), service())?;
    edge.peers[0].send_rate = Some(cap);
    edge.peers[0].shares.0 = WEIGHTS
        .into_iter()
        .map(|(class, weight)| {
            let share = Share {
                weight: Some(weight),
                ..Share::default()
            };
            (class, share)
        })
        .collect();
    let listener = UnixListener::bind(&region.services[0].socket)?;
    let tunnel = |host, config: &Config| {
        let path = write_config(folder.path(), config)?;
        start(lab, host, &["tunnel".as_ref(), path.as_ref()])
    };
    let _processes = [tunnel(Host::Region, &region)?, tunnel(Host::Edge, &edge)?];
    let arrived = Arrived::default();
    for class in classes {
        let open = Open {
            peer: "region".parse()?,
            service: "sink".parse()?,
            class: *class,
        };
        let opening = || Ok(stream::open_stream(&edge.socket, &open, READY_WAIT)?.0);
        // The service accepts before the peer's answer arrives.
        let accepting = {
            let (listener, arrived) = (listener.try_clone()?, Arc::clone(&arrived));
            thread::spawn(move || -> Result<(), Failure> {
                let (socket, _) = listener.accept()?;
                let accepted = stream::accept_stream(&socket)?;
                swallow(&socket, &arrived[accepted.class.index()]);
                Ok(())
            })
        };
        let source = until_ready(opening)?;
        thread::spawn(move || fill(source));
        drop(accepting);
    }
    let of = || {
        arrived
            .each_ref()
            .map(|class| class.load(Ordering::Relaxed))
    };
    thread::sleep(WARM);
    let watch = watch(lab, time)?;
    let before = of();
    thread::sleep(time);
    let after = of();
    let samples = samples(watch)?;
    let bytes = std::array::from_fn(|class| after[class] - before[class]);
    Ok((Kept::of(&samples, cap, Sample::ip_bytes)?, bytes))
}

/// Fills a link behind the kernel's token bucket with a TCP stream.
fn through_kernel(lab: &Lab, cap: Rate, time: Duration) -> Result<Kept, Failure> {
    let rate = format!("{}bit", cap.bits_per_second());
    // The same burst that the tunnel allows.
    let burst = (cap.bytes_per_second() / 100).max(3000).to_string();
    let bucket = ["tbf", "rate", &rate, "burst", &burst, "latency", "50ms"];
    let root = ["dev", CABLE, "root"];
    lab.tc(
        Host::Edge,
        &[&["qdisc", "add"], &root[..], &bucket].concat(),
    )?;
    let address = service().to_string();
    let _sink = start(lab, Host::Region, &["sink".as_ref(), address.as_ref()])?;
    let _source = start(lab, Host::Edge, &["source".as_ref(), address.as_ref()])?;
    thread::sleep(WARM);
    let samples = samples(watch(lab, time)?)?;
    lab.tc(Host::Edge, &[&["qdisc", "del"], &root[..]].concat())?;
    // The kernel counts the Ethernet headers too.
    Kept::of(&samples, cap, Sample::frame_bytes)
}

/// The address where the tunnels meet, or the kernel's two programs.
fn service() -> SocketAddr {
    SocketAddr::from((Host::Region.address(), SERVICE_PORT))
}

/// Starts this program on a host.
fn start(lab: &Lab, host: Host, arguments: &[&OsStr]) -> Result<Process, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    lab.start(host, command.args(arguments).stdout(Stdio::piped()))
}

/// Starts counting what arrives.
fn watch(lab: &Lab, time: Duration) -> Result<Process, Failure> {
    let millis = time.as_millis().to_string();
    start(lab, Host::Region, &["watch".as_ref(), millis.as_ref()])
}

fn samples(watch: Process) -> Result<Vec<Sample>, Failure> {
    Sample::parse(&watch.output()?)
}

/// Writes until the other end closes.
fn fill(mut to: UnixStream) {
    let chunk = vec![0x5a; CHUNK_BYTES];
    while to.write_all(&chunk).is_ok() {}
}

/// Reads to the end.
fn swallow(mut from: &UnixStream, count: &AtomicU64) {
    let mut chunk = vec![0; CHUNK_BYTES];
    while let Ok(read @ 1..) = from.read(&mut chunk) {
        count.fetch_add(read as u64, Ordering::Relaxed);
    }
}

fn sink(address: &str) -> Result<(), Failure> {
    let (mut socket, _) = TcpListener::bind(address)?.accept()?;
    let mut chunk = vec![0; CHUNK_BYTES];
    while socket.read(&mut chunk)? > 0 {}
    Ok(())
}

fn source(address: &str) -> Result<(), Failure> {
    let mut socket = until_ready(|| Ok(TcpStream::connect(address)?))?;
    let chunk = vec![0x5a; CHUNK_BYTES];
    loop {
        socket.write_all(&chunk)?;
    }
}
