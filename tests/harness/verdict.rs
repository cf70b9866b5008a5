//! Checks what must hold once a disturbed move has come to rest, whatever was done to it.

use std::time::{Duration, Instant};

use towpath_migrator::api::{GuestState, GuestView, MigrationView, Ownership, Phase, Role};
use towpath_protocol::identity::Name;

use crate::console::Console;
use crate::journals::check_one_owner;
use crate::lab::Lab;
use crate::site::{LOOK_PAUSE, Place};
use crate::watch::Watch;

/// Heartbeats that must follow after everything has come to rest.
const BEATS_AFTER: u64 = 5;

/// How long they may take on a busy machine.
const BEATS_WAIT: Duration = Duration::from_secs(5);

/// How a move ended.
#[derive(Debug)]
pub struct Rest {
    /// Where the guest runs.
    pub place: Place,
    /// Its moves as the source still shows them, newest first.
    pub moves: Vec<MigrationView>,
}

/// Waits until nothing is in progress any more, then checks everything: one running guest, no
/// heartbeat repeated or missing, every page correct, one owner in the journals, no process left
/// over.
///
/// # Errors
///
/// The expectation that failed.
pub fn come_to_rest(
    lab: &Lab,
    guest: &Name,
    console: &mut Console,
    watch: &Watch,
    wait: Duration,
) -> Result<Rest, String> {
    let deadline = Instant::now() + wait;
    let looks_before = watch.look_count();
    let place = loop {
        console.read()?;
        watch.check()?;
        match rests_at(lab, guest) {
            Ok(place) => break place,
            Err(why) if Instant::now() > deadline => {
                return Err(format!("not at rest after {wait:?}: {why}"));
            }
            Err(_) => std::thread::sleep(LOOK_PAUSE),
        }
    };
    let beating = console.wait_for_more(BEATS_AFTER, BEATS_WAIT)?;
    if beating != place {
        return Err(format!(
            "{place:?} says it runs there, and it beats at {beating:?}"
        ));
    }
    let verified = lab.site(place).verify(guest);
    match verified {
        Ok(view) if view.verified => {}
        other => return Err(format!("memory at {place:?}: {other:?}")),
    }
    console.wait_for_more(BEATS_AFTER, BEATS_WAIT)?;
    console.is_whole()?;
    watch.check_beyond(looks_before)?;
    let owner = check_one_owner(lab, guest)?;
    if owner != place {
        return Err(format!("it runs at {place:?} and {owner:?} owns it"));
    }
    // A move is finished before the memory it leaves behind is freed.
    let elsewhere = || lab.guest_processes(place.other(), guest);
    let is_gone = wait_until(BEATS_WAIT, || elsewhere().is_empty().then_some(()));
    if is_gone.is_none() {
        let (left, there) = (elsewhere(), place.other());
        return Err(format!("processes {left:?} of it are left at {there:?}"));
    }
    let mut moves = Vec::new();
    for place in Place::ALL {
        moves.extend(
            lab.site(place)
                .moves(guest)
                .map_err(|why| format!("{why:?}"))?,
        );
    }
    moves.retain(|view| view.role == Role::Source);
    Ok(Rest { place, moves })
}

/// The site where the guest runs with no move of it in progress, or the reason there is none yet.
fn rests_at(lab: &Lab, guest: &Name) -> Result<Place, String> {
    let mut runner = None;
    for place in Place::ALL {
        let site = lab.site(place);
        let moves = site.moves(guest).map_err(|problem| problem.cause)?;
        if let Some(open) = moves.iter().find(|view| !view.phase.is_finished()) {
            let (role, phase, error) = (open.role, open.phase, &open.error);
            return Err(format!("{place:?}: move {role:?} {phase:?} {error:?}"));
        }
        let Some(view) = site.guest(guest).map_err(|problem| problem.cause)? else {
            continue;
        };
        match standing(&view) {
            Standing::Runs => {
                if let Some(other) = runner.replace(place) {
                    return Err(format!("both {other:?} and {place:?} say it runs there"));
                }
            }
            Standing::IsElsewhere => {}
            Standing::Changes => return Err(format!("{place:?}: {view:?}")),
        }
    }
    runner.ok_or_else(|| "nobody says it runs there".to_owned())
}

enum Standing {
    Runs,
    IsElsewhere,
    Changes,
}

fn standing(view: &GuestView) -> Standing {
    let is_settled = view.migration.is_none();
    match (view.ownership, view.state) {
        (Ownership::Owned, GuestState::Running) if is_settled => Standing::Runs,
        (Ownership::Released | Ownership::Refused | Ownership::Vacant, _)
            if is_settled && view.process_id.is_none() =>
        {
            Standing::IsElsewhere
        }
        _ => Standing::Changes,
    }
}

/// Waits until the guest's newest move is in one of these phases, as its source shows it.
///
/// # Errors
///
/// If the move ends before, or is not in such a phase in time.
pub fn wait_for_phase(
    lab: &Lab,
    (source, guest): (Place, &Name),
    phases: &[Phase],
    wait: Duration,
) -> Result<MigrationView, String> {
    let deadline = Instant::now() + wait;
    loop {
        let moves = lab.site(source).moves(guest);
        let newest = moves.ok().and_then(|moves| moves.into_iter().next());
        match newest {
            Some(view) if phases.contains(&view.phase) => return Ok(view),
            Some(view) if view.phase.is_finished() => {
                return Err(format!("it ended as {:?} {:?}", view.phase, view.error));
            }
            other if Instant::now() > deadline => {
                return Err(format!("not {phases:?} after {wait:?}: {other:?}"));
            }
            _ => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// The audit log line that accompanies every alarm.
const ALARM: &str = "what a peer says of a guest is refused";

/// Checks that no host raised an alarm: well-behaved hosts must not, whatever happens to them.
///
/// # Errors
///
/// The host that raised an alarm, and its log line.
pub fn check_no_alarm(lab: &Lab) -> Result<(), String> {
    for place in Place::ALL {
        // Counters restart with a migrator that was killed; its log continues.
        let log = std::fs::read_to_string(lab.site(place).migrator_log());
        let log = log.map_err(|why| format!("{place:?}: {why}"))?;
        let mut alarms = log.lines().filter(|line| line.contains(ALARM));
        if let Some(line) = alarms.next() {
            return Err(format!("{place:?} was alarmed: {line}"));
        }
    }
    Ok(())
}

/// Polls until `look` returns a value; `None` on a timeout.
pub fn wait_until<T>(wait: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + wait;
    loop {
        if let Some(found) = look() {
            return Some(found);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}
