//! The API's routes, one function each.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use towpath_daemon::problem::Problem;
use towpath_daemon::strict::StrictJson;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::{MigrationId, Name};

use super::{
    GuestList, GuestRequest, GuestView, Host, HostView, MigrationList, MigrationRequest,
    MigrationView, ProblemView, StoppedView, VerifyView,
};

/// The host, as every route receives it.
pub(super) type Shared = State<Arc<dyn Host>>;

/// The result of a route.
type Answer<T> = Result<Json<T>, Problem>;

/// Asks the host on a thread that may block.
pub(super) async fn ask<T: Send + 'static>(
    host: Arc<dyn Host>,
    question: impl FnOnce(&dyn Host) -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(move || question(host.as_ref()))
        .await
        .map_err(|error| {
            Problem::from(Fault::new(
                Code::State,
                format!("request given up: {error}"),
            ))
        })
}

fn guest_name(text: &str) -> Result<Name, Problem> {
    Ok(text.parse::<Name>()?)
}

/// Parses the id in a path.
pub(super) fn migration_id(text: &str) -> Result<MigrationId, Problem> {
    Ok(text.parse::<MigrationId>()?)
}

/// The host itself.
#[utoipa::path(get, path = "/v1/status", responses((status = 200, body = HostView)))]
pub(super) async fn status(State(host): Shared) -> Answer<HostView> {
    Ok(Json(ask(host, |host| host.status()).await?))
}

/// Every guest this host knows of.
#[utoipa::path(get, path = "/v1/guests", responses((status = 200, body = GuestList)))]
pub(super) async fn guests(State(host): Shared) -> Answer<GuestList> {
    let guests = ask(host, |host| host.guests()).await?;
    Ok(Json(GuestList { guests }))
}

/// Make a guest and run it.
#[utoipa::path(
    post,
    path = "/v1/guests",
    request_body = GuestRequest,
    responses((status = 200, body = GuestView), (status = "default", body = ProblemView))
)]
pub(super) async fn start_guest(
    State(host): Shared,
    StrictJson(request): StrictJson<GuestRequest>,
) -> Answer<GuestView> {
    request.check()?;
    Ok(Json(ask(host, |host| host.start_guest(request)).await??))
}

/// One guest.
#[utoipa::path(
    get,
    path = "/v1/guests/{name}",
    params(("name" = String, Path, description = "The guest's name")),
    responses((status = 200, body = GuestView), (status = "default", body = ProblemView))
)]
pub(super) async fn guest(State(host): Shared, Path(name): Path<String>) -> Answer<GuestView> {
    let name = guest_name(&name)?;
    Ok(Json(ask(host, move |host| host.guest(&name)).await??))
}

/// End a guest and forget it.
#[utoipa::path(
    delete,
    path = "/v1/guests/{name}",
    params(("name" = String, Path, description = "The guest's name")),
    responses((status = 200, body = StoppedView), (status = "default", body = ProblemView))
)]
pub(super) async fn stop_guest(
    State(host): Shared,
    Path(name): Path<String>,
) -> Answer<StoppedView> {
    let name = guest_name(&name)?;
    let stopped = StoppedView { name: name.clone() };
    ask(host, move |host| host.stop_guest(&name)).await??;
    Ok(Json(stopped))
}

/// Boot an owned guest that stopped or crashed.
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/start",
    params(("name" = String, Path, description = "The guest's name")),
    responses((status = 200, body = GuestView), (status = "default", body = ProblemView))
)]
pub(super) async fn boot_guest(State(host): Shared, Path(name): Path<String>) -> Answer<GuestView> {
    let name = guest_name(&name)?;
    Ok(Json(ask(host, move |host| host.boot_guest(&name)).await??))
}

/// Boot an owned guest whose source will not come back. Its missing blocks are lost.
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/give-up",
    params(("name" = String, Path, description = "The guest's name")),
    responses((status = 200, body = GuestView), (status = "default", body = ProblemView))
)]
pub(super) async fn give_up_missing(
    State(host): Shared,
    Path(name): Path<String>,
) -> Answer<GuestView> {
    let name = guest_name(&name)?;
    let booted = ask(host, move |host| host.give_up_missing(&name)).await??;
    Ok(Json(booted))
}

/// Check every page of a running guest against the pattern its payload writes.
#[utoipa::path(
    post,
    path = "/v1/guests/{name}/verify",
    params(("name" = String, Path, description = "The guest's name")),
    responses((status = 200, body = VerifyView), (status = "default", body = ProblemView))
)]
pub(super) async fn verify_guest(
    State(host): Shared,
    Path(name): Path<String>,
) -> Answer<VerifyView> {
    let name = guest_name(&name)?;
    Ok(Json(
        ask(host, move |host| host.verify_guest(&name)).await??,
    ))
}

/// The moves this host takes part in, or took part in.
#[utoipa::path(get, path = "/v1/migrations", responses((status = 200, body = MigrationList)))]
pub(super) async fn migrations(State(host): Shared) -> Answer<MigrationList> {
    let migrations = ask(host, |host| host.migrations()).await?;
    Ok(Json(MigrationList { migrations }))
}

/// Begin to move a guest.
#[utoipa::path(
    post,
    path = "/v1/migrations",
    request_body = MigrationRequest,
    responses((status = 200, body = MigrationView), (status = "default", body = ProblemView))
)]
pub(super) async fn migrate(
    State(host): Shared,
    StrictJson(request): StrictJson<MigrationRequest>,
) -> Answer<MigrationView> {
    request.check()?;
    Ok(Json(ask(host, |host| host.migrate(request)).await??))
}

/// One move.
#[utoipa::path(
    get,
    path = "/v1/migrations/{id}",
    params(("id" = String, Path, description = "The move's id")),
    responses((status = 200, body = MigrationView), (status = "default", body = ProblemView))
)]
pub(super) async fn migration(
    State(host): Shared,
    Path(id): Path<String>,
) -> Answer<MigrationView> {
    let id = migration_id(&id)?;
    Ok(Json(ask(host, move |host| host.migration(id)).await??))
}

/// End a move that has not been committed yet.
#[utoipa::path(
    post,
    path = "/v1/migrations/{id}/cancel",
    params(("id" = String, Path, description = "The move's id")),
    responses((status = 200, body = MigrationView), (status = "default", body = ProblemView))
)]
pub(super) async fn cancel(State(host): Shared, Path(id): Path<String>) -> Answer<MigrationView> {
    let id = migration_id(&id)?;
    Ok(Json(ask(host, move |host| host.cancel(id)).await??))
}

/// Metrics in Prometheus' text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(host): Shared) -> Result<impl IntoResponse, Problem> {
    let text = ask(host, |host| host.metrics()).await?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// Whether the process answers at all.
#[utoipa::path(get, path = "/live", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn live() -> &'static str {
    "live\n"
}

/// Whether the host can take part in moves.
#[utoipa::path(
    get,
    path = "/ready",
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 503, body = String, content_type = "text/plain")
    )
)]
pub(super) async fn ready(State(host): Shared) -> Result<impl IntoResponse, Problem> {
    let status = ask(host, |host| host.status()).await?;
    Ok(if status.ready {
        (StatusCode::OK, "ready\n".to_owned())
    } else {
        let reason = status.not_ready_reason.unwrap_or_default();
        (
            StatusCode::SERVICE_UNAVAILABLE,
            format!("not ready: {reason}\n"),
        )
    })
}

/// This document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = Object)))]
pub(super) async fn openapi() -> impl IntoResponse {
    towpath_daemon::openapi::answer(include_str!("../../../docs/migrator-openapi.json"))
}
