//! Rules for every source file.

use std::collections::BTreeSet;

use crate::house::{File, files, no_complaints, read};
use crate::scan::{code_of, functions, words};

/// Longest file, in lines; a longer one has two subjects.
const FILE_LINES_MAX: usize = 800;

/// Longest body of a function, in lines; a longer one has two steps.
const FUNCTION_LINES_MAX: usize = 70;

/// Functions that are tables of data: one entry per line, with nothing to split.
const DATA_TABLES: [(&str, &str); 2] = [
    ("daemon/src/problem/advice.rs", "ours"),
    ("daemon/src/problem/advice.rs", "peers"),
];

/// Functions that are too long today. None may be added: the list only gets shorter.
const LONG_FUNCTIONS: [(&str, &str); 1] = [("migrator/src/engine/metrics.rs", "new")];

/// The roots of the crates that forbid unsafe code.
const SAFE_ROOTS: [&str; 9] = [
    "protocol/src/lib.rs",
    "forecast/src/lib.rs",
    "daemon/src/lib.rs",
    "certs/src/lib.rs",
    "tunnel/src/lib.rs",
    "cli/src/main.rs",
    "bench/src/lib.rs",
    "tests/harness/lib.rs",
    "tests/suites/tidy.rs",
];

/// The only files with unsafe code: each talks to the kernel about guest memory or a vCPU.
const UNSAFE_FILES: [&str; 8] = [
    "guest/src/kvm.rs",
    "guest/src/kvm/dirty.rs",
    "guest/src/kvm/payload.rs",
    "guest/src/kvm/state.rs",
    "guest/src/kvm/vcpu.rs",
    "guest/src/startup.rs",
    "guest/src/userfault.rs",
    "migrator/src/guest/missing.rs",
];

/// The two sides are called source and target; these words would each name both sides somewhere.
const BANNED_WORDS: [&str; 6] = ["src", "dst", "dest", "destination", "sender", "receiver"];

/// Names given by others: the halves of a channel, a setting of zstd, and a UDP packet's two
/// addresses.
const FOREIGN_WORDS: [&str; 5] = [
    "Sender",
    "Receiver",
    "set_pledged_src_size",
    "destination",
    "src_ip",
];

/// Non-ASCII characters that diagrams in comments may use.
fn is_drawing(c: char) -> bool {
    matches!(c, '\u{2500}'..='\u{257f}' | '\u{25a0}'..='\u{25ff}' | '\u{2190}'..='\u{21ff}' | '\u{d7}' | '\u{b5}')
}

#[test]
fn every_file_begins_with_a_sentence_and_is_short() {
    let mut complaints = Vec::new();
    for File { path, text } in files(".rs") {
        if !text.starts_with("//! ") {
            complaints.push(format!("{path}:1: begins with no `//!` sentence"));
        }
        let count = text.lines().count();
        if count > FILE_LINES_MAX {
            complaints.push(format!("{path}: {count} lines, at most {FILE_LINES_MAX}"));
        }
        if !text.ends_with('\n') || text.ends_with("\n\n") {
            complaints.push(format!("{path}: must end with exactly one newline"));
        }
    }
    no_complaints(&complaints);
}

/// Whether a file only holds tests, whose functions may be of any length.
fn is_of_tests(path: &str) -> bool {
    path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs")
}

#[test]
fn functions_are_short() {
    let mut complaints = Vec::new();
    let mut left = BTreeSet::from(LONG_FUNCTIONS);
    for File { path, text } in files(".rs") {
        if is_of_tests(&path) {
            continue;
        }
        let code = code_of(&text);
        // Test modules come last in their file.
        let code = code
            .split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default();
        for one in functions(code) {
            let (line, name, lines) = (one.line, one.name, one.body_lines);
            let is_it = |known: &&(&str, &str)| **known == (path.as_str(), name);
            if lines <= FUNCTION_LINES_MAX || DATA_TABLES.iter().any(|table| is_it(&table)) {
                continue;
            }
            let known = left.iter().find(is_it).copied();
            if let Some(known) = known {
                left.remove(&known);
            } else {
                complaints.push(format!(
                    "{path}:{line}: {name} has {lines} lines, at most {FUNCTION_LINES_MAX}"
                ));
            }
        }
    }
    for (path, name) in left {
        complaints.push(format!("{path}: {name} is short now: take it off the list"));
    }
    no_complaints(&complaints);
}

#[test]
fn text_is_plain() {
    let mut complaints = Vec::new();
    for ending in [".rs", ".toml", ".md", ".service"] {
        for File { path, text } in files(ending) {
            for (index, line) in text.lines().enumerate() {
                let at = format!("{path}:{}", index + 1);
                if line.contains('\t') {
                    complaints.push(format!("{at}: a tab"));
                }
                if line.ends_with(' ') {
                    complaints.push(format!("{at}: a space at its end"));
                }
                let is_code = ending == ".rs" && !line.trim_start().starts_with("//");
                let may_stand = |c: char| c.is_ascii() || (!is_code && is_drawing(c));
                if let Some(c) = line.chars().find(|c| !may_stand(*c)) {
                    complaints.push(format!("{at}: {c:?} is not ASCII"));
                }
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn the_two_sides_are_called_source_and_target() {
    let mut complaints = Vec::new();
    for File { path, text } in files(".rs") {
        let code = code_of(&text);
        for (line, word) in words(&code).filter(|(_, word)| !FOREIGN_WORDS.contains(word)) {
            if let Some(part) = parts(word).find(|part| BANNED_WORDS.contains(&part.as_str())) {
                complaints.push(format!("{path}:{line}: `{word}` says {part}"));
            }
        }
    }
    no_complaints(&complaints);
}

/// The lower-case words inside an identifier; the same two for `DstPort` and `dst_port`.
fn parts(word: &str) -> impl Iterator<Item = String> {
    let mut parts = vec![String::new()];
    let mut was_small = false;
    for c in word.chars() {
        if c == '_' || (c.is_uppercase() && was_small) {
            parts.push(String::new());
        }
        was_small = c.is_lowercase() || c.is_ascii_digit();
        if let Some(last) = parts.last_mut().filter(|_| c != '_') {
            last.push(c.to_ascii_lowercase());
        }
    }
    parts.into_iter()
}

#[test]
fn unsafe_code_stands_only_where_it_must() {
    let mut found = Vec::new();
    for File { path, text } in files(".rs") {
        if words(&code_of(&text)).any(|(_, word)| word == "unsafe") {
            found.push(path);
        }
    }
    assert_eq!(found, UNSAFE_FILES);
    let is_forbidden = |path: &str| read(path).text.contains("\n#![forbid(unsafe_code)]\n");
    let mut complaints = Vec::new();
    for path in SAFE_ROOTS.iter().filter(|path| !is_forbidden(path)) {
        complaints.push(format!("{path}: lacks #![forbid(unsafe_code)]"));
    }
    no_complaints(&complaints);
}

#[test]
fn every_test_runs() {
    let mut complaints = Vec::new();
    for File { path, text } in files(".rs") {
        let code = code_of(&text);
        for (index, line) in code.lines().enumerate() {
            if line.contains("#[ignore") || line.contains("#[should_panic") {
                complaints.push(format!("{path}:{}: {}", index + 1, line.trim()));
            }
            if line.contains("fn test_") {
                complaints.push(format!(
                    "{path}:{}: tests are named after behaviour",
                    index + 1
                ));
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn identifiers_are_split_into_their_words() {
    let split = |word| parts(word).collect::<Vec<_>>().join(" ");
    assert_eq!(split("dst_port"), "dst port");
    assert_eq!(split("DstPort"), "dst port");
    assert_eq!(split("sourceIP4Address"), "source ip4 address");
    assert_eq!(split("destined"), "destined");
}
