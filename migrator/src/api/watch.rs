//! Following a move: one line on every change, at most five a second, until it is finished.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::Response;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};
use towpath_daemon::http::ndjson;
use towpath_daemon::problem::Problem;
use towpath_protocol::identity::MigrationId;

use super::routes::{Shared, ask, migration_id};
use super::{Host, MigrationView, ProblemView};

/// Least time between two lines: five a second are more than an eye can follow.
const INTERVAL: Duration = Duration::from_millis(200);

/// Lines a slow client may lag behind before it misses changes.
const LINES_MAX: usize = 4;

/// Follow a move: a `MigrationView` a line, on every change, until it is finished.
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
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let id = migration_id(&id)?;
    // An unknown move is a problem with its status, not an empty stream.
    ask(Arc::clone(&host), move |host| host.migration(id)).await??;
    let (lines, body) = mpsc::channel(LINES_MAX);
    tokio::spawn(async move {
        tokio::select! {
            () = report(host, id, &lines) => {}
            () = lines.closed() => {}
        }
    });
    Ok(ndjson(body))
}

/// Sends every change until the move is finished or forgotten, or the client has left.
async fn report(host: Arc<dyn Host>, id: MigrationId, lines: &mpsc::Sender<Bytes>) {
    let mut clock = interval(INTERVAL);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last: Option<MigrationView> = None;
    loop {
        clock.tick().await;
        let Ok(Ok(view)) = ask(Arc::clone(&host), move |host| host.migration(id)).await else {
            return;
        };
        let finished = view.phase.is_finished();
        if last.as_ref() != Some(&view) {
            let mut line = serde_json::to_vec(&view).expect("a view is made of plain values");
            line.push(b'\n');
            if lines.send(line.into()).await.is_err() {
                return;
            }
            last = Some(view);
        }
        if finished {
            return;
        }
    }
}
