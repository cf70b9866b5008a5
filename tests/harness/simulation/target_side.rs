//! Carries out the actions of a target's machine on the simulated guest and link, and starts
//! guests.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Epoch;
use towpath_protocol::message::Prepare;
use towpath_protocol::ownership::State;
use towpath_protocol::space::{BlockSet, SpaceId};
use towpath_protocol::target::{Action, Event, Piece};

use super::guest::{Content, Doing, Guest, size};
use super::link::{MILLISECOND, Nanos};
use super::world::{Engine, Happening, Input, World};

impl World {
    pub(super) fn carry_out_target(&mut self, host: usize, action: Action) -> Nanos {
        self.note(host, || {
            format!(
                "does {}",
                format!("{action:?}").chars().take(160).collect::<String>()
            )
        });
        match action {
            Action::Persist(record) => return self.persist(host, &record),
            Action::Send(lane, message) => self.send(host, lane, &message),
            Action::BuildGuest(prepare) => self.build_guest(host, prepare),
            Action::Write {
                token,
                space,
                pieces,
            } => self.put(host, token, space, &pieces, false),
            Action::Install {
                token,
                space,
                pieces,
            } => self.put(host, token, space, &pieces, true),
            Action::Forget { token } => {
                self.hosts[host].chunks.remove(&token);
            }
            Action::SavePosition(position) => self.hosts[host].files.position = Some(position),
            Action::Expect { missing } => self.expect_missing(host, &missing),
            Action::LoadState(state) => {
                if let Some(guest) = &mut self.hosts[host].guest {
                    guest.state = state;
                    self.report_to_target(host, MILLISECOND / 2, Event::StateLoaded);
                }
            }
            Action::ArmMissing => {
                if let Some(guest) = &mut self.hosts[host].guest {
                    guest.is_armed = true;
                }
            }
            Action::Run(epoch) => self.run_received(host, epoch),
            Action::WakeFaults => self.wake_faults(host),
            Action::DisarmMissing => self.disarm(host),
            Action::DiscardImage => self.discard_image(host),
            Action::Report(incident) => {
                self.violate(&format!(
                    "an honest source's image is refused: {incident:?}"
                ));
            }
            Action::DropLink => self.drop_link(host),
            Action::Finished(outcome) => {
                self.note(host, || format!("target is through: {outcome:?}"));
                if !self.hosts[host].chunks.is_empty() {
                    let count = self.hosts[host].chunks.len();
                    self.violate(&format!("{count} chunks were never freed"));
                }
            }
        }
        0
    }

    fn run_received(&mut self, host: usize, epoch: Epoch) {
        if self.hosts[host].guest.is_none() {
            let gone = Fault::new(Code::Guest, "the guest process is gone");
            return self.feed_target(host, Event::Failed(gone));
        }
        self.run_guest(host, epoch);
        let at = self.instant();
        self.report_to_target(host, MILLISECOND / 5, Event::GuestRuns { at });
    }

    fn report_to_target(&mut self, host: usize, delay: Nanos, event: Event) {
        let number = self.hosts[host].engine_number;
        self.tell_later(host, delay, Input::Target(number, event));
    }

    fn build_guest(&mut self, host: usize, prepare: Prepare) {
        let Engine::Target(target) = &self.hosts[host].engine else {
            return;
        };
        let setup = target.setup().clone();
        if self.hosts[host].guest.is_some() {
            return self.violate("a guest is built beside another");
        }
        let counts = self.scenario.block_counts();
        let number = self.number();
        let files = &mut self.hosts[host].files;
        files.present = counts.iter().map(|count| BlockSet::empty(*count)).collect();
        files.prepare = Some(prepare);
        files.position = Some(towpath_protocol::message::Received {
            through_sequence: 0,
            chain: towpath_protocol::image::CHAIN_START,
        });
        let attempt = setup.attempt.0;
        files.target = Some(setup);
        self.hosts[host].guest = Some(Guest::new(number, Some(attempt), &counts));
        let delay = self.random.between(MILLISECOND, 30 * MILLISECOND);
        self.report_to_target(host, delay, Event::GuestBuilt);
    }

    fn expect_missing(&mut self, host: usize, missing: &[BlockSet]) {
        let here = &mut self.hosts[host];
        here.files.present = missing.iter().map(BlockSet::complement).collect();
        if let Some(guest) = &mut here.guest {
            guest.take_out(missing);
        }
    }

    /// Writes blocks before the guest runs, or installs missing blocks while it runs; each of the
    /// latter only once.
    fn put(
        &mut self,
        host: usize,
        token: Option<u64>,
        space: SpaceId,
        pieces: &[Piece],
        is_install: bool,
    ) {
        let chunk = token.and_then(|token| self.hosts[host].chunks.remove(&token));
        let contents: Option<Vec<Content>> = chunk.flatten();
        if token.is_some() && contents.is_none() {
            return self.violate("bytes are used that are not there");
        }
        let position = usize::from(space.0);
        let block_bytes = u64::from(self.scenario.spaces[position].0);
        let has_crashed = self.summary.crash_count > 0;
        let mut is_over_present = false;
        let here = &mut self.hosts[host];
        let Some(guest) = &mut here.guest else {
            return;
        };
        for piece in pieces {
            for (step, block) in (0..).zip(piece.run.start..piece.run.end()) {
                let content = contents.as_ref().map_or(0, |contents| {
                    contents[size(piece.offset_bytes / block_bytes + step)]
                });
                here.files.present[position].insert(block);
                let is_present = guest.present[position].contains(block);
                if is_install && is_present {
                    // The kernel answers EEXIST: the present block is newer. A late fault's zero
                    // block may find a block that arrived in the meantime; a block with content may
                    // not.
                    is_over_present = token.is_some();
                } else if is_install || is_present || content != 0 {
                    guest.put(position, block, content);
                }
                guest.waiting.remove(&(space.0, block));
            }
        }
        if is_over_present && !has_crashed {
            self.violate("a block was installed twice");
        }
    }

    fn wake_faults(&mut self, host: usize) {
        let Some(guest) = &self.hosts[host].guest else {
            return;
        };
        for (space, block) in guest.waiting.clone() {
            let space = SpaceId(space);
            self.report_to_target(host, MILLISECOND / 50, Event::Fault { space, block });
        }
    }

    /// From here on absent blocks read as zero, so they must be zero.
    fn disarm(&mut self, host: usize) {
        let Some(guest) = &mut self.hosts[host].guest else {
            return;
        };
        guest.is_armed = false;
        guest.waiting.clear();
        if let Some((space, block)) = guest.first_wrong(&self.truth) {
            self.violate(&format!("complete without block {block} of space {space}"));
        }
        let is_full = |set: &BlockSet| set.len() == set.block_count();
        if !self.hosts[host].files.present.iter().all(is_full) {
            self.violate("complete with blocks that are not marked as present");
        }
    }

    pub(super) fn discard_image(&mut self, host: usize) {
        if let Some(guest) = &self.hosts[host].guest
            && guest.doing == Doing::Nothing
        {
            self.hosts[host].guest = None;
        }
    }

    /// The ownership machine lets this host run the guest: starts the process that is here.
    pub(super) fn run_guest(&mut self, host: usize, epoch: Epoch) {
        let Some(guest) = &self.hosts[host].guest else {
            return self.boot(host);
        };
        let (doing, is_armed) = (guest.doing, guest.is_armed);
        let is_state_right = guest.state == self.saved_state;
        if doing == Doing::Running {
            return;
        }
        if doing == Doing::Nothing {
            if !is_state_right {
                self.violate("the guest runs with another state than was saved");
            }
            self.summary.post_copy_count += u64::from(is_armed);
        }
        self.start(host, Some(epoch));
    }

    /// The guest runs on this host from here on.
    pub(super) fn start(&mut self, host: usize, epoch: Option<Epoch>) {
        self.note(host, || "the guest runs".to_owned());
        if self.is_running(1 - host) {
            self.violate("two hosts run the guest");
        }
        let (State::Owned { epoch: owned, .. } | State::Offering { epoch: owned, .. }) =
            self.hosts[host].journal.state
        else {
            return self.violate("a guest runs that the journal does not let run");
        };
        if epoch.is_some_and(|epoch| epoch != owned) {
            self.violate("the guest runs under another epoch than the journal's");
        }
        let (last, place) = self.last_run;
        if owned < last || (owned == last && host != place) {
            self.violate(&format!("the guest runs under epoch {owned} after {last}"));
        }
        self.last_run = (owned, host);
        let Some(guest) = &mut self.hosts[host].guest else {
            return;
        };
        guest.doing = Doing::Running;
        let number = guest.number;
        if let Some((space, block)) = guest.first_wrong(&self.truth) {
            self.violate(&format!(
                "starts with an old block {block} of space {space}"
            ));
        }
        let at = self.now + self.scenario.step;
        self.agenda.add(at, Happening::Step { host, number });
    }

    /// A guest whose memory is lost boots where it is owned.
    pub(super) fn boot(&mut self, host: usize) {
        self.truth.reset();
        self.summary.boot_count += 1;
        let counts = self.scenario.block_counts();
        let number = self.number();
        let mut guest = Guest::new(number, None, &counts);
        guest.is_tracking = false;
        self.hosts[host].guest = Some(guest);
        self.start(host, None);
    }

    /// Whether the guest runs on a host.
    #[must_use]
    pub(super) fn is_running(&self, host: usize) -> bool {
        let guest = self.hosts[host].guest.as_ref();
        guest.is_some_and(|guest| guest.doing == Doing::Running)
    }

    /// The guest touches some blocks: mostly the same few, and mostly to write.
    pub(super) fn step_guest(&mut self, host: usize, number: u64) {
        let is_it = self.hosts[host]
            .guest
            .as_ref()
            .is_some_and(|guest| guest.number == number && guest.doing == Doing::Running);
        if !is_it {
            return;
        }
        let at = self.now + self.scenario.step;
        self.agenda.add(at, Happening::Step { host, number });
        for _ in 0..self.scenario.touches {
            let space = size(self.random.below(self.scenario.spaces.len() as u64));
            let count = self.scenario.spaces[space].1;
            let hot = (count * self.scenario.hot_percent / 100).max(1);
            let block = if self.random.chance(80) {
                self.random.below(hot)
            } else {
                self.random.below(count)
            };
            let is_write = self.random.chance(70);
            if !self.touch(host, space, block, is_write) {
                return;
            }
        }
    }

    /// One access. False if all vCPUs are waiting.
    fn touch(&mut self, host: usize, space: usize, block: u64, is_write: bool) -> bool {
        /// Number of vCPUs of the guest.
        const WAITING_MAX: usize = 2;
        let Some(guest) = &mut self.hosts[host].guest else {
            return false;
        };
        if guest.waiting.len() >= WAITING_MAX {
            return false;
        }
        let id = SpaceId(u16::try_from(space).expect("few spaces"));
        if guest.faults(space, block) {
            if guest.waiting.insert((id.0, block)) {
                let event = Event::Fault { space: id, block };
                self.report_to_target(host, MILLISECOND / 50, event);
            }
            return true;
        }
        let read = guest.read(space, block);
        if is_write {
            self.truth.clock += 1;
            guest.write(space, block, self.truth.clock);
        }
        let truth = &mut self.truth.blocks[space][size(block)];
        if read != *truth {
            let detail = format!("block {block} of space {space} reads as {read}, not {truth}");
            return {
                self.violate(&detail);
                false
            };
        }
        if is_write {
            *truth = self.truth.clock;
        }
        true
    }
}
