//! The admin API: `/status`, `/metrics`, `/v1/forecast`, `/live`, `/ready`; it only reads.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Serialize;
use towpath_daemon::problem::Problem;
use towpath_protocol::fault::{Code, Fault};

use crate::core::Core;
use crate::outlook::{self, ForecastDocument};
use crate::status::{self, StatusView};
use crate::{metrics, timetable};

/// Prometheus's text form, version 0.0.4.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The routes of the admin API.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/status", get(read_status))
        .route("/metrics", get(read_metrics))
        .route("/v1/forecast", get(read_forecast))
        .route("/live", get(async || "live\n"))
        .route("/ready", get(read_ready))
        .with_state(core)
}

async fn read_status(State(core): State<Arc<Core>>) -> Json<StatusView> {
    Json(status::status(&core))
}

async fn read_metrics(State(core): State<Arc<Core>>) -> Result<Response, Problem> {
    let text = metrics::render(&core)?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response())
}

/// A forecast under its schema.
#[derive(Debug, Serialize)]
struct ForecastAnswer {
    schema: &'static str,
    #[serde(flatten)]
    document: ForecastDocument,
}

async fn read_forecast(
    State(core): State<Arc<Core>>,
    query: Result<Query<outlook::Query>, QueryRejection>,
) -> Result<Json<ForecastAnswer>, Problem> {
    let Query(query) = query.map_err(|error| Problem::new(Code::Usage, error.body_text()))?;
    let document = outlook::document(&core, &query, timetable::now());
    let answer = document.map(|document| ForecastAnswer {
        schema: outlook::SCHEMA,
        document,
    });
    answer.map(Json).map_err(|fault| match fault.code {
        Code::State => Problem::from(fault)
            .message("the forecast is not ready yet")
            .remedy("ask again in a second"),
        _ => fault.into(),
    })
}

/// Ready once every peer is linked: only then does what is asked of this tunnel succeed.
async fn read_ready(State(core): State<Arc<Core>>) -> Response {
    let missing = core
        .peers
        .values()
        .filter(|peer| !peer.state().is_usable())
        .map(|peer| peer.site.to_string())
        .collect::<Vec<_>>();
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n").into_response();
    }
    let cause = format!("no link to {}", missing.join(", "));
    Problem::from(Fault::new(Code::Unreachable, cause)).into_response()
}
