//! Turns a parser's error into a sentence that says what is wrong and what to write.

use std::ops::Range;

/// A name that differs in more than about a third of its letters is not taken for a misspelling.
const LETTERS_PER_MISTAKE: usize = 3;

/// Rewrites a parser's error as one sentence with its fix.
pub(super) fn explain(message: &str) -> String {
    let message = message.trim().replace('\n', ", ");
    let mut quoted = message.split('`').skip(1).step_by(2);
    if message.starts_with("unknown field") {
        let unknown = quoted.next().unwrap_or_default();
        return unknown_key(unknown, &quoted.collect::<Vec<_>>());
    }
    if message.starts_with("unknown variant") {
        let unknown = quoted.next().unwrap_or_default().escape_debug().to_string();
        let known: Vec<_> = quoted.map(|name| format!("\"{name}\"")).collect();
        return format!(
            "\"{unknown}\" cannot stand here; write one of {}",
            known.join(", ")
        );
    }
    if message.starts_with("missing field") {
        let key = quoted.next().unwrap_or_default();
        return format!("key `{key}` is missing; add `{key} = ...`");
    }
    if message.starts_with("duplicate key") {
        return format!("{message}: a key may not stand twice; delete one of the two lines");
    }
    let complaint = message
        .strip_prefix("invalid type: ")
        .or_else(|| message.strip_prefix("invalid value: "));
    match complaint.and_then(|rest| rest.split_once(", expected ")) {
        Some((found, wanted)) => mismatch(found, wanted),
        None => message,
    }
}

/// Explains errors whose message says too little without the text at their position.
pub(super) fn at(text: &str, span: Range<usize>, message: &str) -> Option<String> {
    let (start, found) = (span.start, text.get(span)?);
    if message.starts_with("invalid socket address") {
        return Some(format!(
            "{found} is no address with a port; write an IP address and a port, such as \"0.0.0.0:4790\"; names are \
             not looked up here"
        ));
    }
    if message.starts_with("invalid type: map, expected a sequence") {
        let head = found.lines().next()?.trim().strip_prefix('[')?;
        let name = head.split(']').next()?.trim();
        return Some(format!(
            "there can be more than one of these: write `[[{name}]]`, in double square brackets, above each"
        ));
    }
    unquoted(line_at(text, start)?)
}

/// The line that contains a byte offset.
fn line_at(text: &str, offset: usize) -> Option<&str> {
    let start = text.get(..offset)?.rfind('\n').map_or(0, |end| end + 1);
    text[start..].lines().next()
}

/// What to write instead of a line whose value is a text without quotes.
fn unquoted(line: &str) -> Option<String> {
    let (key, value) = line.split_once('=')?;
    let (key, value) = (key.trim(), value.split(" #").next()?.trim());
    let is_plain = |c: char| !c.is_whitespace() && !c.is_control() && !"\"'[]{},\\".contains(c);
    let is_value = value.parse::<f64>().is_ok() || ["true", "false", ""].contains(&value);
    if is_value || !value.chars().all(is_plain) || key.starts_with('#') {
        return None;
    }
    Some(format!(
        "{value} is a text, and texts stand in quotes; write `{key} = \"{value}\"`"
    ))
}

/// The key that is missing, if that is the error.
pub(super) fn missing(message: &str) -> Option<&str> {
    let key = message.trim().strip_prefix("missing field `")?;
    key.split('`').next()
}

/// The message for a missing table, with the first key that it needs.
pub(super) fn no_table(name: &str, wanted: Option<&str>) -> String {
    let with = wanted.map_or_else(String::new, |key| format!(", with `{key} = ...` in it"));
    format!("table `[{name}]` is missing; add it{with}")
}

/// The message for a value of the wrong type. A number where a text is expected has mostly lost its
/// unit.
fn mismatch(found: &str, wanted: &str) -> String {
    let number = ["integer `", "floating point `"];
    let number = number.iter().find_map(|kind| found.strip_prefix(kind));
    if let (Some(number), "a string") = (number, wanted) {
        let number = number.trim_end_matches('`');
        return format!(
            "{number} is a number, and a text is wanted: write it in quotes, a rate, a size or a time with its unit, as \
             in \"{number}Mbit\", \"{number}MiB\" or \"{number}ms\""
        );
    }
    format!(
        "{} stands here; write {}",
        plain(found),
        plainly_wanted(wanted)
    )
}

/// Describes the value that was found, in plain words.
fn plain(found: &str) -> String {
    let kinds = [
        ("integer `", "the number "),
        ("floating point `", "the number "),
        ("boolean `", ""),
        ("string ", "the text "),
    ];
    let known = kinds.iter().find_map(|(kind, word)| {
        let value = found.strip_prefix(kind)?;
        Some(format!("{word}{}", value.trim_end_matches('`')))
    });
    known.unwrap_or_else(|| match found {
        "sequence" => "a list".to_owned(),
        "map" => "a table".to_owned(),
        other => other.to_owned(),
    })
}

/// Describes the type that was expected, in plain words.
fn plainly_wanted(wanted: &str) -> String {
    let most = match wanted {
        "u8" => Some(u64::from(u8::MAX)),
        "u16" => Some(u64::from(u16::MAX)),
        "u32" => Some(u64::from(u32::MAX)),
        _ => None,
    };
    if let Some(most) = most {
        return format!("a whole number from 0 to {most}");
    }
    match wanted {
        "u64" | "usize" => "a whole number".to_owned(),
        "a string" => "a text in quotes".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list, in square brackets".to_owned(),
        table if table.starts_with("struct ") || table == "a map" => {
            "a table, with keys of its own".to_owned()
        }
        other => other.to_owned(),
    }
}

fn unknown_key(unknown: &str, known: &[&str]) -> String {
    let unknown = unknown.escape_debug();
    match nearest(&unknown.to_string(), known) {
        Some(name) => format!("unknown key `{unknown}`; did you mean `{name}`?"),
        None if known.is_empty() => format!("unknown key `{unknown}`; no key may stand here"),
        None => format!(
            "unknown key `{unknown}`; known here: `{}`",
            known.join("`, `")
        ),
    }
}

/// The known name of which `word` is most likely a misspelling.
#[must_use]
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let mistakes_max = (word.chars().count() / LETTERS_PER_MISTAKE).max(1) + 1;
    known
        .iter()
        .map(|name| (distance(word, name), *name))
        .filter(|(mistakes, _)| *mistakes <= mistakes_max)
        .min_by_key(|(mistakes, _)| *mistakes)
        .map(|(_, name)| name)
}

/// The Levenshtein distance: letters to insert, delete or replace to turn one word into the other.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, left_char) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, right_char) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(left_char != *right_char);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_there_is_said_in_plain_words_with_what_to_write() {
        for (complaint, said) in [
            (
                "invalid type: integer `100`, expected a string",
                "as in \"100Mbit\", \"100MiB\" or \"100ms\"",
            ),
            (
                "invalid type: string \"x\", expected u16",
                "the text \"x\" stands here; write a whole number from 0 to 65535",
            ),
            (
                "invalid value: integer `70000`, expected u16",
                "the number 70000 stands here; write a whole number from 0 to 65535",
            ),
            (
                "invalid type: boolean `true`, expected a sequence",
                "true stands here; write a list, in square brackets",
            ),
            (
                "invalid type: sequence, expected struct Admin",
                "a list stands here; write a table, with keys of its own",
            ),
            ("something else", "something else"),
        ] {
            assert!(explain(complaint).contains(said), "{}", explain(complaint));
        }
    }

    #[test]
    fn misspellings_are_recognised_and_strangers_are_not() {
        let known = ["listen", "rate", "state_dir", "site"];
        assert_eq!(nearest("lisen", &known), Some("listen"));
        assert_eq!(nearest("statedir", &known), Some("state_dir"));
        assert_eq!(nearest("sites", &known), Some("site"));
        assert_eq!(nearest("bandwidth", &known), None);
        assert_eq!(nearest("", &known), None);
    }

    #[test]
    fn distances_are_those_of_levenshtein() {
        for (left, right, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("kitten", "sitting", 3),
            ("flaw", "lawn", 2),
        ] {
            assert_eq!(distance(left, right), expected);
            assert_eq!(distance(right, left), expected);
        }
    }
}
