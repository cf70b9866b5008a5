//! Configuration files: TOML, with errors that name file, line, column and the fix.
//!
//! A configuration decides what a root daemon does, so a file that another user could have written
//! is refused, like one that does not parse.

mod explain;
mod rules;

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use towpath_protocol::fault::{Code, Fault};

pub use explain::nearest;
pub use rules::{MUST_BE_ABSOLUTE, absolute, loopback, within};

/// Largest configuration file, in bytes: room for a thousand channels and as many services. Parsing
/// takes up to 95 times as much memory, for a key made only of dots. That is acceptable: whoever
/// can write the file can stop the daemon anyway.
pub const CONFIG_BYTES_MAX: u64 = 512 << 10;

/// Permission bits that let other users write the file.
const FOREIGN_WRITE: u32 = 0o022;

/// A value that parses but makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidValue {
    /// The key with its tables, as in `limits.guests`.
    pub key: String,
    /// What is wrong with it, and what to write instead.
    pub why: String,
    /// Index of the entry, from 0, if the key begins with an array of tables.
    entry: Option<usize>,
}

impl InvalidValue {
    /// A complaint about one key.
    pub fn new(key: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            why: why.into(),
            entry: None,
        }
    }

    /// Says that the complaint is about this entry of an array, counted from 0: the second
    /// `[[peers]]` is 1.
    #[must_use]
    pub fn in_entry(mut self, entry: usize) -> Self {
        self.entry = Some(entry);
        self
    }
}

/// A configuration with rules that its types cannot express.
pub trait Check {
    /// Checks the values as a whole.
    ///
    /// # Errors
    ///
    /// The first key whose value makes no sense.
    fn check(&self) -> Result<(), InvalidValue>;
}

/// Reads and parses a configuration file.
///
/// # Errors
///
/// `E_CONFIG` with file, line, column and the fix.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Fault> {
    parse(path, &read(path)?)
}

/// Reads, parses and checks a configuration file.
///
/// # Errors
///
/// `E_CONFIG` with file, line, column and the fix.
pub fn load_checked<T: DeserializeOwned + Check>(path: &Path) -> Result<T, Fault> {
    check(path, &read(path)?)
}

/// Parses and checks the text of a configuration file called `path`.
///
/// # Errors
///
/// `E_CONFIG` with file, line, column and the fix.
pub fn check<T: DeserializeOwned + Check>(path: &Path, text: &str) -> Result<T, Fault> {
    let config: T = parse(path, text)?;
    config
        .check()
        .map_err(|wrong| fault(place(path, text, &wrong)))?;
    Ok(config)
}

/// Formats a complaint about a key of the file called `path`, with the position of the key in
/// front.
#[must_use]
pub fn place(path: &Path, text: &str, wrong: &InvalidValue) -> String {
    let at = offset_of(text, wrong).map_or_else(String::new, |at| position(text, at));
    format!("{}{at}: {}: {}", path.display(), wrong.key, wrong.why)
}

/// Parses the text of a configuration file called `path`.
///
/// # Errors
///
/// `E_CONFIG` with file, line, column and the fix.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, Fault> {
    check_size(path, text)?;
    toml::from_str(text).map_err(|error| {
        let span = error.span();
        let at = span
            .as_ref()
            .map_or_else(String::new, |span| position(text, span.start));
        let message = without_code(error.message());
        let what = missing_table::<T>(text, message)
            .or_else(|| explain::at(text, span?, message))
            .unwrap_or_else(|| explain::explain(message));
        fault(format!("{}{at}: {what}", path.display()))
    })
}

/// The message for a missing table, or `None` if no table is missing. The text is parsed again with
/// the table's head added; the next error then names the first key that the table needs.
fn missing_table<T: DeserializeOwned>(text: &str, message: &str) -> Option<String> {
    let name = explain::missing(message)?;
    let with_head = format!("{text}\n[{name}]\n");
    let next = toml::from_str::<T>(&with_head).err();
    let Some(next) = next else {
        return Some(explain::no_table(name, None));
    };
    let wanted = explain::missing(next.message()).filter(|wanted| *wanted != name)?;
    // If the next missing key belongs elsewhere, it is reported once this table is there.
    let is_of_it = next.span().is_some_and(|span| span.start > text.len());
    let wanted = is_of_it.then_some(wanted);
    Some(explain::no_table(name, wanted))
}

/// Removes the error code that a value's own parser put in front. All faults of the file have one
/// code.
fn without_code(message: &str) -> &str {
    let parts = message.split_once(": ");
    let coded = parts.filter(|(code, _)| Code::parse(code).is_some());
    coded.map_or(message, |(_, detail)| detail)
}

/// Reads a configuration file, if no other user could have written it.
///
/// # Errors
///
/// `E_CONFIG` if it is missing, too large, not a plain file, not UTF-8, or writable by others.
pub fn read(path: &Path) -> Result<String, Fault> {
    let shown = path.display();
    // Without O_NONBLOCK, a named pipe in the file's place would hang the daemon.
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("flags are small positive numbers");
    let file = File::options()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(|error| fault(format!("{shown}: cannot be opened: {error}")))?;
    let meta = file
        .metadata()
        .map_err(|error| fault(format!("{shown}: cannot be looked at: {error}")))?;
    if !meta.is_file() {
        return Err(fault(format!("{shown}: is not a plain file")));
    }
    if meta.mode() & FOREIGN_WRITE != 0 {
        let mode = meta.mode() & 0o7777;
        let refused = fault(format!("{shown}: others may write it (mode {mode:04o})"));
        return Err(refused.remedy(format!("run `chmod go-w {shown}`")));
    }
    let own = rustix::process::geteuid().as_raw();
    if meta.uid() != own && meta.uid() != 0 {
        let owner = meta.uid();
        let refused = format!("{shown}: belongs to user {owner}, not to root or user {own}");
        return Err(fault(refused).remedy(format!("run `chown {own} {shown}`")));
    }
    let mut text = String::new();
    file.take(CONFIG_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(|error| fault(format!("{shown}: cannot be read: {error}")))?;
    check_size(path, &text)?;
    Ok(text)
}

fn check_size(path: &Path, text: &str) -> Result<(), Fault> {
    if text.len() as u64 > CONFIG_BYTES_MAX {
        let shown = path.display();
        return Err(fault(format!(
            "{shown}: is larger than {CONFIG_BYTES_MAX} bytes"
        )));
    }
    Ok(())
}

fn fault(detail: String) -> Fault {
    Fault::new(Code::Config, detail)
}

/// `:line:column` of a byte offset. Both count from 1, columns in characters.
fn position(text: &str, offset: usize) -> String {
    let before = text.get(..offset).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let column = before[start..].chars().count() + 1;
    format!(":{line}:{column}")
}

/// The byte offset of a dotted key, or of its innermost table that exists.
fn offset_of(text: &str, wrong: &InvalidValue) -> Option<usize> {
    let document = DeTable::parse(text).ok()?;
    let mut table = document.get_ref();
    let mut offset = None;
    // The entry index is for the outermost array; an array further in is a plain value.
    let mut entry = wrong.entry;
    for part in wrong.key.split('.') {
        let Some((found, value)) = table.get_key_value(part) else {
            break;
        };
        offset = Some(found.span().start);
        let mut value = value;
        if let DeValue::Array(entries) = value.get_ref()
            && let Some(entry) = entry.take()
        {
            value = entries.get(entry)?;
            offset = Some(value.span().start);
        }
        let DeValue::Table(inner) = value.get_ref() else {
            break;
        };
        table = inner;
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::net::SocketAddr;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        port: u16,
        #[serde(default)]
        name: String,
        http: Option<SocketAddr>,
        limits: Option<Limits>,
        #[serde(default)]
        peers: Vec<Peer>,
    }

    /// Required tables: one with a required key, one whose keys are all optional.
    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code, reason = "what is wanted is that they are there")]
    struct Tables {
        limits: Limits,
        free: Free,
        name: String,
    }

    #[derive(Debug, Deserialize)]
    #[serde(default)]
    #[derive(Default)]
    struct Free {
        count: u32,
    }

    #[derive(Debug, Deserialize)]
    struct Peer {
        site: String,
        rate: Option<u32>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limits {
        guests: u32,
    }

    impl Check for Sample {
        fn check(&self) -> Result<(), InvalidValue> {
            match &self.limits {
                Some(limits) if limits.guests == 0 => {
                    Err(InvalidValue::new("limits.guests", "must be at least 1"))
                }
                _ => self.check_peers(),
            }
        }
    }

    impl Sample {
        fn check_peers(&self) -> Result<(), InvalidValue> {
            let mut peers = self.peers.iter().enumerate();
            let wrong = peers.find(|(_, peer)| peer.site.is_empty() || peer.rate == Some(0));
            wrong.map_or(Ok(()), |(entry, peer)| {
                let key = if peer.site.is_empty() { "site" } else { "rate" };
                Err(InvalidValue::new(format!("peers.{key}"), "cannot be").in_entry(entry))
            })
        }
    }

    fn refused(text: &str, parts: &[&str]) {
        let fault = check::<Sample>(Path::new("/etc/t.toml"), text).expect_err(text);
        assert_eq!(fault.code, Code::Config);
        for part in parts {
            assert!(
                fault.detail.contains(part),
                "{} lacks {part:?}",
                fault.detail
            );
        }
    }

    #[test]
    fn l06_wrong_files_are_refused_with_line_column_and_fix() {
        refused(
            "port = 1\nprot = 2\n",
            &["/etc/t.toml:2:1: ", "`prot`", "did you mean `port`?"],
        );
        refused(
            "port = 1\nzzzzzzz = 2\n",
            &[":2:1: ", "`zzzzzzz`", "known here: `port`"],
        );
        refused("port = \"x\"", &[":1:8: ", "text \"x\"", "a whole number"]);
        refused("port = 70000", &[":1:8: ", "70000"]);
        refused("port = 1\nport = 2", &[":2:1: ", "duplicate key", "twice"]);
        refused(
            "name = \"x\"",
            &["/etc/t.toml:1:1: ", "`port` is missing", "add `port = ...`"],
        );
        refused(
            "port = 1\n[limits]\ngests = 3",
            &[":3:1: ", "did you mean `guests`?"],
        );
        refused(
            "port = 1\n[limits]\nguests = 0",
            &[":3:1: limits.guests: ", "at least 1"],
        );
        let first = "port = 1\n[[peers]]\nsite = \"a\"\n[[peers]]\n";
        refused(
            &format!("{first}rate = 0\nsite = \"b\""),
            &[":5:1: peers.rate: "],
        );
        refused(&format!("{first}site = \"\""), &[":5:1: peers.site: "]);
        refused(
            "port = 1\npeers = [{ site = \"a\" },\n { site = \"\" }]",
            &[":3:4: peers.site"],
        );
        refused("port = ", &[":1:8: "]);
        refused("\u{e9} = 1\nport = 1", &[":1:1: "]);
    }

    #[test]
    fn l06_the_commonest_slips_are_told_with_what_to_write() {
        for (text, parts) in [
            (
                "port = 1\nname = 127.0.0.1:4790",
                [":2:", "name = \"127.0.0.1:4790\"", "quotes"],
            ),
            (
                "port = 1\nname = /var/lib # where",
                [":2:8: ", "name = \"/var/lib\"", "quotes"],
            ),
            ("port = 1\nname = 10s", [":2:", "name = \"10s\"", "quotes"]),
            (
                "port = 1\nhttp = \"0.0.0.0\"",
                [":2:8: ", "\"0.0.0.0\" is no", "\"0.0.0.0:4790\""],
            ),
            (
                "port = 1\nhttp = \"localhost:1\"",
                [":2:8: ", "\"localhost:1\" is no", "names are not looked up"],
            ),
            (
                "port = 1\n[peers]\nsite = \"a\"",
                [":2:1: ", "write `[[peers]]`", "square brackets"],
            ),
            (
                "port = 1\npeers = { site = \"a\" }",
                [":2:9: ", "a table stands here", "square brackets"],
            ),
        ] {
            refused(text, &parts);
        }
        let told = |text: &str| {
            let fault = parse::<Tables>(Path::new("t.toml"), text).expect_err(text);
            fault.detail
        };
        for (text, said) in [
            (
                "",
                "t.toml:1:1: table `[limits]` is missing; add it, with `guests = ...` in it",
            ),
            (
                "[limits]",
                "t.toml:1:1: key `guests` is missing; add `guests = ...`",
            ),
            (
                "[limits]\nguests = 1",
                "t.toml:1:1: table `[free]` is missing; add it",
            ),
            (
                "[limits]\nguests = 1\n[free]",
                "t.toml:1:1: key `name` is missing; add `name = ...`",
            ),
        ] {
            assert!(told(text).ends_with(said), "{}", told(text));
        }
    }

    #[test]
    fn a_values_own_code_is_left_out() {
        assert_eq!(
            without_code("E_USAGE: \"x\" is not a size"),
            "\"x\" is not a size"
        );
        for other in ["missing field `a`", "E_X: y", "a: b"] {
            assert_eq!(without_code(other), other);
        }
    }

    #[test]
    fn a_right_file_is_accepted() {
        let config: Sample = check(Path::new("x"), "port = 7\n[limits]\nguests = 2\n").unwrap();
        assert_eq!((config.port, config.limits.unwrap().guests), (7, 2));
        assert_eq!(config.http, None);
        assert!(config.name.is_empty());
    }

    #[test]
    fn l06_files_that_others_could_have_written_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        let detail = |path: &Path| load::<Sample>(path).expect_err("refused").detail;
        assert!(detail(&path).contains("cannot be opened"));
        std::fs::write(&path, "port = 1").unwrap();
        for mode in [0o620, 0o602, 0o666] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            let refused = load::<Sample>(&path).expect_err("open to others");
            let remedy = refused.remedy.unwrap();
            assert!(remedy.contains("chmod go-w"), "{mode:o}");
        }
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!(load::<Sample>(&path).unwrap().port, 1);
        std::fs::write(&path, " ".repeat(1 << 20) + "\n").unwrap();
        assert!(detail(&path).contains("larger than"));
        std::fs::write(&path, [0xff, 0xfe]).unwrap();
        assert!(detail(&path).contains("cannot be read"));
        assert!(detail(folder.path()).contains("plain file"));
    }
}
