//! Throughput of a stream through the tunnel over loopback, compared with bare quinn in the same
//! layout.
//!
//! ```text
//!  program ─Unix─► process A ═══ QUIC over loopback ═══► process B ─Unix─► program
//! ```
//!
//! A and B are two tunnels, or two processes that only forward one quinn stream with the same
//! buffers. The two alternate, so that other load on the machine affects both; the ratio of the
//! medians is the result. `--smoke` sends little, to show that it runs.

mod bare;

use std::io::{self, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Instant;

use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::processor::seconds_of;
use towpath_bench::program::{
    Process, READY_WAIT, finish, median, run_tunnel, until_ready, write_config,
};
use towpath_bench::sites::{Failure, sites_that_meet};
use towpath_daemon::stream;
use towpath_protocol::class::Class;
use towpath_protocol::preamble::Open;
use towpath_tunnel::config::Config;

/// Bytes per run, and runs of each side.
const FULL: (u64, usize) = (2 << 30, 5);
const SMOKE: (u64, usize) = (16 << 20, 1);

/// The least acceptable share of bare quinn's throughput.
const GOAL: f64 = 0.9;

/// The results of one run.
#[derive(Debug, Clone, Copy, Serialize)]
struct Run {
    gbit_per_second: f64,
    gbit_per_cpu_second: f64,
}

/// The report.
#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    bytes_per_run: u64,
    goal_ratio: f64,
    tunnel: Vec<Run>,
    bare_quinn: Vec<Run>,
    ratio: f64,
    cpu_ratio: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["tunnel", config] => run_tunnel(Path::new(config)),
        ["bare", side, folder] => bare::run(side, Path::new(folder)),
        [] => measure(FULL, true),
        ["--smoke"] => measure(SMOKE, false),
        [mebibytes, runs] => mebibytes
            .parse::<u64>()
            .and_then(|mebibytes| Ok((mebibytes << 20, runs.parse::<usize>()?)))
            .map_err(Into::into)
            .and_then(|(bytes, runs)| measure((bytes, runs.max(1)), false)),
        _ => Err("usage: tunnel_throughput [--smoke | MEBIBYTES RUNS]".into()),
    };
    finish(done)
}

fn measure((bytes, runs): (u64, usize), is_judged: bool) -> Result<(), Failure> {
    let folder = tempfile::TempDir::new()?;
    let sites = Sites::new(folder.path())?;
    let (mut tunnel, mut bare) = (Vec::new(), Vec::new());
    for _ in 0..runs {
        tunnel.push(sites.tunnels()?.send(bytes)?);
        bare.push(sites.bare()?.send(bytes)?);
    }
    let of = |runs: &[Run], what: fn(&Run) -> f64| median(runs.iter().map(what).collect());
    let report = Report {
        schema: "towpath.v1.bench.tunnel-throughput",
        goal_ratio: GOAL,
        bytes_per_run: bytes,
        ratio: of(&tunnel, |run| run.gbit_per_second) / of(&bare, |run| run.gbit_per_second),
        cpu_ratio: of(&tunnel, |run| run.gbit_per_cpu_second)
            / of(&bare, |run| run.gbit_per_cpu_second),
        tunnel,
        bare_quinn: bare,
    };
    Goals::judge(&report, is_judged.then(|| report.goals()))
}

impl Report {
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        let what = "the part of bare quinn's throughput";
        goals.at_least(what, self.ratio, self.goal_ratio);
        goals
    }
}

/// Two sites with certificates in one folder.
struct Sites {
    folder: PathBuf,
    configs: [Config; 2],
}

impl Sites {
    fn new(folder: &Path) -> Result<Self, Failure> {
        // Both know the port before the processes start; nothing else here takes it in the
        // meantime.
        let port = std::net::UdpSocket::bind("127.0.0.1:0")?.local_addr()?;
        let configs = sites_that_meet(folder, port)?;
        for config in &configs {
            write_config(folder, config)?;
        }
        Ok(Self {
            folder: folder.to_owned(),
            configs,
        })
    }

    fn tunnels(&self) -> Result<Way, Failure> {
        let path = |config: &Config| self.folder.join(format!("{}.toml", config.site));
        let region = process(&["tunnel".as_ref(), path(&self.configs[1]).as_ref()])?;
        let edge = process(&["tunnel".as_ref(), path(&self.configs[0]).as_ref()])?;
        let service = &self.configs[1].services[0].socket;
        let listener = listen(service)?;
        let open = Open {
            peer: "region".parse()?,
            service: "sink".parse()?,
            class: Class::Bulk,
        };
        let socket = self.configs[0].socket.clone();
        let (source, _) = until_ready(|| Ok(stream::open_stream(&socket, &open, READY_WAIT)?))?;
        let sink = accept(&listener)?;
        stream::accept_stream(&sink)?;
        Ok(Way::new(source, sink, [edge, region]))
    }

    fn bare(&self) -> Result<Way, Failure> {
        let listener = listen(&self.folder.join("bare-sink.sock"))?;
        let folder: &std::ffi::OsStr = self.folder.as_ref();
        let region = process(&["bare".as_ref(), "region".as_ref(), folder])?;
        let edge = process(&["bare".as_ref(), "edge".as_ref(), folder])?;
        let socket = self.folder.join("bare-source.sock");
        let source = until_ready(|| Ok(UnixStream::connect(&socket)?))?;
        let sink = accept(&listener)?;
        Ok(Way::new(source, sink, [edge, region]))
    }
}

/// A path between two programs through two processes, which end when it is dropped.
struct Way {
    source: UnixStream,
    sink: UnixStream,
    processes: [Process; 2],
}

impl Way {
    const fn new(source: UnixStream, sink: UnixStream, processes: [Process; 2]) -> Self {
        Self {
            source,
            sink,
            processes,
        }
    }

    /// Sends this many bytes, after a tenth more as a warm-up.
    fn send(self, bytes: u64) -> Result<Run, Failure> {
        self.carry(bytes / 10)?;
        let cpu_before = self.cpu_seconds()?;
        let began = Instant::now();
        self.carry(bytes)?;
        let seconds = began.elapsed().as_secs_f64();
        let cpu_seconds = self.cpu_seconds()? - cpu_before;
        #[allow(clippy::cast_precision_loss, reason = "a few GiB are exact in 53 bits")]
        let gbit = bytes as f64 * 8e-9;
        Ok(Run {
            gbit_per_second: gbit / seconds,
            gbit_per_cpu_second: gbit / cpu_seconds.max(1e-3),
        })
    }

    fn carry(&self, bytes: u64) -> Result<(), Failure> {
        let mut source = &self.source;
        thread::scope(|scope| {
            let writing = scope.spawn(move || -> io::Result<()> {
                let chunk = vec![0x5a; 256 * 1024];
                let mut left = bytes;
                while left > 0 {
                    let count = usize::try_from(left).map_or(chunk.len(), |n| n.min(chunk.len()));
                    source.write_all(&chunk[..count])?;
                    left -= count as u64;
                }
                Ok(())
            });
            let mut chunk = vec![0; 256 * 1024];
            let mut left = bytes;
            while left > 0 {
                let count = usize::try_from(left).map_or(chunk.len(), |n| n.min(chunk.len()));
                match (&self.sink).read(&mut chunk[..count])? {
                    0 => return Err("the stream ended early".into()),
                    read => left -= read as u64,
                }
            }
            writing.join().map_err(|_| "the writer panicked")??;
            Ok(())
        })
    }

    /// Processor seconds used by the two processes.
    fn cpu_seconds(&self) -> Result<f64, Failure> {
        seconds_of(&self.processes.each_ref().map(Process::id))
    }
}

fn process(arguments: &[&std::ffi::OsStr]) -> Result<Process, Failure> {
    Process::start(Command::new(std::env::current_exe()?).args(arguments))
}

/// A listener, replacing one that an earlier run may have left.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => UnixListener::bind(path),
    }
}

/// Accepts a connection, with a timeout in case a process has died.
fn accept(listener: &UnixListener) -> Result<UnixStream, Failure> {
    listener.set_nonblocking(true)?;
    let (stream, _) = until_ready(|| Ok(listener.accept()?))?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(READY_WAIT))?;
    Ok(stream)
}
