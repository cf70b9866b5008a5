//! Carries out the actions of a source's machine on the simulated guest and link.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::message::{
    CHUNK_RAW_BYTES_MAX, ChunkHeader, Codec, Lane, ZERO_CHUNK_DIGEST, digest_of,
};
use towpath_protocol::source::{Action, ChunkOrder, Event, FREEZE_DEADLINE, Outcome};
use towpath_protocol::space::{BlockRun, BlockSet};

use super::guest::{Doing, Guest, size};
use super::link::{MILLISECOND, Nanos, SECOND};
use super::world::{Capped, Engine, Happening, Input, World};

/// How far a pause before the commit may exceed its deadline: by a journal write and a tick.
const FREEZE_SLACK: Nanos = 50 * MILLISECOND;

/// The shortest wait between two attempts to open lanes.
const RECONNECT_NANOS_MIN: Nanos = 50 * MILLISECOND;

impl World {
    pub(super) fn carry_out_source(&mut self, host: usize, action: Action) -> Nanos {
        if !matches!(action, Action::SendChunk(_) | Action::Send(..)) {
            self.note(host, || format!("does {}", brief(&action)));
        }
        match action {
            Action::Persist(record) => return self.persist(host, &record),
            Action::Connect => self.connect(host),
            Action::DropLink => self.drop_link(host),
            Action::Send(lane, message) => {
                self.note(host, || format!("says {}", brief(&message)));
                self.send(host, lane, &message);
            }
            Action::StartTracking => self.start_tracking(host),
            Action::Harvest => {
                let delay = self.random.pick(&[50_000, 50_000, 30 * MILLISECOND]);
                let guest = self.hosts[host].guest.as_mut();
                if let Some(dirty) = guest.map(Guest::harvest) {
                    self.report(host, delay, Event::Harvested(dirty));
                }
            }
            Action::Freeze => {
                if let Some(guest) = &mut self.hosts[host].guest {
                    guest.doing = Doing::Frozen;
                    self.hosts[host].frozen_at = Some(self.now);
                    let delay = self.random.between(10_000, MILLISECOND);
                    let at = self.instant() + std::time::Duration::from_nanos(delay);
                    self.report(host, delay, Event::Frozen { at });
                }
            }
            Action::SaveState => {
                let bytes = self.random.between(1, 100_000);
                let state: Vec<u8> = self.truth.clock.to_le_bytes().into_iter().collect();
                let state = state.into_iter().cycle().take(size(bytes)).collect();
                self.saved_state = state;
                let state = self.saved_state.clone();
                self.report(host, MILLISECOND / 2, Event::StateSaved(state));
            }
            Action::Thaw => self.thaw(host),
            Action::SendChunk(order) => self.order_chunk(host, order),
            Action::NumberFrom(number) => self.hosts[host].next_sequence = number,
            Action::CancelChunks => {
                let here = &mut self.hosts[host];
                here.packs.clear();
                here.pack_generation += 1;
            }
            Action::StopTracking => {
                if let Some(guest) = &mut self.hosts[host].guest {
                    guest.is_tracking = false;
                }
            }
            Action::FreeImage => self.free_image(host),
            Action::Finished(outcome) => self.source_finished(host, &outcome),
        }
        0
    }

    /// Schedules a report to the machine that runs now. Reports keep the order of the actions,
    /// because all of them go to one guest process over one socket.
    fn report(&mut self, host: usize, delay: Nanos, event: Event) {
        let number = self.hosts[host].engine_number;
        let at = (self.now + delay).max(self.hosts[host].reported_at);
        self.hosts[host].reported_at = at;
        self.tell_later(host, at - self.now, Input::Source(number, event));
    }

    fn start_tracking(&mut self, host: usize) {
        let truth = &self.truth;
        let Some(guest) = &mut self.hosts[host].guest else {
            return;
        };
        guest.is_tracking = true;
        guest.harvest();
        let mut allocated = Vec::new();
        for (space, blocks) in truth.blocks.iter().enumerate() {
            let mut set = BlockSet::empty(blocks.len() as u64);
            let touched = (0..blocks.len() as u64).filter(|block| guest.read(space, *block) != 0);
            touched.for_each(|block| {
                set.insert(block);
            });
            allocated.push(set);
        }
        self.report(host, MILLISECOND / 10, Event::Tracking { allocated });
    }

    fn connect(&mut self, host: usize) {
        let number = self.hosts[host].engine_number;
        let Engine::Source(source) = &self.hosts[host].engine else {
            return;
        };
        let attempt = source.setup().attempt.0;
        let again_at = self.hosts[host].connect_again_at;
        self.hosts[host].connect_again_at = self.now + RECONNECT_NANOS_MIN;
        if again_at > self.now {
            self.violate("lanes are opened again and again without a wait");
        }
        let is_open = self.link.is_open(self.now);
        if let Some(old) = self.hosts[host].session.take() {
            self.link.close(old);
        }
        if !is_open
            || matches!(
                self.hosts[1 - host].engine,
                Engine::Down | Engine::Source(_)
            )
        {
            let delay = self.random.between(MILLISECOND, SECOND / 2);
            return self.tell_later(host, delay, Input::Unreachable(number));
        }
        let session = self.link.open(host, attempt);
        for (end, delay) in [(1 - host, self.link.latency), (host, self.link.latency * 2)] {
            let lanes = Happening::Lanes {
                session,
                host: end,
                are_open: true,
            };
            self.agenda.add(self.now + delay, lanes);
        }
    }

    /// Closes the lanes from this side; the other side notices after a while.
    pub(super) fn drop_link(&mut self, host: usize) {
        if let Some(session) = self.hosts[host].session.take() {
            let broken = Happening::Lanes {
                session,
                host: 1 - host,
                are_open: false,
            };
            let delay = self.link.latency + self.random.below(SECOND / 10);
            self.agenda.add(self.now + delay, broken);
        }
    }

    fn order_chunk(&mut self, host: usize, order: ChunkOrder) {
        if order.is_urgent {
            let runs = order.runs.clone();
            return self.pack(host, &order, runs);
        }
        self.check_order(host, &order);
        self.hosts[host].packs.push_back(order);
        if self.hosts[host].packs.len() == 1 {
            self.plan_packing(host);
        }
    }

    /// The rate cap of a move, if there is one.
    fn cap_of(&self, host: usize) -> Option<u64> {
        match &self.hosts[host].engine {
            Engine::Source(source) => source.setup().policy.bytes_per_second_max,
            _ => None,
        }
    }

    /// No chunk except one of zero blocks may be ordered, for whatever purpose, before all bytes
    /// sent so far are paid for (within a millisecond).
    fn check_order(&mut self, host: usize, order: &ChunkOrder) {
        let Some(capped) = self.hosts[host].capped else {
            return;
        };
        if !order.is_zero && capped.paid_at > self.now + MILLISECOND {
            let early = (capped.paid_at - self.now) / MILLISECOND;
            self.violate(&format!("blocks are ordered {early} ms before their time"));
        }
    }

    /// Checks that a move's own rate cap holds on the wire from its first chunk on. An excess is
    /// allowed for chunks that were ordered before the codec had packed the ones before them.
    fn check_cap(&mut self, host: usize, order: &ChunkOrder, wire_bytes: u64) {
        let Some(cap) = self.cap_of(host) else {
            return;
        };
        let now = self.now;
        let capped = self.hosts[host].capped.get_or_insert(Capped {
            since: now,
            bytes: 0,
            paid_at: now,
        });
        capped.paid_at = capped.paid_at.max(now) + wire_bytes * SECOND / cap;
        if order.is_urgent || order.is_zero {
            return;
        }
        capped.bytes += wire_bytes;
        let (since, bytes) = (capped.since, capped.bytes);
        let ahead = cap / 20 + 2 * u64::from(CHUNK_RAW_BYTES_MAX);
        let allowed = cap * (now - since) / SECOND + ahead;
        if bytes > allowed {
            self.violate(&format!(
                "{bytes} bytes were sent where {allowed} are allowed"
            ));
        }
    }

    fn plan_packing(&mut self, host: usize) {
        let delay = self.random.between(5_000, 300_000);
        let here = &self.hosts[host];
        let packed = Input::Pack(here.engine_number, here.pack_generation);
        self.tell_later(host, delay, packed);
    }

    /// Reads, packs and sends the first waiting order, as one chunk or several.
    pub(super) fn pack_next(&mut self, host: usize) {
        let Some(order) = self.hosts[host].packs.pop_front() else {
            return;
        };
        if !self.hosts[host].packs.is_empty() {
            self.plan_packing(host);
        }
        let mut runs = order.runs.clone();
        if runs.len() > 1 && self.random.chance(20) {
            let second = runs.split_off(runs.len() / 2);
            self.pack(host, &order, runs);
            runs = second;
        }
        self.pack(host, &order, runs);
    }

    fn pack(&mut self, host: usize, order: &ChunkOrder, runs: Vec<BlockRun>) {
        let Some(guest) = &self.hosts[host].guest else {
            let lost = Fault::new(Code::ImageLost, "the guest's memory is gone".to_owned());
            return self.feed_source(host, Event::Failed(lost));
        };
        let contents = if order.is_zero {
            Vec::new()
        } else {
            guest.contents(order.space, &runs)
        };
        let is_zero = contents.iter().all(|content| *content == 0);
        let mut payload = Vec::new();
        let mut digest = ZERO_CHUNK_DIGEST;
        if !is_zero {
            payload = contents
                .iter()
                .flat_map(|content| content.to_le_bytes())
                .collect();
            digest.copy_from_slice(&digest_of(&payload));
        }
        let here = &mut self.hosts[host];
        let (lane, sequence) = if order.is_urgent {
            (Lane::Demand, 0)
        } else {
            here.next_sequence += 1;
            (Lane::Bulk, here.next_sequence - 1)
        };
        let header = ChunkHeader {
            sequence,
            generation: order.generation,
            space: order.space,
            codec: if is_zero { Codec::Zero } else { Codec::Lz4 },
            runs,
            digest,
        };
        let mut bytes = Vec::new();
        header.encode(&payload, &mut bytes);
        let block_bytes = self.scenario.spaces[usize::from(order.space.0)].0;
        // Real blocks pack to about a third of their size.
        let packed_bytes = match is_zero {
            true => 0,
            false => header.raw_bytes(block_bytes) / 3,
        };
        let wire_bytes = bytes.len() as u64 + packed_bytes;
        self.note(host, || {
            let runs = &header.runs;
            let generation = order.generation;
            format!("chunk {sequence} on {lane:?}, round {generation}, zero {is_zero}: {runs:?}")
        });
        self.check_cap(host, order, wire_bytes);
        let event = match order.is_urgent {
            true => Event::Answered { wire_bytes },
            false => Event::Packed { header, wire_bytes },
        };
        self.feed_source(host, event);
        self.send_bytes(host, lane, bytes, wire_bytes);
    }

    /// The guest continues where it was stopped, or is booted if its process is gone.
    pub(super) fn thaw(&mut self, host: usize) {
        let Some(guest) = &self.hosts[host].guest else {
            return self.boot(host);
        };
        if guest.doing == Doing::Running {
            return;
        }
        self.check_pause(host);
        self.summary.thaw_count += 1;
        self.start(host, None);
    }

    /// Checks that no pause before the commit exceeds the deadline, unless something crashed.
    pub(super) fn check_pause(&mut self, host: usize) {
        let Some(frozen_at) = self.hosts[host].frozen_at.take() else {
            return;
        };
        let Engine::Source(source) = &self.hosts[host].engine else {
            return;
        };
        let deadline = FREEZE_DEADLINE.max(source.setup().policy.pause_max * 2);
        let deadline = u64::try_from(deadline.as_nanos()).expect("seconds");
        let span = self.now - frozen_at;
        if span > deadline + FREEZE_SLACK {
            self.violate(&format!(
                "frozen for {} ms before the commit",
                span / MILLISECOND
            ));
        }
    }

    /// The source frees its copy: the target must have every block by then.
    pub(super) fn free_image(&mut self, host: usize) {
        let Some(guest) = &self.hosts[host].guest else {
            return;
        };
        if guest.doing == Doing::Running {
            return self.violate("a running guest is freed");
        }
        self.hosts[host].guest = None;
        let misses = self.hosts[1 - host].guest.as_ref().is_some_and(|guest| {
            let spaces = self.truth.blocks.iter().enumerate();
            spaces
                .flat_map(|(space, blocks)| (0..blocks.len() as u64).map(move |b| (space, b)))
                .any(|(space, block)| {
                    guest.faults(space, block) && self.truth.blocks[space][size(block)] != 0
                })
        });
        if misses {
            self.violate("the source freed blocks the target has not got");
        }
    }

    fn source_finished(&mut self, host: usize, outcome: &Outcome) {
        let Engine::Source(source) = &self.hosts[host].engine else {
            return;
        };
        self.summary.demand_count += source.progress().demand_count;
        if *outcome == Outcome::Moved {
            self.summary.move_count += 1;
        }
        self.drop_link(host);
        let law = self.take_law(host).expect("a source has the law");
        self.set_engine(host, Engine::Idle(Box::new(law)));
    }
}

fn brief(thing: &impl std::fmt::Debug) -> String {
    format!("{thing:?}").chars().take(160).collect()
}
