//! The cost of a TCP connection through the tunnel, compared with other tunnels on the same cable.
//!
//! ```text
//!  program ─TCP─► process ═══ a cable between two network namespaces ═══► process ─TCP─► program
//!          loopback   edge                                        region     loopback
//! ```
//!
//! The figure is gigabits per processor second, user and system, of all the tunnel's processes; it
//! says more about the tunnel and less about the machine than gigabits per second. The tunnels
//! alternate, so that other load on the machine affects all; a ratio is that of medians. A rival
//! that is not installed is reported as skipped, and its goal as not measured; without root
//! everything is skipped. A full run that misses a goal fails. `--smoke` sends little, to show that
//! it runs. `forward MTU NAME...` measures only those tunnels, `forward MTU` all of them; `earlier`
//! is the build of this bench that `TOWPATH_EARLIER` names.

mod contenders;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::lab::{Host, Lab, report_skipped};
use towpath_bench::processor::seconds_of;
use towpath_bench::program::{Process, finish, median, run_tunnel, until_ready};
use towpath_bench::sites::Failure;

use contenders::{Contender, OURS, Place};

const SCHEMA: &str = "towpath.v1.bench.forward";

/// Duration of each run, its warm-up, and the number of runs.
const FULL: (Duration, Duration, usize) = (Duration::from_secs(2), Duration::from_millis(700), 5);
const SMOKE: (Duration, Duration, usize) =
    (Duration::from_millis(200), Duration::from_millis(50), 1);

/// MTU of the cables in bytes, each with the least ratio to each rival that we want.
const GOALS: [(u16, &[(&str, f64)]); 2] = [
    (
        1500,
        &[
            ("stunnel", 1.0),
            ("rathole", 1.7),
            ("nebula", 5.5),
            ("boringtun", 7.0),
        ],
    ),
    (9000, &[("stunnel", 2.0), ("ssh", 1.4)]),
];

/// Goals of the tunnel alone: an MTU in bytes, and gigabits per processor second.
const OWN_GOALS: [(u16, f64); 1] = [(9000, 12.0)];

/// Timeout of one attempt to get a byte through.
const TRY_WAIT: Duration = Duration::from_secs(2);

/// Bytes per write and per read of the programs.
const CHUNK_BYTES: usize = 256 * 1024;

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    /// Whether debug assertions are on, in which case the figures are not those of a release.
    is_debug_build: bool,
    seconds_per_run: f64,
    cables: Vec<Cable>,
}

#[derive(Debug, Serialize)]
struct Cable {
    mtu: u16,
    tunnels: Vec<Figures>,
    ratios: Vec<Ratio>,
    skipped: Vec<Skipped>,
}

#[derive(Debug, Serialize)]
struct Figures {
    name: &'static str,
    gbit_per_cpu_second: f64,
    gbit_per_second: f64,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Ratio {
    rival: &'static str,
    goal: Option<f64>,
    /// `None` for a rival that has a goal and was not measured.
    measured: Option<f64>,
}

#[derive(Debug, Serialize)]
struct Skipped {
    name: &'static str,
    why: String,
}

/// The results of one run.
#[derive(Debug, Clone, Copy, Serialize)]
struct Run {
    gbit_per_second: f64,
    gbit_per_cpu_second: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let all = GOALS.map(|(mtu, _)| mtu);
    let done = match words.as_slice() {
        ["tunnel", config] => run_tunnel(Path::new(config)),
        [] => measure(&all, &[], FULL),
        ["--smoke"] => measure(&all, &[], SMOKE),
        [mtu, names @ ..] => match mtu.parse() {
            Ok(mtu) => measure(&[mtu], names, FULL),
            Err(_) => Err("usage: forward [--smoke | MTU [NAME...]]".into()),
        },
    };
    finish(done)
}

fn measure(
    mtus: &[u16],
    names: &[&str],
    scale: (Duration, Duration, usize),
) -> Result<(), Failure> {
    if let Err(why) = Lab::new(1500) {
        return Ok(report_skipped(SCHEMA, &why.to_string())?);
    }
    let mut report = Report {
        schema: SCHEMA,
        is_debug_build: cfg!(debug_assertions),
        seconds_per_run: scale.0.as_secs_f64(),
        cables: Vec::new(),
    };
    for mtu in mtus {
        report.cables.push(cable(*mtu, names, scale)?);
    }
    Goals::judge(&report, (scale == FULL).then(|| goals(&report.cables)))
}

/// Every ratio that has a goal, and our own figure if it has one; a missing figure with its reason.
fn goals(cables: &[Cable]) -> Goals {
    let mut goals = Goals::default();
    for cable in cables {
        for ratio in &cable.ratios {
            let Some(goal) = ratio.goal else { continue };
            let what = format!("part of {}'s, packets of {} bytes", ratio.rival, cable.mtu);
            match ratio.measured {
                Some(measured) => goals.at_least(what, measured, goal),
                None => goals.not_measured(what, cable.why_not(ratio.rival)),
            }
        }
        for (_, goal) in OWN_GOALS.iter().filter(|(mtu, _)| *mtu == cable.mtu) {
            let what = format!("Gb per processor second, packets of {} bytes", cable.mtu);
            match cable.tunnels.iter().find(|tunnel| tunnel.name == OURS) {
                Some(ours) => goals.at_least(what, ours.gbit_per_cpu_second, *goal),
                None => goals.not_measured(what, cable.why_not(OURS)),
            }
        }
    }
    goals
}

fn cable(
    mtu: u16,
    names: &[&str],
    (time, warm, rounds): (Duration, Duration, usize),
) -> Result<Cable, Failure> {
    let lab = Lab::new(mtu)?;
    let folder = tempfile::TempDir::new()?;
    let mut entered: Vec<(Contender, Vec<Run>)> = Vec::new();
    let mut skipped = Vec::new();
    for contender in contenders::ALL {
        if !names.is_empty() && !names.contains(&contender.name) {
            continue;
        }
        let place = Place::new(&lab, folder.path(), &contender, mtu)?;
        match (contender.prepare)(&place) {
            Ok(()) => entered.push((contender, Vec::new())),
            Err(why) => skipped.push(Skipped {
                name: contender.name,
                why: why.to_string(),
            }),
        }
    }
    for _ in 0..rounds {
        for (contender, runs) in &mut entered {
            let place = Place::new(&lab, folder.path(), contender, mtu)?;
            let way = Way::open(contender, &place);
            let way = way.map_err(|error| format!("{}: {error}", contender.name))?;
            runs.push(way.send(time, warm)?);
        }
    }
    let tunnels = entered.into_iter().map(|(contender, runs)| Figures {
        name: contender.name,
        gbit_per_cpu_second: median(runs.iter().map(|run| run.gbit_per_cpu_second).collect()),
        gbit_per_second: median(runs.iter().map(|run| run.gbit_per_second).collect()),
        runs,
    });
    let tunnels: Vec<_> = tunnels.collect();
    Ok(Cable {
        mtu,
        ratios: ratios(mtu, &tunnels),
        tunnels,
        skipped,
    })
}

impl Cable {
    /// The reason there is no ratio to a rival.
    fn why_not(&self, rival: &str) -> &str {
        let skipped = self.skipped.iter();
        let mut lacking = skipped.filter(|one| one.name == rival || one.name == OURS);
        lacking.next().map_or("not asked for", |one| &one.why)
    }
}

/// Our figure divided by that of every other tunnel, with every goal, even if its rival was not
/// measured.
fn ratios(mtu: u16, tunnels: &[Figures]) -> Vec<Ratio> {
    let goals = GOALS.iter().find(|(of, _)| *of == mtu);
    let goals = goals.map_or(&[][..], |(_, goals)| goals);
    let goal = |name| {
        let mut of = goals.iter().filter(|(rival, _)| *rival == name);
        of.next().map(|(_, goal)| *goal)
    };
    let figure = |name| {
        let tunnel = tunnels.iter().find(|tunnel| tunnel.name == name);
        tunnel.map(|tunnel| tunnel.gbit_per_cpu_second)
    };
    let rivals = contenders::ALL.into_iter().map(|rival| rival.name);
    let ratio = |rival| Ratio {
        rival,
        goal: goal(rival),
        measured: figure(OURS).zip(figure(rival)).map(|(our, its)| our / its),
    };
    let ratios = rivals.filter(|name| *name != OURS).map(ratio);
    let has_something = |ratio: &Ratio| ratio.goal.is_some() || ratio.measured.is_some();
    ratios.filter(has_something).collect()
}

/// A path between two programs through a tunnel; its processes end when it is dropped.
struct Way {
    source: TcpStream,
    target: TcpStream,
    processes: Vec<Process>,
}

impl Way {
    fn open(contender: &Contender, place: &Place<'_>) -> Result<Self, Failure> {
        let listener = place.lab.listen(Host::Region, contender.service)?;
        listener.set_nonblocking(true)?;
        let said = File::create(place.folder.join("said"))?;
        let mut processes = Vec::new();
        let opened = (contender.start)(place, &said, &mut processes)
            .and_then(|()| until_ready(|| attempt(contender, place, &listener)));
        match opened {
            Ok((source, target)) => Ok(Self {
                source,
                target,
                processes,
            }),
            Err(error) => {
                drop(processes);
                let said = std::fs::read_to_string(place.folder.join("said"))?;
                Err(format!("{error}; it says: {said}").into())
            }
        }
    }

    /// Sends for a time, after a warm-up.
    fn send(self, time: Duration, warm: Duration) -> Result<Run, Failure> {
        let ids: Vec<u32> = self.processes.iter().map(Process::id).collect();
        let mut source = self.source.try_clone()?;
        let writing = thread::spawn(move || {
            let chunk = vec![0x5a; CHUNK_BYTES];
            // It ends when the other end is closed.
            while source.write_all(&chunk).is_ok() {}
        });
        let run = measure_reading(&self.target, &ids, time, warm);
        let _ = self.source.shutdown(Shutdown::Both);
        writing.join().map_err(|_| "the writer panicked")?;
        run
    }
}

fn measure_reading(
    target: &TcpStream,
    ids: &[u32],
    time: Duration,
    warm: Duration,
) -> Result<Run, Failure> {
    read_for(target, warm)?;
    let cpu_before = seconds_of(ids)?;
    let began = Instant::now();
    let bytes = read_for(target, time)?;
    let seconds = began.elapsed().as_secs_f64();
    let cpu_seconds = seconds_of(ids)? - cpu_before;
    #[allow(clippy::cast_precision_loss, reason = "a few GiB are exact in 53 bits")]
    let gbit = bytes as f64 * 8e-9;
    Ok(Run {
        gbit_per_second: gbit / seconds,
        gbit_per_cpu_second: gbit / cpu_seconds.max(1e-3),
    })
}

fn read_for(mut target: &TcpStream, time: Duration) -> Result<u64, Failure> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let began = Instant::now();
    let mut bytes = 0;
    while began.elapsed() < time {
        match target.read(&mut chunk)? {
            0 => return Err("the stream ended early".into()),
            read => bytes += read as u64,
        }
    }
    Ok(bytes)
}

/// Tries to get one byte through.
fn attempt(
    contender: &Contender,
    place: &Place<'_>,
    listener: &TcpListener,
) -> Result<(TcpStream, TcpStream), Failure> {
    let mut source = place.lab.connect(Host::Edge, contender.door)?;
    source.write_all(&[0])?;
    let until = Instant::now() + TRY_WAIT;
    while Instant::now() < until {
        let Ok((mut target, _)) = listener.accept() else {
            thread::sleep(Duration::from_millis(5));
            continue;
        };
        target.set_nonblocking(false)?;
        target.set_read_timeout(Some(TRY_WAIT))?;
        // It may be left over from an earlier attempt.
        if target.read(&mut [0]).is_ok_and(|count| count == 1) {
            return Ok((source, target));
        }
    }
    Err("nothing came through".into())
}
