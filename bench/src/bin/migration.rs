//! Moves between two sites on this machine, compared with their limits: the bare tunnel, the round
//! trip.
//!
//! Three scenes, each played by `towpath demo` with real daemons and a process guest:
//!
//! | scene | figure | limit it is compared with |
//! |---|---|---|
//! | loopback | guest bytes a second of two idle guests of 1 GiB; peak memory of each daemon | the tunnel's own throughput in the same run |
//! | idle | the pause, by the guest's heartbeat and as reported | three round trips and 20 ms; the two differ by 10 ms at most |
//! | busy | time that a running guest waited for a page under full push | one round trip |
//!
//! Two guests move over loopback: the demo's guest, a quarter of which is incompressible, and one
//! that is noise throughout. The noise is the worst case: every byte of the guest is a byte on the
//! wire. It alone is judged against the tunnel's throughput, which is in bytes on the wire; the
//! other shows how fast a user's move is.
//!
//! Prints one JSON document, `towpath.v1.bench.migration`. The programs `towpath` and
//! `tunnel_throughput` must have been built; they are expected in the same folder as this one.

use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};

use serde_json::{Value, json};
use towpath_bench::goals::Goals;
use towpath_bench::program::{finish, median};
use towpath_bench::sites::Failure;

/// Rounds over loopback; each is one run of the bare tunnel and two moves.
const LOOPBACK_ROUNDS: usize = 5;

/// The emulated round trip of the idle and the busy scene.
const RTT_MS: u64 = 40;

/// The incompressible share of each guest moved over loopback, in percent, and the share of the
/// tunnel's throughput that its move must reach. That share says nothing for a compressible guest.
const GUESTS: [(&str, Option<f64>); 2] = [("25", None), ("100", Some(0.70))];

/// In milliseconds: the largest error of a reported pause, and the p99 limit of a wait for a page.
const REPORTED_OFF_MS: f64 = 10.0;
const WAIT_MS: f64 = 60.0;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let is_smoke = match arguments[..] {
        [] => false,
        ["--smoke"] => true,
        _ => return finish(Err("usage: migration [--smoke]".into())),
    };
    let judge = |document: Value| Goals::judge(&document, (!is_smoke).then(|| goals(&document)));
    finish(measure(is_smoke).and_then(judge))
}

fn goals(document: &Value) -> Goals {
    let mut goals = Goals::default();
    let figure = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let loopback = &document["loopback"];
    for guest in list(&loopback["guests"]) {
        if let Some(goal) = guest["goal"].as_f64() {
            let percent = &guest["incompressible_percent"];
            let what = format!("the part of the tunnel's throughput, {percent} % noise");
            goals.at_least(what, figure(&guest["ratio"]), goal);
        }
    }
    let most = figure(&loopback["daemon_memory_bytes_limit"]);
    let played = list(&loopback["rounds"]).into_iter();
    let played = played.flat_map(|round| list(&round["played"]));
    for daemon in played.flat_map(|played| list(&played["daemons"])) {
        let what = format!("memory of {}", daemon["name"]);
        goals.at_most(what, figure(&daemon["peak_memory_bytes"]), most);
    }
    for one in list(&document["idle"]) {
        let [heartbeat, reported] = ["pause_heartbeat_ms", "pause_reported_ms"];
        let (heartbeat, reported) = (figure(&one[heartbeat]), figure(&one[reported]));
        goals.at_most("the pause", heartbeat, figure(&one["pause_limit_ms"]));
        let off = (heartbeat - reported).abs();
        goals.at_most("the distance of the reported pause", off, REPORTED_OFF_MS);
    }
    for one in list(&document["busy"]) {
        let wait = figure(&one["demand_p99_ms"]);
        goals.at_most("the wait for a page", wait, WAIT_MS);
    }
    goals
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

/// The moves of both guests and the runs of the bare tunnel alternate, so that other load on the
/// machine affects all; the ratios are those of the medians.
fn loopback(is_smoke: bool) -> Result<Value, Failure> {
    let (memory, mebibytes) = if is_smoke {
        ("32MiB", "32")
    } else {
        ("1GiB", "2048")
    };
    let rounds = if is_smoke { 1 } else { LOOPBACK_ROUNDS };
    let (mut alone, mut documents) = (Vec::new(), Vec::new());
    let mut ours = GUESTS.map(|_| Vec::new());
    for _ in 0..rounds {
        let tunnel = run("tunnel_throughput", &[mebibytes, "1"])?;
        let carried = tunnel["tunnel"][0]["gbit_per_second"].as_f64();
        alone.push(carried.ok_or("the tunnel's figure is missing")? * 1e9 / 8.0);
        let mut played = Vec::new();
        for ((percent, _), ours) in GUESTS.into_iter().zip(&mut ours) {
            let document = demo(&[
                "--direct",
                "--memory",
                memory,
                "--dirty-rate",
                "0",
                "--incompressible",
                percent,
            ])?;
            let moves = document["moves"].as_array();
            ours.extend(moves.into_iter().flatten().map(per_second));
            played.push(json!({
                "incompressible_percent": percent.parse::<u8>()?,
                "moves": moves,
                "daemons": document["daemons"],
            }));
        }
        documents.push(json!({ "played": played, "tunnel_alone": tunnel }));
    }
    let alone = median(alone);
    let guests = GUESTS.into_iter().zip(ours);
    let guests = guests.map(|((percent, goal), ours)| {
        let ours = median(ours);
        json!({
            "incompressible_percent": percent.parse::<u8>().ok(),
            "raw_bytes_per_second": ours.round(),
            "goal": goal,
            "ratio": ours / alone,
        })
    });
    Ok(json!({
        "guests": guests.collect::<Vec<_>>(),
        "tunnel_alone_bytes_per_second": alone.round(),
        "daemon_memory_bytes_limit": 150 << 20,
        "rounds": documents,
    }))
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

/// Runs a program in the same folder as this one that prints one JSON document.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(ratios: [f64; 2]) -> Option<String> {
        let guests = GUESTS.into_iter().zip(ratios);
        let guests = guests.map(|((_, goal), ratio)| json!({ "goal": goal, "ratio": ratio }));
        let guests: Vec<_> = guests.collect();
        let document = json!({ "loopback": { "guests": guests } });
        let missed = goals(&document).reached().err();
        missed.map(|missed| missed.to_string())
    }

    #[test]
    fn the_guest_whose_bytes_are_those_of_the_wire_is_judged_beside_the_tunnel() {
        assert_eq!(missed([0.1, 0.70]), None);
        let said = missed([1.1, 0.64]).unwrap_or_default();
        assert!(said.contains("0.64"), "{said}");
    }
}
