//! Breadth-first search over worlds of two hosts that run the real ownership machines.
//!
//! The network is the set of all messages ever sent: each can be delivered for ever, in any order,
//! any number of times, which covers loss, delay, duplication and reordering. Between any two
//! actions either host may lose power (memory and pending actions gone, journal and disk kept) or
//! have its daemon killed (the guest process survives with its memory).

pub(crate) mod search;
pub(crate) mod shell;
pub(crate) mod tables;

use towpath_protocol::ownership::{Decider, State};

use tables::Tables;

/// A violation of the handover's rules. Used as bits of a set.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub(crate) enum Violation {
    /// Both hosts run the guest.
    TwoRunners = 1,
    /// A host resumes a guest from a state older than what the other has executed.
    Rollback = 2,
    /// A host starts an image that is not the newest.
    StaleImage = 4,
    /// No journal makes any host responsible for the guest, and nobody runs it.
    Lost = 8,
    /// The source frees blocks that the target does not have.
    BlocksLost = 16,
    /// A host starts a guest that its journal does not let run.
    WithoutRight = 32,
}

impl Violation {
    pub(crate) const ALL: [Self; 6] = [
        Self::TwoRunners,
        Self::Rollback,
        Self::StaleImage,
        Self::Lost,
        Self::BlocksLost,
        Self::WithoutRight,
    ];
}

/// A bug of the shell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mistake {
    /// The source takes silence for a refusal.
    ResumeOnTimeout,
    /// `Commit` is sent before the journal is written.
    CommitBeforeFsync,
    /// The target runs the guest, and says so, before its journal is written.
    RunBeforeFsync,
    /// The refusal is sent before it is durable.
    RefusalNotDurable,
    /// The source forgets the attempts it began, and uses the same numbers again.
    AttemptReused,
    /// The target takes the end of the data for the commit.
    TargetStartsAtEnd,
    /// Mode B: the source takes silence for a race that the target has lost.
    WitnessResumeOnTimeout,
    /// Mode B: the offer is sent before the journal is written.
    OfferBeforeFsync,
}

/// The bounds of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bounds {
    pub(crate) decider: Decider,
    /// Attempts of both hosts together.
    pub(crate) attempts: u8,
    /// Power losses of each host.
    pub(crate) power_losses: u8,
    /// Kills of each host's daemon.
    pub(crate) kills: u8,
    /// Freezes that are undone within an attempt.
    pub(crate) unseals: u8,
    /// Most actions that may wait while a host receives another message.
    pub(crate) waiting: usize,
    /// Whether guests are switched with blocks missing.
    pub(crate) has_post_copy: bool,
    /// Whether the guest goes back.
    pub(crate) has_return: bool,
    /// Whether a third host sends lies.
    pub(crate) has_liar: bool,
    /// Whether roots of different images differ, as they really do.
    pub(crate) root_tells: bool,
    pub(crate) mistake: Option<Mistake>,
}

impl Bounds {
    pub(crate) const fn new(decider: Decider, attempts: u8, power_losses: u8) -> Self {
        Self {
            decider,
            attempts,
            power_losses,
            kills: 0,
            unseals: 0,
            waiting: 0,
            has_post_copy: false,
            has_return: false,
            has_liar: false,
            root_tells: true,
            mistake: None,
        }
    }
}

/// The guest's process at one host. Versions count the starts of the guest: an image becomes
/// outdated when the guest runs after the image was made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Guest {
    None,
    Running {
        missing: Option<u8>,
    },
    Frozen {
        version: u8,
    },
    Image {
        attempt: u8,
        version: u8,
        is_whole: bool,
    },
}

/// One host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Host {
    /// The number of the real machine.
    pub(crate) machine: u32,
    /// The number of the record on disk.
    pub(crate) journal: u32,
    /// A write that a faulty shell delays.
    pub(crate) held: Option<u32>,
    /// The register's answer that has not been received yet.
    pub(crate) answer: Option<u8>,
    pub(crate) guest: Guest,
    /// The version of the guest's disk at this host.
    pub(crate) disk: u8,
    pub(crate) power_losses: u8,
    pub(crate) kills: u8,
}

/// The state of everything: network, hosts and witness.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct World {
    /// All messages ever sent, one bit per number.
    pub(crate) packets: u128,
    pub(crate) hosts: [Host; 2],
    /// The number of the witness's register content.
    pub(crate) register: u8,
    /// The version of the guest that executed last.
    pub(crate) newest: u8,
    pub(crate) attempts: u8,
    pub(crate) unseals: u8,
}

impl World {
    pub(crate) fn is_running(&self, host: usize) -> bool {
        matches!(self.hosts[host].guest, Guest::Running { .. })
    }

    pub(crate) fn runner_count(&self) -> usize {
        (0..2).filter(|&host| self.is_running(host)).count()
    }

    /// The violations in this world, whatever led to it.
    pub(crate) fn violations(&self, tables: &Tables) -> u8 {
        let mut violations = 0;
        if self.runner_count() == 2 {
            violations |= Violation::TwoRunners as u8;
        }
        let is_responsible = |host: &Host| {
            matches!(
                tables.record(host.journal).state,
                State::Owned { .. }
                    | State::Offering { .. }
                    | State::Relinquished { .. }
                    | State::Offered { .. }
            )
        };
        if self.runner_count() == 0 && !self.hosts.iter().any(is_responsible) {
            violations |= Violation::Lost as u8;
        }
        violations
    }
}
