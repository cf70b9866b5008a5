//! The handlers of the routes, one function for each.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use towpath_daemon::problem::Problem;
use towpath_daemon::strict::StrictJson;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use utoipa::ToSchema;

use crate::channels::ChannelSpec;
use crate::core::Core;
use crate::measuring::outlook::{self, ForecastDocument};
use crate::measuring::probe::{self, ProbeRequest, ProbeView};
use crate::operators;
use crate::operators::status::{ChannelList, ChannelView, ServiceView, StatusView, TrialView};
use crate::shaping::shares::{ServiceCap, Shaping, cap_text};
use crate::shaping::timetable;

/// Content type of Prometheus's text format, version 0.0.4.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The content security policy of the page: a browser may only display it.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Status page, for a browser.
#[utoipa::path(get, path = "/", responses((status = 200, body = String, content_type = "text/html")))]
pub(super) async fn page(State(core): State<Arc<Core>>) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, operators::page::render(&core)).into_response()
}

/// Status of the tunnel, its links, channels and services.
#[utoipa::path(get, path = "/status", responses((status = 200, body = StatusView)))]
pub(super) async fn status(State(core): State<Arc<Core>>) -> Json<StatusView> {
    Json(operators::status::status(&core))
}

/// The channels of this host.
#[utoipa::path(get, path = "/v1/channels", responses((status = 200, body = ChannelList)))]
pub(super) async fn channels(State(core): State<Arc<Core>>) -> Json<ChannelList> {
    Json(operators::status::channels(&core))
}

/// One channel.
#[utoipa::path(
    get,
    path = "/v1/channels/{name}",
    params(("name" = String, Path, description = "The channel's name")),
    responses((status = 200, body = ChannelView), (status = "default", body = Problem))
)]
pub(super) async fn channel(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
) -> Result<Json<ChannelView>, Problem> {
    let channel = core.channels.channel(&name.parse()?)?;
    Ok(Json(operators::status::channel_view(&core, &channel)))
}

/// Runs a change to its end even if the client is gone, so that no change is left half done.
async fn to_its_end<T: Send + 'static>(
    change: impl Future<Output = Result<T, Fault>> + Send + 'static,
) -> Result<T, Fault> {
    let made = tokio::spawn(change).await;
    made.map_err(|error| Fault::new(Code::State, error.to_string()))?
}

/// Open or change a channel. A generation older than the known one is refused; a definition that is
/// already known changes nothing.
#[utoipa::path(
    post,
    path = "/v1/channels",
    request_body = ChannelSpec,
    responses((status = 200, body = ChannelView), (status = "default", body = Problem))
)]
pub(super) async fn open_channel(
    State(core): State<Arc<Core>>,
    StrictJson(spec): StrictJson<ChannelSpec>,
) -> Result<Json<ChannelView>, Problem> {
    let name = spec.name.clone();
    let changed = Arc::clone(&core);
    to_its_end(async move { changed.channels.open(&changed, spec).await }).await?;
    let channel = core.channels.channel(&name)?;
    Ok(Json(operators::status::channel_view(&core, &channel)))
}

/// The query of a request to close a channel.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Removal {
    /// Close the channel only if no newer generation than this is known.
    generation: Option<u64>,
}

/// Close a channel and its connections; answers with the remaining channels.
#[utoipa::path(
    delete,
    path = "/v1/channels/{name}",
    params(("name" = String, Path, description = "The channel's name"), Removal),
    responses((status = 200, body = ChannelList), (status = "default", body = Problem))
)]
pub(super) async fn close_channel(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    removal: Result<Query<Removal>, QueryRejection>,
) -> Result<Json<ChannelList>, Problem> {
    let name = name.parse()?;
    let Query(removal) = removal.map_err(|error| Problem::new(Code::Usage, error.body_text()))?;
    let changed = Arc::clone(&core);
    to_its_end(async move { changed.channels.close(&name, removal.generation).await }).await?;
    Ok(Json(operators::status::channels(&core)))
}

/// Reset a channel to its definition in the configuration, in place of whatever was pushed under
/// its name.
#[utoipa::path(
    post,
    path = "/v1/channels/{name}/reset",
    params(("name" = String, Path, description = "The channel's name")),
    responses((status = 200, body = ChannelView), (status = "default", body = Problem))
)]
pub(super) async fn reset_channel(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
) -> Result<Json<ChannelView>, Problem> {
    let name: Name = name.parse()?;
    let (changed, called) = (Arc::clone(&core), name.clone());
    to_its_end(async move { changed.channels.reset(&changed, &called).await }).await?;
    let channel = core.channels.channel(&name)?;
    Ok(Json(operators::status::channel_view(&core, &channel)))
}

/// Test a channel: open a stream to its service as for a program, and end it again.
#[utoipa::path(
    post,
    path = "/v1/channels/{name}/test",
    params(("name" = String, Path, description = "The channel's name")),
    responses((status = 200, body = TrialView), (status = "default", body = Problem))
)]
pub(super) async fn try_channel(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
) -> Result<Json<TrialView>, Problem> {
    let name: Name = name.parse()?;
    Ok(Json(core.channels.try_out(&core, &name).await?))
}

/// Caps and shares in force for a peer.
#[utoipa::path(
    get,
    path = "/v1/shaping/{peer}",
    params(("peer" = String, Path, description = "The peer's site")),
    responses((status = 200, body = Shaping), (status = "default", body = Problem))
)]
pub(super) async fn shaping(
    State(core): State<Arc<Core>>,
    Path(peer): Path<String>,
) -> Result<Json<Shaping>, Problem> {
    let peer = core.peer(&peer.parse()?)?;
    Ok(Json(peer.shaped().rules.clone()))
}

/// Replace all caps and shares for a peer until the next start or reload.
#[utoipa::path(
    post,
    path = "/v1/shaping/{peer}",
    params(("peer" = String, Path, description = "The peer's site")),
    request_body = Shaping,
    responses((status = 200, body = Shaping), (status = "default", body = Problem))
)]
pub(super) async fn shape(
    State(core): State<Arc<Core>>,
    Path(peer): Path<String>,
    StrictJson(shaping): StrictJson<Shaping>,
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

/// A service that peers may reach.
#[utoipa::path(
    get,
    path = "/v1/services/{name}",
    params(("name" = String, Path, description = "The service's name")),
    responses((status = 200, body = ServiceView), (status = "default", body = Problem))
)]
pub(super) async fn service(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
) -> Result<Json<ServiceView>, Problem> {
    let name = name.parse()?;
    let service = core.service(&name)?;
    Ok(Json(operators::status::service_view(
        &core, &name, &service,
    )))
}

/// Change the cap of a service until the next start or reload.
#[utoipa::path(
    post,
    path = "/v1/services/{name}",
    params(("name" = String, Path, description = "The service's name")),
    request_body = ServiceCap,
    responses((status = 200, body = ServiceView), (status = "default", body = Problem))
)]
pub(super) async fn cap_service(
    State(core): State<Arc<Core>>,
    Path(name): Path<String>,
    StrictJson(wanted): StrictJson<ServiceCap>,
) -> Result<Json<ServiceView>, Problem> {
    let name = name.parse()?;
    let service = core.service(&name)?;
    service.meter.quota.set(wanted.cap);
    tracing::info!(service = %name, cap = %cap_text(wanted.cap), "cap changed by hand");
    Ok(Json(operators::status::service_view(
        &core, &name, &service,
    )))
}

/// Measure the path to a peer now; answers when the measurement is done.
#[utoipa::path(
    post,
    path = "/v1/probe/{peer}",
    params(("peer" = String, Path, description = "The peer's site")),
    request_body = ProbeRequest,
    responses((status = 200, body = ProbeView), (status = "default", body = Problem))
)]
pub(super) async fn measure(
    State(core): State<Arc<Core>>,
    Path(peer): Path<String>,
    StrictJson(budget): StrictJson<ProbeRequest>,
) -> Result<Json<ProbeView>, Problem> {
    Ok(Json(probe::run(&core, &peer.parse()?, budget).await?))
}

/// Metrics in Prometheus's text format.
#[utoipa::path(get, path = "/metrics", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn metrics(State(core): State<Arc<Core>>) -> Result<Response, Problem> {
    let text = operators::metrics::render(&core)?;
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response())
}

/// A forecast with its schema.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ForecastAnswer {
    /// Always `towpath.v1.forecast`.
    schema: &'static str,
    #[serde(flatten)]
    document: ForecastDocument,
}

/// Forecast of what the link to a peer will carry.
#[utoipa::path(
    get,
    path = "/v1/forecast",
    params(outlook::Query),
    responses((status = 200, body = ForecastAnswer), (status = "default", body = Problem))
)]
pub(super) async fn forecast(
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

/// Readiness: 200 if the links to all peers are up, so that requests to this tunnel can succeed;
/// else 503.
#[utoipa::path(
    get,
    path = "/ready",
    responses(
        (status = 200, body = String, content_type = "text/plain"),
        (status = 503, body = Problem)
    )
)]
pub(super) async fn ready(State(core): State<Arc<Core>>) -> Response {
    let missing = core.unlinked();
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n").into_response();
    }
    let cause = format!("no link to {}", missing.join(", "));
    Problem::from(Fault::new(Code::Unreachable, cause)).into_response()
}

/// Liveness: 200 if the process answers at all.
#[utoipa::path(get, path = "/live", responses((status = 200, body = String, content_type = "text/plain")))]
pub(super) async fn live() -> &'static str {
    "live\n"
}

/// This OpenAPI document.
#[utoipa::path(get, path = "/openapi.json", responses((status = 200, body = Object)))]
pub(super) async fn openapi() -> impl IntoResponse {
    towpath_daemon::openapi::answer(include_str!("../../../../docs/tunnel-openapi.json"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn a_change_goes_on_though_nobody_waits_for_it() {
        let ((begin, begun), (end, ended)) = (oneshot::channel(), oneshot::channel());
        let change = async move {
            begun.await.ok();
            end.send(())
                .map_err(|()| Fault::new(Code::State, "nobody hears"))
        };
        let asked = tokio::time::timeout(Duration::from_millis(1), to_its_end(change));
        assert!(asked.await.is_err());
        begin.send(()).unwrap();
        ended.await.unwrap();
    }
}
