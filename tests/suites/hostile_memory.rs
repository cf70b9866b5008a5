//! What a mebibyte of hostile bytes costs each parser: at most 16 MiB, whatever stands in it.
//!
//! A suite of its own with one test, because the peak of a process is measured.
#![forbid(unsafe_code)]

use towpath_daemon::config::CONFIG_BYTES_MAX;
use towpath_fuzz::{AS_IT_IS, Entry, IN_A_FRAME, TARGETS, seeds};

const INPUT_BYTES: usize = 1 << 20;

/// Most that an input may cost, its own copy in an envelope included.
const COST_BYTES_MAX: u64 = 16 << 20;

/// Kinds of messages that are tried: all that there are, and some that are not.
const KINDS: std::ops::Range<u8> = 0..40;

/// What parsers are known to choke on: depth, numbers without end, keys and tables without end, text that is
/// never closed, lengths that promise all there is.
const PATTERNS: [&[u8]; 14] = [
    b"\0",
    b"\xff",
    b"\x80",
    b"\x01",
    b"[",
    b"{\"a\":",
    b"\"",
    b"[[peers]]\n",
    b"[a]\n",
    b"a.",
    b"\n",
    b"x = 1\n",
    b"[1,",
    b"\xff\xff\xff\x7f\x00",
];

fn field(of: &str, name: &str) -> u64 {
    let text = std::fs::read_to_string(of).expect("the kernel tells");
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.expect("a number of KiB") << 10
}

/// How far the process grew at most while a parser looked at this.
fn cost(entry: Entry, input: &[u8]) -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak begins anew");
    let before = field("/proc/self/status", "VmRSS:");
    let _ = entry(input);
    field("/proc/self/status", "VmHWM:").saturating_sub(before)
}

/// A mebibyte of a pattern behind some first bytes.
fn filled(first: &[u8], pattern: &[u8]) -> Vec<u8> {
    let rest = pattern.iter().cycle();
    first
        .iter()
        .chain(rest)
        .take(INPUT_BYTES)
        .copied()
        .collect()
}

fn inputs(target: &str) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for pattern in PATTERNS {
        all.push(filled(&[AS_IT_IS], pattern));
        all.extend(KINDS.map(|kind| filled(&[IN_A_FRAME, kind], pattern)));
    }
    // Configurations are refused above their own limit: as much as they may be.
    let within = |mut input: Vec<u8>| {
        input.truncate(usize::try_from(CONFIG_BYTES_MAX).expect("it is small"));
        input
    };
    if target == "config" {
        all.extend(PATTERNS.map(|pattern| within(filled(&[AS_IT_IS], pattern))));
    }
    for seed in seeds::of(target) {
        all.push(filled(&seed[..1], &seed[1..]));
        all.push(filled(&seed, b"\xff"));
        all.push(filled(&seed[..seed.len() / 2], b"\xff"));
    }
    all
}

#[test]
fn hostile_inputs_of_a_mebibyte_cost_at_most_sixteen() {
    for (name, entry) in TARGETS {
        let mut most = 0;
        let inputs = inputs(name);
        for input in &inputs {
            let cost = cost(entry, input);
            let shown = &input[..input.len().min(40)];
            assert!(
                cost <= COST_BYTES_MAX,
                "{name}: {cost} bytes for {shown:02x?}"
            );
            most = most.max(cost);
        }
        println!(
            "{name}: {} inputs, at most {} KiB",
            inputs.len(),
            most >> 10
        );
    }
}
