//! What becomes of a guest whose process is killed beside a move: it arrives all the same, or it is a crash at one site.

use std::time::Duration;

use towpath_migrator::api::{GuestState, Ownership};

use crate::console::Console;
use crate::lab::{Guest, Lab};
use crate::site::Place;
use crate::verdict::{Rest, come_to_rest, wait_until};
use crate::watch::Watch;

/// Where a guest that was to go to `target` has crashed; nowhere if it runs there.
///
/// # Errors
///
/// If neither is so in time.
pub fn ended(
    lab: &Lab,
    guest: &Guest,
    target: Place,
    wait: Duration,
) -> Result<Option<Place>, String> {
    let found = wait_until(wait, || look(lab, guest, target));
    found.ok_or_else(|| "it neither runs nor has crashed".to_owned())
}

/// The same now; nothing while that is not decided.
fn look(lab: &Lab, guest: &Guest, target: Place) -> Option<Option<Place>> {
    for place in Place::ALL {
        let view = lab.site(place).guest(&guest.name).ok()?;
        let Some(view) = view else { continue };
        let is_owned = view.ownership == Ownership::Owned;
        if is_owned && view.state == GuestState::Crashed && view.process_id.is_none() {
            return Some(Some(place));
        }
        let has_process = !lab.guest_processes(target, &guest.name).is_empty();
        if place == target && is_owned && view.state == GuestState::Running && has_process {
            return Some(None);
        }
    }
    None
}

/// Boots a guest where it has crashed, and looks at everything once it runs: there, and nowhere else.
///
/// # Errors
///
/// What does not hold.
pub fn boot_again(
    (lab, watch): (&Lab, &Watch),
    guest: &Guest,
    console: &mut Console,
    place: Place,
    wait: Duration,
) -> Result<Rest, String> {
    console.read()?;
    console.forget();
    let booted = lab.site(place).boot(&guest.name);
    booted.map_err(|problem| format!("not booted: {problem:?}"))?;
    let rest = come_to_rest(lab, &guest.name, console, watch, wait)?;
    match rest.place == place {
        true => Ok(rest),
        false => Err(format!(
            "it crashed at {place:?} and runs at the other site"
        )),
    }
}
