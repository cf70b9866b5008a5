//! Checks that the documents describe everything that exists, and nothing else.

use std::collections::BTreeSet;

use towpath_protocol::fault::Code;

use crate::house::{File, files, no_complaints, read, root};
use crate::scan::code_of;

/// The files in which metrics are named.
const METRIC_FILES: [&str; 2] = [
    "tunnel/src/operators/metrics.rs",
    "migrator/src/engine/metrics.rs",
];

/// The files in which configurations are defined, and the heading of each in its page.
const CONFIG_FILES: [&str; 2] = ["tunnel/src/config.rs", "migrator/src/config.rs"];

#[test]
fn every_error_code_stands_in_its_page() {
    let page = read("docs/errors.md").text;
    let is_missing = |code: &&Code| !page.contains(&format!("`{code}`"));
    let missing: Vec<_> = Code::ALL.iter().filter(is_missing).collect();
    assert!(missing.is_empty(), "docs/errors.md lacks {missing:?}");
    let mut complaints = Vec::new();
    for word in page.split(|c: char| !c.is_ascii_alphanumeric() && c != '_') {
        if word.starts_with("E_") && Code::parse(word).is_none() {
            complaints.push(format!("docs/errors.md names {word}, which is no code"));
        }
    }
    no_complaints(&complaints);
}

#[test]
fn every_metric_stands_in_its_page_and_no_other() {
    let in_code: BTreeSet<_> = METRIC_FILES
        .iter()
        .flat_map(|path| quoted(&read(path).text))
        .collect();
    assert!(in_code.len() > 10, "the metrics are named elsewhere now");
    let in_page: BTreeSet<_> = read("docs/metrics.md")
        .text
        .split('`')
        .filter(|word| is_metric(word))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        in_code, in_page,
        "code on the left, docs/metrics.md on the right"
    );
    for File { path, text } in files(".rs") {
        let is_code_of_a_daemon =
            path.starts_with("tunnel/src") || path.starts_with("migrator/src");
        if is_code_of_a_daemon && text.contains("prometheus::") {
            assert!(
                METRIC_FILES.contains(&path.as_str()),
                "{path} may name metrics"
            );
        }
    }
}

/// The metric names among a file's strings.
fn quoted(text: &str) -> Vec<String> {
    let strings = text.split('"').skip(1).step_by(2);
    strings
        .filter(|word| is_metric(word))
        .map(str::to_owned)
        .collect()
}

fn is_metric(word: &str) -> bool {
    let is_name = word.chars().all(|c| c.is_ascii_lowercase() || c == '_');
    is_name && word.starts_with("towpath_") && !word.ends_with('_')
}

#[test]
fn every_configuration_key_stands_in_its_page() {
    let page = read("docs/configuration.md").text;
    let mut complaints = Vec::new();
    for path in CONFIG_FILES {
        let code = code_of(&read(path).text);
        let keys = code.lines().filter_map(|line| {
            let field = line.trim_start().strip_prefix("pub ")?;
            let (name, _) = field.split_once(':')?;
            let is_name = name.chars().all(|c| c.is_ascii_lowercase() || c == '_');
            is_name.then_some(name)
        });
        for key in keys {
            if !page.contains(&format!("`{key}`")) && !page.contains(&format!(".{key}`")) {
                complaints.push(format!("docs/configuration.md lacks `{key}` of {path}"));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn documents_have_one_title_and_links_that_lead_somewhere() {
    let mut complaints = Vec::new();
    for File { path, text } in files(".md") {
        let prose = without_fences(&text);
        let titles = prose.lines().filter(|line| line.starts_with("# ")).count();
        if titles != 1 || !prose.starts_with("# ") {
            complaints.push(format!("{path}: {titles} titles; one, and it comes first"));
        }
        for link in links(&prose).filter(|link| !link.contains("://")) {
            let place = link.split('#').next().unwrap_or_default();
            let folder = root().join(&path);
            let folder = folder.parent().expect("a file stands in a folder");
            if !place.is_empty() && !folder.join(place).exists() {
                complaints.push(format!("{path}: the link to {link} leads nowhere"));
            }
        }
    }
    no_complaints(&complaints);
}

fn links(prose: &str) -> impl Iterator<Item = &str> {
    prose
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next())
}

/// The text without its fenced blocks.
fn without_fences(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

#[test]
fn the_changelog_has_room_for_the_next_change() {
    let text = read("CHANGELOG.md").text;
    let mut sections = text.lines().filter_map(|line| line.strip_prefix("## "));
    assert_eq!(sections.next(), Some("Unreleased"));
    let kinds = text.lines().filter_map(|line| line.strip_prefix("### "));
    for kind in kinds {
        let known = [
            "Added",
            "Changed",
            "Deprecated",
            "Fixed",
            "Removed",
            "Security",
        ];
        assert!(known.contains(&kind), "CHANGELOG.md: {kind}");
    }
}

#[test]
fn the_licences_are_here() {
    for (path, words) in [
        ("LICENSE-APACHE", "Apache License"),
        ("LICENSE-MIT", "Permission is hereby granted"),
    ] {
        assert!(read(path).text.contains(words), "{path}");
    }
}
