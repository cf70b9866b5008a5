//! A fault as an operator or an API client sees it: code, sentence, cause, remedy.
//!
//! A [`Fault`] says what failed, with its values. An operator also needs a sentence without jargon
//! and something to do. Both come from one table here, by code, so that every command and route
//! answers alike. A remedy that comes with the fault takes precedence.

mod advice;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Blame, Code, Fault};
use utoipa::ToSchema;

/// What went wrong, as JSON between a daemon and its clients and as text for an operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ProblemView)]
pub struct Problem {
    /// The stable code, `E_...`. A newer daemon may send codes that older clients do not know.
    pub code: String,
    /// What went wrong, in one sentence.
    pub message: String,
    /// The cause: what failed, with the values involved.
    pub cause: String,
    /// What the operator can do.
    pub remedy: String,
}

impl Problem {
    /// A problem with the table's sentence and remedy for its code. If the cause quotes a known
    /// system error, the remedy is for that error.
    pub fn new(code: Code, cause: impl Into<String>) -> Self {
        let (advice, cause) = (advice::of(code), cause.into());
        let of_system = advice::of_system(code, &cause);
        Self {
            code: code.as_str().to_owned(),
            message: advice.sentence.to_owned(),
            remedy: of_system.unwrap_or(advice.remedy).to_owned(),
            cause,
        }
    }

    /// Replaces the sentence by one that fits the occasion better.
    #[must_use]
    pub fn message(mut self, message: impl Into<String>) -> Self {
        self.message = message.into();
        self
    }

    /// Replaces the remedy by one that fits the occasion better.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// The code, if it is one that this release knows.
    #[must_use]
    pub fn known_code(&self) -> Option<Code> {
        Code::parse(&self.code)
    }

    /// The HTTP status to answer with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        let Some(code) = self.known_code() else {
            return StatusCode::INTERNAL_SERVER_ERROR;
        };
        match code {
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::Denied => StatusCode::FORBIDDEN,
            Code::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Code::Busy | Code::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            Code::State | Code::GuestExists | Code::Cancelled => StatusCode::CONFLICT,
            Code::Stalled => StatusCode::GATEWAY_TIMEOUT,
            code => match code.blame() {
                Blame::Misuse => StatusCode::BAD_REQUEST,
                Blame::Peer if code == Code::Meta => StatusCode::BAD_REQUEST,
                Blame::Peer => StatusCode::BAD_GATEWAY,
                Blame::Incompatible => StatusCode::UNPROCESSABLE_ENTITY,
                Blame::Local => StatusCode::INTERNAL_SERVER_ERROR,
            },
        }
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let problem = Self::new(fault.code, fault.detail);
        match fault.remedy {
            Some(remedy) => problem.remedy(remedy),
            None => problem,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status(), Json(self)).into_response()
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} ({})", self.code, self.message, self.cause)
    }
}

impl std::error::Error for Problem {}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn every_code_has_a_sentence_and_a_remedy_of_its_own() {
        for code in Code::ALL {
            let advice = advice::of(*code);
            assert_ne!(advice, advice::UNKNOWN, "{code} has no advice");
            assert!(
                !advice.sentence.ends_with('.') && !advice.remedy.ends_with('.'),
                "{code}"
            );
            assert!(
                advice.sentence.len() <= 100,
                "{code} is too long for one line"
            );
        }
    }

    #[test]
    fn what_the_system_refuses_has_a_remedy_of_its_own() {
        let remedy = |code, kind: ErrorKind, number| {
            let error = std::io::Error::from_raw_os_error(number);
            assert_eq!(error.kind(), kind);
            Problem::new(code, format!("/a/b: {error}")).remedy
        };
        let denied = remedy(Code::Certificate, ErrorKind::PermissionDenied, 13);
        assert!(denied.contains("as root"), "{denied}");
        let missing = remedy(Code::Config, ErrorKind::NotFound, 2);
        assert!(missing.contains("the path is right"), "{missing}");
        let taken = remedy(Code::Io, ErrorKind::AddrInUse, 98);
        assert!(taken.contains("another address"), "{taken}");
        let foreign = remedy(Code::Io, ErrorKind::AddrNotAvailable, 99);
        assert!(foreign.contains("`ip addr`"), "{foreign}");
        let cause = "cannot listen at tcp:[::]:80: Permission denied (os error 13)";
        let listening = Problem::new(Code::Io, cause).remedy;
        assert!(listening.contains("1024"), "{listening}");
        // A system error of the peer gets no advice about this host.
        let peers = remedy(Code::Refused, ErrorKind::NotFound, 2);
        assert_eq!(peers, advice::of(Code::Refused).remedy);
    }

    #[test]
    fn what_a_fault_brings_along_stands_above_its_codes_advice() {
        let fault = Fault::new(Code::Io, "/a: No such file or directory (os error 2)");
        assert!(Problem::from(fault.clone()).remedy.contains("the path is"));
        let told = Problem::from(fault.remedy("mount /a first"));
        assert_eq!(told.remedy, "mount /a first");
    }

    #[test]
    fn problems_round_trip_as_json_with_exactly_four_fields() {
        let problem = Problem::from(Fault::new(Code::NotFound, "guest \"a\""));
        let value = serde_json::to_value(&problem).unwrap();
        let fields: Vec<_> = value.as_object().unwrap().keys().cloned().collect();
        assert_eq!(fields, ["cause", "code", "message", "remedy"]);
        assert_eq!(serde_json::from_value::<Problem>(value).unwrap(), problem);
        assert_eq!(problem.status(), StatusCode::NOT_FOUND);
        assert_eq!(problem.known_code(), Some(Code::NotFound));
    }
}
