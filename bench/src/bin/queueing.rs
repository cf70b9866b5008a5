//! How long urgent bytes wait behind bulk on a full link, and how soon a changed link rate is
//! found.
//!
//! ```text
//!  program ─TCP─► tunnel ═══ a cable of 200 Mbit/s with a buffer of 100 ms ═══► tunnel ─TCP─► program
//! ```
//!
//! One program sends as fast as it can in class bulk; another sends 64 bytes in class demand, waits
//! for the echo, and repeats. For comparison both programs do the same over the cable alone, in
//! alternation with the tunnels; TCP's rate is the reference for goodput. Then the cable changes to
//! 50 Mbit/s and back while in use, and so does another that leads to a line of 40 ms. Finally the
//! cable carries 100, 10 and 1 Mbit/s with a minimal burst. `--smoke` is short. Needs root, because
//! the cable joins two network namespaces.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::lab::{Host, Lab, report_skipped};
use towpath_bench::program::{Process, finish, median, run_tunnel, until_ready, write_config};
use towpath_bench::relay::{Direction, Door, Options, Relay, Side};
use towpath_bench::sites::{Failure, add_channel, sites_that_meet};
use towpath_bench::waits::Waits;
use towpath_daemon::client::Client;
use towpath_daemon::log;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::StatusView;

const SCHEMA: &str = "towpath.v1.bench.queueing";

/// The cable: its rates, the depth of its buffer, and its MTU.
const MBIT: u64 = 200;
const MBIT_LOW: u64 = 50;
const BUFFER_MS: u64 = 100;
const MTU: u16 = 1500;

/// Burst size of the cable's token bucket after a pause. When every packet is to take its time, it
/// is little more than one packet, or the minimum for the bucket's own timers.
const BURST_BYTES: u64 = 16 * 1024;
const BURST_BYTES_MIN: u64 = 1600;
const BURST_TIME: Duration = Duration::from_micros(250);

/// Rates at which a first byte may wait for one packet at most, plus `GOAL_ADDED_MS`.
const RATES_MBIT: [u64; 3] = [100, 10, 1];
const GOAL_ADDED_MS: f64 = 2.0;

/// Deadlines for noticing a slower cable, and a faster one.
const DOWN_WITHIN: Duration = Duration::from_secs(1);
const UP_WITHIN: Duration = Duration::from_secs(3);

/// Bits of a full packet on the cable.
const FRAME_BITS: u32 = 1514 * 8;

/// The share of a cable's bytes that are QUIC's: packets of 1452 bytes in frames of 1514.
const QUIC_SHARE: f64 = 1452.0 / 1514.0;

/// An estimate counts as found once it has been this near to the truth for this long.
const ESTIMATE_WITHIN: f64 = 0.10;
const FOUND_FOR: Duration = Duration::from_millis(500);

/// Shortest time between two pings. It is longer on a slow cable: a ping with QUIC's overhead is
/// some 300 bytes, and pings may use at most a twentieth of the cable. One every 2 ms would fill
/// 1 Mbit/s.
const PING_TIME: Duration = Duration::from_millis(2);
const PING_BITS: u64 = 300 * 8;
const PINGS_PART: u64 = 20;

/// Concurrent pings over the longer line; each sends one ping per round trip.
const FAR_PINGS: usize = 10;

/// What the longer line adds to a round trip.
const FAR_ROUND_TRIP: Duration = Duration::from_millis(40);

/// Interval between readings of the estimate.
const LOOK_TIME: Duration = Duration::from_millis(50);

/// The parts of the measurement; all of them run unless some are named.
const LOADS: &str = "loads";
const STEPS: &str = "steps";
const FAR_STEPS: &str = "far-steps";
const RATES: &str = "rates";
const PARTS: [&str; 4] = [LOADS, STEPS, FAR_STEPS, RATES];

const CHUNK_BYTES: usize = 256 * 1024;
const PING_BYTES: usize = 64;

/// Ports: where programs connect at the edge, where the tunnels meet, and where the services are.
const BULK_DOOR: u16 = 7001;
const MEETING: u16 = 7002;
const SINK: u16 = 7003;
const PING_DOOR: u16 = 7004;
const ECHO: u16 = 7005;

/// Port at which the longer line begins.
const LINE: u16 = 7006;

/// Duration of a measurement, its warm-up, its rounds, and the duration of each step.
struct Size {
    time: Duration,
    warm: Duration,
    rounds: usize,
    step: Duration,
    /// How long bulk runs at each of the rates before it is measured.
    settle: Duration,
}

const FULL: Size = Size {
    time: Duration::from_secs(8),
    warm: Duration::from_secs(4),
    rounds: 3,
    step: Duration::from_secs(8),
    settle: Duration::from_secs(15),
};
const SMOKE: Size = Size {
    time: Duration::from_millis(500),
    warm: Duration::from_millis(500),
    rounds: 1,
    step: Duration::from_secs(1),
    settle: Duration::from_millis(500),
};

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    mbit_per_second: u64,
    buffer_ms: u64,
    goal_p50_ms: f64,
    goal_p99_ms: f64,
    goal_goodput_ratio: f64,
    goodput_ratio: Option<f64>,
    /// The p99 wait beside bulk over the cable alone, as a multiple of the tunnel's.
    tcp_wait_ratio: Option<f64>,
    towpath: Vec<Load>,
    tcp: Vec<Load>,
    goal_step_down_s: f64,
    goal_step_up_s: f64,
    goal_step_p99_ms: f64,
    steps: Vec<Step>,
    far_round_trip_ms: u128,
    far_steps: Vec<Step>,
    rates: Vec<AtRate>,
}

/// Results at one rate of the cable, with a minimal burst.
#[derive(Debug, Serialize)]
struct AtRate {
    mbit_per_second: u64,
    /// The most that bulk may add to a round trip: one packet's time plus 2 ms.
    goal_added_ms: f64,
    added_p50_ms: f64,
    /// p95 and p99 beside bulk, less the median without bulk; so they overstate what bulk adds.
    added_p95_ms: f64,
    added_p99_ms: f64,
    load: Load,
}

/// Round trips in milliseconds, without and beside bulk.
#[derive(Debug, Serialize)]
struct Load {
    idle_p50_ms: f64,
    idle_p99_ms: f64,
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
    goodput_mbit: f64,
}

/// Results after one change of the cable's rate.
#[derive(Debug, Serialize)]
struct Step {
    mbit_per_second: u64,
    /// Seconds until the estimate is within a tenth of the new rate; `None` if never.
    found_after_s: Option<f64>,
    /// Median round trip without bulk.
    idle_p50_ms: f64,
    /// p99 over the whole step, including the queue that the change itself builds; then p99 from
    /// the time by which the new rate has to be found.
    p99_ms: f64,
    later_p99_ms: f64,
    most_ms: f64,
    goodput_mbit: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["tunnel", config] => log::start(&log::Options::default())
            .map_err(Into::into)
            .and_then(|()| run_tunnel(Path::new(config))),
        ["--smoke"] => measure(&SMOKE, &PARTS),
        [] => measure(&FULL, &PARTS),
        parts if parts.iter().all(|part| PARTS.contains(part)) => measure(&FULL, parts),
        _ => Err("usage: queueing [--smoke | loads | steps | far-steps | rates]".into()),
    };
    finish(done)
}

fn measure(size: &Size, parts: &[&str]) -> Result<(), Failure> {
    let lab = match shaped() {
        Ok(lab) => lab,
        Err(why) => return Ok(report_skipped(SCHEMA, &why.to_string())?),
    };
    let services = Services::start(&lab)?;
    let folder = tempfile::TempDir::new()?;
    let tunnels = Tunnels::start(&lab, folder.path(), Ends::Near)?;
    let report = report(size, parts, (&lab, &services, &tunnels));
    let report = report.map_err(|why| tunnels.explain(&why))?;
    Goals::judge(&report, (size.time == FULL.time).then(|| report.goals()))
}

/// Two hosts with the cable between them.
fn shaped() -> Result<Lab, Failure> {
    let lab = Lab::new(MTU)?;
    shape(&lab, "add", (MBIT, BURST_BYTES))?;
    Ok(lab)
}

impl Report {
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        let middle = |figure: fn(&Load) -> f64| median(self.towpath.iter().map(figure).collect());
        if let Some(ratio) = self.goodput_ratio {
            goals.at_most("the median", middle(|load| load.p50_ms), self.goal_p50_ms);
            let what = "99 of 100";
            goals.at_most(what, middle(|load| load.p99_ms), self.goal_p99_ms);
            goals.at_least("goodput beside TCP's", ratio, self.goal_goodput_ratio);
        }
        self.judge_steps(&mut goals, &self.steps, "");
        let far = format!(" over {} ms", self.far_round_trip_ms);
        self.judge_steps(&mut goals, &self.far_steps, &far);
        for rate in &self.rates {
            let what = format!("what bulk adds at {} Mbit/s", rate.mbit_per_second);
            goals.at_most(what, rate.added_p99_ms, rate.goal_added_ms);
        }
        goals
    }

    fn judge_steps(&self, goals: &mut Goals, steps: &[Step], line: &str) {
        let (mut before, goal) = (self.mbit_per_second, self.goal_step_p99_ms);
        for step in steps {
            let to = format!("{before} to {} Mbit/s{line}", step.mbit_per_second);
            let most = match step.mbit_per_second < before {
                true => self.goal_step_down_s,
                false => self.goal_step_up_s,
            };
            let found = step.found_after_s.unwrap_or(f64::INFINITY);
            goals.at_most(format!("{to}, found after"), found, most);
            let what = format!("{to}, what is added in 99 of 100 once it has to be found");
            goals.at_most(what, step.later_p99_ms - step.idle_p50_ms, goal);
            before = step.mbit_per_second;
        }
    }
}

fn report(
    size: &Size,
    parts: &[&str],
    (lab, services, tunnels): (&Lab, &Services, &Tunnels),
) -> Result<Report, Failure> {
    let (mut towpath, mut tcp) = (Vec::new(), Vec::new());
    let rounds = if parts.contains(&LOADS) {
        size.rounds
    } else {
        0
    };
    for _ in 0..rounds {
        towpath.push(load(lab, services, (&tunnels.doors(), MBIT), size)?);
        tcp.push(load(lab, services, (&direct(), MBIT), size)?);
    }
    let goodput = |loads: &[Load]| median(loads.iter().map(|load| load.goodput_mbit).collect());
    let goodput_ratio = (rounds > 0).then(|| goodput(&towpath) / goodput(&tcp));
    let wait = |loads: &[Load]| median(loads.iter().map(|load| load.p99_ms).collect());
    let tcp_wait_ratio = (rounds > 0).then(|| wait(&tcp) / wait(&towpath));
    let steps = match parts.contains(&STEPS) {
        true => steps(lab, services, tunnels, size)?,
        false => Vec::new(),
    };
    let far_steps = match parts.contains(&FAR_STEPS) {
        true => far_steps(size)?,
        false => Vec::new(),
    };
    let rates = match parts.contains(&RATES) {
        true => rates(lab, services, tunnels, size)?,
        false => Vec::new(),
    };
    Ok(Report {
        schema: SCHEMA,
        mbit_per_second: MBIT,
        buffer_ms: BUFFER_MS,
        goal_p50_ms: 0.3,
        goal_p99_ms: 2.0,
        goal_goodput_ratio: 0.95,
        goodput_ratio,
        tcp_wait_ratio,
        towpath,
        tcp,
        goal_step_down_s: DOWN_WITHIN.as_secs_f64(),
        goal_step_up_s: UP_WITHIN.as_secs_f64(),
        goal_step_p99_ms: 10.0,
        steps,
        far_round_trip_ms: FAR_ROUND_TRIP.as_millis(),
        far_steps,
        rates,
    })
}

/// Plays the steps between two hosts whose tunnels have the longer line between them.
fn far_steps(size: &Size) -> Result<Vec<Step>, Failure> {
    let lab = shaped()?;
    let services = Services::start(&lab)?;
    let region = |port| SocketAddr::from((Host::Region.address(), port));
    let direction = Direction {
        delay: FAR_ROUND_TRIP / 2,
        ..Direction::default()
    };
    let line = Options {
        doors: vec![Door {
            from: Side::A,
            listen: region(LINE),
            to: region(MEETING),
        }],
        from_a: direction,
        from_b: direction,
        seed: 1,
    };
    let _line = lab.at(Host::Region, || Ok(Relay::start(&line)?))?;
    let folder = tempfile::TempDir::new()?;
    let tunnels = Tunnels::start(&lab, folder.path(), Ends::Far)?;
    let steps = steps(&lab, &services, &tunnels, size);
    steps.map_err(|why| tunnels.explain(&why))
}

/// Sets the cable's rate from the edge to the region, and its burst size.
fn shape(lab: &Lab, verb: &str, (mbit, burst): (u64, u64)) -> Result<(), Failure> {
    let words = format!(
        "qdisc {verb} dev cable root tbf rate {mbit}mbit burst {burst} latency {BUFFER_MS}ms"
    );
    let words: Vec<&str> = words.split(' ').collect();
    lab.tc(Host::Edge, &words)
}

/// The addresses that the two programs connect to: for bulk, and for pings.
struct Doors {
    bulk: SocketAddr,
    ping: SocketAddr,
}

const fn loopback(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

fn direct() -> Doors {
    let region = |port| SocketAddr::from((Host::Region.address(), port));
    Doors {
        bulk: region(SINK),
        ping: region(ECHO),
    }
}

/// The services at the region: one counts what arrives, one echoes it.
struct Services {
    sunk_bytes: Arc<AtomicU64>,
}

impl Services {
    fn start(lab: &Lab) -> Result<Self, Failure> {
        let sunk_bytes = Arc::new(AtomicU64::new(0));
        let any = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
        let counted = Arc::clone(&sunk_bytes);
        serve(lab.listen(Host::Region, any(SINK))?, move |mut stream| {
            let mut chunk = vec![0; CHUNK_BYTES];
            while let Ok(read @ 1..) = stream.read(&mut chunk) {
                counted.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
        serve(lab.listen(Host::Region, any(ECHO))?, |mut stream| {
            // Without this the kernel waits for more data before it sends.
            let _ = stream.set_nodelay(true);
            let mut ping = [0; PING_BYTES];
            while stream.read_exact(&mut ping).is_ok() && stream.write_all(&ping).is_ok() {}
        });
        Ok(Self { sunk_bytes })
    }
}

/// Answers every connection until the program ends.
fn serve(listener: TcpListener, answer: impl Fn(TcpStream) + Clone + Send + 'static) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = answer.clone();
            thread::spawn(move || answer(stream));
        }
    });
}

/// What is between two tunnels: the cable alone, or the longer line behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ends {
    Near,
    Far,
}

/// The two daemons, stopped when this is dropped.
struct Tunnels {
    _processes: [Process; 2],
    ends: Ends,
    admin: PathBuf,
    said: PathBuf,
}

impl Tunnels {
    fn start(lab: &Lab, folder: &Path, ends: Ends) -> Result<Self, Failure> {
        let meeting = SocketAddr::from((Host::Region.address(), MEETING));
        let mut configs = sites_that_meet(folder, meeting)?;
        if ends == Ends::Far {
            let line = SocketAddr::from((Host::Region.address(), LINE));
            configs[0].peers[0].address = Some(line.to_string());
        }
        for (name, class, door, service) in [
            ("bulk", Class::Bulk, BULK_DOOR, SINK),
            ("ping", Class::Demand, PING_DOOR, ECHO),
        ] {
            let way = [loopback(door), loopback(service)].map(Endpoint::Tcp);
            add_channel(&mut configs, (name, class), way)?;
        }
        let [edge, region] = configs;
        let said_path = folder.join("said");
        let said = File::create(&said_path)?;
        let start = |host, config: &Config| {
            let mut command = Command::new(std::env::current_exe()?);
            command.arg("tunnel").arg(write_config(folder, config)?);
            command.stdout(said.try_clone()?).stderr(said.try_clone()?);
            lab.start(host, &mut command)
        };
        let tunnels = Self {
            _processes: [start(Host::Region, &region)?, start(Host::Edge, &edge)?],
            ends,
            admin: edge.admin.socket,
            said: said_path,
        };
        match until_ready(|| ping_once(lab, tunnels.doors().ping)) {
            Ok(_) => Ok(tunnels),
            Err(why) => Err(tunnels.explain(&why)),
        }
    }

    /// A failure, together with the tunnels' logs.
    fn explain(&self, why: &Failure) -> Failure {
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        format!("{why}; the tunnels say:\n{said}").into()
    }

    fn doors(&self) -> Doors {
        Doors {
            bulk: loopback(BULK_DOOR),
            ping: loopback(PING_DOOR),
        }
    }

    /// The edge's estimate of the path's rate, in Mbit/s.
    fn estimate_mbit(&self) -> Result<f64, Failure> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let status: StatusView = runtime.block_on(Client::new(&self.admin).get("/status"))?;
        let bits = status.links.first().map_or(0, |l| l.path_bits_per_second);
        #[allow(clippy::cast_precision_loss, reason = "a rate needs no 53 bits")]
        Ok(bits as f64 / 1e6)
    }
}

/// A program that sends as fast as it can until it is dropped.
struct Bulk(TcpStream);

impl Bulk {
    fn start(lab: &Lab, door: SocketAddr) -> Result<Self, Failure> {
        let stream = lab.connect(Host::Edge, door)?;
        let mut source = stream.try_clone()?;
        thread::spawn(move || {
            let chunk = vec![0x5a; CHUNK_BYTES];
            // It ends when the stream is closed.
            while source.write_all(&chunk).is_ok() {}
        });
        Ok(Self(stream))
    }
}

impl Drop for Bulk {
    fn drop(&mut self) {
        // It may be closed already.
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

fn ping_once(lab: &Lab, door: SocketAddr) -> Result<f64, Failure> {
    let mut stream = lab.connect(Host::Edge, door)?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    round_trip(&mut stream)
}

/// One round trip, in milliseconds.
fn round_trip(stream: &mut TcpStream) -> Result<f64, Failure> {
    let began = Instant::now();
    stream.write_all(&[7; PING_BYTES])?;
    stream.read_exact(&mut [0; PING_BYTES])?;
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// Pings for a time over a cable of this rate.
fn pings(lab: &Lab, door: SocketAddr, (time, mbit): (Duration, u64)) -> Result<Waits, Failure> {
    let pause = PING_TIME.max(Duration::from_micros(PING_BITS * PINGS_PART / mbit));
    pings_each(lab, door, (time, pause))
}

/// Pings for a time through the tunnels. Over the longer line several run concurrently; with one
/// alone, most of the samples would be those that could not be sent while it waited.
fn tunnel_pings(lab: &Lab, tunnels: &Tunnels, how: (Duration, u64)) -> Result<Waits, Failure> {
    let door = tunnels.doors().ping;
    if tunnels.ends == Ends::Near {
        return pings(lab, door, how);
    }
    thread::scope(|scope| {
        let each = || {
            let waits = pings_each(lab, door, (how.0, FAR_ROUND_TRIP));
            waits.map_err(|error| error.to_string())
        };
        let pinging = [(); FAR_PINGS].map(|()| {
            // Spread out, so that they do not all send at the same time.
            thread::sleep(FAR_ROUND_TRIP * 2 / 10);
            scope.spawn(each)
        });
        let mut all = Waits::default();
        for one in pinging {
            all.join(one.join().map_err(|_| "a thread panicked")??);
        }
        Ok(all)
    })
}

/// Pings for a time, with a pause after each.
fn pings_each(
    lab: &Lab,
    door: SocketAddr,
    (time, pause): (Duration, Duration),
) -> Result<Waits, Failure> {
    let mut stream = lab.connect(Host::Edge, door)?;
    stream.set_nodelay(true)?;
    let began = Instant::now();
    let mut waits = Waits::default();
    while began.elapsed() < time {
        let asked = began.elapsed();
        waits.add(asked, round_trip(&mut stream)?, pause);
        thread::sleep(pause);
    }
    Ok(waits)
}

fn load(
    lab: &Lab,
    services: &Services,
    (doors, mbit): (&Doors, u64),
    size: &Size,
) -> Result<Load, Failure> {
    let idle = pings(lab, doors.ping, (size.time / 4, mbit))?;
    let _bulk = Bulk::start(lab, doors.bulk)?;
    thread::sleep(size.warm);
    let (began, before) = (Instant::now(), services.sunk_bytes.load(Ordering::Relaxed));
    let waits = pings(lab, doors.ping, (size.time, mbit))?;
    Ok(Load {
        idle_p50_ms: idle.part(0.5),
        idle_p99_ms: idle.part(0.99),
        p50_ms: waits.part(0.5),
        p95_ms: waits.part(0.95),
        p99_ms: waits.part(0.99),
        goodput_mbit: goodput(services, before, began),
    })
}

fn goodput(services: &Services, before: u64, began: Instant) -> f64 {
    let bytes = services.sunk_bytes.load(Ordering::Relaxed) - before;
    #[allow(clippy::cast_precision_loss, reason = "a few GiB are exact in 53 bits")]
    let megabits = bytes as f64 * 8e-6;
    megabits / began.elapsed().as_secs_f64()
}

fn steps(
    lab: &Lab,
    services: &Services,
    tunnels: &Tunnels,
    size: &Size,
) -> Result<Vec<Step>, Failure> {
    let idle = tunnel_pings(lab, tunnels, (size.step / 4, MBIT))?.part(0.5);
    let _bulk = Bulk::start(lab, tunnels.doors().bulk)?;
    thread::sleep(size.warm);
    let mut steps = Vec::new();
    for (mbit, within) in [(MBIT_LOW, DOWN_WITHIN), (MBIT, UP_WITHIN)].repeat(2) {
        shape(lab, "change", (mbit, BURST_BYTES))?;
        let (began, before) = (Instant::now(), services.sunk_bytes.load(Ordering::Relaxed));
        let is_over = AtomicBool::new(false);
        let (waits, found_after_s) = thread::scope(|scope| {
            let pinging = scope.spawn(|| {
                let waits = tunnel_pings(lab, tunnels, (size.step, mbit));
                is_over.store(true, Ordering::Relaxed);
                waits.map_err(|error| error.to_string())
            });
            #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
            let truth = mbit as f64 * QUIC_SHARE;
            let mut right_since: Option<Duration> = None;
            let mut found_after_s = None;
            while !is_over.load(Ordering::Relaxed) {
                let is_right = (tunnels.estimate_mbit()? / truth - 1.0).abs() < ESTIMATE_WITHIN;
                let now = began.elapsed();
                right_since = is_right.then(|| right_since.unwrap_or(now));
                let found = right_since.filter(|since| now - *since >= FOUND_FOR);
                found_after_s = found_after_s.or_else(|| found.map(|since| since.as_secs_f64()));
                thread::sleep(LOOK_TIME);
            }
            let waits = pinging.join().map_err(|_| "a thread panicked")??;
            Ok::<_, Failure>((waits, found_after_s))
        })?;
        steps.push(Step {
            mbit_per_second: mbit,
            found_after_s,
            idle_p50_ms: idle,
            p99_ms: waits.part(0.99),
            later_p99_ms: waits.part_from(within.min(size.step / 2), 0.99),
            most_ms: waits.part(1.0),
            goodput_mbit: goodput(services, before, began),
        });
    }
    Ok(steps)
}

/// What bulk adds to a round trip on slower cables.
fn rates(
    lab: &Lab,
    services: &Services,
    tunnels: &Tunnels,
    size: &Size,
) -> Result<Vec<AtRate>, Failure> {
    let size = Size {
        warm: size.settle,
        ..*size
    };
    let at = |mbit: u64| {
        // Drain what is left of the previous bulk while the cable is fast.
        shape(lab, "change", (MBIT, BURST_BYTES))?;
        thread::sleep(size.settle / 10);
        // Replace the queue: a packet waiting in the old one may be larger than the new burst size,
        // and would block the queue for ever.
        lab.tc(Host::Edge, &["qdisc", "del", "dev", "cable", "root"])?;
        shape(lab, "add", (mbit, burst_bytes(mbit)))?;
        let load = load(lab, services, (&tunnels.doors(), mbit), &size)?;
        #[allow(clippy::cast_precision_loss, reason = "a few hundred")]
        let packet_ms = f64::from(FRAME_BITS) / (mbit as f64 * 1e3);
        Ok(AtRate {
            mbit_per_second: mbit,
            goal_added_ms: packet_ms + GOAL_ADDED_MS,
            added_p50_ms: load.p50_ms - load.idle_p50_ms,
            added_p95_ms: load.p95_ms - load.idle_p50_ms,
            added_p99_ms: load.p99_ms - load.idle_p50_ms,
            load,
        })
    };
    RATES_MBIT.into_iter().map(at).collect()
}

fn burst_bytes(mbit: u64) -> u64 {
    let timers = u64::from(BURST_TIME.subsec_micros()) * mbit / 8;
    timers.max(BURST_BYTES_MIN)
}
