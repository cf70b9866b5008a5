//! The admin API: the status page at `/`, `/status`, `/metrics`, `/v1/forecast`, `/live`, `/ready`, which
//! only read; `/v1/channels`, `/v1/shaping` and `/v1/services`, which change what is carried and how; and
//! `/v1/probe`, which measures the way to a peer.

use std::sync::Arc;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use towpath_daemon::problem::Problem;
use towpath_daemon::strict::Strict;
use towpath_protocol::fault::{Code, Fault};

use crate::channels::ChannelSpec;
use crate::core::Core;
use crate::outlook::{self, ForecastDocument};
use crate::probe::{self, ProbeRequest, ProbeView};
use crate::shares::{ServiceCap, Shaping, cap_text};
use crate::status::{self, ChannelList, ChannelView, ServiceView, StatusView};
use crate::{metrics, page, timetable};

/// Prometheus's text form, version 0.0.4.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The routes of the admin API.
pub(crate) fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/", get(read_page))
        .route("/status", get(read_status))
        .route("/metrics", get(read_metrics))
        .route("/v1/channels", get(read_channels).post(open_channel))
        .route(
            "/v1/channels/{name}",
            get(read_channel).delete(close_channel),
        )
        .route("/v1/channels/{name}/reset", post(reset_channel))
        .route("/v1/forecast", get(read_forecast))
        .route("/v1/shaping/{peer}", get(read_shaping).post(shape))
        .route("/v1/services/{name}", get(read_service).post(cap_service))
        .route("/v1/probe/{peer}", post(measure))
        .route("/live", get(async || "live\n"))
        .route("/ready", get(read_ready))
        .with_state(core)
}

/// What a browser may do with the page: show it, and nothing else.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

async fn read_page(State(core): State<Arc<Core>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, page::render(&core)).into_response()
}

async fn read_status(State(core): State<Arc<Core>>) -> Json<StatusView> {
    Json(status::status(&core))
}

async fn read_channels(State(core): State<Arc<Core>>) -> Json<ChannelList> {
    Json(status::channels(&core))
}

async fn read_channel(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
) -> Result<Json<ChannelView>, Problem> {
    let channel = core.channels.channel(&name.parse()?)?;
    Ok(Json(status::channel_view(&core, &channel)))
}

/// Metadata that is older than what is known is refused; what is known already changes nothing.
async fn open_channel(
    State(core): State<Arc<Core>>,
    Strict(spec): Strict<ChannelSpec>,
) -> Result<Json<ChannelView>, Problem> {
    let name = spec.name.clone();
    core.channels.open(&core, spec).await?;
    let channel = core.channels.channel(&name)?;
    Ok(Json(status::channel_view(&core, &channel)))
}

/// Which metadata is to be removed.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Removal {
    generation: Option<u64>,
}

async fn close_channel(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    Query(removal): Query<Removal>,
) -> Result<Json<ChannelList>, Problem> {
    let name = name.parse()?;
    core.channels.close(&name, removal.generation).await?;
    Ok(Json(status::channels(&core)))
}

/// Has a channel as the configuration says, whatever was pushed under its name.
async fn reset_channel(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
) -> Result<Json<ChannelView>, Problem> {
    let name = name.parse()?;
    core.channels.reset(&core, &name).await?;
    let channel = core.channels.channel(&name)?;
    Ok(Json(status::channel_view(&core, &channel)))
}

async fn read_shaping(
    State(core): State<Arc<Core>>,
    Path(peer): Path<String>,
) -> Result<Json<Shaping>, Problem> {
    let peer = core.peer(&peer.parse()?)?;
    Ok(Json(peer.shaped().rules.clone()))
}

/// Has other rules in place of those that hold, all of them, until the next start or reload.
async fn shape(
    State(core): State<Arc<Core>>,
    Path(peer): Path<String>,
    Strict(shaping): Strict<Shaping>,
) -> Result<Json<Shaping>, Problem> {
    let peer = core.peer(&peer.parse()?)?;
    shaping.check().map_err(|wrong| {
        let key = wrong.key.trim_start_matches("peers.");
        Fault::new(Code::Usage, format!("{key}: {}", wrong.why))
    })?;
    peer.set_shaping(shaping);
    let site = &peer.site;
    tracing::info!(peer = %site, cap = %cap_text(peer.send_rate()), "caps and shares changed by hand");
    Ok(Json(peer.shaped().rules.clone()))
}

async fn read_service(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
) -> Result<Json<ServiceView>, Problem> {
    let name = name.parse()?;
    let service = core.service(&name)?;
    Ok(Json(status::service_view(&name, service)))
}

/// Changes the cap of a service until the next start or reload.
async fn cap_service(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    Strict(wanted): Strict<ServiceCap>,
) -> Result<Json<ServiceView>, Problem> {
    let name = name.parse()?;
    let service = core.service(&name)?;
    service.meter.quota.set(wanted.cap);
    tracing::info!(service = %name, cap = %cap_text(wanted.cap), "cap changed by hand");
    Ok(Json(status::service_view(&name, service)))
}

/// Measures the way to a peer now; the answer comes when that is done.
async fn measure(
    State(core): State<Arc<Core>>,
    Path(peer): Path<String>,
    Strict(budget): Strict<ProbeRequest>,
) -> Result<Json<ProbeView>, Problem> {
    Ok(Json(probe::run(&core, &peer.parse()?, budget).await?))
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
