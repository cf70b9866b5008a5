//! A target and a source that lies to it: nothing is trusted, and nothing goes back in time.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use towpath_protocol::fault::Code;
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::image::Manifest;
use towpath_protocol::message::{
    ChunkHeader, Codec, FinalEnd, Lane, Message, MissingPart, Prepare, Received, SpaceInfo,
};
use towpath_protocol::ownership::{Ownership, Root, State};
use towpath_protocol::space::{BlockRun, MEMORY, SpaceId};
use towpath_protocol::target::{Action, Event, Outcome, Setup, Stage, Target};
use towpath_protocol::time::Instant;

const BLOCK_COUNT: u64 = 64;

fn host(site: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "test".parse().unwrap(),
        site: site.parse().unwrap(),
        host: "box".parse().unwrap(),
    }
}

struct Victim {
    target: Target,
    actions: Vec<Action>,
    next_token: u64,
}

impl Victim {
    /// A target that waits for chunks.
    fn receiving() -> Self {
        let mut victim = Self::blank();
        victim
            .hears(Lane::Control, Message::Prepare(prepare()))
            .unwrap();
        victim.tell(Event::GuestBuilt).unwrap();
        assert_eq!(victim.target.stage(), Stage::Receiving);
        victim
    }

    fn blank() -> Self {
        let setup = Setup {
            host: host("region"),
            source: host("edge"),
            migration: MigrationId(1),
            attempt: AttemptId(2),
            guest: GuestId(3),
        };
        let mut victim = Self {
            target: Target::begin(setup, Ownership::vacant(host("region"), GuestId(3))),
            actions: Vec::new(),
            next_token: 0,
        };
        victim.tell(Event::LinkUp).unwrap();
        victim
    }

    fn tell(&mut self, event: Event) -> Result<(), Code> {
        let result = self.target.handle(event, Instant::ZERO);
        while let Some(action) = self.target.poll() {
            self.actions.push(action);
        }
        result.map_err(|fault| fault.code)
    }

    fn hears(&mut self, lane: Lane, message: Message) -> Result<(), Code> {
        self.tell(Event::Heard(lane, message))
    }

    fn chunk(&mut self, header: ChunkHeader) -> Result<(), Code> {
        self.next_token += 1;
        self.tell(Event::Chunk {
            lane: Lane::Bulk,
            header,
            token: self.next_token,
        })
    }

    fn writes(&self) -> usize {
        let is_write = |action: &&Action| matches!(action, Action::Write { .. });
        self.actions.iter().filter(is_write).count()
    }

    /// Asserts that the attempt is refused for ever, and that nothing of it is left.
    fn assert_refused(&self, code: Code) {
        assert!(matches!(
            self.target.ownership().record().state,
            State::Refused { .. }
        ));
        assert!(!self.target.ownership().may_run());
        let Some(Action::Finished(Outcome::Refused(fault))) = self.actions.last() else {
            panic!("{:?}", self.actions.last());
        };
        assert_eq!(fault.code, code);
        assert!(self.actions.contains(&Action::DiscardImage));
    }
}

fn prepare() -> Prepare {
    Prepare {
        name: "till".parse().unwrap(),
        epoch: Epoch(2),
        spaces: vec![SpaceInfo {
            id: MEMORY,
            block_bytes: 4096,
            block_count: BLOCK_COUNT,
        }],
        config: vec![1],
    }
}

fn header(sequence: u64, generation: u32, start: u64, count: u32) -> ChunkHeader {
    ChunkHeader {
        sequence,
        generation,
        space: MEMORY,
        codec: Codec::Raw,
        runs: vec![BlockRun { start, count }],
        digest: [7; 16],
    }
}

#[test]
fn f06_the_same_chunk_twice_is_harmless_and_a_changed_one_ends_the_attempt() {
    let mut victim = Victim::receiving();
    victim.chunk(header(1, 1, 0, 4)).unwrap();
    victim.chunk(header(1, 1, 0, 4)).unwrap();
    assert_eq!(victim.writes(), 1, "the repetition was written again");
    assert_eq!(victim.target.progress().repeated_chunk_count, 1);
    let changed = ChunkHeader {
        digest: [8; 16],
        ..header(1, 1, 0, 4)
    };
    assert_eq!(victim.chunk(changed), Err(Code::Conflict));
    victim.assert_refused(Code::Conflict);
}

#[test]
fn f07_a_block_of_an_older_round_never_replaces_a_newer_one() {
    let mut victim = Victim::receiving();
    victim.chunk(header(1, 2, 0, 4)).unwrap();
    victim.chunk(header(2, 1, 0, 4)).unwrap();
    assert_eq!(victim.writes(), 1);
    assert_eq!(victim.target.progress().stale_chunk_count, 1);
}

#[test]
fn f08_f09_chunks_outside_of_memory_or_of_too_many_blocks_write_nothing() {
    for (start, count) in [(BLOCK_COUNT, 1), (63, 2), (u64::MAX, 1), (0, 17), (5, 0)] {
        let mut victim = Victim::receiving();
        assert_eq!(
            victim.chunk(header(1, 1, start, count)),
            Err(Code::Range),
            "{start}+{count}"
        );
        assert_eq!(victim.writes(), 0);
        victim.assert_refused(Code::Range);
    }
    let mut victim = Victim::receiving();
    let elsewhere = ChunkHeader {
        space: SpaceId(1),
        ..header(1, 1, 0, 1)
    };
    assert_eq!(victim.chunk(elsewhere), Err(Code::Range));
    victim.assert_refused(Code::Range);
}

#[test]
fn f10_a_guest_offered_again_with_another_layout_is_refused() {
    let mut victim = Victim::receiving();
    let mut other = prepare();
    other.spaces[0].block_count += 1;
    assert_eq!(
        victim.hears(Lane::Control, Message::Prepare(other)),
        Err(Code::Layout)
    );
    victim.assert_refused(Code::Layout);
}

#[test]
fn f11_an_absurd_guest_is_refused_before_anything_is_built() {
    let mut victim = Victim::blank();
    let mut huge = prepare();
    huge.spaces[0].block_count = 1 << 60;
    assert_eq!(
        victim.hears(Lane::Control, Message::Prepare(huge)),
        Err(Code::Layout)
    );
    let is_build = |action: &Action| matches!(action, Action::BuildGuest(_));
    assert!(!victim.actions.iter().any(is_build));
    assert!(matches!(
        victim.actions.last(),
        Some(Action::Finished(Outcome::Refused(_)))
    ));
}

#[test]
fn a_gap_in_the_numbers_ends_the_attempt() {
    let mut victim = Victim::receiving();
    assert_eq!(victim.chunk(header(2, 1, 0, 4)), Err(Code::Unexpected));
    victim.assert_refused(Code::Unexpected);
}

#[test]
fn f27_an_image_with_a_block_neither_sent_nor_named_is_refused() {
    let mut victim = Victim::receiving();
    victim.chunk(header(1, 1, 0, 16)).unwrap();
    victim.hears(Lane::Switch, Message::FinalBegin).unwrap();
    let part = MissingPart {
        space: MEMORY,
        first_word: 0,
        words: vec![!0 << 17],
    };
    victim
        .hears(Lane::Switch, Message::MissingPart(part))
        .unwrap();
    victim
        .hears(Lane::Switch, Message::StatePart(vec![1]))
        .unwrap();
    let end = FinalEnd {
        through_sequence: 1,
        state_bytes: 1,
        missing_count: 47,
        root: Root([0; 32]),
    };
    let heard = victim.hears(Lane::Switch, Message::FinalEnd(end));
    assert_eq!(heard, Err(Code::RootMismatch));
    victim.assert_refused(Code::RootMismatch);
    // The refusal is durable, and sent before the incident is reported.
    let is_at = |wanted: fn(&Action) -> bool| victim.actions.iter().position(wanted);
    let refused = is_at(|action| {
        matches!(
            action,
            Action::Persist(record) if matches!(record.state, State::Refused { .. })
        )
    });
    let said = is_at(|action| matches!(action, Action::Send(_, Message::Nack(_))));
    let reported = is_at(|action| matches!(action, Action::Report(_)));
    assert!(refused.is_some() && refused < said && said < reported);
}

fn manifest() -> Message {
    Message::Manifest(Manifest {
        position: Received {
            through_sequence: 1,
            chain: [1; 32],
        },
        missing_count: 3,
        missing_digest: [2; 32],
        state_bytes: 9,
        state_digest: [3; 32],
        config_digest: [4; 32],
        spaces_digest: [5; 32],
    })
}

#[test]
fn f27_a_manifest_belongs_to_one_paused_stage_and_comes_once() {
    let begin = Message::FinalBegin;
    for (before, lane) in [
        (vec![], Lane::Switch),
        (vec![begin.clone()], Lane::Control),
        (vec![begin.clone(), manifest()], Lane::Switch),
    ] {
        let mut victim = Victim::receiving();
        for message in before {
            victim.hears(Lane::Switch, message).unwrap();
        }
        assert_eq!(victim.hears(lane, manifest()), Err(Code::Unexpected));
        victim.assert_refused(Code::Unexpected);
    }
    // Each paused stage has a manifest of its own.
    let mut victim = Victim::receiving();
    for message in [begin.clone(), manifest(), begin.clone(), manifest(), begin] {
        victim.hears(Lane::Switch, message).unwrap();
    }
    let end = FinalEnd {
        through_sequence: 0,
        state_bytes: 0,
        missing_count: 0,
        root: Root([0; 32]),
    };
    let heard = victim.hears(Lane::Switch, Message::FinalEnd(end));
    assert_eq!(heard, Err(Code::RootMismatch));
    let report = victim.actions.iter().find_map(|action| match action {
        Action::Report(incident) => Some(incident),
        _ => None,
    });
    assert_eq!(report.unwrap().theirs, None, "one of a stage before");
}

#[test]
fn f27_a_manifest_behind_the_end_is_refused() {
    let mut victim = Victim::receiving();
    victim.hears(Lane::Switch, Message::FinalBegin).unwrap();
    let end = FinalEnd {
        through_sequence: 1,
        state_bytes: 0,
        missing_count: 0,
        root: Root([0; 32]),
    };
    victim.hears(Lane::Switch, Message::FinalEnd(end)).unwrap();
    let heard = victim.hears(Lane::Switch, manifest());
    assert_eq!(heard, Err(Code::Unexpected));
    victim.assert_refused(Code::Unexpected);
}

#[test]
fn h03_a_commit_before_the_image_is_whole_is_refused_for_ever() {
    let mut victim = Victim::receiving();
    victim.chunk(header(1, 1, 0, 16)).unwrap();
    let commit = Message::Commit(Epoch(2), Root([0; 32]));
    assert_eq!(
        victim.hears(Lane::Control, commit.clone()),
        Err(Code::ImageLost)
    );
    victim.assert_refused(Code::ImageLost);
    victim.actions.clear();
    victim.hears(Lane::Control, commit).unwrap();
    let [Action::Send(Lane::Control, Message::Nack(_))] = victim.actions.as_slice() else {
        panic!("{:?}", victim.actions);
    };
}

#[test]
fn state_above_its_cap_is_refused_early() {
    let mut victim = Victim::receiving();
    victim.hears(Lane::Switch, Message::FinalBegin).unwrap();
    let part = Message::StatePart(vec![0; 60 * 1024]);
    let refused = (0..20).find_map(|_| victim.hears(Lane::Switch, part.clone()).err());
    assert_eq!(refused, Some(Code::TooLarge));
    victim.assert_refused(Code::TooLarge);
}
