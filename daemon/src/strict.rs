//! Request bodies with a cap on size, depth and time, parsed into a type once.

use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use towpath_protocol::fault::{Code, Fault};

use crate::problem::Problem;

/// Largest request body, in bytes. A request holds only names and numbers.
pub const BODY_BYTES_MAX: usize = 64 << 10;

/// Deepest nesting of a request. The deepest type in use has three levels.
pub const DEPTH_MAX: usize = 16;

/// How long a client may take for its request's body, which others wait behind for its place: a local one needs
/// microseconds.
pub const BODY_TIMEOUT: Duration = Duration::from_secs(5);

/// A JSON body that parsed into `T`.
#[derive(Debug, Clone, Copy)]
pub struct StrictJson<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for StrictJson<T> {
    type Rejection = Rejection;

    async fn from_request(request: Request, _state: &S) -> Result<Self, Rejection> {
        let collecting = collect(request.into_body());
        let collected = timeout(BODY_TIMEOUT, collecting).await;
        let bytes = collected
            .map_err(|_| Rejection::Late)?
            .map_err(Rejection::Wrong)?;
        parse(&bytes).map(Self).map_err(Rejection::Wrong)
    }
}

/// Why a body is refused.
#[derive(Debug)]
pub enum Rejection {
    /// The whole of it did not come in time.
    Late,
    /// It is not what the route takes.
    Wrong(Fault),
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        match self {
            Self::Late => {
                let cause = format!("the request's body did not come within {BODY_TIMEOUT:?}");
                let problem = Problem::new(Code::Stalled, cause);
                (StatusCode::REQUEST_TIMEOUT, Json(problem)).into_response()
            }
            Self::Wrong(fault) => Problem::from(fault).into_response(),
        }
    }
}

/// Parses the JSON document of a request.
///
/// # Errors
///
/// `E_META` if it is too large, too deep, not JSON, or JSON of another shape, such as with a
/// duplicate key or a number out of range.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Fault> {
    if bytes.len() > BODY_BYTES_MAX {
        return Err(too_large());
    }
    check_depth(bytes)?;
    serde_json::from_slice(bytes)
        .map_err(|error| Fault::new(Code::Meta, format!("request body: {error}")))
}

async fn collect(body: Body) -> Result<Vec<u8>, Fault> {
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes().to_vec()),
        Err(error) if error.is::<LengthLimitError>() => Err(too_large()),
        Err(error) => Err(Fault::new(Code::Meta, format!("request body: {error}"))),
    }
}

fn too_large() -> Fault {
    Fault::new(
        Code::Meta,
        format!("request body is larger than {BODY_BYTES_MAX} bytes"),
    )
}

/// Counts open brackets outside strings. All other errors are left to the parser.
fn check_depth(bytes: &[u8]) -> Result<(), Fault> {
    let mut depth = 0usize;
    let mut is_text = false;
    let mut is_escaped = false;
    for byte in bytes {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_text => is_escaped = true,
            b'"' => is_text = !is_text,
            b'{' | b'[' if !is_text => depth += 1,
            b'}' | b']' if !is_text => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(Fault::new(
                Code::Meta,
                format!("request body is nested deeper than {DEPTH_MAX}"),
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        name: String,
        count: Option<u32>,
    }

    #[test]
    fn f28_hostile_documents_are_refused_before_or_by_the_typed_parse() {
        let deep = format!("{}{}", "[".repeat(17), "]".repeat(17));
        let deep_value = format!("{{\"name\":{deep}}}");
        let long = format!("{{\"name\":\"{}\"}}", "x".repeat(BODY_BYTES_MAX));
        for text in [
            deep.as_str(),
            deep_value.as_str(),
            long.as_str(),
            "",
            "{\"name\":\"a\"",
            "{\"name\":NaN}",
            "{\"name\":\"a\"} {}",
            "{\"name\":\"a\",\"name\":\"b\"}",
            "{\"name\":\"a\",\"count\":-1}",
            "{\"name\":\"a\",\"count\":4294967296}",
            "{\"name\":\"a\",\"other\":1}",
            "{\"count\":1}",
            "[]",
        ] {
            let fault = parse::<Sample>(text.as_bytes()).expect_err(text);
            assert_eq!(fault.code, Code::Meta, "{text:.60}: {fault}");
        }
        assert!(parse::<Sample>(b"{\"name\":\"\xff\"}").is_err());
    }

    #[test]
    fn brackets_inside_texts_are_not_depth() {
        let text = format!(
            "{{\"name\":\"{}\\\"{}\",\"count\":3}}",
            "[{".repeat(40),
            "[".repeat(40)
        );
        let sample: Sample = parse(text.as_bytes()).unwrap();
        assert_eq!((sample.name.len(), sample.count), (121, Some(3)));
    }
}
