//! What operators watch with: every query is answered by running daemons, every alert does what it says.
#![allow(clippy::print_stdout, reason = "a test says what it skipped")]
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use towpath_protocol::channel::Class;
use towpath_tests::lab::Lab;
use towpath_tests::scene::LINK;
use towpath_tests::site::Place;
use towpath_tunnel::channels::ChannelSpec;

/// What all names of ours begin with.
const PREFIX: &str = "towpath_";

/// What Prometheus puts behind a histogram's name.
const HISTOGRAM_PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];

fn folder() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the repository").join("monitoring")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// All names of ours in a text.
fn names(text: &str) -> BTreeSet<&str> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let words = text.split(|c| !is_of_name(c));
    let ours = words.filter(|word| word.starts_with(PREFIX));
    ours.map(|name| {
        let part = HISTOGRAM_PARTS
            .iter()
            .find_map(|part| name.strip_suffix(part));
        part.unwrap_or(name)
    })
    .collect()
}

/// Metrics that are left out of a scrape while there is nothing to say; the page of metrics says so.
fn sometimes_absent(page: &str) -> BTreeSet<&str> {
    let rows = page.lines().filter(|line| line.contains("absent"));
    rows.flat_map(names).collect()
}

#[test]
fn every_query_and_rule_names_metrics_that_running_daemons_have() {
    let lab = Lab::start(LINK);
    let channel = ChannelSpec::new(
        "till".parse().expect("a name"),
        "tcp:127.0.0.1:0".parse().expect("an endpoint"),
        (Place::Region.name(), "till".parse().expect("a name")),
        Class::App,
    );
    let opened = lab.site(Place::Edge).open_channel(&channel);
    opened.expect("a channel of the edge");
    let scraped = lab
        .site(Place::Edge)
        .metrics()
        .expect("both daemons answer");
    for text in &scraped {
        passes(&["check", "metrics"], text);
    }
    let live: BTreeSet<_> = scraped.iter().flat_map(|text| names(text)).collect();
    let page = include_str!("../../docs/metrics.md");
    let absent = sometimes_absent(page);
    let mut missing = Vec::new();
    for file in ["alerts.yml", "alerts.test.yml", "grafana-dashboard.json"] {
        let text = read(file);
        let asked = names(&text);
        assert!(asked.len() > 5, "{file} asks for {asked:?}");
        for name in asked {
            if !live.contains(name) && !absent.contains(name) {
                missing.push(format!("{file}: no daemon has {name}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    let shown = read("grafana-dashboard.json");
    let shown = names(&shown);
    let unseen: Vec<_> = live.iter().filter(|name| !shown.contains(*name)).collect();
    println!("not on the dashboard: {unseen:?}");
}

#[test]
fn every_alert_has_a_reader_a_remedy_and_a_test() {
    let (rules, tests) = (read("alerts.yml"), read("alerts.test.yml"));
    let page = include_str!("../../docs/metrics.md");
    let alerts: Vec<_> = rules.split("- alert: ").skip(1).collect();
    assert!(alerts.len() >= 12, "{}", alerts.len());
    for alert in alerts {
        let name = alert.lines().next().expect("a name");
        for part in ["severity: ", "summary: ", "runbook: "] {
            assert!(alert.contains(part), "{name} has no {part}");
        }
        assert!(tests.contains(name), "{name} has no test");
        assert!(
            page.contains(&format!("| `{name}` |")),
            "{name} is not on the page of metrics"
        );
    }
}

#[test]
fn the_dashboard_asks_each_panel_something() {
    let text = read("grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let (title, targets) = (&panel["title"], &panel["targets"]);
        let targets = targets.as_array().expect("targets");
        assert!(!targets.is_empty(), "{title}");
        for target in targets {
            let expr = target["expr"].as_str().expect("a query");
            assert!(!names(expr).is_empty(), "{title}: {expr}");
            let opened = expr.matches(['(', '{', '[']).count();
            let closed = expr.matches([')', '}', ']']).count();
            assert_eq!(opened, closed, "{title}: {expr}");
        }
    }
}

/// Runs Prometheus' own checker beside the alerts; `None`, and said, where it is not installed.
fn promtool(words: &[&str], input: &str) -> Option<Output> {
    let program = std::env::var_os("TOWPATH_PROMTOOL").unwrap_or_else(|| "promtool".into());
    let child = Command::new(&program)
        .args(words)
        .current_dir(folder())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        println!("skipped: promtool is not here (Debian's package prometheus has it)");
        return None;
    };
    let mut stdin = child.stdin.take().expect("it was asked for");
    // Who does not read what it is given says why when it ends.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    Some(child.wait_with_output().expect("it ends"))
}

fn passes(words: &[&str], input: &str) {
    let Some(ran) = promtool(words, input) else {
        return;
    };
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ran.status.success(), "{words:?}: {said}");
}

#[test]
fn alerts_do_what_they_say() {
    passes(&["check", "rules", "alerts.yml"], "");
    passes(&["test", "rules", "alerts.test.yml"], "");
}

#[test]
fn prometheus_understands_every_query_of_the_dashboard() {
    let text = read("grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let queries = targets
        .flatten()
        .filter_map(|target| target["expr"].as_str());
    // Names of results are all that a rule adds to a query; JSON is YAML.
    let rules: Vec<_> = queries
        .enumerate()
        .map(|(index, query)| serde_json::json!({ "record": format!("panel:{index}"), "expr": query }))
        .collect();
    assert!(rules.len() > 20, "{}", rules.len());
    let rules = serde_json::json!({ "groups": [{ "name": "dashboard", "rules": rules }] });
    let scratch = tempfile::tempdir().expect("a folder");
    let file = scratch.path().join("rules.json");
    std::fs::write(&file, rules.to_string()).expect("a file of rules");
    passes(
        &["check", "rules", file.to_str().expect("a name in UTF-8")],
        "",
    );
}
