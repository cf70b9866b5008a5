//! Calling a daemon's HTTP API over its Unix socket.

use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use towpath_protocol::fault::Code;

use crate::problem::Problem;

/// How long a daemon may take to answer, and how long a stream may be silent. Callers whose
/// requests take longer, such as starting a guest, set a limit of their own.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// Largest answer, in bytes. Ten thousand guests in a list fit in it.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// Longest line of a stream, in bytes.
const LINE_BYTES_MAX: usize = 1 << 20;

/// A daemon's API behind its socket. Every call uses a connection of its own.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
    timeout: Duration,
    /// How an operator names the socket; shown in remedies.
    named_by: &'static str,
}

impl Client {
    /// A client for the API at a socket. Nothing is connected yet.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            socket: socket.into(),
            timeout: ANSWER_TIMEOUT,
            named_by: "--socket or TOWPATH_SOCKET",
        }
    }

    /// Sets another limit on how long an answer may take.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Sets how an operator names this socket, for remedies.
    #[must_use]
    pub const fn named_by(mut self, named_by: &'static str) -> Self {
        self.named_by = named_by;
        self
    }

    /// The path of the daemon's socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Fetches a document.
    ///
    /// # Errors
    ///
    /// The problem that the daemon answered with, or `E_UNREACHABLE`, `E_STALLED` or `E_META` if
    /// there is no valid answer.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        let response = self.call(Method::GET, path, Bytes::new()).await?;
        self.document(response).await
    }

    /// Fetches a text.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn text(&self, path: &str) -> Result<String, Problem> {
        let response = self.call(Method::GET, path, Bytes::new()).await?;
        let bytes = self.collect(response).await?;
        String::from_utf8(bytes.into()).map_err(|error| self.nonsense(&error))
    }

    /// Sends a document and fetches the answer.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn post<B, T>(&self, path: &str, body: &B) -> Result<T, Problem>
    where
        B: Serialize + Sync,
        T: DeserializeOwned,
    {
        let body = serde_json::to_vec(body).map_err(|error| self.nonsense(&error))?;
        let response = self.call(Method::POST, path, body.into()).await?;
        self.document(response).await
    }

    /// Deletes a resource and fetches the answer.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        let response = self.call(Method::DELETE, path, Bytes::new()).await?;
        self.document(response).await
    }

    /// Follows a stream of JSON values, one per line.
    ///
    /// # Errors
    ///
    /// As [`Client::get`].
    pub async fn follow<T: DeserializeOwned>(&self, path: &str) -> Result<Stream<T>, Problem> {
        let response = self.call(Method::GET, path, Bytes::new()).await?;
        Ok(Stream {
            client: self.clone(),
            body: response.into_body(),
            pending: Vec::new(),
            ended: false,
            value: PhantomData,
        })
    }

    /// Makes one request. An answer with an error status becomes a [`Problem`].
    async fn call(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Problem> {
        let call = self.converse(method, path, body);
        let response = tokio::time::timeout(self.timeout, call)
            .await
            .map_err(|_| self.stalled())??;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = self.collect(response).await?;
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            let code = if status.as_u16() == 503 {
                Code::Busy
            } else {
                Code::Meta
            };
            let shown = self.socket.display();
            Problem::new(code, format!("{shown} answered {status} to {path}"))
        }))
    }

    async fn converse(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<Response<Incoming>, Problem> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let broken = |error: hyper::Error| {
            let shown = self.socket.display();
            Problem::new(Code::Unreachable, format!("{shown} hung up: {error}"))
        };
        let (mut requests, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // The task ends with the connection. Errors of the connection show up in the answer.
        tokio::spawn(async move { drop(connection.await) });
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "localhost")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| Problem::new(Code::Usage, format!("{path:?}: {error}")))?;
        requests.send_request(request).await.map_err(broken)
    }

    async fn document<T: DeserializeOwned>(
        &self,
        response: Response<Incoming>,
    ) -> Result<T, Problem> {
        let bytes = self.collect(response).await?;
        serde_json::from_slice(&bytes).map_err(|error| self.nonsense(&error))
    }

    async fn collect(&self, response: Response<Incoming>) -> Result<Bytes, Problem> {
        let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect();
        match tokio::time::timeout(self.timeout, body).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) => Err(self.nonsense(&*error)),
            Err(_) => Err(self.stalled()),
        }
    }

    fn unreachable(&self, error: &io::Error) -> Problem {
        let shown = self.socket.display();
        let problem = Problem::new(Code::Unreachable, format!("{shown}: {error}"));
        let problem = problem.message("the daemon does not answer");
        match error.kind() {
            io::ErrorKind::NotFound => problem.remedy(format!(
                "start the daemon, or name its socket with {}",
                self.named_by
            )),
            io::ErrorKind::PermissionDenied => {
                let denied = Problem::new(Code::Denied, problem.cause);
                denied.remedy("run this as the daemon's user or as root")
            }
            _ => problem.remedy("the daemon is gone or stuck: look at its log and restart it"),
        }
    }

    fn stalled(&self) -> Problem {
        let (shown, limit) = (self.socket.display(), self.timeout);
        Problem::new(
            Code::Stalled,
            format!("{shown} has said nothing for {limit:?}"),
        )
        .remedy("look at the daemon's log; asking again is safe")
    }

    fn nonsense(&self, error: &dyn std::fmt::Display) -> Problem {
        let shown = self.socket.display();
        Problem::new(
            Code::Meta,
            format!("{shown} gave an answer that makes no sense: {error}"),
        )
        .remedy("check that the socket is a Towpath daemon's and of the same release")
    }
}

/// JSON values that arrive one per line. Empty lines are keep-alives.
#[derive(Debug)]
pub struct Stream<T> {
    client: Client,
    body: Incoming,
    pending: Vec<u8>,
    ended: bool,
    value: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Stream<T> {
    /// The next value, or `None` at the end. Cancel safe: no value is lost if the future is
    /// dropped.
    ///
    /// # Errors
    ///
    /// As [`Client::get`]; `E_STALLED` if nothing, not even an empty line, came within the time
    /// limit of an answer.
    pub async fn next(&mut self) -> Result<Option<T>, Problem> {
        loop {
            if let Some(end) = self.pending.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                if line.len() == 1 {
                    continue;
                }
                let value = serde_json::from_slice(&line);
                return value
                    .map(Some)
                    .map_err(|error| self.client.nonsense(&error));
            }
            if self.ended {
                return Ok(None);
            }
            if self.pending.len() > LINE_BYTES_MAX {
                return Err(self.client.nonsense(&"a line is too long"));
            }
            let frame = tokio::time::timeout(self.client.timeout, self.body.frame()).await;
            match frame.map_err(|_| self.client.stalled())? {
                Some(Ok(frame)) => self
                    .pending
                    .extend(frame.into_data().unwrap_or_default().iter()),
                Some(Err(error)) => {
                    let shown = self.client.socket.display();
                    return Err(Problem::new(
                        Code::Unreachable,
                        format!("{shown} hung up: {error}"),
                    ));
                }
                None => self.ended = true,
            }
        }
    }
}
