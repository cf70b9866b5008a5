//! The forward bench runs, or says why it cannot, with numbers that can be right.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "a test says what it skips")]

use std::process::Command;

#[test]
fn the_forward_bench_reports_every_tunnel_or_why_not() {
    let output = Command::new(env!("CARGO_BIN_EXE_forward"))
        .arg("--smoke")
        .output()
        .expect("the bench starts");
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["schema"], "towpath.v1.bench.forward");
    if let Some(why) = report["skipped"].as_str() {
        println!("skipped: {why}");
        return;
    }
    for cable in report["cables"].as_array().expect("cables") {
        let tunnels = cable["tunnels"].as_array().expect("tunnels");
        let skipped = cable["skipped"].as_array().expect("skipped");
        assert_eq!(tunnels.len() + skipped.len(), 7);
        assert_eq!(tunnels[0]["name"], "towpath");
        for figure in tunnels.iter().map(|tunnel| &tunnel["gbit_per_second"]) {
            let figure = figure.as_f64().expect("a number");
            assert!(figure > 1e-3 && figure < 1e3, "{figure}");
        }
        for tunnel in skipped {
            println!("skipped: {}: {}", tunnel["name"], tunnel["why"]);
        }
    }
}
