//! A daemon's API as an OpenAPI document: made from the very types it answers with, and served beside them.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;

/// The document, pretty-printed, with a newline at its end, as it is checked in.
///
/// # Panics
///
/// Never: it is made of plain values.
#[must_use]
pub fn document<D: OpenApi>() -> String {
    let mut text = D::openapi()
        .to_pretty_json()
        .expect("the document is made of plain values");
    text.push('\n');
    text
}

/// The answer of the route that serves it.
pub fn answer<D: OpenApi>() -> impl IntoResponse + use<D> {
    let headers = [(header::CONTENT_TYPE, "application/json")];
    (headers, document::<D>())
}
