//! The migrator's HTTP API on its Unix socket: guests and moves as JSON.
//!
//! The API does not know how a guest moves. It parses requests into types, asks a [`Host`] and
//! shows the answer. Its OpenAPI document is generated from these types and checked in as
//! `docs/migrator-openapi.json`.

mod routes;
mod view;
pub mod waits;
mod watch;

use std::sync::Arc;

use axum::routing::{get, post};
use axum::{Extension, Router};
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::{MigrationId, Name};

pub use view::*;

/// The guests and moves of one host, as the API shows and commands them.
///
/// Every method may block (on a journal, on a guest process), so the API calls them on threads that
/// may block.
pub trait Host: Send + Sync + 'static {
    /// The state of the host.
    fn status(&self) -> HostView;

    /// Every guest this host knows of, including those that have left, by name.
    fn guests(&self) -> Vec<GuestView>;

    /// One guest.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND`.
    fn guest(&self, name: &Name) -> Result<GuestView, Fault>;

    /// Creates a guest, owned by this host, and runs it.
    ///
    /// # Errors
    ///
    /// `E_GUEST_EXISTS`, `E_QUOTA`, `E_KVM`, or the fault that keeps the guest from running.
    fn start_guest(&self, request: GuestRequest) -> Result<GuestView, Fault>;

    /// Boots an owned guest that stopped or crashed, with fresh memory.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND`, or `E_STATE` if it runs or is not owned here.
    fn boot_guest(&self, name: &Name) -> Result<GuestView, Fault>;

    /// Boots a guest that runs here and misses blocks that its source, as far as the operator
    /// knows, will never send. The missing blocks are lost.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND`, or `E_STATE` if no block is missing or the source is connected.
    fn give_up_missing(&self, name: &Name) -> Result<GuestView, Fault>;

    /// Stops a guest and removes it.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND`, or `E_STATE` while it is being moved.
    fn stop_guest(&self, name: &Name) -> Result<(), Fault>;

    /// Checks every page of a guest's memory against the pattern its payload writes.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND`, or `E_STATE` if it does not run here.
    fn verify_guest(&self, name: &Name) -> Result<VerifyView, Fault>;

    /// Begins a move.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND`, `E_STATE`, `E_BUSY`, or the fault with which a first check of the target
    /// fails.
    fn migrate(&self, request: MigrationRequest) -> Result<MigrationView, Fault>;

    /// Ends a move that is not committed yet.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND`, or `E_STATE` once the guest is the target's.
    fn cancel(&self, id: MigrationId) -> Result<MigrationView, Fault>;

    /// The moves this host takes or took part in, newest first.
    fn migrations(&self) -> Vec<MigrationView>;

    /// One move.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND`.
    fn migration(&self, id: MigrationId) -> Result<MigrationView, Fault>;

    /// All metrics in Prometheus' text format.
    fn metrics(&self) -> String;
}

/// Builds the API's routes for one socket. Each socket has its own limit on clients that follow
/// moves.
pub fn router(host: Arc<dyn Host>) -> Router {
    Router::new()
        .route("/v1/status", get(routes::status))
        .route("/v1/guests", get(routes::guests).post(routes::start_guest))
        .route(
            "/v1/guests/{name}",
            get(routes::guest).delete(routes::stop_guest),
        )
        .route("/v1/guests/{name}/start", post(routes::boot_guest))
        .route("/v1/guests/{name}/give-up", post(routes::give_up_missing))
        .route("/v1/guests/{name}/verify", post(routes::verify_guest))
        .route(
            "/v1/migrations",
            get(routes::migrations).post(routes::migrate),
        )
        .route("/v1/migrations/{id}", get(routes::migration))
        .route("/v1/migrations/{id}/cancel", post(routes::cancel))
        .route("/v1/migrations/{id}/watch", get(watch::watch))
        .route("/metrics", get(routes::metrics))
        .route("/live", get(routes::live))
        .route("/ready", get(routes::ready))
        .route("/openapi.json", get(routes::openapi))
        .layer(Extension(watch::Watchers::default()))
        .with_state(host)
}

/// Built only in the test that compares it with the served document: building it takes more code
/// than all of the daemon's routes.
#[cfg(test)]
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Towpath migrator",
        description = "Guests of one host and their moves, on the migrator's Unix socket. \
            Of requests that change something 1024 at once and 20 a second are answered; one more is refused with 429 \
            (`E_BUSY`), and `Retry-After` says when to come back."
    ),
    paths(
        routes::status,
        routes::guests,
        routes::start_guest,
        routes::guest,
        routes::stop_guest,
        routes::boot_guest,
        routes::give_up_missing,
        routes::verify_guest,
        routes::migrations,
        routes::migrate,
        routes::migration,
        routes::cancel,
        watch::watch,
        routes::metrics,
        routes::live,
        routes::ready,
        routes::openapi,
    )
)]
struct Document;

#[cfg(test)]
mod tests;
