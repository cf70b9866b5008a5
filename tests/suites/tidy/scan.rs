//! Separates Rust code from comments and literals, as far as the rules need it.

/// Blanks out comments, strings and characters. Line numbers are kept.
pub(crate) fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let bytes = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => end_after(rest, 2, "*/"),
            '"' => string_end(rest),
            'r' if !ends_in_word(&code) => raw_string_end(rest).unwrap_or(0),
            '\'' => character_end(rest),
            _ => 0,
        };
        let (skipped, kept) = if bytes > 0 {
            (bytes, None)
        } else {
            (first.len_utf8(), Some(first))
        };
        code.extend(rest[..skipped].chars().filter(|c| *c == '\n'));
        code.extend(kept.filter(|c| *c != '\n'));
        if kept.is_none() {
            code.push(' ');
        }
        rest = &rest[skipped..];
    }
    code
}

/// The words of code, which are identifiers and keywords, with their line numbers from 1.
pub(crate) fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines().enumerate().flat_map(|(index, line)| {
        line.split(|c: char| !c.is_alphanumeric() && c != '_')
            .filter(|word| !word.is_empty())
            .map(move |word| (index + 1, word))
    })
}

/// A function of code.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Function<'a> {
    pub(crate) name: &'a str,
    /// The line of its name, from 1.
    pub(crate) line: usize,
    /// Lines between its braces.
    pub(crate) body_lines: usize,
}

/// All functions with a body, nested ones included.
pub(crate) fn functions(code: &str) -> Vec<Function<'_>> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let name_at = at + "fn ".len();
        let name_end = code[name_at..].find(|c: char| !c.is_alphanumeric() && c != '_');
        let name = &code[name_at..name_at + name_end.unwrap_or(0)];
        if ends_in_word(&code[..at]) || name.is_empty() {
            continue;
        }
        if let Some((open, close)) = body(&code[name_at..]) {
            found.push(Function {
                name,
                line: code[..at].matches('\n').count() + 1,
                body_lines: code[name_at + open..name_at + close]
                    .matches('\n')
                    .count()
                    .saturating_sub(1),
            });
        }
    }
    found
}

/// Offsets of the braces of a function's body after its name; `None` if it has no body.
fn body(rest: &str) -> Option<(usize, usize)> {
    let (mut brackets, mut braces, mut open) = (0_i32, 0_i32, None);
    for (at, c) in rest.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            ';' if brackets == 0 && open.is_none() => return None,
            '{' => {
                if brackets == 0 {
                    open = open.or(Some(at));
                }
                braces += 1;
            }
            '}' => {
                braces -= 1;
                if let Some(open) = open.filter(|_| braces == 0) {
                    return Some((open, at));
                }
            }
            _ => {}
        }
    }
    None
}

fn ends_in_word(code: &str) -> bool {
    code.ends_with(|c: char| c.is_alphanumeric() || c == '_') && !code.ends_with('b')
}

fn end_after(text: &str, from: usize, end: &str) -> usize {
    text[from..]
        .find(end)
        .map_or(text.len(), |at| from + at + end.len())
}

fn string_end(text: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

fn raw_string_end(text: &str) -> Option<usize> {
    let fence = text[1..].len() - text[1..].trim_start_matches('#').len();
    let body = 1 + fence;
    text[body..].starts_with('"').then(|| {
        let end = format!("\"{}", "#".repeat(fence));
        end_after(text, body + 1, &end)
    })
}

/// The end of a character literal; 0 if it is a lifetime.
fn character_end(text: &str) -> usize {
    let mut chars = text.char_indices().skip(1);
    match (chars.next(), chars.next()) {
        (Some((_, '\\')), Some((at, escaped))) => end_after(text, at + escaped.len_utf8(), "'"),
        (Some(_), Some((at, '\''))) => at + 1,
        _ => 0,
    }
}

#[test]
fn functions_are_as_long_as_what_stands_between_their_braces() {
    let code = code_of(
        "trait A {\n fn none(&self);\n fn one(&self) -> [u8; 2] {\n \"}\"\n }\n}\n\
         fn outer() where B: C {\n fn inner() {}\n if a {\n }\n}\nlet f: fn(u8) -> u8 = g;\n",
    );
    let found: Vec<_> = functions(&code)
        .iter()
        .map(|one| (one.name, one.line, one.body_lines))
        .collect();
    assert_eq!(found, [("one", 3, 1), ("outer", 7, 3), ("inner", 8, 0)]);
}

#[test]
fn comments_strings_and_characters_are_no_code() {
    for (text, expected) in [
        ("a // dst\nb", &["a", "b"][..]),
        ("a /* dst\n */ b", &["a", "b"]),
        (r#"a "dst \" src" b"#, &["a", "b"]),
        ("a r#\"dst \" src\"# b", &["a", "b"]),
        ("a br\"dst\" b", &["a", "b", "b"]),
        ("a '\"' b '\\'' c", &["a", "b", "c"]),
        ("fn f<'a>(b: &'a str)", &["fn", "f", "a", "b", "a", "str"]),
        ("for_r\"dst\"", &["for_r"]),
    ] {
        let code = code_of(text);
        let found: Vec<_> = words(&code).map(|(_, word)| word).collect();
        assert_eq!(found, expected, "{text}");
        assert_eq!(code.lines().count(), text.lines().count(), "{text}");
    }
}
