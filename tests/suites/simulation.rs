//! Thousands of simulated moves with every fault that the simulation has.
//!
//! `TOWPATH_SEED=n` runs one seed with its trace; `TOWPATH_SEEDS=n` runs n seeds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use towpath_tests::simulation::{self, Failure, Summary};

/// Default number of seeds.
const SEED_COUNT: u64 = 10_000;

/// With this many seeds, everything must have occurred.
const ENOUGH_COUNT: u64 = 1_000;

/// How long a run of that many seeds may take on a slow machine.
const RUN_MAX: Duration = Duration::from_secs(300);

/// Trace lines that are printed for a failure.
const TRACE_LINES_SHOWN: usize = 4_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

fn show(failure: &Failure) -> String {
    let from = failure.trace.len().saturating_sub(TRACE_LINES_SHOWN);
    let trace = failure.trace[from..].join("\n");
    let (seed, what) = (failure.seed, &failure.what);
    format!("{trace}\nseed {seed}: {what}; again with TOWPATH_SEED={seed}")
}

fn add(total: &mut Summary, one: &Summary) {
    total.happening_count += one.happening_count;
    total.move_count += one.move_count;
    total.attempt_count += one.attempt_count;
    total.post_copy_count += one.post_copy_count;
    total.demand_count += one.demand_count;
    total.thaw_count += one.thaw_count;
    total.crash_count += one.crash_count;
    total.bad_write_count += one.bad_write_count;
    total.boot_count += one.boot_count;
}

/// Runs seeds on all processors until one fails.
fn run_all(count: u64) -> Result<Summary, Failure> {
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let work = || {
        let mut total = Summary::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return Ok(total);
            }
            match simulation::run(seed, false) {
                Ok(summary) => add(&mut total, &summary),
                Err(failure) => {
                    next.store(count, Ordering::Relaxed);
                    return Err(failure);
                }
            }
        }
    };
    let results: Vec<Result<Summary, Failure>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .map(|worker| worker.join().expect("no panic"))
            .collect()
    });
    let mut total = Summary::default();
    for result in results {
        add(&mut total, &result?);
    }
    Ok(total)
}

/// Checks that each fault occurred in at least one of a hundred seeds: a run in which nothing
/// happens proves nothing.
fn expect_variety(total: &Summary, seed_count: u64) {
    for (what, count) in [
        ("moves", total.move_count),
        (
            "second attempts",
            total.attempt_count.saturating_sub(total.move_count),
        ),
        ("moves by post-copy", total.post_copy_count),
        ("pages demanded", total.demand_count),
        ("thaws", total.thaw_count),
        ("crashes", total.crash_count),
        ("bad writes", total.bad_write_count),
        ("boots", total.boot_count),
    ] {
        assert!(count * 100 >= seed_count, "{count} {what} in {total:?}");
    }
}

#[test]
fn a_guest_arrives_whole_whatever_goes_wrong() {
    if let Some(seed) = number("TOWPATH_SEED") {
        if let Err(failure) = simulation::run(seed, true) {
            panic!("{}", show(&failure));
        }
        return;
    }
    let count = number("TOWPATH_SEEDS").unwrap_or(SEED_COUNT);
    let begun = Instant::now();
    match run_all(count) {
        Ok(total) => {
            let took = begun.elapsed();
            println!("{total:?} in {took:?}");
            assert!(
                count > SEED_COUNT || took <= RUN_MAX,
                "{count} seeds took {took:?}"
            );
            if count >= ENOUGH_COUNT {
                expect_variety(&total, count);
            }
        }
        Err(failure) => {
            let traced = simulation::run(failure.seed, true).expect_err("a seed decides all");
            panic!("{}", show(&traced));
        }
    }
}
