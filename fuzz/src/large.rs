//! The worst inputs that are still grammatical: as many small parts as there is room for.

use std::iter::repeat_n;

use towpath_certs::files::FILE_BYTES_MAX;
use towpath_certs::revocation::LIST_BYTES_MAX;
use towpath_daemon::config::CONFIG_BYTES_MAX;
use towpath_daemon::strict::BODY_BYTES_MAX;
use towpath_forecast::history::ENCODED_BYTES_MAX;

use crate::{AS_IT_IS, IN_A_FRAME};

/// DER tags.
const INTEGER: u8 = 0x02;
const BITS: u8 = 0x03;
const OCTETS: u8 = 0x04;
const OBJECT: u8 = 0x06;
const TEXT: u8 = 0x0c;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const UTC_TIME: u8 = 0x17;
const TAGGED: u8 = 0xa0;

/// The signature algorithm of a list or certificate: ECDSA with SHA-256.
const ALGORITHM: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// PEM takes four letters for three bytes, and a line end for every 64 letters.
const fn in_pem(bytes: usize) -> usize {
    bytes / 65 * 48 - 1000
}

/// The limit above which a target refuses an input unseen, in bytes, if it has one.
#[must_use]
pub fn limit(target: &str) -> Option<usize> {
    let bytes = match target {
        "config" => CONFIG_BYTES_MAX,
        "requests" => BODY_BYTES_MAX as u64,
        "certificates" => FILE_BYTES_MAX,
        "history" => ENCODED_BYTES_MAX as u64,
        "revocations" => return usize::try_from(LIST_BYTES_MAX).ok().map(in_pem),
        _ => return None,
    };
    usize::try_from(bytes).ok()
}

/// Inputs of at most this many bytes for a target; none if plain patterns are as bad.
#[must_use]
pub fn of(target: &str, bytes: usize) -> Vec<Vec<u8>> {
    match target {
        "revocations" => lists(in_pem(bytes)),
        "certificates" => certificates(bytes.min(60_000)),
        "channels" => registers(bytes),
        // With room for the text around the parts.
        "config" => configs(CONFIG_BYTES_MAX as usize - 100),
        "history" => histories(),
        _ => Vec::new(),
    }
}

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len().to_be_bytes();
    let length = &length[length.iter().take_while(|byte| **byte == 0).count()..];
    let mut whole = vec![tag];
    match content.len() {
        0..0x80 => whole.push(content.len().to_be_bytes()[7]),
        _ => {
            whole.push(0x80 | length.len().to_be_bytes()[7]);
            whole.extend_from_slice(length);
        }
    }
    whole.extend_from_slice(content);
    whole
}

fn all(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    der(tag, &parts.concat())
}

/// As many copies of a part as fit.
fn many(part: &[u8], bytes: usize) -> Vec<u8> {
    repeat_n(part, bytes / part.len())
        .flatten()
        .copied()
        .collect()
}

fn algorithm() -> Vec<u8> {
    der(SEQUENCE, &der(OBJECT, ALGORITHM))
}

fn time() -> Vec<u8> {
    der(UTC_TIME, b"260101000000Z")
}

fn signed(content: &[u8]) -> Vec<u8> {
    all(
        SEQUENCE,
        &[&der(SEQUENCE, content), &algorithm(), &der(BITS, &[0; 9])],
    )
}

/// One part of a name: its kind and a letter.
fn part() -> Vec<u8> {
    let kind = der(OBJECT, &[0x55, 4, 3]);
    all(SEQUENCE, &[&kind, &der(TEXT, b"x")])
}

fn name() -> Vec<u8> {
    der(SEQUENCE, &der(SET, &part()))
}

/// A meaningless extension.
fn extension() -> Vec<u8> {
    all(SEQUENCE, &[&der(OBJECT, &[0x2a]), &der(OCTETS, b"")])
}

/// The extension with a list's number.
fn number() -> Vec<u8> {
    let kind = der(OBJECT, &[0x55, 0x1d, 0x14]);
    all(SEQUENCE, &[&kind, &der(OCTETS, &der(INTEGER, &[5]))])
}

fn list(name: &[u8], revoked: &[u8], extensions: &[u8]) -> Vec<u8> {
    let content = [
        &der(INTEGER, &[1]),
        &algorithm(),
        name,
        &time(),
        &time(),
        &der(SEQUENCE, revoked),
        &der(TAGGED, &der(SEQUENCE, extensions)),
    ];
    [&[IN_A_FRAME], &signed(&content.concat())[..]].concat()
}

fn lists(bytes: usize) -> Vec<Vec<u8>> {
    let entry = all(SEQUENCE, &[&der(INTEGER, &[7]), &time()]);
    let why = der(SEQUENCE, &extension());
    let why = all(SEQUENCE, &[&der(INTEGER, &[7]), &time(), &why]);
    let told = der(SEQUENCE, &many(&extension(), bytes));
    let told = all(SEQUENCE, &[&der(INTEGER, &[7]), &time(), &told]);
    let number = number();
    vec![
        list(&name(), &many(&entry, bytes), &number),
        list(&name(), &many(&why, bytes), &number),
        list(&name(), &told, &number),
        list(&name(), &entry, &many(&extension(), bytes)),
        list(&name(), &entry, &many(&number, bytes)),
        list(
            &der(SEQUENCE, &many(&der(SET, &part()), bytes)),
            &entry,
            &number,
        ),
        list(
            &der(SEQUENCE, &der(SET, &many(&part(), bytes))),
            &entry,
            &number,
        ),
        list(
            &der(SEQUENCE, &many(&der(SET, b""), bytes)),
            &entry,
            &number,
        ),
    ]
}

fn certificate(name: &[u8], extensions: &[u8]) -> Vec<u8> {
    let key = all(SEQUENCE, &[&algorithm(), &der(BITS, &[0; 9])]);
    let content = [
        &der(TAGGED, &der(INTEGER, &[2])),
        &der(INTEGER, &[7]),
        &algorithm(),
        name,
        &all(SEQUENCE, &[&time(), &time()]),
        name,
        &key,
        &der(TAGGED | 3, &der(SEQUENCE, extensions)),
    ];
    [&[IN_A_FRAME], &signed(&content.concat())[..]].concat()
}

fn certificates(bytes: usize) -> Vec<Vec<u8>> {
    // Subject alternative names: empty URIs.
    let links = der(OCTETS, &der(SEQUENCE, &many(&der(0x86, b""), bytes)));
    let named = all(SEQUENCE, &[&der(OBJECT, &[0x55, 0x1d, 0x11]), &links]);
    let half = many(&der(SET, &part()), bytes / 2);
    vec![
        certificate(&name(), &named),
        certificate(&name(), &many(&extension(), bytes)),
        certificate(&der(SEQUENCE, &half), &extension()),
    ]
}

/// TOML files with as many words, values, keys and tables as there is room for.
fn configs(bytes: usize) -> Vec<Vec<u8>> {
    let shapes = [
        ("a", ".a", "=1\n"),
        ("[a", ".a", "]\n"),
        ("a=[", "1,", "]\n"),
        ("a=[", "{},", "]\n"),
        ("a=[", "\"\",", "]\n"),
        ("a", " a", "\n"),
        ("", "#\n", ""),
        ("", "[[a]]\n", ""),
        ("a=\"", "\\t", "\"\n"),
    ];
    let whole = |(begin, part, end): (&str, &str, &str)| {
        let parts = many(part.as_bytes(), bytes);
        [&[AS_IT_IS], begin.as_bytes(), &parts, end.as_bytes()].concat()
    };
    shapes.into_iter().map(whole).collect()
}

/// A register of removed channels, and one of existing channels.
fn registers(bytes: usize) -> Vec<Vec<u8>> {
    let of = |entry: &str| {
        let known = many(entry.as_bytes(), bytes);
        let begin = br#"{"schema":"towpath.v1.channel-register","known":["#;
        [&[AS_IT_IS], &begin[..], &known[..known.len() - 1], b"]}"].concat()
    };
    vec![
        of(r#"{"name":"a","generation":1,"spec":null},"#),
        of(
            r#"{"name":"a","generation":1,"spec":{"name":"a","listen":"unix:/a","peer":"a","service":"a"}},"#,
        ),
    ]
}

/// The longest possible histories, with extreme rates.
fn histories() -> Vec<Vec<u8>> {
    let strangest = [
        0,
        1,
        0x0080_0000,
        f32::MAX.to_bits(),
        f32::MIN_POSITIVE.to_bits(),
    ];
    let history = |rate_bits: [u32; 2], seconds: [u32; 2]| {
        let mut bytes = b"TOWPATHF\x02\0\0\0".to_vec();
        for (grain, count) in [(300_u64, 2016_usize), (3600, 4368), (86_400, 1830)] {
            bytes.extend(grain.to_le_bytes());
            bytes.extend((count as u64).to_le_bytes());
            bytes.extend((1_750_000_000 / grain).to_le_bytes());
            for slot in 0..count {
                let (rate, seconds) = (rate_bits[slot % 2], seconds[slot / 2 % 2]);
                // Two rates, three durations, a rate and its duration.
                for word in [rate, rate, seconds, seconds, seconds, rate, seconds] {
                    bytes.extend(word.to_le_bytes());
                }
            }
        }
        [&[IN_A_FRAME], &bytes[..]].concat()
    };
    let mut all = Vec::new();
    for one in strangest {
        for other in strangest {
            all.push(history([one, other], [u32::MAX, 0]));
        }
    }
    all.push(history([f32::MAX.to_bits(), 0], [u32::MAX, 7]));
    all
}
