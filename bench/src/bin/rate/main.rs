//! How exactly caps and shares are kept on the wire, beside the kernel's own token bucket.
//!
//! ```text
//!  program ─Unix─► tunnel ══ veth ══► tunnel ─Unix─► program      capped by the tunnel
//!  program ─TCP──► tbf    ══ veth ══► program                     capped by the kernel
//! ```
//!
//! Both lie in network namespaces of the bench's own; what arrives on the wire is counted by the kernel
//! and looked at every millisecond. It needs root for that, and says so where it has to be skipped.
//! `--smoke` plays one cap for a moment, `--cap RATE` one in full.

mod bed;
mod kept;

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use towpath_bench::sites::{Failure, site};
use towpath_certs::Authority;
use towpath_daemon::{shutdown, stream};
use towpath_protocol::channel::{Class, Open};
use towpath_protocol::rate::Rate;
use towpath_tunnel::config::Config;
use towpath_tunnel::shares::Share;

use bed::{Bed, Child, SOURCE, TARGET};
use kept::{Kept, Sample};

/// Caps, in bits per second, and how long each is looked at.
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

/// Time in which streams fill the path before anything is counted.
const WARM: Duration = Duration::from_millis(1500);

/// How long processes may take to be there.
const READY_WAIT: Duration = Duration::from_secs(20);

/// Weights of the two classes that share a link.
const WEIGHTS: [(Class, u32); 2] = [(Class::App, 1), (Class::Bulk, 3)];

/// Streams of each class that share a link.
const STREAM_COUNT: usize = 2;

/// Bytes written and read at once.
const CHUNK_BYTES: usize = 256 * 1024;

const SERVICE_PORT: u16 = 7411;

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    goal_wire_off: f64,
    goal_burst_ms: f64,
    goal_share_off: f64,
    goal_used: f64,
    caps: Vec<Point>,
}

/// One cap.
#[derive(Debug, Serialize)]
struct Point {
    bits_per_second: u64,
    /// One bulk stream through the tunnels.
    tunnel: Kept,
    /// Streams of two classes through the tunnels.
    tunnel_shared: Kept,
    /// Part of the lighter of the two classes, and how far the parts are from the weights, as a share
    /// of them.
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
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn measure((caps, time): (&[u64], Duration)) -> Result<(), Failure> {
    let bed = match Bed::make() {
        Ok(bed) => bed,
        Err(why) => {
            eprintln!("skipped: no network namespaces here: {why}");
            return Ok(());
        }
    };
    let mut report = Report {
        schema: "towpath.v1.bench.rate",
        goal_wire_off: 0.01,
        goal_burst_ms: 20.0,
        goal_share_off: 0.02,
        goal_used: 0.98,
        caps: Vec::new(),
    };
    for bits_per_second in caps {
        let cap = Rate::from_bytes_per_second(bits_per_second / 8)?;
        let (tunnel, _) = through_tunnels(&bed, cap, &[Class::Bulk], time)?;
        let shared = WEIGHTS.map(|(class, _)| [class; STREAM_COUNT]).concat();
        let (tunnel_shared, bytes) = through_tunnels(&bed, cap, &shared, time)?;
        let (light_part, share_off) = parts(bytes);
        report.caps.push(Point {
            bits_per_second: *bits_per_second,
            tunnel,
            tunnel_shared,
            light_part,
            share_off,
            kernel_tbf: through_kernel(&bed, cap, time)?,
        });
    }
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &report)?;
    writeln!(out)?;
    Ok(())
}

/// The first class's part, and the larger of the distances from what the weights say.
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

/// Fills a capped link with streams; gives how the cap was kept, and the bytes of each class.
fn through_tunnels(
    bed: &Bed,
    cap: Rate,
    classes: &[Class],
    time: Duration,
) -> Result<(Kept, [u64; Class::ALL.len()]), Failure> {
    let folder = tempfile::TempDir::new()?;
    let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
    let mut edge = site(&authority, folder.path(), "edge", "region")?;
    let mut region = site(&authority, folder.path(), "region", "edge")?;
    let address = format!("{TARGET}:{SERVICE_PORT}");
    region.listen = Some(address.parse()?);
    edge.peers[0].address = Some(address);
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
    let start = |side, config: &Config| {
        let path = folder.path().join(format!("{}.toml", config.site));
        std::fs::write(&path, toml::to_string(config)?)?;
        bed.start(side, &["tunnel".as_ref(), path.as_ref()])
    };
    let _processes = [start(TARGET, &region)?, start(SOURCE, &edge)?];
    let arrived = Arrived::default();
    for class in classes {
        let open = Open {
            peer: "region".parse()?,
            service: "sink".parse()?,
            class: *class,
        };
        let opening = || Ok(stream::open_stream(&edge.socket, &open, READY_WAIT)?.0);
        // The service accepts before the peer's answer comes.
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
    let watch = bed.start(TARGET, &["watch".as_ref(), millis(time).as_ref()])?;
    let before = of();
    thread::sleep(time);
    let after = of();
    let samples = samples(watch)?;
    let bytes = std::array::from_fn(|class| after[class] - before[class]);
    Ok((Kept::of(&samples, cap, Sample::ip_bytes)?, bytes))
}

/// Fills a link behind the kernel's token bucket with a TCP stream.
fn through_kernel(bed: &Bed, cap: Rate, time: Duration) -> Result<Kept, Failure> {
    let _bucket = bed.cap(cap)?;
    let address = format!("{TARGET}:{SERVICE_PORT}");
    let _sink = bed.start(TARGET, &["sink".as_ref(), address.as_ref()])?;
    let _source = bed.start(SOURCE, &["source".as_ref(), address.as_ref()])?;
    thread::sleep(WARM);
    let watch = bed.start(TARGET, &["watch".as_ref(), millis(time).as_ref()])?;
    let samples = samples(watch)?;
    // The kernel counts Ethernet's headers too.
    Kept::of(&samples, cap, Sample::frame_bytes)
}

fn millis(time: Duration) -> String {
    time.as_millis().to_string()
}

fn samples(watch: Child) -> Result<Vec<Sample>, Failure> {
    Sample::parse(&watch.output()?)
}

/// Writes until nobody reads.
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

fn until_ready<T>(mut attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    let until = Instant::now() + READY_WAIT;
    loop {
        match attempt() {
            Err(_) if Instant::now() < until => thread::sleep(Duration::from_millis(20)),
            done => return done,
        }
    }
}

fn run_tunnel(config: &Path) -> Result<(), Failure> {
    let config: Config = towpath_daemon::config::load_checked(config)?;
    let (_trigger, stop) = shutdown::channel();
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(towpath_tunnel::run(&config, stop))?;
    Ok(())
}
