//! The fate of a guest whose process is killed during a move: it arrives anyway, or it has crashed
//! at one site.

use std::time::Duration;

use towpath_migrator::api::{GuestState, Ownership};

use crate::console::Console;
use crate::lab::{Guest, Lab};
use crate::site::Place;
use crate::verdict::{Rest, come_to_rest, wait_until};
use crate::watch::Watch;

/// The site at which a guest on its way to `target` has crashed; `None` if it runs at `target`.
///
/// # Errors
///
/// If neither is the case in time.
pub fn ended(
    lab: &Lab,
    guest: &Guest,
    target: Place,
    wait: Duration,
) -> Result<Option<Place>, String> {
    let found = wait_until(wait, || look(lab, guest, target));
    found.ok_or_else(|| "it neither runs nor has crashed".to_owned())
}

/// The same at this moment; `None` while it is undecided.
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

/// Boots a guest where it has crashed, and checks everything once it runs: there, and nowhere else.
///
/// # Errors
///
/// The expectation that failed.
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
