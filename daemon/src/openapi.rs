//! A daemon's API as an OpenAPI document: made from the very types it answers with by a test that holds it against the
//! one that is checked in, which is served.

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
pub fn answer(document: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document)
}
