//! Hundreds of disturbed moves, drawn from seeds.
//!
//! `TOWPATH_SEED=n` runs that seed alone; together with `TOWPATH_TRIALS=m`, m seeds from there on.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use towpath_migrator::api::{GuestKind, MigrationView};
use towpath_tests::lab::{Lab, Link, check_kvm};
use towpath_tests::trial::{Disturbance, Trial};
use towpath_tests::watch::Watch;

/// Default number of trials.
const TRIAL_COUNT: u64 = 300;

/// With this many trials, everything must have occurred: the rarest kinds are one in twenty.
const ENOUGH_COUNT: u64 = 200;

/// At least one in this many trials has to disturb a move while it is in progress.
const HIT_PARTS_MAX: u64 = 3;

/// At least one in this many trials uses a virtual machine, where those can run.
const VIRTUAL_PARTS_MAX: u64 = 3;

/// At least this many of a hundred guests have to move or crash: few change faster than their link
/// carries and have a mode without post-copy.
const MOVED_PERCENT_MIN: u64 = 95;

/// Kinds of disturbances, as they are counted.
const KINDS: [&str; 9] = [
    "Migrator",
    "BothMigrators",
    "Tunnel",
    "ReceivingProcess",
    "LeavingProcess",
    "Cut",
    "CutFrom",
    "Step",
    "Upgrade",
];

/// Concurrent labs: a trial waits more than it works.
const LAB_COUNT: u64 = 4;

/// Links of the labs, in order.
const LINKS: [Link; 4] = [link(300, 4), link(200, 10), link(500, 2), link(250, 8)];

const fn link(megabits_per_second: u64, round_trip_ms: u64) -> Link {
    Link {
        megabits_per_second,
        round_trip: Duration::from_millis(round_trip_ms),
    }
}

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().expect("a number"))
}

/// The results of some trials.
#[derive(Debug, Default)]
struct Tally {
    count: u64,
    moved_count: u64,
    /// Guests whose process was killed before they were handed over.
    crashed_count: u64,
    /// Moves that were in progress when they were disturbed.
    hit_count: u64,
    /// Moves that needed more than one attempt.
    again_count: u64,
    /// Moves of virtual machines, and those of them that were in progress when they were disturbed.
    virtual_count: u64,
    virtual_hit_count: u64,
    /// Disturbances that hit a move in progress, by kind.
    hits_by_kind: BTreeMap<String, u64>,
    took_ms: Vec<u128>,
}

impl Tally {
    /// Checks that moves were disturbed in every way: trials in which nothing happens prove
    /// nothing.
    fn expect_variety(&self, has_kvm: bool) {
        assert!(
            (self.moved_count + self.crashed_count) * 100 >= self.count * MOVED_PERCENT_MIN,
            "{self:?}"
        );
        assert!(self.hit_count * HIT_PARTS_MAX >= self.count, "{self:?}");
        assert!(self.again_count > 0, "{self:?}");
        assert!(self.crashed_count > 0, "{self:?}");
        if has_kvm {
            let enough = self.count / VIRTUAL_PARTS_MAX;
            assert!(self.virtual_count >= enough, "{self:?}");
            assert!(self.virtual_hit_count * HIT_PARTS_MAX >= enough, "{self:?}");
        }
        for kind in KINDS {
            assert!(
                self.hits_by_kind.contains_key(kind),
                "no {kind} in {self:?}"
            );
        }
    }
}

/// Runs seeds until there are none left, or one has failed.
fn work(
    link: Link,
    (seeds, end): (&AtomicU64, u64),
    has_kvm: bool,
    tally: &Mutex<Tally>,
) -> Result<(), String> {
    let mut lab = Lab::start(link);
    let watch = Watch::start(&lab);
    loop {
        let seed = seeds.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            return Ok(());
        }
        let mut trial = Trial::draw(seed);
        if !has_kvm {
            trial.guest.kind = GuestKind::Process;
        }
        let begun = Instant::now();
        match trial.run(&mut lab, &watch) {
            Ok(outcome) => {
                let mut tally = tally.lock().expect("nobody panics with it");
                tally.count += 1;
                let has_moved = outcome.rest.place != trial.from;
                tally.moved_count += u64::from(has_moved);
                let is_left = trial.disturbance == Disturbance::LeavingProcess;
                let has_crashed = is_left && outcome.has_hit && !has_moved;
                tally.crashed_count += u64::from(has_crashed);
                tally.hit_count += u64::from(outcome.has_hit);
                if trial.guest.is_virtual_machine() {
                    tally.virtual_count += 1;
                    tally.virtual_hit_count += u64::from(outcome.has_hit);
                }
                let again = |view: &MigrationView| view.attempts > Some(1);
                let is_again = outcome.rest.moves.first().is_some_and(again);
                tally.again_count += u64::from(is_again);
                tally.took_ms.push(begun.elapsed().as_millis());
                if outcome.has_hit {
                    let kind = format!("{:?}", trial.disturbance);
                    let kind = kind.split(['(', ' ']).next().unwrap_or_default().to_owned();
                    *tally.hits_by_kind.entry(kind).or_default() += 1;
                }
            }
            Err(why) => {
                seeds.store(end, Ordering::Relaxed);
                lab.show_logs();
                return Err(format!("{trial:?}\n{why}\nagain with TOWPATH_SEED={seed}"));
            }
        }
    }
}

#[test]
fn a_guest_survives_whatever_happens_to_its_move() {
    let begun = Instant::now();
    let seed = number("TOWPATH_SEED");
    let first = seed.unwrap_or(0);
    let count =
        number("TOWPATH_TRIALS").unwrap_or_else(|| if seed.is_some() { 1 } else { TRIAL_COUNT });
    let has_kvm = check_kvm()
        .inspect_err(|why| println!("skipped: virtual machines in trials: {why}"))
        .is_ok();
    let seeds = AtomicU64::new(first);
    let tally = Mutex::new(Tally::default());
    let labs = usize::try_from(LAB_COUNT.min(count)).expect("few");
    let failures: Vec<String> = std::thread::scope(|scope| {
        let workers: Vec<_> = LINKS[..labs]
            .iter()
            .map(|link| scope.spawn(|| work(*link, (&seeds, first + count), has_kvm, &tally)))
            .collect();
        let results = workers
            .into_iter()
            .map(|worker| worker.join().expect("reported"));
        results.filter_map(Result::err).collect()
    });
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
    let mut tally = tally.into_inner().expect("nobody panics with it");
    tally.took_ms.sort_unstable();
    let median = tally.took_ms[tally.took_ms.len() / 2];
    println!(
        "{} trials with seeds {first} to {} in {:?}: {} moved, {} crashed, {} met under way, {} with another \
         attempt, {} of virtual machines, {median} ms each (median), {:?}",
        tally.count,
        first + count - 1,
        begun.elapsed(),
        tally.moved_count,
        tally.crashed_count,
        tally.hit_count,
        tally.again_count,
        tally.virtual_count,
        tally.hits_by_kind
    );
    if tally.count >= ENOUGH_COUNT {
        tally.expect_variety(has_kvm);
    }
}
