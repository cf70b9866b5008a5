//! The HTTP admin API.
//!
//! - The status page at `/`, and `/status`, `/metrics`, `/v1/forecast`, `/live`, `/ready` and
//!   `/openapi.json` only read.
//! - `/v1/channels`, `/v1/shaping` and `/v1/services` read and change channels, caps and shares.
//! - `/v1/probe` measures the path to a peer.
//!
//! The OpenAPI document is generated from the types of requests and answers, and checked in as
//! `docs/tunnel-openapi.json`.

mod routes;

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use crate::core::Core;

/// The routes of the admin API.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/", get(routes::page))
        .route("/status", get(routes::status))
        .route("/metrics", get(routes::metrics))
        .route(
            "/v1/channels",
            get(routes::channels).post(routes::open_channel),
        )
        .route(
            "/v1/channels/{name}",
            get(routes::channel).delete(routes::close_channel),
        )
        .route("/v1/channels/{name}/reset", post(routes::reset_channel))
        .route("/v1/channels/{name}/test", post(routes::try_channel))
        .route("/v1/forecast", get(routes::forecast))
        .route(
            "/v1/shaping/{peer}",
            get(routes::shaping).post(routes::shape),
        )
        .route(
            "/v1/services/{name}",
            get(routes::service).post(routes::cap_service),
        )
        .route("/v1/probe/{peer}", post(routes::measure))
        .route("/live", get(routes::live))
        .route("/ready", get(routes::ready))
        .route("/openapi.json", get(routes::openapi))
        .with_state(core)
}

/// The source of the OpenAPI document. Only a test generates it, to compare it with the checked-in
/// one that is served: the generator is larger than the code of all routes together.
#[cfg(test)]
#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "Towpath tunnel",
        description = "The links of one host to its peers, and what they carry, on the tunnel's admin socket. \
            Of requests that change something 1024 at once and 20 a second are answered; one more is refused with 429 \
            (`E_BUSY`), and `Retry-After` says when to come back."
    ),
    paths(
        routes::page,
        routes::status,
        routes::channels,
        routes::channel,
        routes::open_channel,
        routes::close_channel,
        routes::reset_channel,
        routes::try_channel,
        routes::shaping,
        routes::shape,
        routes::service,
        routes::cap_service,
        routes::measure,
        routes::metrics,
        routes::forecast,
        routes::ready,
        routes::live,
        routes::openapi,
    )
)]
struct Document;

#[cfg(test)]
mod tests;
