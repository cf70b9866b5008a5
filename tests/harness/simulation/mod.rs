//! A seeded simulation of moves: the real machines in a simulated environment.
//!
//! A seed determines the guest, its workload, the link and the faults; the same seed always gives
//! the same run. Source, target and ownership are the production machines, and messages travel as
//! their real bytes. The simulation checks that every block the guest reads holds the latest write
//! to it, that a block written by the running target is never overwritten, that the guest never
//! runs on two hosts, that one host is always responsible for it, that nothing is released before
//! the target has it, and that the guest arrives once there are no more faults.

mod agenda;
mod daemon;
mod guest;
mod link;
mod operator;
mod scenario;
mod source_side;
mod target_side;
mod world;

use link::{Nanos, SECOND};
pub use world::Summary;
use world::World;

/// Longest time from the last fault to the guest's arrival: the slowest link drawn needs a minute
/// for the largest guest, and an attempt may fail because of an earlier fault.
const ARRIVAL_SPAN_MAX: Nanos = 300 * SECOND;

/// Most events in one run: far more than were ever seen.
const HAPPENING_COUNT_MAX: u64 = 20_000_000;

/// A run that broke an invariant.
#[derive(Debug)]
pub struct Failure {
    /// The seed that reproduces it.
    pub seed: u64,
    /// The invariant, and the time.
    pub what: String,
    /// The events that led to it, if the run was traced.
    pub trace: Vec<String>,
}

/// Runs a seed.
///
/// # Errors
///
/// The first invariant that was broken.
pub fn run(seed: u64, is_tracing: bool) -> Result<Summary, Failure> {
    let mut world = World::new(seed, is_tracing);
    let deadline = world.scenario.quiet_at + ARRIVAL_SPAN_MAX;
    let scenario = world.scenario.clone();
    world.note(usize::MAX, || format!("{scenario:?}"));
    while world.violation.is_none() {
        if world.is_settled() && world.is_quiet() {
            break;
        }
        if world.now > deadline || world.summary.happening_count > HAPPENING_COUNT_MAX {
            world.violate("the guest has not arrived though nothing goes wrong any more");
        } else if !world.step() {
            world.violate("nothing happens any more");
        }
    }
    world.finish();
    match world.violation {
        None => Ok(world.summary),
        Some(what) => Err(Failure {
            seed,
            what,
            trace: world.trace.into(),
        }),
    }
}
