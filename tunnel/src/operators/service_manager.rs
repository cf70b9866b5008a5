//! Talks to the service manager while the tunnel runs: signs of life, a status line about the
//! links, and the start and end of each reload.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use towpath_daemon::liveness::{self, Part};
use towpath_daemon::notify;
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::class::Leg;
use towpath_protocol::fault::{Code, Fault};

use crate::core::Core;
use crate::reload;

/// Catches SIGHUP from now on; before this call it would end the process.
///
/// # Errors
///
/// `E_IO` if the signal cannot be caught.
pub(crate) fn hangups() -> Result<Signal, Fault> {
    signal(SignalKind::hangup())
        .map_err(|error| Fault::new(Code::Io, format!("cannot catch signals: {error}")))
}

/// Reports to the service manager until the tunnel stops, and reloads on each SIGHUP. The first
/// report is that the tunnel is ready, so that no reload is reported before it.
///
/// # Errors
///
/// `E_IO` if the watchdog thread cannot be started.
pub(crate) async fn tell(
    core: Arc<Core>,
    mut hangups: Signal,
    mut stop: Shutdown,
) -> Result<(), Fault> {
    notify::ready();
    // The status line takes the locks that every stream and every handshake takes, so a lock that
    // is never released stops the signs of life.
    let asked = Arc::clone(&core);
    let links = Part::new("links", Handle::current(), move || Some(line(&asked)));
    let thread = |name, leg| Part::new(name, core.legs.handle(leg).clone(), || None);
    let threads = [thread("urgent", Leg::Urgent), thread("bulk", Leg::Bulk)];
    let _watching = liveness::watch([links].into_iter().chain(threads).collect())?;
    loop {
        tokio::select! {
            () = stop.requested() => return Ok(()),
            _ = hangups.recv() => reload(&core).await,
        }
    }
}

/// Reloads configuration and certificates, and tells the service manager before and after.
async fn reload(core: &Arc<Core>) {
    notify::reloading();
    reload::all(core).await;
    notify::ready();
}

/// A one-line summary of the links.
fn line(core: &Core) -> String {
    let missing = core.unlinked();
    let count = core.peers.count();
    match missing.as_slice() {
        [] => format!("{count} of {count} links up"),
        missing => {
            let up = count.saturating_sub(missing.len());
            format!(
                "{up} of {count} links up; no link to {}",
                missing.join(", ")
            )
        }
    }
}
