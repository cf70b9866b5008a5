//! The scenario of a seed: guest, workload, link, faults.

use std::time::Duration;

use towpath_protocol::plan::{Mode, Policy};

use super::link::{MILLISECOND, Nanos, SECOND};
use crate::random::Random;

/// A fault, or an action of the operator, at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mishap {
    /// Bytes from these hosts are held up for a while.
    Cut {
        /// From which hosts.
        directions: [bool; 2],
        /// For how long.
        span: Nanos,
        /// Whether the tunnel's streams outlive it.
        is_bridged: bool,
    },
    /// Changes the link's rate.
    Rate(u64),
    /// A daemon is killed.
    Kill(usize),
    /// A host loses power.
    PowerLoss(usize),
    /// A guest process dies.
    GuestDies(usize),
    /// The operator cancels the move.
    Cancel,
}

/// Everything that is drawn from the seed in advance.
#[derive(Debug, Clone)]
pub(super) struct Scenario {
    /// The guest's spaces: block size in bytes, and number of blocks.
    pub(super) spaces: Vec<(u32, u64)>,
    /// Share of its blocks that the guest has written before the move, in percent.
    pub(super) touched_percent: u64,
    /// Time between two steps of the guest.
    pub(super) step: Nanos,
    /// Blocks that it touches in a step.
    pub(super) touches: u64,
    /// Share of its blocks that it uses most of the time, in percent.
    pub(super) hot_percent: u64,
    /// One-way latency.
    pub(super) latency: Nanos,
    /// The link's rate.
    pub(super) bytes_per_second: u64,
    /// The move policy that the operator uses while there are faults.
    pub(super) policy: Policy,
    /// Faults and their times.
    pub(super) mishaps: Vec<(Nanos, Mishap)>,
    /// Number of faults that strike shortly after a move enters a critical stage.
    pub(super) strikes: u64,
    /// Number of crashes before randomly chosen actions: kills and power losses.
    pub(super) crashes: u64,
    /// Number of journal writes that fail.
    pub(super) bad_writes: u64,
    /// A crash hits one in this many actions.
    pub(super) crash_odds: u64,
    /// From this time on there are no more faults.
    pub(super) quiet_at: Nanos,
    /// Whether the guest moves back and forth until there are no more faults.
    pub(super) has_return: bool,
}

impl Scenario {
    /// Blocks of each space.
    #[must_use]
    pub(super) fn block_counts(&self) -> Vec<u64> {
        self.spaces.iter().map(|(_, count)| *count).collect()
    }

    /// The scenario of a seed.
    pub(super) fn draw(random: &mut Random) -> Self {
        let mut spaces = vec![(4096, random.between(1, 640))];
        if random.chance(30) {
            spaces.push((65_536, random.between(1, 40)));
        }
        let mode = random.pick(&[Mode::Auto, Mode::Auto, Mode::Pre, Mode::Post]);
        let has_cap = random.chance(20);
        let policy = Policy {
            mode,
            pause_max: Duration::from_millis(random.between(30, 400)),
            bytes_per_second_max: has_cap.then(|| random.between(1 << 17, 1 << 23)),
        };
        let quiet_at = random.between(SECOND / 2, 12 * SECOND);
        let mishap_count = if random.chance(20) {
            0
        } else {
            random.below(7)
        };
        let mut mishaps: Vec<(Nanos, Mishap)> = (0..mishap_count)
            .map(|_| (random.below(quiet_at), draw_mishap(random)))
            .collect();
        mishaps.sort_by_key(|(at, _)| *at);
        Self {
            spaces,
            touched_percent: random.below(101),
            step: random.between(2, 40) * MILLISECOND,
            touches: random.pick(&[0, 1, 3, 12, 40]),
            hot_percent: random.between(1, 60),
            latency: random.between(100_000, 60 * MILLISECOND),
            bytes_per_second: random.between(200_000, 20_000_000),
            policy,
            mishaps,
            strikes: if random.chance(40) {
                0
            } else {
                random.below(5)
            },
            crashes: if random.chance(50) {
                0
            } else {
                random.below(4)
            },
            bad_writes: if random.chance(70) {
                0
            } else {
                random.between(1, 2)
            },
            crash_odds: random.pick(&[5, 20, 60, 200]),
            quiet_at,
            has_return: random.chance(60),
        }
    }
}

/// Draws a fault.
pub(super) fn draw_mishap(random: &mut Random) -> Mishap {
    let host = usize::from(random.chance(50));
    match random.below(12) {
        0..=3 => {
            let directions =
                random.pick(&[[true, true], [true, true], [true, false], [false, true]]);
            let span = random.pick(&[50, 300, 1_000, 4_000, 30_000]) * MILLISECOND;
            let is_bridged = random.chance(40);
            Mishap::Cut {
                directions,
                span: random.between(span / 2, span),
                is_bridged,
            }
        }
        4 => Mishap::Rate(random.between(20_000, 2_000_000)),
        5..=7 => Mishap::Kill(host),
        8 | 9 => Mishap::PowerLoss(host),
        10 => Mishap::GuestDies(host),
        _ => Mishap::Cancel,
    }
}
