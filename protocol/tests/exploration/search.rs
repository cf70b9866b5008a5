//! The search itself, and its results over all worlds.

use std::hash::{BuildHasher, BuildHasherDefault};

use super::shell::Shell;
use super::tables::{QuickHasher, Tables};
use super::{Bounds, Violation, World};

/// More worlds than this mean that the search is not bounded.
const WORLD_COUNT_MAX: usize = 30_000_000;

/// The numbered worlds of a search, found by an open-addressing table of at least two slots per
/// world.
struct Worlds {
    worlds: Vec<World>,
    slots: Vec<u32>,
    hasher: BuildHasherDefault<QuickHasher>,
}

const FREE: u32 = u32::MAX;

impl Worlds {
    fn new() -> Self {
        Self {
            worlds: Vec::new(),
            slots: vec![FREE; 1 << 16],
            hasher: BuildHasherDefault::default(),
        }
    }

    /// The world's number and whether it is new.
    fn number(&mut self, world: &World) -> (u32, bool) {
        if self.worlds.len() * 2 > self.slots.len() {
            self.grow();
        }
        let slot = self.slot(world);
        if self.slots[slot] != FREE {
            return (self.slots[slot], false);
        }
        let number = u32::try_from(self.worlds.len()).expect("fewer than 2^32");
        assert!(
            self.worlds.len() < WORLD_COUNT_MAX,
            "the search is not bounded"
        );
        self.slots[slot] = number;
        self.worlds.push(*world);
        (number, true)
    }

    fn slot(&self, world: &World) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = usize::try_from(self.hasher.hash_one(world) >> 16).expect("64 bits") & mask;
        while self.slots[slot] != FREE && self.worlds[self.slots[slot] as usize] != *world {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn grow(&mut self) {
        self.slots = vec![FREE; self.slots.len() * 4];
        for number in 0..self.worlds.len() {
            let slot = self.slot(&self.worlds[number]);
            self.slots[slot] = u32::try_from(number).expect("fewer than 2^32");
        }
    }
}

/// A step between two worlds that is not a fault, with the host that does it.
#[derive(Clone, Copy)]
struct Edge {
    from: u32,
    to: u32,
    host: u8,
}

/// The results of a search.
pub(crate) struct Found {
    pub(crate) world_count: usize,
    /// Number of worlds or steps with each violation.
    pub(crate) violations: [usize; Violation::ALL.len()],
    /// The shortest path to the first of each violation.
    pub(crate) ways: [Option<Vec<String>>; Violation::ALL.len()],
    /// Worlds from which no path without a fault leads to exactly one runner.
    pub(crate) stuck_count: usize,
    /// Worlds in which the source waits for as long as the target is silent.
    pub(crate) blocked_count: usize,
    /// Worlds in which the guest has moved and runs.
    pub(crate) moved_count: usize,
    /// Worlds in which it is back after a move.
    pub(crate) returned_count: usize,
}

impl Found {
    pub(crate) fn count(&self, violation: Violation) -> usize {
        self.violations[position(violation)]
    }

    /// Number of violations of any kind.
    pub(crate) fn violation_count(&self) -> usize {
        self.violations.iter().sum()
    }

    pub(crate) fn way(&self, violation: Violation) -> String {
        let way = self.ways[position(violation)].as_ref();
        way.map_or_else(String::new, |way| way.join(" > "))
    }
}

fn position(violation: Violation) -> usize {
    let found = Violation::ALL.iter().position(|known| *known == violation);
    found.expect("all are listed")
}

/// Explores every world within the bounds.
pub(crate) fn explore(bounds: Bounds) -> Found {
    let mut tables = Tables::new();
    let mut shell = Shell {
        tables: &mut tables,
        bounds,
        steps: Vec::new(),
    };
    let mut worlds = Worlds::new();
    let first = shell.first_world();
    worlds.number(&first);
    let mut parents: Vec<(u32, &'static str, u8)> = vec![(FREE, "", 0)];
    let mut edges = Vec::new();
    let mut violations = [0; Violation::ALL.len()];
    let mut ways: [Option<Vec<String>>; Violation::ALL.len()] = Default::default();
    let mut next = 0;
    while next < worlds.worlds.len() {
        let from = u32::try_from(next).expect("fewer than 2^32");
        let world = worlds.worlds[next];
        shell.expand(&world);
        for step in &shell.steps {
            let (to, is_new) = worlds.number(&step.world);
            let host = u8::try_from(step.host).expect("two hosts");
            if is_new {
                parents.push((from, step.label, host));
            }
            if !step.is_fault {
                edges.push(Edge { from, to, host });
            }
            let mut bad = step.violations;
            if is_new {
                bad |= step.world.violations(shell.tables);
            }
            for (position, violation) in Violation::ALL.iter().enumerate() {
                if bad & *violation as u8 != 0 {
                    violations[position] += 1;
                    let last = (step.label, host);
                    ways[position].get_or_insert_with(|| way(&parents, from, last));
                }
            }
        }
        next += 1;
    }
    let has_moved = |world: &&World| world.is_running(1);
    let has_returned = |world: &&World| {
        let record = shell.tables.record(world.hosts[0].journal);
        world.is_running(0) && record.verdicts.iter().any(|verdict| verdict.is_taken)
    };
    let worlds = worlds.worlds;
    Found {
        world_count: worlds.len(),
        violations,
        ways,
        stuck_count: stuck_count(&worlds, &edges),
        blocked_count: blocked_count(&worlds, &edges),
        moved_count: worlds.iter().filter(has_moved).count(),
        returned_count: worlds.iter().filter(has_returned).count(),
    }
}

fn way(parents: &[(u32, &'static str, u8)], from: u32, last: (&str, u8)) -> Vec<String> {
    let show = |label, host| format!("{} {label}", super::tables::NAMES[usize::from(host)]);
    let mut way = vec![show(last.0, last.1)];
    let mut at = from;
    while parents[at as usize].0 != FREE {
        let (parent, label, host) = parents[at as usize];
        way.push(show(label, host));
        at = parent;
    }
    way.reverse();
    way
}

/// Counts worlds from which no path without a fault leads to exactly one runner.
fn stuck_count(worlds: &[World], edges: &[Edge]) -> usize {
    let is_good = |world: &World| world.runner_count() == 1;
    let reached = reach_back(worlds, edges, is_good);
    reached.iter().filter(|reached| !**reached).count()
}

/// Counts worlds in which no host runs the guest and host a alone cannot change that.
fn blocked_count(worlds: &[World], edges: &[Edge]) -> usize {
    let own: Vec<Edge> = edges
        .iter()
        .filter(|edge| edge.host == 0)
        .copied()
        .collect();
    let reached = reach_back(worlds, &own, |world| world.runner_count() > 0);
    reached.iter().filter(|reached| !**reached).count()
}

/// For each world, whether some path along the edges leads to a good one.
fn reach_back(worlds: &[World], edges: &[Edge], is_good: impl Fn(&World) -> bool) -> Vec<bool> {
    let mut ends = vec![0_u32; worlds.len() + 1];
    for edge in edges {
        ends[edge.to as usize + 1] += 1;
    }
    for position in 1..ends.len() {
        ends[position] += ends[position - 1];
    }
    let mut starts = ends.clone();
    let mut froms = vec![0_u32; edges.len()];
    for edge in edges {
        let slot = &mut starts[edge.to as usize];
        froms[*slot as usize] = edge.from;
        *slot += 1;
    }
    let mut reached: Vec<bool> = worlds.iter().map(&is_good).collect();
    let mut waiting: Vec<usize> = (0..worlds.len()).filter(|&at| reached[at]).collect();
    while let Some(at) = waiting.pop() {
        for &from in &froms[ends[at] as usize..ends[at + 1] as usize] {
            let from = from as usize;
            if !reached[from] {
                reached[from] = true;
                waiting.push(from);
            }
        }
    }
    reached
}
