//! Both migrators are killed right after every step of a move.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use towpath_migrator::api::MigrationMode;
use towpath_tests::lab::{Guest, Link, check_kvm};
use towpath_tests::scene::{LINK, play_each};
use towpath_tests::steps::{Stop, Way};
use towpath_tests::trial::Side;

use crate::strays;

/// A kind of move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A process guest, fully copied before the switch.
    Copied,
    /// A virtual machine, fetched after the switch.
    Fetched,
    /// A virtual machine, copied before the switch.
    Machine,
}

impl Kind {
    const fn mode(self) -> MigrationMode {
        match self {
            Self::Copied | Self::Machine => MigrationMode::Auto,
            Self::Fetched => MigrationMode::Post,
        }
    }

    /// A guest of this kind; a process guest where virtual machines cannot run.
    fn guest(self, name: &str) -> Guest {
        let guest = Guest::new(name, 16);
        if self != Self::Copied && check_kvm().is_ok() {
            guest.virtual_machine()
        } else {
            guest
        }
    }
}

/// Steps of one side that moves reach in one way.
#[derive(Debug)]
pub(crate) struct Group {
    side: Side,
    way: Way,
    link: Link,
    steps: &'static [(&'static str, &'static [Kind])],
}

const BOTH: &[Kind] = &[Kind::Copied, Kind::Fetched];

const FETCHED: &[Kind] = &[Kind::Fetched];

const COPIED: &[Kind] = &[Kind::Copied, Kind::Machine];

/// A link long enough to catch a freeze, and fast enough to copy everything again soon.
const LONG: Link = Link {
    megabits_per_second: 200,
    round_trip: Duration::from_millis(200),
};

const BEFORE_THE_FREEZE: Group = Group {
    side: Side::Source,
    way: Way::Onward,
    link: LINK,
    steps: &[
        ("offering", BOTH),
        ("connect", BOTH),
        ("send", BOTH),
        ("say-prepare", BOTH),
        ("start-tracking", BOTH),
        ("send-chunk", BOTH),
        ("harvest", BOTH),
    ],
};

const CANCELLING: Group = Group {
    side: Side::Source,
    way: Way::Cancelled,
    link: LINK,
    steps: &[
        ("owned", COPIED),
        ("say-abort", COPIED),
        ("thaw", COPIED),
        ("cancel-chunks", COPIED),
        ("stop-tracking", COPIED),
        ("finished", COPIED),
    ],
};

const FROZEN: Group = Group {
    side: Side::Source,
    way: Way::Onward,
    link: LINK,
    steps: &[
        ("freeze", BOTH),
        ("save-state", BOTH),
        ("say-final-begin", BOTH),
        ("say-final-end", BOTH),
    ],
};

const OVERDUE: Group = Group {
    side: Side::Source,
    way: Way::Overdue,
    link: LONG,
    steps: &[("thaw", COPIED)],
};

/// The lanes end with the target's migrator, which ends the freeze.
const FREEZE_CUT: Group = Group {
    side: Side::Source,
    way: Way::Behind("load-state"),
    link: LINK,
    steps: &[("cancel-chunks", COPIED), ("thaw", COPIED)],
};

const COMMITTED: Group = Group {
    side: Side::Source,
    way: Way::Onward,
    link: LINK,
    steps: &[
        ("relinquished", BOTH),
        ("say-commit", BOTH),
        ("number-from", FETCHED),
        ("released", BOTH),
        ("say-released", BOTH),
        ("free-image", BOTH),
        ("finished", BOTH),
    ],
};

/// A target that was killed is no longer ready for the commit, and refuses it.
const COMMIT_REFUSED: Group = Group {
    side: Side::Source,
    way: Way::Behind("say-ready"),
    link: LINK,
    steps: &[
        ("owned", COPIED),
        ("thaw", COPIED),
        ("stop-tracking", COPIED),
        ("finished", COPIED),
    ],
};

const RECEIVING: Group = Group {
    side: Side::Target,
    way: Way::Onward,
    link: LINK,
    steps: &[
        ("prepared", BOTH),
        ("build-guest", BOTH),
        ("say-prepared", BOTH),
        ("send", BOTH),
        ("write", BOTH),
        ("forget", BOTH),
        ("save-position", BOTH),
        ("expect", FETCHED),
        ("arm-missing", FETCHED),
        ("load-state", BOTH),
    ],
};

const TAKEN_BACK: Group = Group {
    side: Side::Target,
    way: Way::Cancelled,
    link: LINK,
    steps: &[
        ("refused", COPIED),
        ("discard-image", COPIED),
        ("finished", COPIED),
    ],
};

const READY: Group = Group {
    side: Side::Target,
    way: Way::Onward,
    link: LINK,
    steps: &[("say-ready", BOTH)],
};

const REFUSING: Group = Group {
    side: Side::Target,
    way: Way::Behind("say-ready"),
    link: LINK,
    steps: &[
        ("refused", COPIED),
        ("say-nack", COPIED),
        ("discard-image", COPIED),
        ("finished", COPIED),
    ],
};

const OWNED: Group = Group {
    side: Side::Target,
    way: Way::Onward,
    link: LINK,
    steps: &[
        ("owned", BOTH),
        ("run", BOTH),
        ("say-ack", BOTH),
        ("install", FETCHED),
        ("disarm-missing", BOTH),
        ("say-complete", BOTH),
        ("finished", BOTH),
    ],
};

/// After the restart of a target whose guest runs with blocks missing.
const TAKEN_UP: Group = Group {
    side: Side::Target,
    way: Way::Behind("install"),
    link: LINK,
    steps: &[("wake-faults", FETCHED)],
};

const GROUPS: [&Group; 13] = [
    &BEFORE_THE_FREEZE,
    &CANCELLING,
    &FROZEN,
    &OVERDUE,
    &FREEZE_CUT,
    &COMMITTED,
    &COMMIT_REFUSED,
    &RECEIVING,
    &TAKEN_BACK,
    &READY,
    &REFUSING,
    &OWNED,
    &TAKEN_UP,
];

/// Groups of steps at which the source alone has the guest.
pub(crate) const BEFORE_THE_COMMIT: [&Group; 2] = [&BEFORE_THE_FREEZE, &FROZEN];

/// The same, of its target.
pub(crate) const BEFORE_IT_IS_READY: [&Group; 1] = [&RECEIVING];

/// Every step that a copied process guest's move passes on its normal way.
pub(crate) fn onward() -> Vec<(Side, &'static str)> {
    let groups = GROUPS.iter().filter(|group| group.way == Way::Onward);
    let steps = groups.flat_map(|group| {
        let of_copied = group
            .steps
            .iter()
            .filter(|(_, kinds)| kinds.contains(&Kind::Copied));
        of_copied.map(|(step, _)| (group.side, *step))
    });
    steps.collect()
}

impl Group {
    /// The names of its steps.
    pub(crate) fn names(&self) -> impl Iterator<Item = &'static str> {
        self.steps.iter().map(|(step, _)| *step)
    }

    /// Kills a migrator at each step, in a move of each kind; the kinds run concurrently.
    fn play(&self) {
        let kinds = [Kind::Copied, Kind::Fetched, Kind::Machine];
        let failures: Vec<String> = std::thread::scope(|scope| {
            let workers = kinds.map(|kind| scope.spawn(move || self.play_kind(kind)));
            let joined = workers.into_iter().map(|worker| worker.join());
            joined
                .flat_map(|failures| failures.expect("reported"))
                .collect()
        });
        assert!(failures.is_empty(), "{}", failures.join("\n"));
    }

    fn play_kind(&self, kind: Kind) -> Vec<String> {
        let (side, way) = (self.side, self.way);
        let steps = self.steps.iter().filter(|(_, kinds)| kinds.contains(&kind));
        let cases = steps.map(|(step, _)| {
            let name = format!("{} {kind:?} {way:?} {step}", side.as_str());
            (name, *step)
        });
        play_each(self.link, cases, |scene, step| {
            let guest = kind.guest(&format!("at-{step}"));
            let silence = scene.kill_at(Stop { side, step, way }, (kind.mode(), &guest))?;
            Ok(format!(", silent for {} ms", silence.as_millis()))
        })
    }
}

#[test]
fn fault_01_source_killed_before_the_freeze() {
    BEFORE_THE_FREEZE.play();
}

#[test]
fn fault_01_source_killed_while_its_move_is_cancelled() {
    CANCELLING.play();
}

#[test]
fn fault_02_source_killed_while_its_guest_is_frozen() {
    FROZEN.play();
}

#[test]
fn fault_02_source_killed_as_it_gives_a_freeze_up() {
    OVERDUE.play();
    FREEZE_CUT.play();
}

#[test]
fn fault_03_source_killed_behind_the_commit() {
    COMMITTED.play();
}

#[test]
fn fault_03_source_killed_as_it_takes_a_refused_guest_back() {
    COMMIT_REFUSED.play();
}

#[test]
fn fault_04_target_killed_while_it_receives() {
    RECEIVING.play();
}

#[test]
fn fault_04_target_killed_as_it_lets_go_of_a_cancelled_move() {
    TAKEN_BACK.play();
}

#[test]
fn fault_05_target_killed_before_it_owns_the_guest() {
    READY.play();
}

#[test]
fn fault_05_target_killed_as_it_refuses_a_commit() {
    REFUSING.play();
}

#[test]
fn fault_06_target_killed_when_it_owns_the_guest() {
    OWNED.play();
}

#[test]
fn fault_06_target_killed_again_as_it_takes_its_guest_up() {
    TAKEN_UP.play();
}

/// Records that a side never writes, with the reason.
const NOT_WRITTEN: [(Side, &str, &str); 9] = [
    (Side::Source, "vacant", "nobody gives away what is not here"),
    (Side::Source, "prepared", "the target's"),
    (Side::Source, "refused", "the target's"),
    (Side::Source, "offered", "for a witness, and none is built"),
    (
        Side::Target,
        "vacant",
        "what a guest that was never here has",
    ),
    (Side::Target, "offering", "the source's"),
    (Side::Target, "relinquished", "the source's"),
    (Side::Target, "offered", "the source's, for a witness"),
    (Side::Target, "released", "the source's"),
];

/// The names that a function returns, taken from its source text.
fn names(path: &str, function: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let text = std::fs::read_to_string(root.join(path)).unwrap();
    let begin = text
        .find(function)
        .unwrap_or_else(|| panic!("no {function} in {path}"));
    let indent = text[..begin].len() - text[..begin].trim_end_matches(' ').len();
    let end = format!("\n{}}}\n", " ".repeat(indent));
    let body = text[begin..].split(&end).next().unwrap();
    let strings = body.split('"').skip(1).step_by(2);
    strings.map(str::to_owned).collect()
}

/// Every step of a side: the names of its actions, and of the records it writes.
fn steps_of(side: Side) -> BTreeSet<String> {
    let path = format!("migrator/src/engine/{}_move.rs", side.as_str());
    let mut steps = names(&path, "const fn action_name");
    let states = names("protocol/src/ownership/record.rs", "pub const fn name");
    for state in states {
        let is_his =
            |(of, not_written, _): &(Side, &str, &str)| *of == side && *not_written == state;
        if !NOT_WRITTEN.iter().any(is_his) {
            steps.insert(state);
        }
    }
    steps
}

#[test]
fn every_step_of_both_sides_is_killed() {
    for side in [Side::Source, Side::Target] {
        let steps = steps_of(side);
        assert!(
            steps.len() > 20,
            "the steps are named elsewhere now: {steps:?}"
        );
        let groups = GROUPS.iter().filter(|group| group.side == side);
        let of_groups = groups.flat_map(|group| group.steps.iter().map(|(step, _)| *step));
        let of_strays = strays::STOPS.iter().filter(|(of, _)| *of == side);
        let killed: BTreeSet<String> = of_groups
            .chain(of_strays.map(|(_, step)| *step))
            .map(str::to_owned)
            .collect();
        let side = side.as_str();
        assert_eq!(
            steps, killed,
            "{side}: its steps on the left, those with a kill on the right"
        );
    }
}
