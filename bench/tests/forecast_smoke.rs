//! The forecast bench runs and says what it promises, with numbers that can be right.
#![forbid(unsafe_code)]

use std::process::Command;

use serde_json::Value;
use towpath_bench::weeks::{Set, hours};

/// What the bench prints, given these arguments.
fn reported(arguments: &[&str]) -> Value {
    let mut bench = Command::new(env!("CARGO_BIN_EXE_forecast"));
    let output = bench.args(arguments).output().expect("the bench starts");
    assert!(output.status.success(), "{output:?}");
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["schema"], "towpath.v1.bench.forecast");
    report
}

fn check(sets: &Value, expected: &[&str], rival_count: usize) {
    let sets = sets.as_array().expect("sets");
    let names: Vec<_> = sets.iter().filter_map(|set| set["set"].as_str()).collect();
    assert_eq!(names, expected);
    for set in sets {
        for lead in set["leads"].as_array().expect("leads") {
            let ratios = lead["pinball_ratio"].as_object().expect("ratios");
            assert_eq!(ratios.len(), rival_count, "{ratios:?}");
            for (rival, ratio) in ratios {
                let ratio = ratio.as_f64().expect("a number");
                assert!(ratio > 0.01 && ratio < 100.0, "{rival}: {ratio}");
            }
            for share in ["coverage", "p10_coverage"] {
                let share = lead[share].as_f64().expect("a number");
                assert!((0.0..=1.0).contains(&share));
            }
        }
    }
}

#[test]
fn the_forecast_bench_reports_every_set_lead_and_rival() {
    let report = reported(&["--smoke"]);
    let weeks = ["plain", "trend", "holidays", "level shifts", "outages"];
    check(&report["sets"], &weeks, 6);
    let seconds = ["capacity steps", "fading", "cross traffic"];
    check(&report["short_sets"], &seconds, 5);
}

#[test]
fn the_forecast_bench_takes_a_trace() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("trace.csv");
    let row = |(hour, rate): (usize, &f64)| {
        // Every hundredth hour is missing.
        let row = format!("{},{}\n", 1_780_272_000 + hour * 3600, rate * 8.0);
        if hour % 100 == 7 { String::new() } else { row }
    };
    let rates = hours(Set::Plain, 1, 6);
    let rows: String = rates.iter().enumerate().map(row).collect();
    std::fs::write(&path, format!("timestamp,bits_per_second\n{rows}")).expect("it is written");
    let report = reported(&["--trace", path.to_str().expect("a plain path")]);
    check(&report["sets"], &["trace"], 6);
    std::fs::write(&path, "no trace\nat all").expect("it is written");
    let mut bench = Command::new(env!("CARGO_BIN_EXE_forecast"));
    let output = bench.arg("--trace").arg(&path).output();
    let output = output.expect("the bench starts");
    assert!(!output.status.success());
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.contains("line 2"), "{complaint}");
}
