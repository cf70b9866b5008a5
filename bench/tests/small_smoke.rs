//! The small benches of the tunnel run and say what they promise, with numbers that can be right.
#![forbid(unsafe_code)]

use std::process::Command;

fn report(program: &str, schema: &str) -> serde_json::Value {
    let output = Command::new(program).arg("--smoke").output();
    let output = output.expect("the bench starts");
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["schema"], schema);
    report
}

#[test]
fn the_handshake_bench_reports_a_ratio() {
    let report = report(
        env!("CARGO_BIN_EXE_handshake"),
        "towpath.v1.bench.handshake",
    );
    let ratio = report["ratio"].as_f64().expect("a number");
    assert!(ratio > 0.1 && ratio < 10.0, "{ratio}");
}

#[test]
fn the_footprint_bench_reports_memory() {
    let report = report(
        env!("CARGO_BIN_EXE_footprint"),
        "towpath.v1.bench.footprint",
    );
    for process in report["idle"].as_array().expect("two processes") {
        let bytes = process["resident_bytes"].as_u64().expect("a number");
        assert!((1 << 20..1 << 28).contains(&bytes), "{bytes}");
    }
}
