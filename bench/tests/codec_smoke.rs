//! The codec bench runs and says what it promises, with numbers that can be right.
#![forbid(unsafe_code)]

use std::process::Command;

#[test]
fn the_codec_bench_reports_every_level_on_both_corpora() {
    let output = Command::new(env!("CARGO_BIN_EXE_codec"))
        .arg("--smoke")
        .output()
        .expect("the bench starts");
    assert!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["schema"], "towpath.v1.bench.codec");
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
                let value = level[field].as_f64().expect(field);
                assert!(value > min && value < max, "{corpus} {field}: {value}");
            }
        }
    }
}

#[test]
fn an_unknown_option_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_codec"))
        .arg("--fast")
        .output();
    let output = output.expect("the bench starts");
    assert!(!output.status.success());
    assert!(output.stdout.is_empty());
}
