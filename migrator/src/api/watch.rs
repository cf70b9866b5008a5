//! Streams a move to a client: one line per change, at most five a second, until the move is
//! finished. While nothing changes, an empty line every two seconds shows that the daemon is alive.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use tokio::sync::{Semaphore, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval};
use towpath_daemon::http::{CLIENTS_MAX, ndjson};
use towpath_daemon::problem::Problem;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::MigrationId;

use super::routes::{Shared, ask, migration_id};
use super::{Host, MigrationView, ProblemView};

/// Least time between two lines: five a second are more than a person can follow.
const INTERVAL: Duration = Duration::from_millis(200);

/// Lines that a slow client may lag behind before it misses changes.
const LINES_MAX: usize = 4;

/// Time without a change after which an empty line is sent: clients treat a long silence as a hung
/// daemon.
const QUIET_MAX: Duration = Duration::from_secs(2);

/// Most streams at once. Keeps an eighth of a socket's clients free, so that a move can still be
/// cancelled.
const WATCHERS_MAX: usize = CLIENTS_MAX - CLIENTS_MAX / 8;

/// The places for clients that follow moves.
#[derive(Debug, Clone)]
pub(super) struct Watchers(Arc<Semaphore>);

impl Default for Watchers {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(WATCHERS_MAX)))
    }
}

/// Follow a move: a `MigrationView` a line, on every change, until it is finished.
///
/// An empty line every two seconds means no change: skip it. At most 28 clients of each socket may follow
/// moves at once; one more is refused with 503 (`E_BUSY`).
#[utoipa::path(
    get,
    path = "/v1/migrations/{id}/watch",
    params(("id" = String, Path, description = "The move's id")),
    responses(
        (status = 200, body = MigrationView, content_type = "application/x-ndjson"),
        (status = "default", body = ProblemView)
    )
)]
pub(super) async fn watch(
    State(host): Shared,
    Extension(watchers): Extension<Watchers>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = migration_id(&id)?;
    // An unknown move is answered with an error status, not with an empty stream.
    ask(Arc::clone(&host), move |host| host.migration(id)).await??;
    let place = watchers.0.try_acquire_owned().map_err(|_| {
        let cause = format!("{WATCHERS_MAX} clients follow moves through this socket already");
        Problem::new(Code::Busy, cause)
            .message("too many follow moves at once")
            .remedy("end a `towpath migration watch`; the move goes on, `towpath migration show` tells how it stands")
    })?;
    let (lines, body) = mpsc::channel(LINES_MAX);
    tokio::spawn(async move {
        let _place = place;
        tokio::select! {
            () = report(host, id, &lines) => {}
            () = lines.closed() => {}
        }
    });
    Ok(ndjson(body))
}

/// Sends every change until the move is finished or forgotten, or the client is gone.
async fn report(host: Arc<dyn Host>, id: MigrationId, lines: &mpsc::Sender<Bytes>) {
    let mut clock = interval(INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<MigrationView> = None;
    let mut said_at = Instant::now();
    loop {
        clock.tick().await;
        let Ok(Ok(view)) = ask(Arc::clone(&host), move |host| host.migration(id)).await else {
            return;
        };
        let finished = view.phase.is_finished();
        let is_news = last.as_ref() != Some(&view);
        if is_news || said_at.elapsed() >= QUIET_MAX {
            let mut line = Vec::new();
            if is_news {
                serde_json::to_writer(&mut line, &view).expect("a view is made of plain values");
            }
            line.push(b'\n');
            if lines.send(line.into()).await.is_err() {
                return;
            }
            said_at = Instant::now();
            last = Some(view);
        }
        if finished {
            return;
        }
    }
}
