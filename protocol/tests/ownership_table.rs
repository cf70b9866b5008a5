//! Prints every state of the ownership machine with every event, and compares the result with the
//! reviewed table.
//!
//! `TOWPATH_BLESS=1 cargo test -p towpath-protocol --test ownership_table` writes the table anew.

use std::fmt::Write;

use towpath_protocol::identity::{AttemptId, Epoch, GuestId, HostIdentity};
use towpath_protocol::ownership::{
    Action, Decider, Delivery, Event, Holder, Ownership, Record, Root, State, Word,
};

const GUEST: GuestId = GuestId(7);
const ROOT: Root = Root([7; 32]);
const OTHER_ROOT: Root = Root([8; 32]);
const PATH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ownership_table.txt");

fn host(name: &str) -> HostIdentity {
    HostIdentity {
        trust_domain: "d".parse().expect("a name"),
        site: "s".parse().expect("a name"),
        host: name.parse().expect("a name"),
    }
}

fn hear(from: &str, number: u128, word: Word) -> Event {
    Event::Heard {
        from: host(from),
        attempt: AttemptId(number),
        word,
    }
}

fn offer(number: u128) -> Event {
    Event::Offer {
        attempt: AttemptId(number),
        target: host("peer"),
    }
}

const fn prepare(epoch: u64) -> Word {
    Word::Prepare {
        epoch: Epoch(epoch),
    }
}

const fn commit(epoch: u64, root: Root) -> Word {
    Word::Commit {
        epoch: Epoch(epoch),
        root,
    }
}

const fn offer_word() -> Word {
    Word::Offer {
        owned: Epoch(4),
        epoch: Epoch(5),
        root: ROOT,
    }
}

const fn sealed(is_whole: bool) -> Event {
    Event::Sealed {
        root: ROOT,
        is_whole,
    }
}

const fn ready(root: Root) -> Event {
    Event::ImageReady { root }
}

/// Events that lead a source to each state. It begins as the owner at epoch 4; attempt 1 has epoch
/// 5.
fn ways_of_a_source() -> Vec<(&'static str, Decider, Vec<Event>)> {
    let journal = Decider::SourceJournal;
    let says = |word| hear("peer", 1, word);
    let sent = |is_whole| vec![offer(1), sealed(is_whole), says(Word::Ready { root: ROOT })];
    let then = |mut way: Vec<Event>, word| {
        way.push(says(word));
        way
    };
    vec![
        ("owned", journal, vec![]),
        ("offering", journal, vec![offer(1)]),
        ("offering, sealed", journal, vec![offer(1), sealed(true)]),
        ("relinquished", journal, sent(true)),
        ("relinquished, blocks missing", journal, sent(false)),
        (
            "relinquished, blocks missing, acknowledged",
            journal,
            then(sent(false), Word::Ack),
        ),
        ("released", journal, then(sent(true), Word::Ack)),
        ("mode b: offered", Decider::Witness, sent(true)),
    ]
}

/// Events that lead a target to each state. It begins without any knowledge of the guest.
fn ways_of_a_target() -> Vec<(&'static str, Decider, Vec<Event>)> {
    let journal = Decider::SourceJournal;
    let prepared = || hear("peer", 1, prepare(5));
    let image = || vec![prepared(), ready(ROOT)];
    let took = || hear("peer", 1, commit(5, ROOT));
    let then = |mut way: Vec<Event>, event| {
        way.push(event);
        way
    };
    let whole = then(image(), Event::ImageComplete);
    let taking = then(image(), hear("peer", 1, offer_word()));
    vec![
        ("vacant", journal, vec![]),
        ("prepared", journal, vec![prepared()]),
        ("prepared, image ready", journal, image()),
        ("owned, blocks missing", journal, then(image(), took())),
        ("owned, received", journal, then(whole, took())),
        ("refused", journal, vec![prepared(), Event::GiveUp]),
        ("refused, never prepared", journal, vec![took()]),
        ("mode b: prepared, taking", Decider::Witness, taking),
    ]
}

/// A machine in every state, also with different knowledge outside the record.
fn machines() -> Vec<(String, Ownership)> {
    let mut machines = Vec::new();
    for (name, decider, events) in ways_of_a_source() {
        machines.push((name.to_owned(), reach(true, decider, events)));
    }
    for (name, decider, events) in ways_of_a_target() {
        machines.push((name.to_owned(), reach(false, decider, events)));
    }
    let restarted: Vec<(String, Ownership)> = machines
        .iter()
        .filter(|(_, machine)| matches!(machine.record().state, State::Prepared { .. }))
        .map(|(name, machine)| {
            let machine = Ownership::recover(host("self"), machine.record().clone());
            (format!("{name}, restarted"), machine)
        })
        .collect();
    machines.extend(restarted);
    machines
}

fn reach(is_owner: bool, decider: Decider, events: Vec<Event>) -> Ownership {
    let machine = if is_owner {
        Ownership::owner(host("self"), GUEST, Epoch(4)).0
    } else {
        Ownership::vacant(host("self"), GUEST)
    };
    let mut machine = machine.decided_by(decider);
    for event in events {
        machine.handle(event).expect("the way to a state");
        while machine.poll().is_some() {}
    }
    machine
}

fn events() -> Vec<(&'static str, Event)> {
    let register = |name, epoch| Event::Register {
        holder: Holder {
            host: host(name),
            epoch: Epoch(epoch),
        },
    };
    vec![
        ("offer 2", offer(2)),
        ("sealed", sealed(true)),
        ("sealed, blocks missing", sealed(false)),
        ("unsealed", Event::Unsealed),
        ("withdraw", Event::Withdraw),
        ("outrun", Event::Outrun { mark: Epoch(9) }),
        ("image ready", ready(ROOT)),
        ("image ready, another", ready(OTHER_ROOT)),
        ("image complete", Event::ImageComplete),
        ("give up", Event::GiveUp),
        ("repeat", Event::Repeat),
        ("reclaim", Event::Reclaim),
        ("register: self 5", register("self", 5)),
        ("register: peer 5", register("peer", 5)),
        ("register: peer 4", register("peer", 4)),
        ("peer 1: prepare 5", hear("peer", 1, prepare(5))),
        ("peer 2: prepare 5", hear("peer", 2, prepare(5))),
        ("peer 2: prepare 6", hear("peer", 2, prepare(6))),
        ("third 3: prepare 6", hear("third", 3, prepare(6))),
        ("peer 1: commit 5", hear("peer", 1, commit(5, ROOT))),
        (
            "peer 1: commit 5, another root",
            hear("peer", 1, commit(5, OTHER_ROOT)),
        ),
        ("peer 2: commit 6", hear("peer", 2, commit(6, ROOT))),
        ("peer 2: commit 3", hear("peer", 2, commit(3, ROOT))),
        ("third 1: commit 5", hear("third", 1, commit(5, ROOT))),
        ("third 3: commit 6", hear("third", 3, commit(6, ROOT))),
        ("peer 1: offer 5", hear("peer", 1, offer_word())),
        ("peer 1: abort", hear("peer", 1, Word::Abort)),
        ("third 1: abort", hear("third", 1, Word::Abort)),
        ("peer 1: released", hear("peer", 1, Word::Released)),
        ("peer 1: prepared", hear("peer", 1, Word::Prepared)),
        ("peer 1: ready", hear("peer", 1, Word::Ready { root: ROOT })),
        (
            "peer 1: ready, another root",
            hear("peer", 1, Word::Ready { root: OTHER_ROOT }),
        ),
        ("peer 1: ack", hear("peer", 1, Word::Ack)),
        ("peer 2: ack", hear("peer", 2, Word::Ack)),
        ("third 1: ack", hear("third", 1, Word::Ack)),
        ("peer 1: nack", hear("peer", 1, Word::Nack)),
        ("third 1: nack", hear("third", 1, Word::Nack)),
        ("peer 1: complete", hear("peer", 1, Word::Complete)),
    ]
}

fn show_root(root: Root) -> &'static str {
    if root == ROOT { "" } else { " another root" }
}

fn show_word(word: &Word) -> String {
    match word {
        Word::Prepare { epoch } => format!("prepare {epoch}"),
        Word::Prepared => "prepared".to_owned(),
        Word::Ready { root } => format!("ready{}", show_root(*root)),
        Word::Commit { epoch, root } => format!("commit {epoch}{}", show_root(*root)),
        Word::Offer { epoch, root, .. } => format!("offer {epoch}{}", show_root(*root)),
        Word::Ack => "ack".to_owned(),
        Word::Nack => "nack".to_owned(),
        Word::Abort => "abort".to_owned(),
        Word::Complete => "complete".to_owned(),
        Word::Released => "released".to_owned(),
    }
}

fn show_record(record: &Record) -> String {
    let detail = match &record.state {
        State::Owned {
            epoch,
            missing_from,
        } => match missing_from {
            Some(origin) => format!(" {epoch}, missing from {}", origin.attempt.0),
            None => format!(" {epoch}"),
        },
        State::Offering { epoch, attempt, .. } => format!(" {epoch} as {}", attempt.0),
        State::Relinquished {
            owned,
            epoch,
            attempt,
            delivery,
            ..
        }
        | State::Offered {
            owned,
            epoch,
            attempt,
            delivery,
            ..
        } => {
            let known = match delivery {
                Delivery::Partial => ", blocks missing",
                Delivery::Whole => "",
                Delivery::Acknowledged => ", acknowledged",
            };
            format!(" {owned} to {epoch} as {}{known}", attempt.0)
        }
        State::Released { epoch, attempt, .. }
        | State::Prepared { epoch, attempt, .. }
        | State::Refused { epoch, attempt, .. } => format!(" {epoch} as {}", attempt.0),
        State::Vacant => String::new(),
    };
    format!(
        "{}{detail} (mark {})",
        record.state.name(),
        record.high_water
    )
}

fn show_action(action: &Action) -> String {
    match action {
        Action::Persist(record) => format!("persist {}", show_record(record)),
        Action::Say { to, attempt, word } => {
            format!("say {} {}: {}", to.host, attempt.0, show_word(word))
        }
        Action::Run { epoch } => format!("run {epoch}"),
        Action::Swap { expected, new } => format!(
            "swap {} {} for {} {}",
            expected.host.host, expected.epoch, new.host.host, new.epoch
        ),
        Action::ReadRegister => "read the register".to_owned(),
        Action::Thaw => "thaw".to_owned(),
        Action::DiscardImage => "discard the image".to_owned(),
        Action::FreeImage => "free the image".to_owned(),
    }
}

fn table() -> String {
    let mut table = String::new();
    for (state, machine) in machines() {
        let record = show_record(machine.record());
        let runs = if machine.may_run() {
            "may run"
        } else {
            "may not run"
        };
        writeln!(table, "# {state}\n{record}, {runs}\n").expect("memory");
        for (name, event) in events() {
            let mut after = machine.clone();
            let line = match after.handle(event) {
                Err(fault) => {
                    assert_eq!(after, machine, "{state}: {name} changed what it refused");
                    fault.code.as_str().to_owned()
                }
                Ok(()) => {
                    let actions: Vec<String> = std::iter::from_fn(|| after.poll())
                        .map(|action| show_action(&action))
                        .collect();
                    match (actions.is_empty(), after == machine) {
                        (true, true) => "nothing".to_owned(),
                        (true, false) => "noted".to_owned(),
                        _ => actions.join("; "),
                    }
                }
            };
            writeln!(table, "{name:<32} {line}").expect("memory");
        }
        table.push('\n');
    }
    table
}

#[test]
fn every_state_answers_every_event_as_reviewed() {
    let now = table();
    #[expect(
        clippy::disallowed_methods,
        reason = "the test of a pure crate may read its own files"
    )]
    let reviewed = {
        if std::env::var("TOWPATH_BLESS").is_ok() {
            std::fs::write(PATH, &now).expect("the source tree is writable");
        }
        String::from_utf8(std::fs::read(PATH).expect("the table is checked in")).expect("text")
    };
    for (position, (now, reviewed)) in now.lines().zip(reviewed.lines()).enumerate() {
        let line = position + 1;
        assert_eq!(
            now, reviewed,
            "ownership_table.txt:{line}; TOWPATH_BLESS=1 writes it anew"
        );
    }
    assert_eq!(now.lines().count(), reviewed.lines().count());
}
