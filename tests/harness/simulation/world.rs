//! Two hosts, their guest and the link between them, in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;

use towpath_protocol::identity::{Epoch, GuestId, HostIdentity};
use towpath_protocol::message::{Lane, Prepare, Received};
use towpath_protocol::ownership::{Ownership, Record, State};
use towpath_protocol::plan::Policy;
use towpath_protocol::source::{self, ChunkOrder, Source};
use towpath_protocol::space::BlockSet;
use towpath_protocol::target::{self, Target};
use towpath_protocol::time::Instant;

use super::agenda::Agenda;
use super::guest::{Content, Doing, Guest, Truth};
use super::link::{Link, Nanos, SECOND};
use super::scenario::{Mishap, Scenario};
use crate::random::Random;

/// The guest that moves.
pub(super) const GUEST: GuestId = GuestId(7);

/// Trace lines that are kept: enough to see what led to a violation.
const TRACE_LINES_MAX: usize = 4_000;

/// An event.
#[derive(Debug)]
pub(super) enum Happening {
    /// A daemon continues after a slow action.
    Continue { host: usize, incarnation: u32 },
    /// A daemon receives an input.
    Tell {
        host: usize,
        incarnation: u32,
        input: Input,
    },
    /// A frame arrives.
    Frame {
        session: u64,
        to: usize,
        lane: Lane,
        bytes: Vec<u8>,
    },
    /// A host's tunnel reports that lanes are open, or gone.
    Lanes {
        session: u64,
        host: usize,
        are_open: bool,
    },
    /// A daemon starts again.
    Restart { host: usize },
    /// The guest runs for a step.
    Step { host: usize, number: u64 },
    /// A fault occurs.
    Mishap(Mishap),
    /// The operator checks the state.
    Operate,
}

/// The inputs of a daemon, handled one after the other.
#[derive(Debug)]
pub(super) enum Input {
    /// For the source machine of the engine with this number.
    Source(u64, source::Event),
    /// For the target machine of the engine with this number.
    Target(u64, target::Event),
    /// Read and pack the next order, unless orders have been cancelled since.
    Pack(u64, u64),
    /// A frame.
    Frame(u64, Lane, Vec<u8>),
    /// Lanes are open or gone.
    Lanes(u64, bool),
    /// A lane could not be opened.
    Unreachable(u64),
    /// Move the guest to the other host.
    Move(u128, Policy),
    /// Cancel the move.
    Cancel,
    /// Boot the guest anew: the missing blocks cannot come any more.
    Boot,
    /// Check for expired deadlines.
    Tick,
}

/// The machine that a daemon runs.
#[derive(Debug)]
pub(super) enum Engine {
    /// Only the ownership machine.
    Idle(Box<Ownership>),
    /// Sending the guest.
    Source(Box<Source>),
    /// Receiving the guest.
    Target(Box<Target>),
    /// The daemon is dead.
    Down,
}

/// What a host has on disk besides the journal, for the current attempt.
#[derive(Debug, Clone, Default)]
pub(super) struct Files {
    /// The setup of the source's attempt.
    pub(super) source: Option<source::Setup>,
    /// The setup of the target's attempt.
    pub(super) target: Option<target::Setup>,
    /// The offer.
    pub(super) prepare: Option<Prepare>,
    /// Which blocks of the image are present.
    pub(super) present: Vec<BlockSet>,
    /// The position in the stream of chunks.
    pub(super) position: Option<Received>,
}

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) identity: HostIdentity,
    /// Distinguishes one life of the daemon from the next.
    pub(super) incarnation: u32,
    pub(super) engine: Engine,
    /// Distinguishes reports for this engine from those for an earlier one.
    pub(super) engine_number: u64,
    pub(super) journal: Record,
    /// Whether a write to the journal has failed.
    pub(super) is_poisoned: bool,
    pub(super) files: Files,
    pub(super) guest: Option<Guest>,
    pub(super) inbox: VecDeque<Input>,
    pub(super) busy_until: Nanos,
    pub(super) session: Option<u64>,
    pub(super) tick_at: Nanos,
    /// Orders waiting to be packed, in order.
    pub(super) packs: VecDeque<ChunkOrder>,
    /// Number of the next chunk.
    pub(super) next_sequence: u64,
    pub(super) pack_generation: u64,
    /// Unpacked chunks by token.
    pub(super) chunks: BTreeMap<u64, Option<Vec<Content>>>,
    pub(super) next_token: u64,
    pub(super) frozen_at: Option<Nanos>,
    /// What was sent under a move's own rate cap.
    pub(super) capped: Option<Capped>,
    /// Lanes are not opened again before this time.
    pub(super) connect_again_at: Nanos,
    /// When the guest process will have answered all requests.
    pub(super) reported_at: Nanos,
}

/// What was sent under a move's own rate cap.
#[derive(Debug, Clone, Copy)]
pub(super) struct Capped {
    /// Since when the cap has applied.
    pub(super) since: Nanos,
    /// Bytes of frames that no vCPU waited for.
    pub(super) bytes: u64,
    /// When all frames will be paid for.
    pub(super) paid_at: Nanos,
}

/// Statistics of a run, to be summed over all seeds.
#[derive(Debug, Default, Clone, Copy)]
pub struct Summary {
    /// Events.
    pub happening_count: u64,
    /// Moves that were completed.
    pub move_count: u64,
    /// Attempts begun.
    pub attempt_count: u64,
    /// Moves switched with blocks missing.
    pub post_copy_count: u64,
    /// Faults of vCPUs that waited for the source.
    pub demand_count: u64,
    /// Freezes that were given up.
    pub thaw_count: u64,
    /// Kills and power losses.
    pub crash_count: u64,
    /// Writes of a journal that failed.
    pub bad_write_count: u64,
    /// Boots that lost the guest's memory.
    pub boot_count: u64,
}

/// The whole simulated world.
#[derive(Debug)]
pub(super) struct World {
    pub(super) now: Nanos,
    pub(super) random: Random,
    pub(super) scenario: Scenario,
    pub(super) agenda: Agenda<Happening>,
    pub(super) hosts: [Host; 2],
    pub(super) link: Link,
    pub(super) truth: Truth,
    /// The state of the guest's vCPUs when it was last saved.
    pub(super) saved_state: Vec<u8>,
    /// The epoch under which the guest last ran, and where.
    pub(super) last_run: (Epoch, usize),
    pub(super) goal: usize,
    pub(super) next_number: u64,
    pub(super) crashes_left: u64,
    pub(super) bad_writes_left: u64,
    pub(super) strikes_left: u64,
    pub(super) summary: Summary,
    pub(super) violation: Option<String>,
    pub(super) is_tracing: bool,
    pub(super) trace: VecDeque<String>,
}

impl World {
    /// The world of a seed, before any event.
    #[must_use]
    pub(super) fn new(seed: u64, is_tracing: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::draw(&mut random);
        let link = Link::new(scenario.latency, scenario.bytes_per_second);
        let counts = scenario.block_counts();
        let mut hosts = ["a", "b"].map(|name| Host::new(identity(name)));
        let (ownership, record) = Ownership::owner(hosts[0].identity.clone(), GUEST, Epoch(1));
        hosts[0].engine = Engine::Idle(Box::new(ownership));
        hosts[0].journal = record;
        let mut world = Self {
            now: 0,
            truth: Truth::new(&counts),
            crashes_left: scenario.crashes,
            bad_writes_left: scenario.bad_writes,
            strikes_left: scenario.strikes,
            random,
            scenario,
            agenda: Agenda::default(),
            hosts,
            link,
            saved_state: Vec::new(),
            last_run: (Epoch(1), 0),
            goal: 1,
            next_number: 1,
            summary: Summary::default(),
            violation: None,
            is_tracing,
            trace: VecDeque::new(),
        };
        world.start_first_guest(&counts);
        for (at, mishap) in world.scenario.mishaps.clone() {
            world.agenda.add(at, Happening::Mishap(mishap));
        }
        world.agenda.add(SECOND / 10, Happening::Operate);
        world
    }

    fn start_first_guest(&mut self, counts: &[u64]) {
        let number = self.number();
        let mut guest = Guest::new(number, None, counts);
        for (space, count) in counts.iter().enumerate() {
            for block in 0..*count {
                if self.random.chance(self.scenario.touched_percent) {
                    self.truth.clock += 1;
                    guest.write(space, block, self.truth.clock);
                    self.truth.blocks[space][super::guest::size(block)] = self.truth.clock;
                }
            }
        }
        guest.doing = Doing::Running;
        self.hosts[0].guest = Some(guest);
        self.agenda.add(0, Happening::Step { host: 0, number });
    }

    /// A number that was never used before.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// The time, in the machines' type.
    #[must_use]
    pub(super) const fn instant(&self) -> Instant {
        Instant::from_nanos(self.now)
    }

    /// Whether the time of faults is over.
    #[must_use]
    pub(super) const fn is_quiet(&self) -> bool {
        self.now >= self.scenario.quiet_at
    }

    /// Records the first violation.
    pub(super) fn violate(&mut self, what: &str) {
        self.note(usize::MAX, || format!("VIOLATION: {what}"));
        if self.violation.is_none() {
            self.violation = Some(format!("at {}: {what}", self.instant()));
        }
    }

    /// Adds a line to the trace.
    pub(super) fn note(&mut self, host: usize, line: impl FnOnce() -> String) {
        if !self.is_tracing {
            return;
        }
        if self.trace.len() == TRACE_LINES_MAX {
            self.trace.pop_front();
        }
        let name = ["a", "b"].get(host).unwrap_or(&"-");
        let mut text = String::new();
        write!(text, "{} {name} {}", self.instant(), line()).expect("memory");
        self.trace.push_back(text);
    }

    /// Gives a daemon an input now; a dead one ignores it.
    pub(super) fn tell(&mut self, host: usize, input: Input) {
        if matches!(self.hosts[host].engine, Engine::Down) {
            return;
        }
        self.hosts[host].inbox.push_back(input);
        self.run_daemon(host);
    }

    /// Gives a daemon an input later, if it is still the same life then.
    pub(super) fn tell_later(&mut self, host: usize, delay: Nanos, input: Input) {
        let incarnation = self.hosts[host].incarnation;
        let told = Happening::Tell {
            host,
            incarnation,
            input,
        };
        self.agenda.add(self.now + delay, told);
    }

    /// Handles the next event. False if there are none left.
    pub(super) fn step(&mut self) -> bool {
        let Some((at, happening)) = self.agenda.next() else {
            return false;
        };
        self.now = at.max(self.now);
        self.summary.happening_count += 1;
        match happening {
            Happening::Continue { host, incarnation } => {
                if self.hosts[host].incarnation == incarnation {
                    self.run_daemon(host);
                }
            }
            Happening::Tell {
                host,
                incarnation,
                input,
            } => {
                if self.hosts[host].incarnation == incarnation {
                    self.tell(host, input);
                }
            }
            Happening::Frame {
                session,
                to,
                lane,
                bytes,
            } => {
                let is_known = self.link.session(session).is_some();
                if is_known && self.hosts[to].session == Some(session) {
                    self.tell(to, Input::Frame(session, lane, bytes));
                }
            }
            Happening::Lanes {
                session,
                host,
                are_open,
            } => {
                let is_known = self.link.session(session).is_some();
                if are_open && !is_known {
                    // Broken before it was open: the waiting machine is told so.
                    let number = self.hosts[host].engine_number;
                    self.tell(host, Input::Unreachable(number));
                } else if !matches!(self.hosts[host].engine, Engine::Down) {
                    self.tell(host, Input::Lanes(session, are_open));
                } else if are_open {
                    let delay = self.link.latency;
                    self.break_session(session, 1 - host, delay);
                }
            }
            Happening::Restart { host } => self.restart(host),
            Happening::Step { host, number } => self.step_guest(host, number),
            Happening::Mishap(mishap) => self.go_wrong(mishap),
            Happening::Operate => self.operate(),
        }
        true
    }

    /// Checks every block once more after the guest has arrived.
    pub(super) fn finish(&mut self) {
        if self.violation.is_some() {
            return;
        }
        let goal = self.goal;
        let Some(guest) = &self.hosts[goal].guest else {
            return self.violate("the guest is not where it arrived");
        };
        if let Some((space, block)) = guest.first_wrong(&self.truth) {
            self.violate(&format!(
                "arrived with an old block {block} of space {space}"
            ));
        }
    }

    /// Checks that the journals always leave one host responsible for the guest.
    pub(super) fn check_owner(&mut self) {
        let is_responsible = |host: &Host| {
            matches!(
                host.journal.state,
                State::Owned { .. } | State::Offering { .. } | State::Relinquished { .. }
            )
        };
        if !self.hosts.iter().any(is_responsible) {
            self.violate("lost: no journal makes a host responsible for the guest");
        }
    }
}

impl Host {
    fn new(identity: HostIdentity) -> Self {
        let ownership = Ownership::vacant(identity.clone(), GUEST);
        Self {
            identity,
            incarnation: 0,
            journal: ownership.record().clone(),
            is_poisoned: false,
            engine: Engine::Idle(Box::new(ownership)),
            engine_number: 0,
            files: Files::default(),
            guest: None,
            inbox: VecDeque::new(),
            busy_until: 0,
            session: None,
            tick_at: Nanos::MAX,
            packs: VecDeque::new(),
            next_sequence: 1,
            pack_generation: 0,
            chunks: BTreeMap::new(),
            next_token: 0,
            frozen_at: None,
            capped: None,
            connect_again_at: 0,
            reported_at: 0,
        }
    }
}

fn identity(name: &str) -> HostIdentity {
    let parse = |text: &str| text.parse().expect("a name");
    HostIdentity {
        trust_domain: parse("shop.example"),
        site: parse("site"),
        host: parse(name),
    }
}
