//! The monitoring files: running daemons answer every query, and every alert does what it says.
#![allow(clippy::print_stdout, reason = "a test says what it skipped")]
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tokio::runtime::Builder;
use towpath_daemon::client::Client;
use towpath_migrator::api::MigrationMode;
use towpath_protocol::class::Class;
use towpath_tests::lab::{Guest, Lab};
use towpath_tests::scene::LINK;
use towpath_tests::site::Place;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::shares::Shaping;

/// The prefix of all our metric names.
const PREFIX: &str = "towpath_";

/// The suffixes that Prometheus adds to a histogram's name.
const HISTOGRAM_PARTS: [&str; 3] = ["_bucket", "_sum", "_count"];

fn folder() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the repository").join("monitoring")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(folder().join(name)).unwrap_or_else(|why| panic!("{name}: {why}"))
}

/// All of our metric names in a text.
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

/// Metrics that may be missing from a scrape even with a link, according to the page of metrics.
fn sometimes_absent(page: &str) -> BTreeSet<&str> {
    let is_so = |line: &&str| line.replace("absent without a link", "").contains("absent");
    page.lines().filter(is_so).flat_map(names).collect()
}

/// Interval between checks of a condition.
const LOOK_PAUSE: Duration = Duration::from_millis(200);

/// A cap so far below the link's rate that a small guest keeps the link at its cap for as long as a
/// forecast takes.
const CAP: &str = "20Mbit";

/// How long a forecast may take, on a busy machine.
const FORECAST_WAIT: Duration = Duration::from_secs(240);

/// Labels that Prometheus adds, including that of a histogram's buckets.
const OUTER_LABELS: [&str; 3] = ["instance", "job", "le"];

/// Labels with a fixed set of values: a query may only ask for a value that a daemon uses.
const FIXED_LABELS: [&str; 10] = [
    "class",
    "dir",
    "direction",
    "horizon",
    "leg",
    "outcome",
    "percentile",
    "result",
    "role",
    "state",
];

/// The labels of each metric, with the values seen for each.
#[derive(Default)]
struct Known(BTreeMap<String, BTreeMap<String, BTreeSet<String>>>);

impl Known {
    /// The labels in scrapes of running daemons.
    fn of(scraped: &[String]) -> Self {
        let mut known = Self::default();
        let lines = scraped.iter().flat_map(|text| text.lines());
        for line in lines.filter(|line| line.starts_with(PREFIX)) {
            for (name, matchers) in selectors(line) {
                let labels = known.0.entry(name.to_owned()).or_default();
                for (label, _, value) in matchers {
                    if !OUTER_LABELS.contains(&label) {
                        let values = labels.entry(label.to_owned()).or_default();
                        values.insert(value.to_owned());
                    }
                }
            }
        }
        known
    }

    /// Adds the metrics of the page that are not in the scrapes.
    fn with_page(mut self, page: &str) -> Self {
        for (name, labels) in rows(page) {
            self.0.entry(name.to_owned()).or_insert_with(|| {
                let labels = labels.into_iter();
                labels
                    .map(|label| (label.to_owned(), BTreeSet::new()))
                    .collect()
            });
        }
        self
    }

    fn has(&self, name: &str, label: &str) -> bool {
        let labels = self.0.get(name);
        OUTER_LABELS.contains(&label) || labels.is_some_and(|labels| labels.contains_key(label))
    }

    /// Whether a label of a metric takes a value; if no value of the label was seen for this
    /// metric, whether it takes it in any metric.
    fn takes(&self, name: &str, label: &str, value: &str) -> bool {
        let seen = |labels: &BTreeMap<String, BTreeSet<String>>| {
            labels
                .get(label)
                .is_some_and(|values| values.contains(value))
        };
        match self.0.get(name).and_then(|labels| labels.get(label)) {
            Some(values) if !values.is_empty() => values.contains(value),
            _ => self.0.values().any(seen),
        }
    }

    /// Errors in the selectors of a text, and in the labels that it groups by or displays.
    fn faults(&self, text: &str) -> Vec<String> {
        let mut faults = Vec::new();
        for (name, matchers) in selectors(text) {
            for (label, is_equal, value) in matchers {
                if !self.has(name, label) {
                    faults.push(format!("{name} has no label {label}"));
                } else if is_equal
                    && FIXED_LABELS.contains(&label)
                    && !self.takes(name, label, value)
                {
                    faults.push(format!("{name} never has {label}={value:?}"));
                }
            }
        }
        let asked = names(text);
        for label in shown_labels(text) {
            if !asked.is_empty() && !asked.iter().any(|name| self.has(name, label)) {
                faults.push(format!("none of {asked:?} has a label {label}"));
            }
        }
        faults
    }
}

/// A condition on a label: its name, whether it must be equal, and the value.
type Matcher<'a> = (&'a str, bool, &'a str);

/// Our metrics in a text, with the conditions in braces after each.
fn selectors(text: &str) -> Vec<(&str, Vec<Matcher<'_>>)> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let mut found = Vec::new();
    for (at, _) in text.match_indices(PREFIX) {
        let rest = &text[at..];
        let end = rest.find(|c| !is_of_name(c)).unwrap_or(rest.len());
        let (name, behind) = rest.split_at(end);
        let inner = behind
            .strip_prefix('{')
            .and_then(|behind| behind.split_once('}'));
        let matchers = inner
            .map_or("", |(inner, _)| inner)
            .split(',')
            .filter_map(|one| {
                let (label, value) = one.split_once(['=', '!'])?;
                let is_equal = value.starts_with('"') && one.contains('=') && !one.contains('!');
                Some((
                    label.trim(),
                    is_equal,
                    value.trim_start_matches(['=', '~']).trim_matches('"'),
                ))
            });
        let name = names(name).into_iter().next();
        found.extend(name.map(|name| (name, matchers.collect())));
    }
    found
}

/// The labels that a query groups by, and those that a text displays.
fn shown_labels(text: &str) -> BTreeSet<&str> {
    let groups = text.split("by (").skip(1);
    let groups = groups.filter_map(|rest| rest.split_once(')'));
    let of_groups = groups.flat_map(|(inner, _)| inner.split(','));
    let words = text.split("{{").skip(1);
    let words = words.filter_map(|rest| rest.split_once("}}"));
    let of_words = words.filter_map(|(inner, _)| {
        let word = inner.trim();
        let word = word.strip_prefix("$labels.").unwrap_or(word);
        (!word.starts_with('$')).then_some(word)
    });
    let all = of_groups.chain(of_words).map(str::trim);
    all.filter(|label| !label.is_empty()).collect()
}

/// The metrics of the page, with their labels.
fn rows(page: &str) -> Vec<(&str, BTreeSet<&str>)> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    rows.filter(|row| row.starts_with(PREFIX))
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(str::trim).collect();
            let labels = cells[2].split(',').map(str::trim);
            let name = cells[0].trim_end_matches('`');
            (name, labels.filter(|label| !label.is_empty()).collect())
        })
        .collect()
}

/// Sets the cap of a site's link at run time.
fn set_cap(site: &Path) {
    let admin = Client::new(site.join("run/admin.sock"));
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let way = format!("/v1/shaping/{}", Place::Region.as_str());
    let shaped = runtime.block_on(async {
        let mut shaping: Shaping = admin.get(&way).await?;
        shaping.send_rate = Some(CAP.parse().expect("a rate"));
        admin.post::<_, Shaping>(&way, &shaping).await
    });
    shaped.expect("a cap");
}

/// Scrapes of a lab in which as many metrics as possible appear within a minute: it has a channel,
/// caps, a move, and a forecast of the link that the move fills.
fn scrape() -> [String; 2] {
    let lab = Lab::start(LINK);
    let edge = lab.site(Place::Edge);
    let channel = ChannelSpec::new(
        "till".parse().expect("a name"),
        "tcp:127.0.0.1:0".parse().expect("an endpoint"),
        (Place::Region.name(), "till".parse().expect("a name")),
        Class::App,
    );
    let opened = edge.open_channel(&channel);
    opened.expect("a channel of the edge");
    set_cap(edge.folder());
    let guest = Guest::new("cargo", 64);
    lab.start_guest(Place::Edge, &guest);
    let request = Lab::request(&guest, Place::Edge, MigrationMode::Auto);
    edge.migrate(&request).expect("a move begins");
    let deadline = Instant::now() + FORECAST_WAIT;
    loop {
        let scraped = edge.metrics().expect("both daemons answer");
        let has_day = |line: &str| {
            line.starts_with("towpath_tunnel_predicted_bytes_per_second{")
                && line.contains("horizon=\"24h\"")
        };
        if scraped[0].lines().any(has_day) {
            return scraped;
        }
        assert!(Instant::now() < deadline, "no forecast: {}", scraped[0]);
        std::thread::sleep(LOOK_PAUSE);
    }
}

#[test]
fn every_query_and_rule_asks_for_what_running_daemons_have() {
    let scraped = scrape();
    for text in &scraped {
        passes(&["check", "metrics"], text);
    }
    let live: BTreeSet<_> = scraped.iter().flat_map(|text| names(text)).collect();
    let page = include_str!("../../docs/metrics.md");
    let absent = sometimes_absent(page);
    let known = Known::of(&scraped);
    let mut faults = Vec::new();
    for (name, labels) in rows(page) {
        let said = known.0.get(name);
        let said = said.map(|said| said.keys().map(String::as_str).collect::<BTreeSet<_>>());
        // The labels of a histogram's parts, and of finished moves, appear with the first value.
        if let Some(said) = said.filter(|said| !said.is_empty() && *said != labels) {
            faults.push(format!("{name} has {said:?}, and on the page {labels:?}"));
        }
    }
    let known = known.with_page(page);
    for file in ["alerts.yml", "alerts.test.yml", "grafana-dashboard.json"] {
        let text = read(file);
        let asked = names(&text);
        assert!(asked.len() > 5, "{file} asks for {asked:?}");
        for name in asked {
            if !live.contains(name) && !absent.contains(name) {
                faults.push(format!("{file}: no daemon has {name}"));
            }
        }
    }
    let (rules, tests) = (read("alerts.yml"), read("alerts.test.yml"));
    let parts = rules.split("- alert: ").chain(tests.lines());
    faults.extend(parts.flat_map(|part| known.faults(part)));
    for target in targets() {
        let legend = target["legendFormat"].as_str().unwrap_or_default();
        let query = target["expr"].as_str().expect("a query");
        faults.extend(known.faults(&format!("{query} {legend}")));
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    let shown = read("grafana-dashboard.json");
    let shown = names(&shown);
    let unseen: Vec<_> = live.iter().filter(|name| !shown.contains(*name)).collect();
    println!("not on the dashboard: {unseen:?}");
}

#[test]
fn a_query_for_what_no_daemon_has_is_found() {
    let scraped = [
        "towpath_moves_total{role=\"source\",outcome=\"done\"} 1\ntowpath_up{peer=\"region\"} 1\n"
            .to_owned(),
    ];
    let known =
        Known::of(&scraped).with_page("| `towpath_error` | gauge | horizon | x; absent |\n");
    for right in [
        "towpath_moves_total{role=\"source\", instance=~\"$instance\"} > 3",
        "sum by (instance, outcome) (rate(towpath_moves_total[1h])) {{ $labels.outcome }}",
        "towpath_up{peer=\"elsewhere\"} {{peer}} {{ $value }}",
        "towpath_error{horizon!=\"done\"} up{any=\"thing\"}",
    ] {
        assert_eq!(known.faults(right), Vec::<String>::new(), "{right}");
    }
    for wrong in [
        "towpath_moves_total{role=\"sauce\"}",
        "towpath_moves_total{peer=\"region\"}",
        "sum by (peer) (towpath_moves_total)",
        "towpath_up {{quantile}}",
        "towpath_error{horizon=\"24h\"}",
    ] {
        assert_eq!(known.faults(wrong).len(), 1, "{wrong}");
    }
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
        let description = panel["description"].as_str().unwrap_or_default();
        assert!(!description.is_empty(), "{title} has no description");
        for target in targets {
            let expr = target["expr"].as_str().expect("a query");
            assert!(!names(expr).is_empty(), "{title}: {expr}");
            let opened = expr.matches(['(', '{', '[']).count();
            let closed = expr.matches([')', '}', ']']).count();
            assert_eq!(opened, closed, "{title}: {expr}");
        }
    }
}

/// Every query of the dashboard, with its legend.
fn targets() -> Vec<serde_json::Value> {
    let text = read("grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(&text).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    targets.flatten().cloned().collect()
}

/// Runs Prometheus' own checker; prints that it is skipped and returns `None` if it is not
/// installed.
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
    // If it does not read its input, its exit status shows why.
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
    let targets = targets();
    let queries = targets.iter().filter_map(|target| target["expr"].as_str());
    // A rule needs only a name in addition to a query; JSON is valid YAML.
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
