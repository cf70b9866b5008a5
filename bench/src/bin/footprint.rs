//! The cost of an idle tunnel: memory of its process, per channel and per stream.
//!
//! Two tunnels are linked over loopback. The edge's memory is read while it only keeps the link,
//! then with many channels (listeners), then with many connections through them that have carried
//! one byte and are silent. `--smoke` opens few, to show that it runs. `footprint PROGRAM
//! [WORD...]` measures an installed program, as in `footprint target/release/towpath-tunnel` or
//! `footprint target/release/towpath tunnel run`, and also the size of its file without symbols.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::program::{Process, finish, run_tunnel, until_ready, write_config};
use towpath_bench::sites::{Failure, add_channel, sites_that_meet};
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_tunnel::config::Config;

/// Number of channels, and of connections through them.
const FULL: usize = 1000;
const SMOKE: usize = 20;

/// The names of the two tunnels in reports.
const SIDES: [&str; 2] = ["edge", "region"];

/// Goals in bytes: an idle process, each channel or stream, and the program's file.
const IDLE_BYTES_MAX: u64 = 12 << 20;
const EACH_BYTES_MAX: u64 = 8 << 10;
const FILE_BYTES_MAX: u64 = 8_000_000;

/// Time for everything to settle.
const REST: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    is_debug_build: bool,
    count: usize,
    goal_idle_bytes: u64,
    goal_each_bytes: u64,
    /// Memory of each process that keeps a link: resident in total, its own pages, and the resident
    /// pages of its program file.
    idle: Vec<Memory>,
    /// Additional bytes for each channel, at the edge.
    channel_bytes: i64,
    /// Additional bytes for each idle connection, at edge and region.
    stream_bytes: [i64; 2],
    goal_file_bytes: u64,
    /// Bytes of the program's file without its symbols; absent for this bench itself, which is
    /// never installed.
    #[serde(skip_serializing_if = "Option::is_none")]
    file_bytes: Option<u64>,
}

/// Memory that a process uses.
#[derive(Debug, Clone, Copy, Serialize)]
struct Memory {
    resident_bytes: u64,
    own_bytes: u64,
    program_bytes: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let own = |count| {
        let own = std::env::current_exe()?;
        measure(count, (&own, &[]), None)
    };
    let done = match words.as_slice() {
        ["--config", config] => run_tunnel(Path::new(config)),
        [] => own(FULL),
        ["--smoke"] => own(SMOKE),
        [program, words @ ..] if !program.starts_with('-') => {
            let program = Path::new(program);
            stripped_bytes(program).and_then(|bytes| measure(FULL, (program, words), Some(bytes)))
        }
        _ => Err("usage: footprint [--smoke | PROGRAM [WORD...]]".into()),
    };
    finish(done)
}

/// Bytes of a program's file without its symbols.
fn stripped_bytes(program: &Path) -> Result<u64, Failure> {
    let folder = tempfile::TempDir::new()?;
    let stripped = folder.path().join("stripped");
    let mut strip = Command::new("strip");
    let done = strip.arg("-o").arg(&stripped).arg(program).status();
    let done = done.map_err(|error| format!("strip, of binutils: {error}"))?;
    if !done.success() {
        return Err(format!("strip {}: {done}", program.display()).into());
    }
    Ok(fs::metadata(&stripped)?.len())
}

/// A program, and the arguments that make it run a tunnel.
type Program<'a> = (&'a Path, &'a [&'a str]);

fn measure(count: usize, program: Program<'_>, file_bytes: Option<u64>) -> Result<(), Failure> {
    let few = Pair::start(1, program)?;
    drop(few.connect(1)?);
    thread::sleep(REST);
    let idle = few.memory()?;
    drop(few);
    let many = Pair::start(count, program)?;
    drop(many.connect(1)?);
    thread::sleep(REST);
    let channels = many.memory()?;
    let streams = many.connect(count)?;
    thread::sleep(REST);
    let connected = many.memory()?;
    drop(streams);
    let each = |more: Memory, less: Memory, count: usize| -> Result<i64, Failure> {
        let grown = i64::try_from(more.own_bytes)? - i64::try_from(less.own_bytes)?;
        Ok(grown / i64::try_from(count)?)
    };
    let stream_bytes = |side: usize| each(connected[side], channels[side], count);
    let report = Report {
        schema: "towpath.v1.bench.footprint",
        is_debug_build: cfg!(debug_assertions),
        count,
        goal_idle_bytes: IDLE_BYTES_MAX,
        goal_each_bytes: EACH_BYTES_MAX,
        // One channel is there in either case.
        channel_bytes: each(channels[0], idle[0], count - 1)?,
        stream_bytes: [stream_bytes(0)?, stream_bytes(1)?],
        idle: idle.to_vec(),
        goal_file_bytes: FILE_BYTES_MAX,
        file_bytes,
    };
    Goals::judge(&report, (count == FULL).then(|| report.goals()))
}

impl Report {
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        for (side, memory) in SIDES.into_iter().zip(&self.idle) {
            let (bytes, most) = (memory.resident_bytes, self.goal_idle_bytes);
            goals.at_most(format!("memory of {side}, idle"), bytes as f64, most as f64);
        }
        let most = self.goal_each_bytes as f64;
        goals.at_most("memory of a channel", self.channel_bytes as f64, most);
        for (side, bytes) in SIDES.into_iter().zip(self.stream_bytes) {
            goals.at_most(
                format!("memory of a connection, {side}"),
                bytes as f64,
                most,
            );
        }
        let (what, most) = ("the program's file", self.goal_file_bytes as f64);
        match self.file_bytes {
            Some(bytes) => goals.at_most(what, bytes as f64, most),
            None => goals.not_measured(what, "name the program that is installed"),
        }
        goals
    }
}

/// Two tunnels, stopped when this is dropped, and the service of one of them.
struct Pair {
    _folder: tempfile::TempDir,
    doors: Vec<SocketAddr>,
    service: TcpListener,
    /// Edge and region.
    processes: [Process; 2],
}

impl Pair {
    fn start(channels: usize, (program, words): Program<'_>) -> Result<Self, Failure> {
        let folder = tempfile::TempDir::new()?;
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let meeting = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        let mut configs = sites_that_meet(folder.path(), meeting)?;
        let doors = free_doors(channels)?;
        for (index, door) in doors.iter().enumerate() {
            let name = format!("channel-{index}");
            let way = [*door, service.local_addr()?].map(Endpoint::Tcp);
            add_channel(&mut configs, (&name, Class::App), way)?;
        }
        let [mut edge, mut region] = configs;
        for config in [&mut edge, &mut region] {
            config.limits.peer_streams = 1024;
        }
        let start = |config: &Config| -> Result<Process, Failure> {
            let path = write_config(folder.path(), config)?;
            let mut command = Command::new(program);
            command.args(words).arg("--config").arg(path);
            Process::start(command.stdin(Stdio::null()).stderr(Stdio::null()))
        };
        let processes = [start(&edge)?, start(&region)?];
        Ok(Self {
            _folder: folder,
            doors,
            service,
            processes,
        })
    }

    /// Opens `count` connections through the channels; each carries one byte.
    fn connect(&self, count: usize) -> Result<Vec<(TcpStream, TcpStream)>, Failure> {
        let mut streams = Vec::new();
        for door in self.doors.iter().cycle().take(count) {
            let mut source = until_ready(|| Ok(TcpStream::connect(door)?))?;
            source.write_all(&[1])?;
            let (mut target, _) = self.service.accept()?;
            target.read_exact(&mut [0])?;
            streams.push((source, target));
        }
        Ok(streams)
    }

    fn memory(&self) -> Result<[Memory; 2], Failure> {
        let [edge, region] = &self.processes;
        Ok([memory_of(edge.id())?, memory_of(region.id())?])
    }
}

/// Addresses on which nobody listens now.
fn free_doors(count: usize) -> io::Result<Vec<SocketAddr>> {
    let listeners = (0..count).map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let listeners: Vec<_> = listeners.collect::<io::Result<_>>()?;
    listeners.iter().map(TcpListener::local_addr).collect()
}

fn memory_of(id: u32) -> Result<Memory, Failure> {
    let status = fs::read_to_string(format!("/proc/{id}/status"))?;
    let bytes = |key: &str| -> Result<u64, Failure> {
        let line = status.lines().find(|line| line.starts_with(key));
        let kibibytes = line.and_then(|line| line.split_ascii_whitespace().nth(1));
        Ok(kibibytes.ok_or("no such line")?.parse::<u64>()? << 10)
    };
    Ok(Memory {
        resident_bytes: bytes("VmRSS")?,
        own_bytes: bytes("RssAnon")?,
        program_bytes: bytes("RssFile")?,
    })
}
