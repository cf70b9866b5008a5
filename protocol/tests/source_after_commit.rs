//! A source after the commit: it repeats the commit for ever, whatever else is lost, and serves the
//! target.

use std::collections::VecDeque;
use std::time::Duration;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity, MigrationId};
use towpath_protocol::image::CHAIN_START;
use towpath_protocol::message::{
    ChunkHeader, Codec, Lane, Message, MissingPart, Received, SpaceInfo, chain_after,
};
use towpath_protocol::ownership::{Decider, Delivery, Ownership, Record, Root, State};
use towpath_protocol::plan::Policy;
use towpath_protocol::source::{
    ARREARS_MAX, Action, Event, Outcome, PING_INTERVAL, RECONNECT_DELAY_MAX, Setup, Source,
};
use towpath_protocol::space::{BlockRun, BlockSet, MEMORY, block_count_of};
use towpath_protocol::time::Instant;

const GUEST: GuestId = GuestId(7);
const ATTEMPT: AttemptId = AttemptId(1);
const ROOT: Root = Root([7; 32]);

fn host(name: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "shop.example".parse().expect("a name"),
        site: "site".parse().expect("a name"),
        host: name.parse().expect("a name"),
    }
}

/// A source whose daemon was restarted after the commit.
fn recovered(is_whole: bool) -> Source {
    recovered_with(is_whole, 64)
}

fn recovered_with(is_whole: bool, block_count: u64) -> Source {
    let record = Record {
        guest: GUEST,
        high_water: Epoch(2),
        decider: Decider::SourceJournal,
        state: State::Relinquished {
            owned: Epoch(1),
            epoch: Epoch(2),
            attempt: ATTEMPT,
            target: host("b"),
            root: ROOT,
            delivery: if is_whole {
                Delivery::Whole
            } else {
                Delivery::Partial
            },
        },
        verdicts: Vec::new(),
    };
    let setup = Setup {
        host: host("a"),
        target: host("b"),
        migration: MigrationId(1),
        attempt: ATTEMPT,
        guest: GUEST,
        name: "till".parse().expect("a name"),
        spaces: vec![SpaceInfo {
            id: MEMORY,
            block_bytes: 4096,
            block_count,
        }],
        config: Vec::new(),
        policy: Policy::default(),
    };
    let law = Ownership::recover(host("a"), record);
    Source::recover(setup, law, Instant::ZERO).expect("relinquished")
}

fn feed(source: &mut Source, event: Event) -> Vec<Action> {
    let now = Instant::ZERO + Duration::from_millis(1);
    // The test looks at the resulting actions, not at the fault.
    drop(source.handle(event, now));
    std::iter::from_fn(|| source.poll()).collect()
}

fn hear(source: &mut Source, message: Message) -> Vec<Action> {
    feed(source, Event::Heard(Lane::Control, message))
}

fn commits(actions: &[Action]) -> bool {
    let commit = Action::Send(Lane::Control, Message::Commit(Epoch(2), ROOT));
    actions.contains(&commit)
}

fn outcome(actions: &[Action]) -> Option<&Outcome> {
    actions.iter().find_map(|action| match action {
        Action::Finished(outcome) => Some(outcome),
        _ => None,
    })
}

#[test]
fn fault_10_a_lost_image_does_not_keep_the_commit_from_being_said() {
    let mut source = recovered(true);
    assert_eq!(outcome(&feed(&mut source, Event::GuestGone)), None);
    for _ in 0..3 {
        assert!(commits(&feed(&mut source, Event::LinkUp)));
        feed(&mut source, Event::LinkDown);
    }
    feed(&mut source, Event::LinkUp);
    let actions = hear(&mut source, Message::Ack(1));
    assert_eq!(outcome(&actions), Some(&Outcome::Moved));
}

#[test]
fn fault_11_blocks_that_are_lost_are_not_sent_and_the_target_is_waited_for() {
    let mut source = recovered(false);
    feed(&mut source, Event::GuestGone);
    feed(&mut source, Event::LinkUp);
    hear(&mut source, Message::Ack(1));
    let mut actions = misses(&mut source, vec![u64::MAX]);
    let demand = Event::Heard(Lane::Demand, Message::Demand(MEMORY, 3));
    actions.extend(feed(&mut source, demand));
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, Action::SendChunk(_)))
    );
    assert_eq!(outcome(&actions), None);
    assert!(source.is_image_lost());
    // Now it is known which blocks can never arrive: the guest's owner must hear that waiting is
    // useless.
    assert_eq!(releases(&actions), 1, "{actions:?}");
    // The operator boots the guest there.
    let actions = hear(&mut source, Message::Complete);
    assert_eq!(outcome(&actions), Some(&Outcome::Moved));
}

/// The blocks that are ordered for the bulk lane, one list per order.
fn pushes(actions: &[Action]) -> Vec<Vec<u64>> {
    let mut all = Vec::new();
    for action in actions {
        if let Action::SendChunk(order) = action
            && !order.is_urgent
        {
            let runs = order.runs.iter();
            all.push(runs.flat_map(|run| run.start..run.end()).collect());
        }
    }
    all
}

/// Says that the blocks of an order could not be read.
fn unread(block: u64, count: u32) -> Event {
    Event::Unread {
        space: MEMORY,
        runs: vec![BlockRun {
            start: block,
            count,
        }],
        fault: Fault::new(Code::Io, "a page cannot be read"),
    }
}

#[test]
fn blocks_that_cannot_be_read_hold_up_no_others() {
    let mut source = recovered(false);
    feed(&mut source, Event::LinkUp);
    hear(&mut source, Message::Ack(1));
    let pushed = pushes(&misses(&mut source, vec![u64::MAX]));
    assert_eq!(pushed.concat(), Vec::from_iter(0..64));
    let count = u32::try_from(pushed[0].len()).expect("few");
    let left = source.progress().blocks_left;
    let actions = feed(&mut source, unread(0, count));
    assert!(actions.is_empty(), "the lanes stay: {actions:?}");
    assert_eq!(source.progress().blocks_left, left, "none has gone");
    // Each is read again by itself, so that those beside a bad one arrive.
    let again = read_again(&mut source);
    assert_eq!(
        again,
        Vec::from_iter((0..u64::from(count)).map(|block| vec![block]))
    );
    feed(&mut source, unread(3, 1));
    assert_eq!(read_again(&mut source), [[3]]);
    // What is demanded is not pushed as well.
    feed(&mut source, unread(3, 1));
    let demand = Event::Heard(Lane::Demand, Message::Demand(MEMORY, 3));
    feed(&mut source, demand);
    assert_eq!(source.progress().blocks_left, left - 1);
}

#[test]
fn blocks_that_cannot_be_read_are_not_kept_over_the_end_of_the_lanes() {
    let mut source = recovered(false);
    feed(&mut source, Event::LinkUp);
    hear(&mut source, Message::Ack(1));
    misses(&mut source, vec![u64::MAX]);
    feed(&mut source, unread(5, 1));
    feed(&mut source, Event::LinkDown);
    feed(&mut source, unread(7, 1));
    let reconnect = source.deadline().expect("lanes are opened again");
    assert!(reconnect.since(Instant::ZERO) < Duration::from_secs(1));
    feed(&mut source, Event::LinkUp);
    hear(&mut source, Message::Ack(1));
    // The target's list has them, so they are not ordered a second time.
    let pushed = pushes(&misses(&mut source, vec![0b1010_0000]));
    assert_eq!(pushed, [[5, 7]]);
    let later = Instant::ZERO + Duration::from_secs(2);
    source.handle(Event::Tick, later).expect("no fault");
    let actions: Vec<Action> = std::iter::from_fn(|| source.poll()).collect();
    assert_eq!(pushes(&actions), Vec::<Vec<u64>>::new());
}

/// Lets time pass until blocks are ordered for the bulk lane, and returns them.
fn read_again(source: &mut Source) -> Vec<Vec<u64>> {
    for _ in 0..20 {
        let due = source.deadline().expect("they are read again");
        source.handle(Event::Tick, due).expect("no fault");
        let actions: Vec<Action> = std::iter::from_fn(|| source.poll()).collect();
        let pushed = pushes(&actions);
        if !pushed.is_empty() {
            return pushed;
        }
    }
    panic!("they are not read again");
}

/// Number of messages saying that no block is kept here any more.
fn releases(actions: &[Action]) -> usize {
    let said = |action: &&Action| matches!(action, Action::Send(_, Message::Released));
    actions.iter().filter(said).count()
}

/// Sends the target's list of missing blocks.
fn misses(source: &mut Source, words: Vec<u64>) -> Vec<Action> {
    let part = MissingPart {
        space: MEMORY,
        first_word: 0,
        words,
    };
    let position = Received {
        through_sequence: 0,
        chain: CHAIN_START,
    };
    let mut actions = hear(source, Message::MissingPart(part));
    actions.extend(hear(source, Message::MissingEnd(position)));
    actions
}

#[test]
fn fault_11_an_image_that_is_lost_while_it_is_served_is_told_over_fresh_lanes() {
    let mut source = recovered(false);
    feed(&mut source, Event::LinkUp);
    hear(&mut source, Message::Ack(1));
    assert_eq!(releases(&misses(&mut source, vec![u64::MAX])), 0);
    let actions = feed(&mut source, Event::GuestGone);
    // Blocks under way still count at the target. Only its next list tells which can never arrive.
    assert_eq!(releases(&actions), 0, "{actions:?}");
    assert!(actions.contains(&Action::DropLink), "{actions:?}");
    let due = source.deadline().expect("lanes are opened again");
    source.handle(Event::Tick, due).expect("no fault");
    feed(&mut source, Event::LinkUp);
    hear(&mut source, Message::Ack(1));
    assert_eq!(releases(&misses(&mut source, vec![1])), 1);
    assert!(!source.ownership().may_run());
}

#[test]
fn fault_11_a_target_that_misses_nothing_is_not_told_that_something_is_lost() {
    let mut source = recovered(false);
    feed(&mut source, Event::GuestGone);
    feed(&mut source, Event::LinkUp);
    hear(&mut source, Message::Ack(1));
    assert_eq!(releases(&misses(&mut source, Vec::new())), 0);
}

/// How long a source waits before it opens lanes again, each time `end` has ended its lanes.
fn waits_after(source: &mut Source, mut end: impl FnMut(&mut Source, Instant)) -> Vec<Duration> {
    let mut now = Instant::ZERO;
    let mut waits = Vec::new();
    for _ in 0..9 {
        source.handle(Event::LinkUp, now).expect("lanes open");
        end(source, now);
        let actions: Vec<Action> = std::iter::from_fn(|| source.poll()).collect();
        assert!(actions.contains(&Action::DropLink), "{actions:?}");
        let due = source.deadline().expect("lanes are opened again");
        waits.push(due.since(now));
        now = due;
        source.handle(Event::Tick, now).expect("no fault");
        while source.poll().is_some() {}
    }
    // After an outage the lanes are still opened again at once.
    source.handle(Event::LinkUp, now).expect("lanes open");
    source.handle(Event::LinkDown, now).expect("lanes break");
    let due = source.deadline().expect("lanes are opened again");
    assert!(due.since(now) <= RECONNECT_DELAY_MAX);
    waits
}

#[test]
fn what_fails_behind_the_commit_again_and_again_is_tried_ever_less_often() {
    let failed = waits_after(&mut recovered(false), |source, now| {
        let ack = Event::Heard(Lane::Control, Message::Ack(1));
        source.handle(ack, now).expect("said again");
        while source.poll().is_some() {}
        let failed = Event::Failed(Fault::new(Code::Io, "a page cannot be read"));
        source.handle(failed, now).expect_err("it failed");
    });
    // A target whose folder is quarantined, or whose guest process is gone, refuses lanes for days.
    let refused = waits_after(&mut recovered(false), |source, now| {
        let refused = Fault::new(Code::Quarantine, "nothing is said of it");
        for word in [Message::Pong(0), Message::Refused((&refused).into())] {
            let event = Event::Heard(Lane::Control, word);
            source.handle(event, now).expect("no fault");
        }
    });
    for waits in [&failed, &refused] {
        assert_eq!(waits[0], Duration::from_millis(100));
        assert!(waits.is_sorted(), "{waits:?}");
        assert_eq!(waits.last(), Some(&Duration::from_secs(5)));
    }
    // A busy target recovers soon, so the waits are short whatever came before.
    let mut codes = [Code::Quarantine; 9];
    codes[7..].fill(Code::Busy);
    let mut codes = codes.into_iter();
    let waits = waits_after(&mut recovered(false), |source, now| {
        let code = codes.next().expect("nine of them");
        let busy = Fault::new(code, "not now");
        let event = Event::Heard(Lane::Control, Message::Refused((&busy).into()));
        source.handle(event, now).expect("no fault");
    });
    assert_eq!(waits[6], Duration::from_secs(5));
    assert_eq!(waits[7..], [Duration::from_secs(1); 2]);
}

#[test]
fn f26_a_target_that_counts_without_end_is_not_believed() {
    for sequence in [u64::MAX, u64::MAX - 1, 1 << 62] {
        let mut source = recovered(false);
        feed(&mut source, Event::LinkUp);
        hear(&mut source, Message::Ack(0));
        let part = MissingPart {
            space: MEMORY,
            first_word: 0,
            words: vec![1],
        };
        feed(
            &mut source,
            Event::Heard(Lane::Control, Message::MissingPart(part)),
        );
        let end = Message::MissingEnd(Received {
            through_sequence: sequence,
            chain: CHAIN_START,
        });
        let actions = hear(&mut source, end);
        assert!(actions.contains(&Action::DropLink), "{actions:?}");
        assert!(outcome(&actions).is_none(), "the guest is the target's");
    }
}

#[test]
fn what_cannot_be_done_behind_the_commit_is_tried_again_for_ever() {
    let mut source = recovered(true);
    for _ in 0..3 {
        assert!(commits(&feed(&mut source, Event::LinkUp)));
        let failed = Fault::new(Code::Io, "no thread");
        let actions = feed(&mut source, Event::Failed(failed));
        assert_eq!(outcome(&actions), None);
        assert!(actions.contains(&Action::DropLink));
        let due = source.deadline().expect("lanes are opened again");
        source.handle(Event::Tick, due).expect("no fault");
        let actions: Vec<Action> = std::iter::from_fn(|| source.poll()).collect();
        assert!(actions.contains(&Action::Connect));
    }
    feed(&mut source, Event::LinkUp);
    let actions = hear(&mut source, Message::Ack(1));
    assert_eq!(outcome(&actions), Some(&Outcome::Moved));
}

#[test]
fn fault_26_a_poisoned_journal_stops_a_committed_move() {
    let mut source = recovered(true);
    let poisoned = Fault::new(Code::Journal, "fsync failed");
    let actions = feed(&mut source, Event::NotRecorded(poisoned.clone()));
    assert_eq!(outcome(&actions), Some(&Outcome::Stuck(poisoned)));
    assert!(!source.ownership().may_run());
}

#[test]
fn fault_26_a_refusal_that_could_not_be_written_down_starts_nothing() {
    let mut source = recovered(true);
    feed(&mut source, Event::LinkUp);
    let refused = Fault::new(Code::Refused, "no image");
    let nack = Event::Heard(Lane::Control, Message::Nack((&refused).into()));
    source.handle(nack, Instant::ZERO).expect("refused");
    let poisoned = Fault::new(Code::Journal, "fsync failed");
    let actions = feed(&mut source, Event::NotRecorded(poisoned.clone()));
    assert!(!actions.contains(&Action::Thaw));
    assert_eq!(outcome(&actions), Some(&Outcome::Stuck(poisoned)));
}

#[test]
fn fault_03_a_refusal_is_the_only_way_back() {
    let mut source = recovered(true);
    feed(&mut source, Event::LinkUp);
    assert!(source.handle(Event::Cancel, Instant::ZERO).is_err());
    let fault = Fault::new(Code::Refused, "no image");
    let actions = hear(&mut source, Message::Nack((&fault).into()));
    assert!(matches!(actions[0], Action::Persist(_)));
    assert!(actions.contains(&Action::Thaw));
    assert!(matches!(outcome(&actions), Some(Outcome::Stayed(_))));
}

/// Blocks of a guest that is served.
const SERVED_BLOCK_COUNT: u64 = 16_384;

/// Blocks that the line carries in one turn.
const TURN_BLOCK_COUNT: u64 = 16;

/// Demanded blocks that may be sent ahead of what the push has earned.
const AHEAD_COUNT: u64 = 256;

/// Demanded blocks sent per round whatever the push has earned.
const ROUND_COUNT: u64 = 4;

/// A source that serves a target over a line which always sends demanded blocks first.
struct Served {
    source: Source,
    demanded: VecDeque<u64>,
    pushed: VecDeque<(Received, u64)>,
    position: Received,
    /// Blocks of the next chunk that the line has carried already.
    begun_count: u64,
    /// Blocks that arrived on either lane.
    demanded_count: u64,
    pushed_count: u64,
    /// How often each block was sent on demand.
    answers: Vec<u32>,
    arrived: BlockSet,
}

impl Served {
    fn new() -> Self {
        let position = Received {
            through_sequence: 0,
            chain: CHAIN_START,
        };
        let mut served = Self {
            source: recovered_with(false, SERVED_BLOCK_COUNT),
            demanded: VecDeque::new(),
            pushed: VecDeque::new(),
            position,
            begun_count: 0,
            demanded_count: 0,
            pushed_count: 0,
            answers: vec![0; usize::try_from(SERVED_BLOCK_COUNT).expect("small")],
            arrived: BlockSet::empty(SERVED_BLOCK_COUNT),
        };
        served.link_up();
        served
    }

    /// Opens the lanes; the target misses everything.
    fn link_up(&mut self) {
        self.feed(Event::LinkUp);
        hear(&mut self.source, Message::Ack(1));
        let part = MissingPart {
            space: MEMORY,
            first_word: 0,
            words: vec![u64::MAX; usize::try_from(SERVED_BLOCK_COUNT / 64).expect("small")],
        };
        hear(&mut self.source, Message::MissingPart(part));
        self.arrived = BlockSet::empty(SERVED_BLOCK_COUNT);
        let end = Message::MissingEnd(self.position);
        self.feed(Event::Heard(Lane::Control, end));
    }

    /// Whether only the blocks that may go ahead, and at most one round more, have been answered.
    fn is_ahead_alone(&self) -> bool {
        (AHEAD_COUNT..=AHEAD_COUNT + ROUND_COUNT).contains(&(self.demanded.len() as u64))
    }

    /// Number of blocks that the line has carried.
    const fn count(&self) -> u64 {
        self.demanded_count + self.pushed_count
    }

    fn feed(&mut self, event: Event) {
        let mut actions = VecDeque::from(feed(&mut self.source, event));
        while let Some(action) = actions.pop_front() {
            let Action::SendChunk(order) = action else {
                continue;
            };
            let blocks = order.runs.iter().flat_map(|run| run.start..run.end());
            if order.is_urgent {
                self.demanded.extend(blocks);
                continue;
            }
            blocks.for_each(|block| {
                assert!(self.arrived.insert(block), "block {block} is sent twice");
            });
            let header = ChunkHeader {
                sequence: self.position.through_sequence + 1,
                generation: order.generation,
                space: MEMORY,
                codec: Codec::Raw,
                runs: order.runs,
                digest: [0; 16],
            };
            self.position = Received {
                through_sequence: header.sequence,
                chain: chain_after(&self.position.chain, &header),
            };
            let block_count = block_count_of(&header.runs);
            self.pushed.push_back((self.position, block_count));
            let wire_bytes = block_count * 4096;
            actions.extend(feed(&mut self.source, Event::Packed { header, wire_bytes }));
        }
    }

    /// Feeds a message that arrives so many seconds later. The resulting actions are dropped.
    fn feed_at(&mut self, second: u64, message: Message) {
        let now = Instant::ZERO + Duration::from_secs(second + 1);
        let event = Event::Heard(Lane::Control, message);
        self.source.handle(event, now).expect("no fault");
        while self.source.poll().is_some() {}
    }

    fn ask(&mut self, block: u64) {
        self.feed(Event::Heard(Lane::Demand, Message::Demand(MEMORY, block)));
    }

    /// Carries one turn's worth of blocks, and then acknowledges them.
    fn turn(&mut self) {
        let mut room = TURN_BLOCK_COUNT;
        while room > 0
            && let Some(block) = self.demanded.pop_front()
        {
            let index = usize::try_from(block).expect("small");
            self.answers[index] += 1;
            self.arrived.insert(block);
            self.demanded_count += 1;
            room -= 1;
        }
        self.begun_count += room;
        let mut received = None;
        while let Some((position, count)) = self.pushed.front().copied()
            && count <= self.begun_count
        {
            self.pushed.pop_front();
            self.pushed_count += count;
            self.begun_count -= count;
            received = Some(position);
        }
        if self.pushed.is_empty() {
            self.begun_count = 0;
        }
        if let Some(position) = received {
            self.feed(Event::Heard(Lane::Control, Message::Received(position)));
        }
    }

    fn is_through(&self) -> bool {
        self.arrived.len() == SERVED_BLOCK_COUNT
            && self.demanded.is_empty()
            && self.pushed.is_empty()
    }
}

#[test]
fn f23_a_flood_of_demands_leaves_the_push_a_quarter() {
    // At the start, and when the push could have saved up earnings.
    for pushed_before in [0, SERVED_BLOCK_COUNT / 4] {
        let mut served = Served::new();
        while served.pushed_count < pushed_before {
            served.turn();
        }
        let pushed_before = served.pushed_count;
        // Everything is demanded, and then once more.
        for _ in 0..2 {
            (0..SERVED_BLOCK_COUNT).for_each(|block| served.ask(block * 7919 % SERVED_BLOCK_COUNT));
        }
        assert_eq!(served.source.progress().demand_count, SERVED_BLOCK_COUNT);
        assert!(served.is_ahead_alone(), "{}", served.demanded.len());
        while !served.is_through() {
            let before = (served.demanded_count, served.pushed_count);
            while !served.is_through() && served.count() < before.0 + before.1 + 512 {
                served.turn();
            }
            let demanded = served.demanded_count - before.0;
            let pushed = served.pushed_count - before.1;
            // Apart from one chunk that is under way, and what may go ahead once.
            let is_flooded = before.0 >= AHEAD_COUNT + ROUND_COUNT && !served.pushed.is_empty();
            assert!(
                !is_flooded || (pushed + 16) * 4 >= demanded + pushed,
                "{pushed} pushed and {demanded} demanded"
            );
        }
        assert!(served.answers.iter().all(|&count| count <= 1));
        let demanded = served.demanded_count;
        let earned = 3 * (served.pushed_count - pushed_before) + AHEAD_COUNT + ROUND_COUNT;
        let is_used = demanded <= earned && demanded > earned * 9 / 10;
        assert!(is_used, "{demanded} demanded and {earned} earned");
        // Nothing is sent twice, except what may go ahead.
        assert!(served.count() <= SERVED_BLOCK_COUNT + AHEAD_COUNT + ROUND_COUNT);
    }
}

#[test]
fn f23_a_target_that_cuts_the_lanes_earns_no_demands_by_it() {
    let mut served = Served::new();
    (0..2 * AHEAD_COUNT).for_each(|block| served.ask(block));
    assert!(served.is_ahead_alone(), "{}", served.demanded.len());
    served.feed(Event::LinkDown);
    served.link_up();
    (0..AHEAD_COUNT).for_each(|block| served.ask(SERVED_BLOCK_COUNT - 1 - block));
    assert!(served.is_ahead_alone(), "{}", served.demanded.len());
}

#[test]
fn a_guest_goes_on_where_other_traffic_leaves_the_push_nothing() {
    let mut served = Served::new();
    (0..AHEAD_COUNT).for_each(|block| served.ask(block));
    assert!(served.is_ahead_alone());
    let mut now = Instant::ZERO + Duration::from_millis(1);
    for block in AHEAD_COUNT..AHEAD_COUNT + 100 {
        let asked_at = now;
        let demand = Message::Demand(MEMORY, block);
        let mut event = Event::Heard(Lane::Demand, demand);
        loop {
            served.source.handle(event, now).expect("no fault");
            let actions: Vec<Action> = std::iter::from_fn(|| served.source.poll()).collect();
            let is_answer = |action: &Action| matches!(action, Action::SendChunk(order) if order.is_urgent && order.runs[0].start == block);
            if actions.iter().any(is_answer) {
                break;
            }
            now = now + Duration::from_millis(5);
            assert!(
                now.since(asked_at) < Duration::from_millis(200),
                "block {block}"
            );
            event = Event::Heard(Lane::Control, Message::Ping(0));
            let due = served.source.deadline().expect("a block waits");
            assert!(due.since(asked_at) < Duration::from_millis(200));
            served.source.handle(Event::Tick, now).expect("no fault");
        }
    }
}

#[test]
fn f23_demands_of_a_guest_that_waits_for_each_go_at_once() {
    let mut served = Served::new();
    // Demands for nearly two of three bytes that the line carries, while there is anything to push.
    let mut asked = 0;
    while !served.is_through() && asked < SERVED_BLOCK_COUNT {
        for _ in 0..TURN_BLOCK_COUNT * 5 / 8 {
            let block = (SERVED_BLOCK_COUNT - 1) - asked % SERVED_BLOCK_COUNT;
            let before = served.demanded.len();
            let is_there = served.arrived.contains(block);
            served.ask(block);
            assert!(
                is_there || served.demanded.len() == before + 1,
                "block {block} waits"
            );
            asked += 1;
        }
        served.turn();
    }
    assert!(served.pushed_count > SERVED_BLOCK_COUNT / 4);
}

/// How long a target that answers each ping keeps its lanes, if it does `give` every second.
fn kept_for(served: &mut Served, mut give: impl FnMut(&mut Served, u64)) -> Option<Duration> {
    let mut now = Instant::ZERO + Duration::from_millis(1);
    let begun = now;
    for second in 0..600 {
        now = now + PING_INTERVAL;
        give(served, second);
        for event in [Event::Heard(Lane::Control, Message::Pong(0)), Event::Tick] {
            served.source.handle(event, now).expect("no fault");
        }
        let actions: Vec<Action> = std::iter::from_fn(|| served.source.poll()).collect();
        if actions.contains(&Action::DropLink) {
            return Some(now.since(begun));
        }
    }
    None
}

#[test]
fn a_target_that_answers_pings_and_gives_nothing_of_what_it_owes_has_its_lanes_opened_again() {
    let mut served = Served::new();
    assert!(!served.pushed.is_empty(), "chunks are under way");
    let kept = kept_for(&mut served, |_, _| {}).expect("it is not waited for for ever");
    assert!(kept >= ARREARS_MAX && kept < 2 * ARREARS_MAX, "{kept:?}");
    // The same for a target that does not acknowledge that it took the guest.
    let mut served = Served::new();
    served.source = recovered(false);
    feed(&mut served.source, Event::LinkUp);
    assert!(kept_for(&mut served, |_, _| {}).is_some());
}

#[test]
fn a_line_that_is_only_slow_keeps_its_lanes() {
    let mut served = Served::new();
    let kept = kept_for(&mut served, |served, second| {
        // One chunk is acknowledged every minute and a half.
        if second % 90 == 89
            && let Some((position, _)) = served.pushed.pop_front()
        {
            served.feed_at(second, Message::Received(position));
        }
    });
    assert_eq!(kept, None);
    // A target that has every block still owes `Complete`.
    let mut served = Served::new();
    while !served.is_through() {
        served.turn();
    }
    let kept = kept_for(&mut served, |_, _| {}).expect("it is not waited for for ever");
    assert!(kept >= ARREARS_MAX && kept < 2 * ARREARS_MAX, "{kept:?}");
}
