//! What the service manager is told while the tunnel runs: that it lives, how its links are, and when it
//! reads anew what can change.

use std::sync::Arc;

use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use towpath_daemon::liveness::{self, Part};
use towpath_daemon::notify;
use towpath_daemon::shutdown::Shutdown;
use towpath_protocol::channel::Leg;
use towpath_protocol::fault::{Code, Fault};

use crate::core::Core;
use crate::reload;

/// Catches SIGHUP from now on: one that comes before would end the process.
///
/// # Errors
///
/// `E_IO` if the signal cannot be caught.
pub(crate) fn hangups() -> Result<Signal, Fault> {
    signal(SignalKind::hangup())
        .map_err(|error| Fault::new(Code::Io, format!("cannot catch signals: {error}")))
}

/// Tells the service manager until the tunnel stops, and has all read again at each hangup.
///
/// # Errors
///
/// `E_IO` if no thread can be had.
pub(crate) async fn tell(
    core: Arc<Core>,
    mut hangups: Signal,
    mut stop: Shutdown,
) -> Result<(), Fault> {
    // Whoever asks for the links takes the locks that every stream and every handshake takes.
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

/// Has all read again, and tells the service manager when that is done.
async fn reload(core: &Arc<Core>) {
    notify::reloading();
    reload::all(core).await;
    notify::ready();
}

/// The links in one line.
fn line(core: &Core) -> String {
    let missing: Vec<_> = core
        .peers
        .values()
        .filter(|peer| !peer.state().is_usable())
        .map(|peer| peer.site.as_str())
        .collect();
    let count = core.peers.len();
    match missing.as_slice() {
        [] => format!("{count} of {count} links up"),
        missing => {
            let up = count - missing.len();
            format!(
                "{up} of {count} links up; no link to {}",
                missing.join(", ")
            )
        }
    }
}
