//! The last hour of each link for the status page: bytes sent and received, every twenty seconds.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::{MissedTickBehavior, interval};
use towpath_daemon::shutdown::Shutdown;

use crate::core::Core;
use crate::links::peer::Peer;

/// Time that one point stands for.
pub(crate) const POINT_SECONDS: u64 = 20;

/// Points kept: one hour.
pub(crate) const POINT_COUNT_MAX: usize = 180;

/// What went over a link in the time of one point, in bytes of programs per second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Point {
    pub sent_per_second: u64,
    pub received_per_second: u64,
}

/// The last hour of one link, the newest point last.
#[derive(Debug, Default)]
pub(crate) struct Recent(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    points: VecDeque<Point>,
    /// Bytes sent and received when the last point was taken.
    totals: Option<(u64, u64)>,
}

impl Recent {
    /// Records the total bytes sent and received since the tunnel started.
    pub(crate) fn observe(&self, sent: u64, received: u64) {
        let mut inner = self.inner();
        let Some(before) = inner.totals.replace((sent, received)) else {
            return;
        };
        if inner.points.len() == POINT_COUNT_MAX {
            inner.points.pop_front();
        }
        inner.points.push_back(Point {
            sent_per_second: sent.saturating_sub(before.0) / POINT_SECONDS,
            received_per_second: received.saturating_sub(before.1) / POINT_SECONDS,
        });
    }

    /// The points, the oldest first.
    pub(crate) fn points(&self) -> Vec<Point> {
        self.inner().points.iter().copied().collect()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock()
    }
}

fn look(peer: &Peer) {
    let (sent, received) = peer.counters.totals();
    peer.recent.observe(sent, received);
}

/// Records a point of every link until the tunnel stops.
pub(crate) async fn keep(core: Arc<Core>, mut stop: Shutdown) {
    let mut looks = interval(Duration::from_secs(POINT_SECONDS));
    // After a late point the next one has its bytes, and the hour hardly changes.
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.requested() => return,
            _ = looks.tick() => core.peers.all().values().for_each(|peer| look(peer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_hour_is_kept_and_the_first_look_is_no_point() {
        let recent = Recent::default();
        recent.observe(5_000_000, 0);
        assert_eq!(recent.points(), []);
        for count in 1..=200 {
            recent.observe(5_000_000 + count * 2_000, count * 40);
        }
        let points = recent.points();
        assert_eq!(points.len(), POINT_COUNT_MAX);
        let each = Point {
            sent_per_second: 100,
            received_per_second: 2,
        };
        assert!(points.iter().all(|point| *point == each));
    }
}
