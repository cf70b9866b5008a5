//! A daemon's API as an OpenAPI document. A test generates it from the API's own types and compares
//! it with the file in the repository, which is what the daemon serves.

use axum::http::header;
use axum::response::IntoResponse;
use utoipa::OpenApi;

/// The document as it is checked in: pretty-printed, with a final newline.
///
/// # Panics
///
/// Never: it consists of plain values.
#[must_use]
pub fn document<D: OpenApi>() -> String {
    let mut text = D::openapi()
        .to_pretty_json()
        .expect("the document is made of plain values");
    text.push('\n');
    text
}

/// The response of the route that serves the document.
pub fn answer(document: &'static str) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document)
}
