//! The forecast bench runs and says what it promises, with numbers that can be right.
#![forbid(unsafe_code)]

use std::process::Command;

#[test]
fn the_forecast_bench_reports_every_set_lead_and_rival() {
    let output = Command::new(env!("CARGO_BIN_EXE_forecast"))
        .arg("--smoke")
        .output()
        .expect("the bench starts");
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["schema"], "towpath.v1.bench.forecast");
    let sets = report["sets"].as_array().expect("sets");
    let names: Vec<_> = sets.iter().filter_map(|set| set["set"].as_str()).collect();
    let expected = ["plain", "trend", "holidays", "level shifts", "outages"];
    assert_eq!(names, expected);
    for set in sets {
        for lead in set["leads"].as_array().expect("leads") {
            let ratios = lead["pinball_ratio"].as_object().expect("ratios");
            assert_eq!(ratios.len(), 6, "{ratios:?}");
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
