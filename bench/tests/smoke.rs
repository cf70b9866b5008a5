//! Every bench runs once on little data, and its report is complete and plausible.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::{PoisonError, RwLock};

use serde_json::Value;
use towpath_bench::weeks::{Set, hours};

/// The output of a program run with these arguments.
fn output(program: &str, arguments: &[&str]) -> Output {
    let output = Command::new(program).args(arguments).output();
    output.expect("the bench starts")
}

/// A bench's report; `None` if it was skipped here.
fn reported(program: &str, arguments: &[&str], may_lack: &[&str]) -> Option<Value> {
    let output = output(program, arguments);
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let name = Path::new(program).file_name().expect("a program's name");
    let name = name.to_string_lossy().replace('_', "-");
    assert_eq!(report["schema"], format!("towpath.v1.bench.{name}"));
    if let Some(why) = report["skipped"].as_str() {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(&format!("skipped: {why}")), "{said}");
        println!("skipped: {why}");
        return None;
    }
    check_whole(&name, &report, may_lack);
    Some(report)
}

/// Checks that no figure is missing, except those in `may_lack`. NaN is written as null too.
fn check_whole(at: &str, value: &Value, may_lack: &[&str]) {
    match value {
        Value::Null => panic!("{at} is null"),
        Value::Array(values) => {
            assert!(!values.is_empty(), "{at} is empty");
            for (index, value) in values.iter().enumerate() {
                check_whole(&format!("{at}[{index}]"), value, may_lack);
            }
        }
        Value::Object(values) => {
            for (key, value) in values {
                if !may_lack.contains(&key.as_str()) {
                    check_whole(&format!("{at}.{key}"), value, may_lack);
                }
            }
        }
        Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Benches run concurrently, except those whose ratios are checked.
static MACHINE: RwLock<()> = RwLock::new(());

fn smoked(program: &str, may_lack: &[&str]) -> Option<Value> {
    let _beside_others = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    reported(program, &["--smoke"], may_lack)
}

fn smoked_alone(program: &str) -> Option<Value> {
    let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
    reported(program, &["--smoke"], &[])
}

fn figure(value: &Value) -> f64 {
    value.as_f64().expect("a number")
}

#[test]
fn the_codec_bench_reports_every_level_on_both_corpora() {
    let report = smoked(env!("CARGO_BIN_EXE_codec"), &[]).expect("it runs anywhere");
    for (corpus, wire_per_raw_min) in [("elf", 0.05), ("random", 1.0)] {
        let corpora = report["corpora"].as_array().expect("corpora");
        let found = corpora
            .iter()
            .find(|c| c["corpus"] == corpus)
            .expect(corpus);
        let levels = found["levels"].as_array().expect("levels");
        let names: Vec<_> = levels.iter().filter_map(|l| l["level"].as_str()).collect();
        assert_eq!(
            names,
            ["raw", "lz4", "zstd-1", "zstd-3", "zstd-6", "zstd-9"]
        );
        for level in levels {
            for (field, min, max) in [
                ("wire_per_raw", wire_per_raw_min, 1.01),
                ("encode_ratio", 1e-3, 1e3),
                ("decode_ratio", 1e-3, 1e3),
                ("pool_mb_s", 0.1, 1e6),
            ] {
                let value = figure(&level[field]);
                assert!(value > min && value < max, "{corpus} {field}: {value}");
            }
        }
    }
}

#[test]
fn an_unknown_option_is_refused() {
    let output = output(env!("CARGO_BIN_EXE_codec"), &["--fast"]);
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
}

#[test]
fn a_flood_costs_little_memory_and_the_transfer_goes_on() {
    let report = smoked_alone(env!("CARGO_BIN_EXE_flood")).expect("it runs anywhere");
    let flooded = report["floods"][0]["count"].as_u64().expect("a count");
    assert!(flooded > 100, "{report}");
    // Two seconds on an unknown machine; a full run requires nine tenths.
    assert!(figure(&report["goodput_ratio"]) >= 0.5, "{report}");
    let grown = report["grown_bytes"].as_u64().expect("a size");
    assert!(grown <= 32 << 20, "{report}");
}

#[test]
fn the_footprint_bench_reports_memory() {
    let report = smoked(env!("CARGO_BIN_EXE_footprint"), &[]).expect("it runs anywhere");
    for process in report["idle"].as_array().expect("two processes") {
        let bytes = process["resident_bytes"].as_u64().expect("a number");
        assert!((1 << 20..1 << 28).contains(&bytes), "{bytes}");
    }
}

fn check_forecasts(sets: &Value, expected: &[&str], rival_count: usize) {
    let sets = sets.as_array().expect("sets");
    let names: Vec<_> = sets.iter().filter_map(|set| set["set"].as_str()).collect();
    assert_eq!(names, expected);
    for set in sets {
        for lead in set["leads"].as_array().expect("leads") {
            let ratios = lead["pinball_ratio"].as_object().expect("ratios");
            assert_eq!(ratios.len(), rival_count, "{ratios:?}");
            for (rival, ratio) in ratios {
                let ratio = figure(ratio);
                assert!(ratio > 0.01 && ratio < 100.0, "{rival}: {ratio}");
            }
            for share in ["coverage", "p10_coverage"] {
                assert!((0.0..=1.0).contains(&figure(&lead[share])));
            }
        }
    }
}

#[test]
fn the_forecast_bench_reports_every_set_lead_and_rival() {
    let report = smoked(env!("CARGO_BIN_EXE_forecast"), &[]).expect("it runs anywhere");
    let weeks = ["plain", "trend", "holidays", "level shifts", "outages"];
    check_forecasts(&report["sets"], &weeks, 6);
    let seconds = ["capacity steps", "fading", "cross traffic"];
    check_forecasts(&report["short_sets"], &seconds, 5);
}

/// A third of the full run's seeds: enough to detect a model that has become a tenth worse.
#[test]
fn forecasts_beat_every_rival_and_their_bands_hold() {
    let _beside_others = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    let program = env!("CARGO_BIN_EXE_forecast");
    let report = reported(program, &["--few"], &[]).expect("it runs anywhere");
    assert_eq!(report["seeds"].as_array().map(Vec::len), Some(16));
}

#[test]
fn the_forecast_bench_takes_a_trace() {
    let program = env!("CARGO_BIN_EXE_forecast");
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.csv");
    let arguments = ["--trace", path.to_str().expect("a plain path")];
    let row = |(hour, rate): (usize, &f64)| {
        // Every hundredth hour is missing.
        let row = format!("{},{}\n", 1_780_272_000 + hour * 3600, rate * 8.0);
        if hour % 100 == 7 { String::new() } else { row }
    };
    let rates = hours(Set::Plain, 1, 6);
    let rows: String = rates.iter().enumerate().map(row).collect();
    std::fs::write(&path, format!("timestamp,bits_per_second\n{rows}")).expect("it is written");
    let report = reported(program, &arguments, &["seeds", "short_sets"]).expect("it runs anywhere");
    check_forecasts(&report["sets"], &["trace"], 6);
    std::fs::write(&path, "no trace\nat all").expect("it is written");
    let output = output(program, &arguments);
    assert!(!output.status.success());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("line 2"), "{complaint}");
}

#[test]
fn the_forward_bench_reports_every_tunnel_or_why_not() {
    // Not every rival has a goal, and not every one is missing.
    let lacks = ["goal", "skipped", "measured"];
    let Some(report) = smoked(env!("CARGO_BIN_EXE_forward"), &lacks) else {
        return;
    };
    for cable in report["cables"].as_array().expect("cables") {
        let tunnels = cable["tunnels"].as_array().expect("tunnels");
        let skipped = cable["skipped"].as_array().expect("skipped");
        assert_eq!(tunnels.len() + skipped.len(), 7);
        assert_eq!(tunnels[0]["name"], "towpath");
        for tunnel in tunnels {
            let figure = figure(&tunnel["gbit_per_second"]);
            assert!(figure > 1e-3 && figure < 1e3, "{figure}");
        }
        for tunnel in skipped {
            println!("skipped: {}: {}", tunnel["name"], tunnel["why"]);
        }
    }
}

#[test]
fn the_handshake_bench_reports_ratios() {
    let report = smoked(env!("CARGO_BIN_EXE_handshake"), &[]).expect("it runs anywhere");
    for place in ["here", "over_5_ms"] {
        let ratio = figure(&report[place]["ratio"]);
        assert!(ratio > 0.1 && ratio < 10.0, "{place}: {ratio}");
    }
    let over_path_us = figure(&report["over_5_ms"]["classical_median_us"]);
    assert!(over_path_us > 5_000.0, "{over_path_us}");
}

#[test]
fn the_loss_bench_ends_without_errors() {
    let report = smoked(env!("CARGO_BIN_EXE_loss"), &["errors"]).expect("it runs anywhere");
    let all = report["runs"].as_array().expect("runs");
    assert!(all.iter().any(|runs| runs["controller"] == "tunnel"));
    for runs in all {
        assert_eq!(runs["errors"].as_array().map(Vec::len), Some(0), "{runs}");
    }
}

#[test]
fn the_migration_bench_reports_moves_of_every_scene() {
    let program = env!("CARGO_BIN_EXE_migration");
    if !Path::new(program).with_file_name("towpath").exists() {
        println!("skipped: moves: cargo build --workspace makes the program that they need");
        return;
    }
    // Moves over loopback fetch no pages, no link is cut, and one of the guests has no goal.
    let lacks = ["demand_p50_ms", "demand_p99_ms", "outage_ms", "goal"];
    let report = smoked(program, &lacks).expect("it runs anywhere");
    let mut busy = report["busy"].as_array().expect("moves").iter();
    let has_fetched = busy.any(|one| one["demand_p99_ms"].is_number());
    assert!(has_fetched, "{report}");
}

#[test]
fn the_queueing_bench_reports_waits() {
    // In so short a time the estimate may not have converged.
    smoked(env!("CARGO_BIN_EXE_queueing"), &["found_after_s"]);
}

#[test]
fn the_rate_bench_reports_every_cap() {
    smoked(env!("CARGO_BIN_EXE_rate"), &[]);
}

#[test]
fn the_recovery_bench_reports_both_sides() {
    smoked(env!("CARGO_BIN_EXE_recovery"), &[]).expect("it runs anywhere");
}

#[test]
fn exchanges_drop_no_stream_and_no_session_is_resumed() {
    let report = smoked(env!("CARGO_BIN_EXE_rotation"), &[]).expect("it runs anywhere");
    assert_eq!(report["ticket_count"], 0);
    let exchanges = report["exchanges"].as_array().expect("exchanges");
    let kinds: Vec<_> = exchanges
        .iter()
        .filter_map(|one| one["what"].as_str())
        .collect();
    assert_eq!(kinds, ["identity", "authority", "list"]);
}

#[test]
fn the_throughput_bench_reports_every_tunnel() {
    smoked(env!("CARGO_BIN_EXE_tunnel_throughput"), &[]).expect("it runs anywhere");
}
