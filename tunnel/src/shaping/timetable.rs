//! Caps that change with the time of the week, applied to running links.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::{MissedTickBehavior, interval};
use towpath_daemon::shutdown::Shutdown;
use towpath_forecast::moment::Moment;

use crate::core::Core;
use crate::shaping::shares::cap_text;

/// How often the clock is read: a clock that was set, or a host that slept, raises no event.
const LOOK: Duration = Duration::from_millis(500);

/// The current time.
pub(crate) fn now() -> Moment {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    Moment::from_unix_seconds(since.map_or(0, |since| since.as_secs()))
}

/// Keeps the cap and shares of every peer up to date until the tunnel stops.
pub(crate) async fn keep(core: Arc<Core>, mut stop: Shutdown) {
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.requested() => return,
            _ = looks.tick() => {}
        }
        for peer in core.peers.all().values() {
            if peer.shape() {
                let (site, cap) = (&peer.site, cap_text(peer.send_rate()));
                tracing::info!(peer = %site, %cap, "the timetable changes the cap");
            }
        }
    }
}
