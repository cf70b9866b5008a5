//! Moves between two sites on this machine, beside what limits them: the tunnel alone, the round trip.
//!
//! Three scenes, each played by `towpath demo` with real daemons and a process guest:
//!
//! | scene | figure | limit beside it |
//! |---|---|---|
//! | loopback | guest bytes a second of an idle, incompressible guest; peak memory of each daemon | the tunnel's own throughput in the same run |
//! | idle | the pause by the guest's heartbeat, and as computed | three round trips and 20 ms; 10 ms apart |
//! | busy | time a running guest waited for a page under full push | one round trip |
//!
//! One JSON document, `towpath.v1.bench.migration`. The programs `towpath` and `tunnel_throughput` must
//! have been built; they are looked for beside this one.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

/// Rounds over loopback, of the tunnel alone and two moves.
const LOOPBACK_ROUNDS: usize = 5;

/// The emulated round trip of the idle and the busy scene.
const RTT_MS: u64 = 40;

fn main() -> ExitCode {
    let is_smoke = std::env::args().any(|argument| argument == "--smoke");
    match measure(is_smoke) {
        Ok(document) => {
            write(&document);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("{failure}");
            ExitCode::FAILURE
        }
    }
}

#[allow(
    clippy::print_stdout,
    reason = "the document is what this program makes"
)]
fn write(document: &Value) {
    println!("{document:#}");
}

fn measure(is_smoke: bool) -> Result<Value, Failure> {
    let loopback = loopback(is_smoke)?;
    let memory = if is_smoke { "16MiB" } else { "64MiB" };
    let link = ["--rate", "100Mbit", "--rtt", "40ms", "--memory", memory];
    let idle = demo(&[&link[..], &["--dirty-rate", "0"]].concat())?;
    let busy = demo(&[&link[..], &["--dirty-rate", "40MiB/s"]].concat())?;
    Ok(json!({
        "schema": "towpath.v1.bench.migration",
        "is_smoke": is_smoke,
        "loopback": loopback,
        "idle": moves(&idle, |one| json!({
            "pause_heartbeat_ms": one["pause_heartbeat_ms"],
            "pause_reported_ms": one["pause_reported_ms"],
            "pause_limit_ms": 3 * RTT_MS + 20,
        })),
        "busy": moves(&busy, |one| json!({
            "switch_reason": one["switch_reason"],
            "demand_fetches": one["demand_fetches"],
            "demand_p50_ms": one["demand_p50_ms"],
            "demand_p99_ms": one["demand_p99_ms"],
            "round_trip_ms": RTT_MS,
        })),
    }))
}

/// Moves and the tunnel alone take turns, so that a noisy machine is noisy for both; the ratio is that
/// of the medians.
fn loopback(is_smoke: bool) -> Result<Value, Failure> {
    let (memory, mebibytes) = if is_smoke {
        ("32MiB", "32")
    } else {
        ("1GiB", "2048")
    };
    let rounds = if is_smoke { 1 } else { LOOPBACK_ROUNDS };
    let (mut ours, mut alone, mut documents) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        let tunnel = run("tunnel_throughput", &[mebibytes, "1"])?;
        let carried = tunnel["tunnel"][0]["gbit_per_second"].as_f64();
        alone.push(carried.ok_or("the tunnel's figure is missing")? * 1e9 / 8.0);
        let played = demo(&[
            "--direct",
            "--memory",
            memory,
            "--dirty-rate",
            "0",
            "--incompressible",
            "100",
        ])?;
        let moves = played["moves"].as_array();
        ours.extend(moves.into_iter().flatten().map(per_second));
        documents.push(json!({
            "moves": moves,
            "daemons": played["daemons"],
            "tunnel_alone": tunnel,
        }));
    }
    let (ours, alone) = (median(&mut ours), median(&mut alone));
    Ok(json!({
        "raw_bytes_per_second": ours.round(),
        "tunnel_alone_bytes_per_second": alone.round(),
        "ratio": ours / alone,
        "daemon_memory_bytes_limit": 150 << 20,
        "rounds": documents,
    }))
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn moves(document: &Value, figures: impl Fn(&Value) -> Value) -> Vec<Value> {
    let moves = document["moves"].as_array();
    moves.into_iter().flatten().map(figures).collect()
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn per_second(one: &Value) -> f64 {
    let bytes = one["raw_bytes"].as_u64().unwrap_or(0) as f64;
    let seconds = one["total_ms"].as_u64().unwrap_or(1).max(1) as f64 / 1000.0;
    (bytes / seconds).round()
}

fn demo(arguments: &[&str]) -> Result<Value, Failure> {
    let mut all = vec!["demo", "--guest", "process", "-o", "json"];
    all.extend_from_slice(arguments);
    run("towpath", &all)
}

/// Runs a program that stands beside this one and prints one JSON document.
fn run(name: &str, arguments: &[&str]) -> Result<Value, Failure> {
    let program = beside(name)?;
    let output = Command::new(&program)
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("{}: {error}", program.display()))?;
    if !output.status.success() {
        return Err(format!("{name} {arguments:?}: {}", output.status).into());
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn beside(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()?;
    let folder = own.parent().ok_or("this program stands in no folder")?;
    let program = folder.join(name);
    if !program.exists() {
        let hint = "cargo build --workspace makes it";
        return Err(format!("{} is missing: {hint}", program.display()).into());
    }
    Ok(program)
}
