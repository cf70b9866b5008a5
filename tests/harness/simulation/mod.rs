//! A seeded simulation of a move: the real machines, everything around them made up.
//!
//! A seed decides the guest, its workload, the link, and what goes wrong; the same seed always gives
//! the same run. Source, target and ownership are the production machines, messages travel as their
//! real bytes. Checked are: every block the guest reads holds the newest write to it, a block the
//! running target wrote is never overwritten, never two hosts run the guest, always one is responsible
//! for it, nothing is released before the target has it, and once nothing goes wrong any more the
//! guest arrives.

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

/// Longest time after the last mishap until the guest has arrived: the slowest link drawn needs a
/// minute for the largest guest, and an attempt may fail for what happened before.
const ARRIVAL_SPAN_MAX: Nanos = 300 * SECOND;

/// Things that happen in one run at the most: far above the longest seen.
const HAPPENING_COUNT_MAX: u64 = 20_000_000;

/// A run that broke a rule.
#[derive(Debug)]
pub struct Failure {
    /// The seed that does it again.
    pub seed: u64,
    /// Which rule, and when.
    pub what: String,
    /// What led to it, if the run was traced.
    pub trace: Vec<String>,
}

/// Runs a seed.
///
/// # Errors
///
/// The first rule that was broken.
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
