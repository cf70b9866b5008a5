//! The cost of a mebibyte of hostile bytes for each parser: at most 16 MiB and a second, whatever
//! they are.
//!
//! A suite of its own with one test, because it measures the peak of the process.
#![forbid(unsafe_code)]

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use towpath_fuzz::{AS_IT_IS, Entry, IN_A_FRAME, TARGETS, large, seeds};

const INPUT_BYTES: usize = 1 << 20;

/// The most that an input may cost, including its copy in an envelope.
const COST_BYTES_MAX: u64 = 16 << 20;

/// The same for a configuration file, which is at most half as long. It does not come from a
/// stranger: its author controls the daemon.
const CONFIG_COST_BYTES_MAX: u64 = 52 << 20;

/// The most processor time that an input may take. A quadratic algorithm needs minutes for a
/// mebibyte.
const COST_TIME_MAX: Duration = Duration::from_secs(1);

/// Targets whose second byte is a kind.
const OF_KINDS: [&str; 4] = ["wire", "preamble", "guest_api", "requests"];

/// Kinds of messages to try: all that exist, and some that do not.
const KINDS: std::ops::Range<u8> = 0..40;

/// Patterns that parsers are known to choke on: depth, endless numbers, endless keys and tables,
/// text that is never closed, lengths that claim all there is.
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

/// Processor time of this thread so far.
fn used() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).expect("it has begun")
}

/// Peak memory above the start while a parser handled this input, and the time it took. Memory that
/// was freed before is reused and does not appear as growth of the process; allocations of C
/// libraries appear only there.
fn cost(entry: Entry, input: &[u8]) -> (u64, Duration) {
    std::fs::write("/proc/self/clear_refs", "5").expect("the peak begins anew");
    let before = field("/proc/self/status", "VmRSS:");
    let begun = used();
    let taken = allocation_counter::measure(|| {
        let _ = entry(input);
    });
    let took = used() - begun;
    let most = field("/proc/self/status", "VmHWM:");
    (taken.bytes_max.max(most.saturating_sub(before)), took)
}

/// A mebibyte of a pattern after some first bytes.
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
        let kinds = if OF_KINDS.contains(&target) {
            KINDS
        } else {
            0..1
        };
        all.extend(kinds.map(|kind| filled(&[IN_A_FRAME, kind], pattern)));
    }
    all.extend(large::of(target, INPUT_BYTES));
    for seed in seeds::of(target) {
        all.push(filled(&seed[..1], &seed[1..]));
        all.push(filled(&seed, b"\xff"));
        all.push(filled(&seed[..seed.len() / 2], b"\xff"));
    }
    // Inputs above a target's own limit are refused unseen; these are cut to the limit.
    let within: Vec<_> = large::limit(target)
        .map(|most| all.iter().map(|input| cut(input, most)).collect())
        .unwrap_or_default();
    all.extend(within);
    all
}

fn cut(input: &[u8], most: usize) -> Vec<u8> {
    input[..input.len().min(most)].to_vec()
}

#[test]
fn hostile_inputs_of_a_mebibyte_cost_at_most_sixteen() {
    let mut wrong = Vec::new();
    for (name, entry) in TARGETS {
        let bytes_max = match name {
            "config" => CONFIG_COST_BYTES_MAX,
            _ => COST_BYTES_MAX,
        };
        let mut most = (0, Duration::ZERO);
        let inputs = inputs(name);
        for input in &inputs {
            let (bytes, took) = cost(entry, input);
            let shown = &input[..input.len().min(40)];
            if bytes > bytes_max || took > COST_TIME_MAX {
                wrong.push(format!("{name}: {bytes} bytes, {took:?} for {shown:02x?}"));
            }
            most = (most.0.max(bytes), most.1.max(took));
        }
        println!(
            "{name}: {} inputs, at most {} KiB and {:?}",
            inputs.len(),
            most.0 >> 10,
            most.1
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
