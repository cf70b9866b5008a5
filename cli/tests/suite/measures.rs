//! The operator's commands that measure and forecast a link, against two linked tunnels.

use serde_json::Value;

use crate::linked::{Pair, Tunnel, field, line, now_unix, wait_until};
use crate::tunnels::OPEN;

pub(crate) const FORECAST: [&str; 2] = ["forecast", "region"];

pub(crate) const BENCH: [&str; 4] = ["tunnel", "bench", "region", "--time=1s"];

#[test]
fn forecasts_are_for_the_moments_and_bytes_that_are_asked_for() {
    let pair = Pair::start();
    let edge = &pair.edge;
    wait_until("the history is not read", || {
        edge.run(&FORECAST).status == 0
    });
    let table = edge.table(&FORECAST);
    assert_eq!(
        table
            .lines()
            .filter(|line| line.contains("unknown"))
            .count(),
        7,
        "{table}"
    );
    assert_eq!(field(&table, "hours known"), "0");
    let document = edge.document(&FORECAST, "forecast");
    let horizons = document["forecasts"].as_array().unwrap().iter();
    let horizons: Vec<_> = horizons
        .map(|one| one["horizon"].as_str().unwrap())
        .collect();
    assert_eq!(horizons, ["1s", "10s", "1m", "1h", "6h", "24h", "7d"]);
    assert_eq!(
        (&document["direction"], &document["bytes"]),
        (&"send".into(), &Value::Null)
    );

    let before = now_unix();
    let more = ["--at=+6h", "--bytes=1GiB", "--direction=receive"];
    let document = edge.document(&line(&FORECAST, &more), "forecast");
    assert_eq!(document["direction"], "receive");
    assert_eq!(document["bytes"], 1_u64 << 30);
    let forecasts = document["forecasts"].as_array().unwrap();
    assert_eq!(forecasts.len(), 1);
    let at = forecasts[0]["at_unix_seconds"].as_u64().unwrap();
    assert!(
        (before + 21_600..before + 21_600 + 60).contains(&at),
        "{at}"
    );
    let table = edge.table(&line(&FORECAST, &more));
    assert!(table.contains("through, p50  not known yet"), "{table}");

    // The forecast is made under the cap that is set.
    edge.table(&["tunnel", "shape", "region", "--send-rate=30Mbit"]);
    let document = edge.document(&line(&FORECAST, &["--at=+1h"]), "forecast");
    assert_eq!(document["forecasts"][0]["cap_bits_per_second"], 30_000_000);

    edge.refuses(&["forecast", "branch"], (1, "E_NOT_FOUND"), "is no peer");
    edge.refuses(&line(&FORECAST, &["--at=+8d"]), (2, "E_USAGE"), "");
}

#[test]
fn a_way_is_probed_within_its_budget() {
    let pair = Pair::start();
    let probe = ["tunnel", "probe", "region", "--bytes=256KiB", "--time=5s"];
    let view = pair.edge.document(&probe, "tunnel-probe");
    assert_eq!(
        (&view["peer"], &view["budget_bytes"]),
        (&"region".into(), &262_144.into())
    );
    assert_eq!(view["bytes"], 262_144, "{view}");
    assert!(view["bits_per_second"].as_u64().unwrap() > 0, "{view}");
    let table = pair.edge.table(&probe);
    assert!(field(&table, "carries").ends_with("too small to fill the path"));
    assert_eq!(field(&table, "sent"), "256 KiB of 256 KiB");
    let nobody = ["tunnel", "probe", "branch"];
    pair.edge
        .refuses(&nobody, (1, "E_NOT_FOUND"), "branch is no peer");
    let little = ["tunnel", "probe", "region", "--bytes=1KiB"];
    pair.edge.refuses(&little, (2, "E_USAGE"), "bytes is 1024");
    // The edge offers no bench service.
    pair.region
        .refuses(&["tunnel", "probe", "edge"], (1, "E_DENIED"), "bench");
}

/// Benches the link twice, and checks the processor time reported for each tunnel. The second run
/// must not count what the first one used.
fn bench_twice(pair: &Pair) -> Value {
    let mut told = Value::Null;
    for _ in 0..2 {
        let used = || [&pair.edge, &pair.region].map(Tunnel::cpu_seconds);
        let before = used();
        told = pair.edge.document(&BENCH, "tunnel-bench");
        let (after, gib) = (used(), told["bytes"].as_f64().unwrap() / f64::from(1 << 30));
        for (at, side) in ["near", "far"].into_iter().enumerate() {
            let used = after[at] - before[at];
            let cost = told["cpu_seconds_per_gib"][side].as_f64().unwrap() * gib;
            // Most of the time used is that of the load, and the kernel counts in steps of 10 ms.
            let is_sane = cost > 0.0 && (used / 2.0 - 0.05..=used + 0.05).contains(&cost);
            assert!(is_sane, "{side}: {cost} s of {used} s");
        }
    }
    told
}

#[test]
fn a_link_is_benched_either_way_in_a_class_and_side_by_side() {
    let pair = Pair::start();
    let told = bench_twice(&pair);
    assert!(told["loss_ratio"].is_number(), "{told}");
    assert_eq!(
        (&told["class"], &told["reverse"]),
        (&"bulk".into(), &false.into())
    );
    let more = ["--class=app", "--reverse", "--parallel=2"];
    let other = pair.edge.document(&line(&BENCH, &more), "tunnel-bench");
    assert_eq!(
        (&other["class"], &other["reverse"]),
        (&"app".into(), &true.into())
    );
    assert_eq!(other["parallel"], 2);
    for outcome in [&told, &other] {
        for figure in ["bytes", "time_ms", "goodput_bytes_per_second"] {
            assert!(outcome[figure].as_u64().unwrap() > 0, "{outcome}");
        }
        assert_eq!(outcome["idle_ping"]["count"], 20);
        assert!(outcome["loaded_ping"]["count"].as_u64().unwrap() > 0);
        assert!(outcome["cpu_seconds_per_gib"]["far"].as_f64().unwrap() > 0.0);
    }
    // The missing argument is named once.
    let ran = pair.edge.run(&["tunnel", "bench"]);
    ran.failed(2, "E_USAGE");
    assert_eq!(ran.stderr.matches("<PEER>").count(), 1, "{ran:?}");
    let nowhere = ["tunnel", "bench", "branch"];
    let ran = pair.edge.run(&nowhere);
    ran.failed(1, "E_NOT_FOUND");
    assert!(ran.stderr.contains("its peers: region"), "{ran:?}");
    let nobody = ["tunnel", "bench", "branch"];
    pair.edge.refuses(&nobody, (1, "E_NOT_FOUND"), "branch");
    pair.region
        .refuses(&["tunnel", "bench", "edge"], (1, "E_DENIED"), "bench");
}

#[test]
fn who_fills_a_link_or_a_class_that_has_a_cap_is_told_so_before() {
    let pair = Pair::start();
    // A bench on a capped link tells of the cap beside the result.
    pair.edge
        .table(&["tunnel", "shape", "region", "--send-rate=20Mbit"]);
    let ran = pair.edge.run(&BENCH);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stderr.contains("capped at 20.0 Mbit/s"), "{ran:?}");
    assert_eq!(field(&ran.stdout, "load"), "bulk to region, 1 side by side");
    assert_eq!(field(&ran.stdout, "cap"), "20.0 Mbit/s");
    // So does one with JSON, and one with `--reverse`, which tells of the peer's cap.
    let told = |more: &[&str]| {
        let begin = ["tunnel", "bench", "region", "--output=json"];
        let ran = pair.edge.run(&line(&begin, more));
        assert_eq!(ran.status, 0, "{ran:?}");
        let told: Value = serde_json::from_str(&ran.stdout).unwrap();
        (told, ran.stderr)
    };
    let (outcome, noted) = told(&["--time=1s"]);
    assert_eq!(outcome["cap_bytes_per_second"], 2_500_000);
    assert!(noted.contains("capped at 20.0 Mbit/s"), "{noted}");
    pair.region
        .table(&["tunnel", "shape", "edge", "--send-rate=8Mbit"]);
    let (outcome, noted) = told(&["--time=1s", "--reverse"]);
    assert_eq!(outcome["cap_bytes_per_second"], 1_000_000);
    assert!(noted.contains("from region is capped at 8.0"), "{noted}");
    assert!(outcome["loss_ratio"].as_f64().is_some(), "{outcome}");
    // A class may have a lower cap than its link.
    let shape = ["tunnel", "shape", "region", "--class=bulk", "--cap=4Mbit"];
    pair.edge.table(&shape);
    let (outcome, noted) = told(&["--time=1s"]);
    assert_eq!(outcome["cap_bytes_per_second"], 500_000);
    assert_eq!(outcome["cap_of"], "class");
    assert!(
        noted.contains("class bulk to region is capped at 4.0"),
        "{noted}"
    );
    let (outcome, _) = told(&["--time=1s", "--class=app"]);
    assert_eq!(
        (&outcome["cap_bytes_per_second"], &outcome["cap_of"]),
        (&2_500_000.into(), &"link".into())
    );
    // The classes of the peer have caps of their own.
    let shape = ["tunnel", "shape", "edge", "--class=bulk", "--cap=2Mbit"];
    pair.region.table(&shape);
    let (outcome, noted) = told(&["--time=1s", "--reverse"]);
    assert_eq!(
        (&outcome["cap_bytes_per_second"], &outcome["cap_of"]),
        (&250_000.into(), &"class".into())
    );
    assert!(
        noted.contains("class bulk from region is capped at 2.0"),
        "{noted}"
    );
    // The cap is told before the link is filled, so that the operator can still end the bench.
    if let Some(shown) = pair.edge.screen(&BENCH, 100) {
        let at = |what: &str| {
            shown
                .find(what)
                .unwrap_or_else(|| panic!("{what}: {shown:?}"))
        };
        assert!(
            at("is capped at 4.0") < at("bench to region: 1 s left"),
            "{shown:?}"
        );
        assert!(
            at("4.0 Mbit/s, of the class bulk") > at(" so far"),
            "{shown:?}"
        );
    }
    // On a thin link, queued data does not make the bench run much longer than asked for.
    pair.edge
        .table(&["tunnel", "shape", "region", "--send-rate=1Mbit"]);
    let (outcome, _) = told(&["--time=2s"]);
    let time_ms = outcome["time_ms"].as_u64().unwrap();
    assert!((500..4500).contains(&time_ms), "{outcome}");
}

#[test]
fn measurements_show_on_a_terminal_how_far_they_are_and_tables_fit_it() {
    let pair = Pair::start();
    let probe = ["tunnel", "probe", "region", "--bytes=1GiB", "--time=1s"];
    let mut opened = OPEN;
    opened[2] = "a-channel-of-a-long-name";
    pair.edge.table(&opened);
    for (words, what) in [
        (&BENCH[..], "bench to region: 1 s left, "),
        (
            &line(&BENCH, &["--reverse"]),
            "bench from region: 1 s left, ",
        ),
        (&probe, "probe to region: 1 s left, "),
    ] {
        let Some(shown) = pair.edge.screen(words, 100) else {
            return;
        };
        assert!(shown.contains(what), "{words:?}: {shown:?}");
        assert!(shown.contains(" so far"), "{words:?}: {shown:?}");
        // The progress line is erased before the result is printed.
        let erased = shown.rfind("\x1b[2K").expect("a line was drawn");
        assert!(!shown[erased..].contains(" so far"), "{words:?}: {shown:?}");
        let ran = pair.edge.run(words);
        assert!(!ran.stderr.contains("left"), "{ran:?}");
    }
    for words in [&["status"][..], &["channel", "ls"], &FORECAST] {
        let shown = pair.edge.screen(words, 80).expect("there was one before");
        let columns = shown.lines().find(|line| line.starts_with("PEER"));
        let table = if words == ["status"] {
            let from = shown.find("PEER").expect("a table of links");
            // A remedy below the table, where a busy machine loses packets, is no part of it.
            let lines = shown[from..].lines().take(3);
            lines.filter(|line| !line.starts_with("region: ")).collect()
        } else {
            shown.lines().collect::<Vec<_>>()
        };
        let widest = table.iter().map(|line| line.chars().count()).max();
        assert!(
            widest.is_some_and(|widest| widest <= 80),
            "{columns:?} {shown}"
        );
    }
}
