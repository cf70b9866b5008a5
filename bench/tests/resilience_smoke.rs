//! The benches of floods and of exchanged certificates run, and what they promise holds but for timings.
#![forbid(unsafe_code)]

use std::process::Command;

fn report_of(bench: &str) -> serde_json::Value {
    let output = Command::new(bench).arg("--smoke").output();
    let output = output.expect("the bench starts");
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

#[test]
fn a_flood_costs_little_memory_and_the_transfer_goes_on() {
    let report = report_of(env!("CARGO_BIN_EXE_flood"));
    assert_eq!(report["schema"], "towpath.v1.bench.flood");
    let flooded = report["floods"][0]["count"].as_u64().expect("a count");
    assert!(flooded > 100, "{report}");
    assert!(report["goodput_ratio"].as_f64().expect("a ratio") > 0.0);
    let grown = report["grown_bytes"].as_u64().expect("a size");
    assert!(grown <= 32 << 20, "{report}");
}

#[test]
fn exchanges_drop_no_stream_and_no_session_is_resumed() {
    let report = report_of(env!("CARGO_BIN_EXE_rotation"));
    assert_eq!(report["schema"], "towpath.v1.bench.rotation");
    assert_eq!(report["streams_dropped"], 0);
    assert_eq!(report["was_resumed"], false);
    let exchanges = report["exchanges"].as_array().expect("exchanges");
    let kinds: Vec<_> = exchanges
        .iter()
        .filter_map(|one| one["what"].as_str())
        .collect();
    assert_eq!(kinds, ["identity", "authority", "list"]);
}
