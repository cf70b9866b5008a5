//! The possible next steps of two hosts, their guests and their operator, including faults.

use towpath_protocol::identity::{AttemptId, Epoch};
use towpath_protocol::ownership::{Event, Holder, Ownership, Record, State, Word};

use super::tables::{Act, Packet, Tables, root};
use super::{Bounds, Guest, Host, Mistake, Violation, World};

/// One possible step.
pub(crate) struct Step {
    pub(crate) world: World,
    pub(crate) label: &'static str,
    /// The host that does it.
    pub(crate) host: usize,
    /// Whether it is a power loss or a kill. Progress must not depend on such steps.
    pub(crate) is_fault: bool,
    /// The violations of the step itself.
    pub(crate) violations: u8,
}

/// Collects the possible next steps.
pub(crate) struct Shell<'a> {
    pub(crate) tables: &'a mut Tables,
    pub(crate) bounds: Bounds,
    pub(crate) steps: Vec<Step>,
}

impl Shell<'_> {
    /// The first world: host a runs the guest, host b knows nothing of it.
    pub(crate) fn first_world(&mut self) -> World {
        let decider = self.bounds.decider;
        let machines = [
            self.tables.owner(0).decided_by(decider),
            self.tables.vacant(1).decided_by(decider),
        ];
        let hosts = machines.map(|machine: Ownership| Host {
            machine: self.tables.number_of_machine(&machine),
            journal: self.tables.number_of_record(machine.record()),
            held: None,
            answer: None,
            guest: Guest::None,
            disk: 0,
            power_losses: 0,
            kills: 0,
        });
        let holder = Holder {
            host: self.tables.identity(0).clone(),
            epoch: Epoch(1),
        };
        let mut world = World {
            packets: 0,
            hosts,
            register: self.tables.number_of_holder(&holder),
            newest: 1,
            attempts: 0,
            unseals: 0,
        };
        world.hosts[0].guest = Guest::Running { missing: None };
        world.hosts[0].disk = 1;
        if self.bounds.has_liar {
            self.add_lies(&mut world);
        }
        world
    }

    /// Adds every message that a third host may send to confuse the two.
    fn add_lies(&mut self, world: &mut World) {
        let root = root(1, true);
        let mut lie = |to, attempt, word| {
            let packet = Packet::Said {
                to,
                from: 2,
                attempt: AttemptId(attempt),
                word,
            };
            world.packets |= 1 << self.tables.number_of_packet(&packet);
        };
        for attempt in 1..=2 {
            for word in [Word::Ack, Word::Nack, Word::Complete, Word::Ready { root }] {
                lie(0, attempt, word);
            }
            let epoch = Epoch(u64::try_from(attempt).expect("small") + 1);
            lie(1, attempt, Word::Commit { epoch, root });
            lie(1, attempt, Word::Abort);
        }
        for to in 0..2 {
            lie(to, 77, Word::Prepare { epoch: Epoch(3) });
            lie(
                to,
                77,
                Word::Commit {
                    epoch: Epoch(3),
                    root,
                },
            );
        }
    }

    /// Fills `steps` with all possible next steps.
    pub(crate) fn expand(&mut self, world: &World) {
        self.steps.clear();
        for host in 0..2 {
            self.carry_out_next(world, host);
            if self.waiting_count(world.hosts[host].machine) <= self.bounds.waiting {
                self.hear_all(world, host);
            }
            self.crash(world, host);
            if self.tables.poll(world.hosts[host].machine).is_none() {
                self.decide(world, host);
                self.err(world, host);
            }
        }
    }

    fn push(&mut self, label: &'static str, host: usize, world: World, violations: u8) {
        let world = self.settle(world, host);
        self.steps.push(Step {
            world,
            label,
            host,
            is_fault: false,
            violations,
        });
    }

    fn waiting_count(&mut self, mut machine: u32) -> usize {
        let mut count = 0;
        while let Some((_, rest)) = self.tables.poll(machine) {
            machine = rest;
            count += 1;
        }
        count
    }

    /// Carries out the next actions that change nothing, such as sending a message that is already
    /// in the network.
    fn settle(&mut self, mut world: World, host: usize) -> World {
        while let Some((act, rest)) = self.tables.poll(world.hosts[host].machine) {
            match act {
                Act::Say(packet) if world.packets & (1 << packet) != 0 => {}
                Act::SayElsewhere => {}
                _ => break,
            }
            world.hosts[host].machine = rest;
        }
        world
    }

    /// Adds the step of an event at a machine, unless it changes nothing.
    fn feed(&mut self, label: &'static str, world: World, host: usize, event: &Event) {
        let event = self.tables.number_of_event(event);
        self.feed_number(label, world, host, event);
    }

    fn feed_number(&mut self, label: &'static str, mut world: World, host: usize, event: u32) {
        let machine = world.hosts[host].machine;
        let after = self.tables.handle(machine, event);
        if after != machine {
            let before = world;
            world.hosts[host].machine = after;
            let world = self.settle(world, host);
            if world != before {
                self.push(label, host, world, 0);
            }
        }
    }

    /// Adds the step of the first waiting action alone, because a crash may come before the next
    /// one.
    fn carry_out_next(&mut self, world: &World, host: usize) {
        let mut next = *world;
        let Some((act, rest)) = self.tables.poll(world.hosts[host].machine) else {
            // A faulty shell carries out its delayed write at last.
            if let Some(record) = world.hosts[host].held {
                next.hosts[host].journal = record;
                next.hosts[host].held = None;
                self.push("writes late", host, next, 0);
            }
            return;
        };
        next.hosts[host].machine = rest;
        let violations = self.carry_out(&mut next, host, act);
        let label = match act {
            Act::Persist(_) => "persists",
            Act::Say(_) | Act::SayElsewhere => "says",
            Act::Run => "runs",
            Act::Thaw => "thaws",
            Act::DiscardImage => "discards",
            Act::FreeImage => "frees",
            Act::Swap(..) => "swaps",
            Act::ReadRegister => "reads the register",
        };
        self.push(label, host, next, violations);
    }

    fn carry_out(&mut self, world: &mut World, host: usize, act: Act) -> u8 {
        let guest = world.hosts[host].guest;
        match act {
            Act::Persist(record) => {
                match self.delayed(world, host, record) {
                    Delay::None => {
                        world.hosts[host].journal = record;
                        world.hosts[host].held = None;
                    }
                    Delay::Held => world.hosts[host].held = Some(record),
                    Delay::Dropped => {}
                }
                0
            }
            Act::Say(packet) => {
                world.packets |= 1 << packet;
                0
            }
            Act::SayElsewhere => 0,
            Act::Run | Act::Thaw => match guest {
                Guest::Running { .. } => 0,
                Guest::Frozen { version } => self.start(world, host, version, None),
                Guest::Image {
                    version, is_whole, ..
                } => self.start(world, host, version, (!is_whole).then_some(version)),
                Guest::None => self.start(world, host, world.hosts[host].disk, None),
            },
            Act::DiscardImage => {
                if matches!(guest, Guest::Image { .. }) {
                    world.hosts[host].guest = Guest::None;
                }
                0
            }
            Act::FreeImage => self.free(world, host),
            Act::Swap(expected, new) => {
                if world.register == expected {
                    world.register = new;
                }
                world.hosts[host].answer = Some(world.register);
                0
            }
            Act::ReadRegister => {
                world.hosts[host].answer = Some(world.register);
                0
            }
        }
    }

    fn free(&self, world: &mut World, host: usize) -> u8 {
        let Guest::Frozen { version } = world.hosts[host].guest else {
            return 0;
        };
        world.hosts[host].guest = Guest::None;
        match world.hosts[1 - host].guest {
            Guest::Running {
                missing: Some(missing),
            } if missing == version => Violation::BlocksLost as u8,
            _ => 0,
        }
    }

    /// Starts the guest from `version`. Only the newest version is right, and only if the journal
    /// allows it.
    fn start(&self, world: &mut World, host: usize, version: u8, missing: Option<u8>) -> u8 {
        let mut violations = 0;
        if version != world.newest {
            let is_own = !matches!(world.hosts[host].guest, Guest::Image { .. });
            let kind = if is_own {
                Violation::Rollback
            } else {
                Violation::StaleImage
            };
            violations |= kind as u8;
        }
        let journal = &self.tables.record(world.hosts[host].journal).state;
        if !matches!(journal, State::Owned { .. } | State::Offering { .. }) {
            violations |= Violation::WithoutRight as u8;
        }
        // A new version is needed only if an image was made of the current one.
        if self.is_imaged(world) {
            world.newest += 1;
        }
        world.hosts[host].disk = world.newest;
        world.hosts[host].guest = Guest::Running { missing };
        violations
    }

    fn is_imaged(&self, world: &World) -> bool {
        (0..self.tables.packet_count()).any(|number| {
            let is_sent = world.packets & (1 << number) != 0;
            let packet = self.tables.packet(number);
            is_sent && matches!(packet, Packet::Image { version, .. } if *version == world.newest)
        })
    }

    /// What a faulty shell does with a write.
    fn delayed(&self, world: &World, host: usize, record: u32) -> Delay {
        let was_prepared = matches!(
            self.tables.record(world.hosts[host].journal).state,
            State::Prepared { .. }
        );
        match (self.bounds.mistake, &self.tables.record(record).state) {
            (Some(Mistake::CommitBeforeFsync), State::Relinquished { .. })
            | (Some(Mistake::OfferBeforeFsync), State::Offered { .. })
            | (Some(Mistake::RefusalNotDurable), State::Refused { .. }) => Delay::Held,
            (Some(Mistake::RunBeforeFsync), State::Owned { .. }) if was_prepared => Delay::Held,
            (Some(Mistake::AttemptReused), State::Offering { .. }) => Delay::Dropped,
            _ => Delay::None,
        }
    }

    fn hear_all(&mut self, world: &World, host: usize) {
        if let Some(answer) = world.hosts[host].answer {
            let holder = self.tables.holder(answer).clone();
            let mut next = *world;
            next.hosts[host].answer = None;
            let event = self.tables.number_of_event(&Event::Register { holder });
            next.hosts[host].machine = self.tables.handle(next.hosts[host].machine, event);
            self.push("hears the register", host, next, 0);
        }
        for number in 0..self.tables.packet_count() {
            if world.packets & (1 << number) == 0 {
                continue;
            }
            match *self.tables.packet(number) {
                Packet::Said { to, .. } if to == host => {
                    let event = self.tables.hearing(number);
                    self.feed_number("hears", *world, host, event);
                }
                Packet::Image {
                    to,
                    attempt,
                    version,
                    is_whole,
                } if to == host => self.receive(world, host, attempt, version, is_whole),
                _ => {}
            }
        }
    }

    /// Installs data of the open attempt. Older data never overwrites newer.
    fn receive(&mut self, world: &World, host: usize, attempt: u8, version: u8, is_whole: bool) {
        let machine = world.hosts[host].machine;
        let is_open = matches!(
            self.tables.machine(machine).record().state,
            State::Prepared { attempt: open, .. } if open == AttemptId(attempt.into())
        );
        if !is_open || self.tables.poll(machine).is_some() {
            return;
        }
        match world.hosts[host].guest {
            Guest::None => {}
            Guest::Image { version: here, .. } if here < version => {}
            _ => return,
        }
        let mut next = *world;
        next.hosts[host].guest = Guest::Image {
            attempt,
            version,
            is_whole,
        };
        next.hosts[host].disk = version;
        let root = root(version, self.bounds.root_tells);
        let event = self.tables.number_of_event(&Event::ImageReady { root });
        next.hosts[host].machine = self.tables.handle(machine, event);
        self.push("receives", host, next, 0);
    }

    /// Adds the steps that the shell and its operator may decide on by themselves.
    fn decide(&mut self, world: &World, host: usize) {
        let record = self
            .tables
            .machine(world.hosts[host].machine)
            .record()
            .clone();
        self.feed("repeats", *world, host, &Event::Repeat);
        match record.state {
            State::Owned { .. } => self.decide_as_owner(world, host, &record),
            State::Offering { attempt, .. } => {
                let attempt = u8::try_from(attempt.0).expect("small numbers");
                self.decide_as_source(world, host, attempt);
            }
            State::Offered { .. } => self.feed("reclaims", *world, host, &Event::Reclaim),
            State::Prepared { .. } => self.decide_as_target(world, host),
            State::Vacant
            | State::Relinquished { .. }
            | State::Released { .. }
            | State::Refused { .. } => {}
        }
    }

    fn decide_as_owner(&mut self, world: &World, host: usize, record: &Record) {
        let is_allowed = host == 0 || self.bounds.has_return;
        if is_allowed && world.attempts < self.bounds.attempts {
            let mut next = *world;
            next.attempts += 1;
            let number = match self.bounds.mistake {
                Some(Mistake::AttemptReused) => u128::from(record.high_water.0),
                _ => next.attempts.into(),
            };
            let event = Event::Offer {
                attempt: AttemptId(number),
                target: self.tables.identity(1 - host).clone(),
            };
            self.feed("offers", next, host, &event);
        }
        let mut next = *world;
        match world.hosts[host].guest {
            Guest::Running { missing: None } => {
                self.feed("is complete", next, host, &Event::ImageComplete);
            }
            Guest::Running {
                missing: Some(version),
            } => {
                // The source serves the missing blocks. If it cannot any more, the guest is booted.
                if world.hosts[1 - host].guest == (Guest::Frozen { version }) {
                    next.hosts[host].guest = Guest::Running { missing: None };
                    self.push("fetches the rest", host, next, 0);
                } else {
                    next.hosts[host].guest = Guest::None;
                    let violations = self.start(&mut next, host, world.hosts[host].disk, None);
                    self.push("boots, blocks are gone", host, next, violations);
                }
            }
            _ => {}
        }
    }

    fn decide_as_source(&mut self, world: &World, host: usize, attempt: u8) {
        self.feed("withdraws", *world, host, &Event::Withdraw);
        match world.hosts[host].guest {
            Guest::Running { missing: None } => {
                self.freeze(world, host, attempt, true);
                if self.bounds.has_post_copy {
                    self.freeze(world, host, attempt, false);
                }
            }
            Guest::Frozen { version } if world.unseals < self.bounds.unseals => {
                let mut next = *world;
                next.unseals += 1;
                let event = self.tables.number_of_event(&Event::Unsealed);
                let machine = next.hosts[host].machine;
                next.hosts[host].machine = self.tables.handle(machine, event);
                let violations = self.start(&mut next, host, version, None);
                self.push("unseals", host, next, violations);
            }
            _ => {}
        }
    }

    fn freeze(&mut self, world: &World, host: usize, attempt: u8, is_whole: bool) {
        let version = world.newest;
        let packet = self.tables.number_of_packet(&Packet::Image {
            to: 1 - host,
            attempt,
            version,
            is_whole,
        });
        let mut next = *world;
        next.packets |= 1 << packet;
        next.hosts[host].guest = Guest::Frozen { version };
        let root = root(version, self.bounds.root_tells);
        let event = Event::Sealed { root, is_whole };
        self.feed("seals", next, host, &event);
    }

    fn decide_as_target(&mut self, world: &World, host: usize) {
        self.feed("gives up", *world, host, &Event::GiveUp);
        if let Guest::Image {
            version, is_whole, ..
        } = world.hosts[host].guest
        {
            let root = root(version, self.bounds.root_tells);
            self.feed("finds its image", *world, host, &Event::ImageReady { root });
            if is_whole {
                self.feed("has it whole", *world, host, &Event::ImageComplete);
            }
        }
    }

    /// Adds the steps of bugs in which the shell makes up an event.
    fn err(&mut self, world: &World, host: usize) {
        let state = self
            .tables
            .machine(world.hosts[host].machine)
            .record()
            .state
            .clone();
        let event = match (self.bounds.mistake, state) {
            (
                Some(Mistake::ResumeOnTimeout),
                State::Relinquished {
                    attempt, target, ..
                },
            ) => Event::Heard {
                from: target,
                attempt,
                word: Word::Nack,
            },
            (Some(Mistake::WitnessResumeOnTimeout), State::Offered { epoch, .. }) => {
                Event::Register {
                    holder: Holder {
                        host: self.tables.identity(host).clone(),
                        epoch,
                    },
                }
            }
            (
                Some(Mistake::TargetStartsAtEnd),
                State::Prepared {
                    epoch,
                    attempt,
                    source,
                },
            ) => {
                let Guest::Image { version, .. } = world.hosts[host].guest else {
                    return;
                };
                let root = root(version, self.bounds.root_tells);
                Event::Heard {
                    from: source,
                    attempt,
                    word: Word::Commit { epoch, root },
                }
            }
            _ => return,
        };
        self.feed("errs", *world, host, &event);
    }

    fn crash(&mut self, world: &World, host: usize) {
        let here = world.hosts[host];
        let mut next = *world;
        next.hosts[host].machine = self.tables.recover(host, here.journal);
        next.hosts[host].held = None;
        next.hosts[host].answer = None;
        next = self.settle(next, host);
        let mut push = |label, world| {
            self.steps.push(Step {
                world,
                label,
                host,
                is_fault: true,
                violations: 0,
            });
        };
        if here.power_losses < self.bounds.power_losses {
            let mut next = next;
            next.hosts[host].power_losses += 1;
            next.hosts[host].guest = Guest::None;
            push("loses power", next);
        }
        if here.kills < self.bounds.kills {
            next.hosts[host].kills += 1;
            if !is_own_image(self.tables.record(here.journal), here.guest) {
                next.hosts[host].guest = Guest::None;
            }
            push("is killed", next);
        }
    }
}

enum Delay {
    None,
    Held,
    Dropped,
}

/// An image that survives a kill counts only for the attempt it was made in.
fn is_own_image(record: &Record, guest: Guest) -> bool {
    let Guest::Image { attempt, .. } = guest else {
        return true;
    };
    let attempt = AttemptId(attempt.into());
    match &record.state {
        State::Prepared { attempt: open, .. } => *open == attempt,
        State::Owned { .. } => record
            .verdicts
            .last()
            .is_some_and(|verdict| verdict.is_taken && verdict.origin.attempt == attempt),
        _ => false,
    }
}
