//! Which of our crates may depend on which.
//!
//! The daemons are separate processes that communicate over Unix sockets, so they never depend on
//! each other's code; only the command line depends on all of them.

use toml::Table;

use crate::house::{File, files, no_complaints, read};
use crate::scan::code_of;

/// A crate, the crates of ours that it depends on, and those that only its tests may use.
struct Rule {
    name: &'static str,
    built_from: &'static [&'static str],
    /// Each with its reason in the table below.
    tested_with: &'static [&'static str],
}

const RULES: [Rule; 10] = [
    Rule {
        name: "protocol",
        built_from: &[],
        tested_with: &[],
    },
    Rule {
        name: "forecast",
        built_from: &["protocol"],
        tested_with: &[],
    },
    Rule {
        name: "daemon",
        built_from: &["protocol"],
        tested_with: &[],
    },
    Rule {
        name: "certs",
        built_from: &["protocol"],
        tested_with: &[],
    },
    Rule {
        name: "tunnel",
        built_from: &["certs", "daemon", "forecast", "protocol"],
        // The relay emulates the network.
        tested_with: &["bench"],
    },
    Rule {
        name: "guest",
        built_from: &["protocol"],
        // Its real client: the code that drives guest processes in production drives them in tests.
        tested_with: &["migrator"],
    },
    Rule {
        name: "migrator",
        built_from: &["daemon", "protocol"],
        tested_with: &[],
    },
    // The relay is part of the demo, so the command line depends on the benches.
    Rule {
        name: "bench",
        built_from: &[
            "certs", "daemon", "forecast", "guest", "migrator", "protocol", "tunnel",
        ],
        tested_with: &[],
    },
    Rule {
        name: "cli",
        built_from: &[
            "bench", "certs", "daemon", "forecast", "guest", "migrator", "protocol", "tunnel",
        ],
        tested_with: &[],
    },
    Rule {
        name: "tests",
        built_from: &[
            "bench", "certs", "daemon", "fuzz", "guest", "migrator", "protocol", "tunnel",
        ],
        tested_with: &[],
    },
];

#[test]
fn crates_know_only_whom_they_may_know() {
    let mut complaints = Vec::new();
    for rule in &RULES {
        let manifest = manifest(rule.name);
        let tested_with = [rule.built_from, rule.tested_with].concat();
        for (table, allowed) in [
            ("dependencies", rule.built_from),
            ("build-dependencies", &[]),
            ("dev-dependencies", &tested_with),
        ] {
            for known in ours(&manifest, table) {
                if !allowed.contains(&known.as_str()) {
                    complaints.push(format!(
                        "{}/Cargo.toml: [{table}] names {known}, which {} must not know",
                        rule.name, rule.name
                    ));
                }
            }
        }
        if manifest.contains_key("target") {
            complaints.push(format!(
                "{}/Cargo.toml: [target] would pass by the rule",
                rule.name
            ));
        }
    }
    no_complaints(&complaints);
}

/// Crates that only compute: everything about the system is passed to them as an argument.
const PURE: [&str; 2] = ["protocol/src/", "forecast/src/"];

/// Parts of the standard library that access the system, and the grouped import that could hide
/// them.
const SYSTEM: [&str; 8] = [
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::{",
];

/// Exception: addresses are plain values.
const VALUES: [&str; 1] = ["std::net::SocketAddr"];

#[test]
fn pure_crates_name_nothing_of_the_system() {
    let mut complaints = Vec::new();
    let is_pure = |file: &File| PURE.iter().any(|folder| file.path.starts_with(folder));
    let pure: Vec<_> = files(".rs").into_iter().filter(is_pure).collect();
    assert!(pure.len() > 40, "{}", pure.len());
    for file in pure {
        for (index, line) in code_of(&file.text).lines().enumerate() {
            let line = VALUES
                .iter()
                .fold(line.to_owned(), |line, value| line.replace(value, ""));
            if let Some(found) = SYSTEM.iter().find(|name| line.contains(*name)) {
                complaints.push(format!(
                    "{}:{}: {found} in a pure crate",
                    file.path,
                    index + 1
                ));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn every_member_has_a_rule_and_the_workspaces_settings() {
    let root: Table = read("Cargo.toml").text.parse().unwrap();
    let members = root["workspace"]["members"].as_array().unwrap();
    let mut members: Vec<_> = members.iter().filter_map(|name| name.as_str()).collect();
    let mut ruled = RULES.map(|rule| rule.name);
    members.sort_unstable();
    ruled.sort_unstable();
    assert_eq!(members, ruled);
    for rule in &RULES {
        let manifest = manifest(rule.name);
        let package = manifest["package"].as_table().unwrap();
        assert_eq!(
            package["name"].as_str(),
            Some(format!("towpath-{}", rule.name).as_str())
        );
        let is_inherited = |value: &toml::Value| value["workspace"].as_bool() == Some(true);
        assert!(
            is_inherited(&manifest["lints"].clone()),
            "{}: [lints]",
            rule.name
        );
        for key in ["version", "edition", "rust-version", "license", "publish"] {
            assert!(is_inherited(&package[key]), "{}: {key}", rule.name);
        }
    }
}

#[test]
fn versions_stand_in_the_workspace_alone() {
    let mut complaints = Vec::new();
    for rule in &RULES {
        let manifest = manifest(rule.name);
        for table in ["dependencies", "build-dependencies", "dev-dependencies"] {
            for (name, value) in manifest
                .get(table)
                .and_then(|table| table.as_table())
                .into_iter()
                .flatten()
            {
                let is_inherited = value.get("workspace").is_some();
                let is_own_path = value.get("path").is_some();
                if !is_inherited && !is_own_path {
                    complaints.push(format!(
                        "{}/Cargo.toml: {name} has its own version",
                        rule.name
                    ));
                }
            }
        }
    }
    no_complaints(&complaints);
}

fn manifest(name: &str) -> Table {
    let file = read(&format!("{name}/Cargo.toml"));
    file.text
        .parse()
        .unwrap_or_else(|e| panic!("{}: {e}", file.path))
}

/// Our crates in a table of a manifest.
fn ours(manifest: &Table, table: &str) -> Vec<String> {
    let table = manifest.get(table).and_then(|table| table.as_table());
    let keys = table.into_iter().flat_map(Table::keys);
    keys.filter_map(|key| key.strip_prefix("towpath-"))
        .map(str::to_owned)
        .collect()
}
