//! A short run of every fuzz target on the stable compiler; the seed is printed and can be set.
#![forbid(unsafe_code)]

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use towpath_fuzz::{TARGETS, smoke};

/// Inputs per batch; the clock is checked between batches.
const BATCH: usize = 500;

/// Least batches for each target, however slow the machine is.
const BATCHES_MIN: u64 = 4;

/// Seconds for each target: all of them together take some seven seconds on two cores.
const TARGET_SECONDS: u64 = 1;

fn first_seed() -> u64 {
    match std::env::var("TOWPATH_FUZZ_SEED") {
        Ok(text) => text.parse().expect("TOWPATH_FUZZ_SEED is a number"),
        Err(_) => 20_260_101,
    }
}

#[test]
fn every_seed_is_good_so_that_mistakes_in_it_reach_far() {
    for (name, entry) in TARGETS {
        let seeds = towpath_fuzz::seeds::of(name);
        assert!(seeds.len() > 2, "{name} has seeds");
        for (number, seed) in seeds.iter().enumerate() {
            assert!(entry(seed), "{name}: seed {number} is refused: {seed:02x?}");
        }
    }
}

#[test]
fn no_parser_of_foreign_bytes_panics() {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((name, entry)) = TARGETS.get(next.fetch_add(1, Ordering::Relaxed)) {
            let (inputs, good) = fuzz(name, *entry);
            println!("{name}: {inputs} inputs, {good} of them good");
            assert!(good > 0, "{name}: mistakes are too gross to reach far");
        }
    };
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
}

/// Runs a target; returns how many inputs it was given, and how many of them it accepted.
fn fuzz(name: &str, entry: fn(&[u8]) -> bool) -> (usize, usize) {
    let begun = Instant::now();
    let (mut inputs, mut good) = (0, 0);
    for batch in 0.. {
        let enough = begun.elapsed() > Duration::from_secs(TARGET_SECONDS);
        if enough && batch >= BATCHES_MIN {
            break;
        }
        let seed = first_seed()
            .wrapping_add(batch)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let result = std::panic::catch_unwind(|| smoke::run(name, entry, seed, BATCH));
        good += result.unwrap_or_else(|_| {
            let first = first_seed();
            panic!("{name} fails in batch {batch}; again by TOWPATH_FUZZ_SEED={first}")
        });
        inputs += BATCH;
    }
    (inputs, good)
}
