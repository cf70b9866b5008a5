//! A simulated daemon: takes one input after the other and carries out its machine's actions.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::{HEADER_BYTES, Header};
use towpath_protocol::identity::{AttemptId, MigrationId};
use towpath_protocol::message::{
    self, ChunkHeader, Codec, KIND_CHUNK, Lane, Message, Reason, SpaceInfo,
};
use towpath_protocol::ownership::{self, Ownership, Record, State};
use towpath_protocol::plan::Policy;
use towpath_protocol::source::{self, Source};
use towpath_protocol::space::SpaceId;
use towpath_protocol::target::{self, Remains, Target};

use super::guest::{Content, Doing};
use super::link::{MILLISECOND, Nanos, SECOND};
use super::scenario::Mishap;
use super::world::{Engine, GUEST, Happening, Input, World};

/// Most inputs and actions a daemon handles without time passing; more is an endless loop.
const TURN_COUNT_MAX: usize = 100_000;

/// An action of the machine that the daemon runs.
#[derive(Debug)]
pub(super) enum Action {
    Law(ownership::Action),
    Source(source::Action),
    Target(target::Action),
}

impl World {
    /// Runs a daemon until it has nothing left to do now.
    pub(super) fn run_daemon(&mut self, host: usize) {
        for _ in 0..TURN_COUNT_MAX {
            if self.violation.is_some() || self.hosts[host].busy_until > self.now {
                return;
            }
            let action = match &mut self.hosts[host].engine {
                Engine::Idle(ownership) => ownership.poll().map(Action::Law),
                Engine::Source(source) => source.poll().map(Action::Source),
                Engine::Target(target) => target.poll().map(Action::Target),
                Engine::Down => return,
            };
            if let Some(action) = action {
                if self.crashes_now(host) {
                    return;
                }
                let cost = self.carry_out(host, action);
                self.be_busy(host, cost);
            } else if let Some(input) = self.hosts[host].inbox.pop_front() {
                self.take_in(host, input);
            } else {
                self.plan_tick(host);
                return;
            }
        }
        self.violate("a daemon does not come to rest");
    }

    fn be_busy(&mut self, host: usize, cost: Nanos) {
        if cost == 0 || matches!(self.hosts[host].engine, Engine::Down) {
            return;
        }
        let until = self.now + cost;
        self.hosts[host].busy_until = until;
        let incarnation = self.hosts[host].incarnation;
        self.agenda
            .add(until, Happening::Continue { host, incarnation });
    }

    /// Schedules a tick for the source's next deadline.
    fn plan_tick(&mut self, host: usize) {
        let Engine::Source(source) = &self.hosts[host].engine else {
            return;
        };
        let Some(deadline) = source.deadline() else {
            return;
        };
        let at = deadline.as_nanos().max(self.now + 1);
        let planned = self.hosts[host].tick_at;
        if planned > self.now && planned <= at {
            return;
        }
        self.hosts[host].tick_at = at;
        self.tell_later(host, at - self.now, Input::Tick);
    }

    fn take_in(&mut self, host: usize, input: Input) {
        let number = self.hosts[host].engine_number;
        let now = self.instant();
        match input {
            Input::Source(engine, event) if engine == number => self.feed_source(host, event),
            Input::Target(engine, event) if engine == number => self.feed_target(host, event),
            Input::Source(..) | Input::Target(..) => {}
            Input::Pack(engine, generation) => {
                if engine == number && generation == self.hosts[host].pack_generation {
                    self.pack_next(host);
                }
            }
            Input::Frame(session, lane, bytes) => {
                if self.hosts[host].session == Some(session) {
                    self.take_frame(host, lane, &bytes);
                }
            }
            Input::Lanes(session, are_open) => self.lanes_changed(host, session, are_open),
            Input::Unreachable(engine) if engine == number => {
                self.feed_source(host, source::Event::LinkDown);
            }
            Input::Unreachable(_) => {}
            Input::Move(attempt, policy) => self.begin_move(host, attempt, policy),
            Input::Cancel => self.feed_source(host, source::Event::Cancel),
            Input::Boot => self.boot_anew(host),
            Input::Tick => {
                let is_due = match &self.hosts[host].engine {
                    Engine::Source(source) => source.deadline().is_some_and(|at| at <= now),
                    _ => false,
                };
                self.hosts[host].tick_at = Nanos::MAX;
                if is_due {
                    self.feed_source(host, source::Event::Tick);
                }
            }
        }
    }

    pub(super) fn feed_source(&mut self, host: usize, event: source::Event) {
        let now = self.instant();
        let Engine::Source(source) = &mut self.hosts[host].engine else {
            return;
        };
        let is_quiet = matches!(
            event,
            source::Event::Tick | source::Event::Packed { .. } | source::Event::Answered { .. }
        );
        let shown = (self.is_tracing && !is_quiet).then(|| brief(&event));
        let before = source.stage();
        let result = source.handle(event, now);
        let stage = source.stage();
        if let Some(shown) = shown {
            self.note(host, || format!("source {}: {shown}", stage.as_str()));
        }
        if let Err(fault) = result {
            self.note(host, || format!("source fault: {fault}"));
        }
        if stage != before {
            self.strike(stage);
        }
    }

    pub(super) fn feed_target(&mut self, host: usize, event: target::Event) {
        let now = self.instant();
        let Engine::Target(target) = &mut self.hosts[host].engine else {
            return;
        };
        let shown = self.is_tracing.then(|| brief(&event));
        let result = target.handle(event, now);
        let stage = target.stage();
        if let Some(shown) = shown {
            self.note(host, || format!("target {}: {shown}", stage.as_str()));
        }
        if let Err(fault) = result {
            self.note(host, || format!("target fault: {fault}"));
        }
    }

    pub(super) fn set_engine(&mut self, host: usize, engine: Engine) {
        let number = self.number();
        let here = &mut self.hosts[host];
        here.engine = engine;
        here.engine_number = number;
        here.packs.clear();
        here.pack_generation += 1;
        here.next_sequence = 1;
        here.capped = None;
        here.connect_again_at = 0;
        here.chunks.clear();
    }

    /// Takes the ownership machine back from a machine that has finished.
    pub(super) fn take_law(&mut self, host: usize) -> Option<Ownership> {
        let engine = std::mem::replace(&mut self.hosts[host].engine, Engine::Down);
        let law = match engine {
            Engine::Idle(ownership) => *ownership,
            Engine::Source(source) => source.into_ownership(),
            Engine::Target(target) => target.into_ownership(),
            Engine::Down => return None,
        };
        Some(law)
    }

    fn take_frame(&mut self, host: usize, lane: Lane, bytes: &[u8]) {
        let (head, body) = bytes.split_at(HEADER_BYTES);
        let head: &[u8; HEADER_BYTES] = head.try_into().expect("split there");
        let header = Header::parse(head, message::body_bytes_max(head[2])).expect("our own frame");
        header.check_body(body).expect("our own frame");
        if header.kind == KIND_CHUNK {
            return self.take_chunk(host, lane, body);
        }
        let message = Message::decode(header.kind, body).expect("our own message");
        match &self.hosts[host].engine {
            Engine::Source(_) => self.feed_source(host, source::Event::Heard(lane, message)),
            Engine::Target(_) => self.feed_target(host, target::Event::Heard(lane, message)),
            Engine::Idle(_) | Engine::Down => {}
        }
    }

    fn take_chunk(&mut self, host: usize, lane: Lane, body: &[u8]) {
        let (header, payload) = ChunkHeader::decode(body).expect("our own chunk");
        let contents = (header.codec != Codec::Zero).then(|| {
            let words = payload.chunks_exact(8);
            words
                .map(|word| Content::from_le_bytes(word.try_into().expect("eight bytes")))
                .collect()
        });
        let here = &mut self.hosts[host];
        if !matches!(here.engine, Engine::Target(_)) {
            return;
        }
        here.next_token += 1;
        let token = here.next_token;
        here.chunks.insert(token, contents);
        let event = target::Event::Chunk {
            lane,
            header,
            token,
        };
        self.feed_target(host, event);
    }

    pub(super) fn send(&mut self, host: usize, lane: Lane, message: &Message) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        let wire_bytes = bytes.len() as u64;
        self.send_bytes(host, lane, bytes, wire_bytes);
    }

    pub(super) fn send_bytes(&mut self, host: usize, lane: Lane, bytes: Vec<u8>, wire_bytes: u64) {
        let Some(session) = self.hosts[host].session else {
            return;
        };
        let (now, random) = (self.now, &mut self.random);
        if let Some(at) = self.link.send(session, host, lane, wire_bytes, now, random) {
            let to = 1 - host;
            self.agenda.add(
                at,
                Happening::Frame {
                    session,
                    to,
                    lane,
                    bytes,
                },
            );
        }
    }

    /// A session's lanes have reached this host, or broken.
    fn lanes_changed(&mut self, host: usize, session: u64, are_open: bool) {
        let Some((from, attempt)) = self.link.session(session).map(|s| (s.from, s.attempt)) else {
            return;
        };
        if !are_open {
            if self.hosts[host].session == Some(session) {
                self.hosts[host].session = None;
                self.link.close(session);
                self.feed_source(host, source::Event::LinkDown);
                self.feed_target(host, target::Event::LinkDown);
            }
            return;
        }
        if from == host {
            let is_source = matches!(&self.hosts[host].engine,
                Engine::Source(source) if source.setup().attempt.0 == attempt);
            if is_source {
                self.hosts[host].session = Some(session);
                self.feed_source(host, source::Event::LinkUp);
            }
            return;
        }
        if !self.accept(host, attempt) {
            return self.refuse_lanes(host, session);
        }
        if self.hosts[host].session.is_some() {
            self.feed_target(host, target::Event::LinkDown);
        }
        self.hosts[host].session = Some(session);
        self.feed_target(host, target::Event::LinkUp);
    }

    /// This host is itself a source: the lanes are refused with an answer and closed.
    fn refuse_lanes(&mut self, host: usize, session: u64) {
        let busy = Fault::new(Code::Busy, "the guest is part of another move here");
        let mut bytes = Vec::new();
        Message::Refused(Reason::from(&busy)).encode(&mut bytes);
        let (now, random, lane) = (self.now, &mut self.random, Lane::Control);
        let size = bytes.len() as u64;
        if let Some(at) = self.link.send(session, host, lane, size, now, random) {
            let frame = Happening::Frame {
                session,
                to: 1 - host,
                lane,
                bytes,
            };
            self.agenda
                .add(at.max(now + self.link.latency * 2 + 1), frame);
        }
        let delay = self.link.latency * 2;
        self.break_session(session, 1 - host, delay + MILLISECOND);
    }

    /// Ensures that a target machine serves an attempt; returns false if this host is itself a
    /// source.
    fn accept(&mut self, host: usize, attempt: u128) -> bool {
        if self.hosts[host].is_poisoned {
            return false;
        }
        match &self.hosts[host].engine {
            Engine::Target(target) if target.setup().attempt.0 == attempt => return true,
            Engine::Source(_) | Engine::Down => return false,
            Engine::Idle(_) | Engine::Target(_) => {}
        }
        let Some(law) = self.take_law(host) else {
            return false;
        };
        let setup = target::Setup {
            host: self.hosts[host].identity.clone(),
            source: self.hosts[1 - host].identity.clone(),
            migration: MigrationId(attempt),
            attempt: AttemptId(attempt),
            guest: GUEST,
        };
        self.hosts[host].session = None;
        let target = Target::begin(setup, law);
        self.set_engine(host, Engine::Target(Box::new(target)));
        true
    }

    fn begin_move(&mut self, host: usize, attempt: u128, policy: Policy) {
        let is_busy = matches!(self.hosts[host].engine, Engine::Source(_) | Engine::Down);
        if is_busy || self.hosts[host].is_poisoned {
            return;
        }
        let Some(law) = self.take_law(host) else {
            return;
        };
        self.hosts[host].session = None;
        let spaces = self.scenario.spaces.iter().zip(0_u16..);
        let setup = source::Setup {
            host: self.hosts[host].identity.clone(),
            target: self.hosts[1 - host].identity.clone(),
            migration: MigrationId(attempt),
            attempt: AttemptId(attempt),
            guest: GUEST,
            name: "till".parse().expect("a name"),
            spaces: spaces
                .map(|((block_bytes, block_count), id)| SpaceInfo {
                    id: SpaceId(id),
                    block_bytes: *block_bytes,
                    block_count: *block_count,
                })
                .collect(),
            config: b"two vcpus".to_vec(),
            policy,
        };
        self.hosts[host].files.source = Some(setup.clone());
        self.summary.attempt_count += 1;
        let now = self.instant();
        match Source::begin(setup, law.clone(), now) {
            Ok(source) => self.set_engine(host, Engine::Source(Box::new(source))),
            Err(fault) => {
                self.note(host, || format!("cannot offer: {fault}"));
                self.set_engine(host, Engine::Idle(Box::new(law)));
            }
        }
    }

    pub(super) fn carry_out(&mut self, host: usize, action: Action) -> Nanos {
        match action {
            Action::Law(action) => self.carry_out_law(host, action),
            Action::Source(action) => self.carry_out_source(host, action),
            Action::Target(action) => self.carry_out_target(host, action),
        }
    }

    pub(super) fn persist(&mut self, host: usize, record: &Record) -> Nanos {
        if self.write_fails(host) {
            // It is then unknown what is on disk, even to a journal that is read again.
            let is_written = self.random.chance(50);
            self.note(host, || {
                format!("cannot persist {:?}, on disk: {is_written}", record.state)
            });
            if is_written {
                self.hosts[host].journal = Record::decode(&record.encode()).expect("our own");
            }
            self.write_failed(host);
            return MILLISECOND;
        }
        self.note(host, || format!("persist {:?}", record.state));
        if record.high_water < self.hosts[host].journal.high_water {
            self.violate("the high-water mark fell");
        }
        if matches!(record.state, State::Relinquished { .. }) {
            self.check_pause(host);
        }
        self.hosts[host].journal = Record::decode(&record.encode()).expect("our own record");
        self.check_owner();
        self.random.between(MILLISECOND / 5, MILLISECOND)
    }

    /// The machine stops what depends on its journal, and an operator restarts the daemon.
    fn write_failed(&mut self, host: usize) {
        let failed = Fault::new(Code::Journal, "fsync failed");
        match &self.hosts[host].engine {
            Engine::Source(_) => self.feed_source(host, source::Event::NotRecorded(failed)),
            Engine::Target(_) => self.feed_target(host, target::Event::NotRecorded(failed)),
            Engine::Idle(law) => {
                let mut law = law.clone();
                while law.poll().is_some() {}
                self.set_engine(host, Engine::Idle(law));
            }
            Engine::Down => {}
        }
        let later = self.random.between(SECOND / 10, 4 * SECOND);
        let restart = Happening::Mishap(Mishap::Kill(host));
        self.agenda.add(self.now + later, restart);
    }

    fn carry_out_law(&mut self, host: usize, action: ownership::Action) -> Nanos {
        self.note(host, || format!("law: {action:?}"));
        match action {
            ownership::Action::Persist(record) => return self.persist(host, &record),
            ownership::Action::Run { epoch } => self.run_guest(host, epoch),
            ownership::Action::Thaw => self.thaw(host),
            ownership::Action::DiscardImage => self.discard_image(host),
            ownership::Action::FreeImage => self.free_image(host),
            // Nobody is connected: the other side will ask again.
            ownership::Action::Say { .. } => {}
            ownership::Action::Swap { .. } | ownership::Action::ReadRegister => {
                self.violate("a swap without a witness");
            }
        }
        0
    }

    /// A daemon starts and decides from what it finds on disk.
    pub(super) fn restart(&mut self, host: usize) {
        if !matches!(self.hosts[host].engine, Engine::Down) {
            return;
        }
        let record = self.hosts[host].journal.clone();
        let law = Ownership::recover(self.hosts[host].identity.clone(), record.clone());
        self.note(host, || format!("restarts as {:?}", record.state));
        self.drop_strange_image(host, &record);
        let engine = self.recover_engine(host, &record, law);
        self.set_engine(host, engine);
        self.run_daemon(host);
    }

    fn recover_engine(&mut self, host: usize, record: &Record, law: Ownership) -> Engine {
        let now = self.instant();
        let guest = self.hosts[host].guest.as_ref();
        let has_image = guest.is_some_and(|guest| guest.attempt.is_some());
        let files = self.hosts[host].files.clone();
        let is_receiving = match &record.state {
            State::Prepared { .. } => true,
            State::Owned { missing_from, .. } => missing_from.is_some(),
            State::Relinquished { .. } => {
                let setup = files.source.expect("saved before the offer");
                let mut source = Source::recover(setup, law, now).expect("relinquished");
                if guest.is_none() {
                    drop(source.handle(source::Event::GuestGone, now));
                }
                return Engine::Source(Box::new(source));
            }
            _ => false,
        };
        if !is_receiving || !has_image {
            let mut law = law;
            let lost = match record.state {
                State::Prepared { .. } => Some(ownership::Event::GiveUp),
                // The guest has been booted anew: there is no image left to wait for.
                State::Owned { .. } => Some(ownership::Event::ImageComplete),
                _ => None,
            };
            if let Some(event) = lost {
                law.handle(event).expect("the state takes it");
            }
            return Engine::Idle(Box::new(law));
        }
        let (Some(setup), Some(prepare), Some(position)) =
            (files.target, files.prepare, files.position)
        else {
            self.violate("a guest is being received of which nothing was saved");
            return Engine::Idle(Box::new(law));
        };
        let remains = Remains {
            prepare,
            present: files.present,
            position,
        };
        let target = Target::recover(setup, law, remains).expect("what was saved fits");
        Engine::Target(Box::new(target))
    }

    /// Drops a surviving guest process that belongs to another attempt than the journal's.
    fn drop_strange_image(&mut self, host: usize, record: &Record) {
        let Some(guest) = &self.hosts[host].guest else {
            return;
        };
        let Some(attempt) = guest.attempt.filter(|_| guest.doing == Doing::Nothing) else {
            return;
        };
        let attempt = AttemptId(attempt);
        let is_ours = match &record.state {
            State::Prepared { attempt: open, .. } => *open == attempt,
            State::Owned { .. } => record
                .verdicts
                .last()
                .is_some_and(|verdict| verdict.is_taken && verdict.origin.attempt == attempt),
            _ => false,
        };
        if !is_ours {
            self.hosts[host].guest = None;
        }
    }
}

fn brief(event: &impl std::fmt::Debug) -> String {
    let mut text = format!("{event:?}");
    if text.len() > 200 {
        let mut end = 200;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
