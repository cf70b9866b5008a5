//! Serves an HTTP API on a Unix socket or on loopback.
//!
//! Every client is served within limits: the number of clients, the time for and the size of a
//! request header, the time without taking any of an answer, and the number of changes per second.
//! TCP can be reached by any local user and by any web page in a browser. So over TCP only `GET`
//! and `HEAD` are answered, a limited number of times per second, and only under a loopback name,
//! which defeats DNS rebinding (L05).

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use governor::clock::{Clock, DefaultClock};
use governor::{DefaultDirectRateLimiter, NotUntil, Quota};
use hyper::body::Frame;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use towpath_protocol::fault::{Code, Fault};

use crate::activation;
use crate::lines::RateLimit;
use crate::problem::Problem;
use crate::shutdown::Shutdown;
use crate::socket::Socket;

/// Clients served at once on one socket. Operators and a scraper need a handful.
pub const CLIENTS_MAX: usize = 32;

/// How long a client may take to send a request header. A local one needs microseconds.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);

/// How long, in milliseconds, a TCP client may take no bytes of an answer or be unreachable. Other
/// clients wait for its place.
const UNREAD_MS_MAX: u32 = 10_000;

/// The answer to a client whose request header did not arrive in time.
const TOO_SLOW: &[u8] =
    b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";

/// Largest request header, in bytes.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// Pause after a failed accept. Mostly the process has run out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long open requests may take to end once the daemon is asked to stop.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Requests per second over TCP. Scrapers and browsers make one every few seconds.
const REQUESTS_PER_SECOND: NonZeroU32 = NonZeroU32::new(50).expect("not zero");

/// Burst of requests over TCP: many browsers that reload a page at once.
const REQUESTS_BURST: NonZeroU32 = NonZeroU32::new(100).expect("not zero");

/// Changing requests per second over a Unix socket. Each change is written to disk before it is
/// answered, so a script that has run wild would keep the disk busy. An operator stays far below
/// this rate.
const CHANGES_PER_SECOND: NonZeroU32 = NonZeroU32::new(20).expect("not zero");

/// Burst of changes: a program may open all channels that a host can have.
const CHANGES_BURST: NonZeroU32 = NonZeroU32::new(1024).expect("not zero");

/// Most characters of a foreign host name that are shown. DNS names are not much longer, but a
/// header may be.
const NAME_CHARS_SHOWN: usize = 64;

/// Clients beyond [`CLIENTS_MAX`] that still get an answer saying so. Further connections are
/// closed.
const REFUSED_MAX: usize = 32;

/// Serves `router` to this user and root until the daemon is asked to stop.
///
/// # Errors
///
/// `E_IO` if the socket cannot be polled.
pub async fn serve_unix(
    socket: Socket,
    router: Router,
    mut shutdown: Shutdown,
) -> Result<(), Fault> {
    let listener = socket.for_tokio()?;
    let changes = Arc::new(limited(CHANGES_PER_SECOND, CHANGES_BURST));
    let changes = middleware::from_fn_with_state(changes, guard_changes);
    let mut clients = Clients::new(with_problems(router).layer(changes), shutdown.clone());
    let failures = RateLimit::default();
    loop {
        let accepted = tokio::select! {
            () = shutdown.requested() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => match socket.check_peer(&stream) {
                Ok(_) => clients.serve(stream),
                Err(fault) => tracing::debug!(%fault, "connection refused"),
            },
            Err(error) => pause_after(&error, &failures).await,
        }
    }
    clients.drain().await;
    Ok(())
}

/// Binds a loopback TCP socket for a read-only API, or takes the service manager's if it passed one
/// for the address.
///
/// # Errors
///
/// `E_CONFIG` if the address is not on loopback, `E_IO` if it cannot be bound.
pub async fn bind_loopback(address: SocketAddr) -> Result<TcpListener, Fault> {
    if !address.ip().is_loopback() {
        return Err(Fault::new(
            Code::Config,
            format!("{address} is not a loopback address such as 127.0.0.1:9100"),
        ));
    }
    let bound = match activation::take_tcp(address) {
        Some(listener) => listener
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(listener)),
        None => TcpListener::bind(address).await,
    };
    bound.map_err(|error| Fault::new(Code::Io, format!("cannot listen at {address}: {error}")))
}

/// Serves the read-only part of `router` on loopback until the daemon is asked to stop.
pub async fn serve_loopback(listener: TcpListener, router: Router, mut shutdown: Shutdown) {
    let guard = Arc::new(Guard {
        rate: limited(REQUESTS_PER_SECOND, REQUESTS_BURST),
        foreign: RateLimit::default(),
    });
    let guard = middleware::from_fn_with_state(guard, guard_loopback);
    let router = with_problems(router).layer(guard);
    let mut clients = Clients::new(router, shutdown.clone());
    let failures = RateLimit::default();
    loop {
        let accepted = tokio::select! {
            () = shutdown.requested() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                // The kernel then ends the connection by itself. If it does not know the option,
                // there is no such limit.
                let _ = sockopt::set_tcp_user_timeout(&stream, UNREAD_MS_MAX);
                clients.serve(stream);
            }
            Err(error) => pause_after(&error, &failures).await,
        }
    }
    clients.drain().await;
}

/// A response whose body is made line by line: JSON values, one per line.
///
/// The body ends when the channel's other half is dropped. A failed send on that half means that
/// the client has left.
#[must_use]
pub fn ndjson(lines: mpsc::Receiver<Bytes>) -> Response {
    let mut response = Response::new(Body::new(Ndjson(lines)));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

struct Ndjson(mpsc::Receiver<Bytes>);

impl hyper::body::Body for Ndjson {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0
            .poll_recv(context)
            .map(|line| line.map(|bytes| Ok(Frame::data(bytes))))
    }
}

/// The connections of one socket.
struct Clients {
    router: Router,
    shutdown: Shutdown,
    places: Arc<Semaphore>,
    /// Answers every request by saying that there are too many clients.
    refusal: Router,
    refusal_places: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

impl Clients {
    fn new(router: Router, shutdown: Shutdown) -> Self {
        Self {
            router,
            shutdown,
            places: Arc::new(Semaphore::new(CLIENTS_MAX)),
            refusal: Router::new().fallback(async || full()),
            refusal_places: Arc::new(Semaphore::new(REFUSED_MAX)),
            tasks: JoinSet::new(),
        }
    }

    fn serve<S>(&mut self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        while self.tasks.try_join_next().is_some() {}
        let (router, place) = match Arc::clone(&self.places).try_acquire_owned() {
            Ok(place) => (&self.router, place),
            Err(_) => match Arc::clone(&self.refusal_places).try_acquire_owned() {
                Ok(place) => (&self.refusal, place),
                Err(_) => return,
            },
        };
        let (router, shutdown) = (router.clone(), self.shutdown.clone());
        self.tasks.spawn(converse(stream, router, shutdown, place));
    }

    async fn drain(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN_TIMEOUT, all).await.is_err() {
            tracing::warn!("requests cut off: they took longer than {DRAIN_TIMEOUT:?}");
        }
    }
}

/// The answer to a client beyond [`CLIENTS_MAX`].
fn full() -> Response {
    let cause = format!("{CLIENTS_MAX} clients talk to this daemon already");
    let problem = Problem::new(Code::Busy, cause)
        .message("too many clients at once")
        .remedy("try again; end what follows or asks this daemon and is not needed");
    let mut response = problem.into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}

/// Serves one connection to its end.
async fn converse<S>(stream: S, router: Router, shutdown: Shutdown, _place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let mut stream = Asked::new(stream);
    let ended = converse_over(&mut stream, router, shutdown).await;
    let Err(error) = ended else { return };
    tracing::debug!(%error, "a client's connection ended early");
    if error.is_timeout() && stream.is_owed {
        // hyper sends nothing on this timeout. A client that does not take the answer goes without.
        let _ = tokio::time::timeout(HEADER_TIMEOUT, stream.inner.write_all(TOO_SLOW)).await;
    }
}

async fn converse_over<S>(
    stream: &mut Asked<S>,
    router: Router,
    mut shutdown: Shutdown,
) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.requested() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// A client's connection that tracks whether an answer is owed.
struct Asked<S> {
    inner: S,
    /// Whether nothing was written yet, or bytes were read since the last write.
    is_owed: bool,
}

impl<S> Asked<S> {
    const fn new(inner: S) -> Self {
        Self {
            inner,
            is_owed: true,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Asked<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(context, buffer);
        self.is_owed |= buffer.filled().len() > before;
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Asked<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.is_owed = false;
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.is_owed = false;
        Pin::new(&mut self.inner).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}

/// Waits a moment after a failed accept. A shortage of descriptors may last long.
async fn pause_after(error: &io::Error, failures: &RateLimit) {
    if let Some(untold) = failures.admit() {
        tracing::warn!(%error, untold, "cannot accept a connection");
    }
    tokio::time::sleep(ACCEPT_PAUSE).await;
}

/// Answers unknown paths and methods with a problem, like all other errors.
fn with_problems(router: Router) -> Router {
    router
        .fallback(async |request: Request| {
            let path = request.uri().path().to_owned();
            Problem::new(Code::NotFound, format!("there is no {path:?} here"))
        })
        .method_not_allowed_fallback(async |request: Request| {
            let (method, path) = (request.method().clone(), request.uri().path().to_owned());
            let cause = format!("{path:?} does not take {method} here");
            wrong_method(Problem::new(Code::Usage, cause))
        })
}

fn wrong_method(problem: Problem) -> Response {
    let mut response = problem.into_response();
    *response.status_mut() = axum::http::StatusCode::METHOD_NOT_ALLOWED;
    response
}

fn limited(per_second: NonZeroU32, burst: NonZeroU32) -> DefaultDirectRateLimiter {
    DefaultDirectRateLimiter::direct(Quota::per_second(per_second).allow_burst(burst))
}

/// Whether a request only reads.
fn is_reading(request: &Request) -> bool {
    matches!(*request.method(), Method::GET | Method::HEAD)
}

async fn guard_changes(
    State(changes): State<Arc<DefaultDirectRateLimiter>>,
    request: Request,
    next: Next,
) -> Response {
    if !is_reading(&request)
        && let Err(until) = changes.check()
    {
        let cause = format!("more than {CHANGES_PER_SECOND} changes a second");
        return too_many(cause, "wait, and ask for it again", &until);
    }
    next.run(request).await
}

/// The limits on requests over TCP.
struct Guard {
    rate: DefaultDirectRateLimiter,
    /// Rate limit on log lines about requests under a foreign name.
    foreign: RateLimit,
}

async fn guard_loopback(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    if let Err(until) = guard.rate.check() {
        let cause = format!("more than {REQUESTS_PER_SECOND} requests a second");
        return too_many(cause, "ask less often, or over the Unix socket", &until);
    }
    if !is_reading(&request) {
        let (method, path) = (request.method(), request.uri().path());
        let problem = Problem::new(Code::Usage, format!("{path:?} takes no {method} at a port"))
            .remedy("the port only reads: use the Unix socket of the API");
        return wrong_method(problem);
    }
    let host = request.headers().get(header::HOST);
    let is_ours = host.is_some_and(|host| host.to_str().is_ok_and(is_loopback_name));
    if !is_ours {
        let host = host.map(shown);
        if let Some(untold) = guard.foreign.admit() {
            let host = host.as_deref();
            tracing::warn!(target: "audit", host, untold, "request under a foreign name refused");
        }
        let cause = match host {
            Some(host) => format!("host {host:?} is not this machine"),
            None => "the request names no host".to_owned(),
        };
        return Problem::new(Code::Denied, cause).into_response();
    }
    next.run(request).await
}

/// The answer to a request beyond its rate limit, with the time to wait.
fn too_many(cause: String, remedy: &str, until: &NotUntil<Instant>) -> Response {
    let problem = Problem::new(Code::Busy, cause)
        .message("too many requests")
        .remedy(remedy);
    let mut response = problem.into_response();
    *response.status_mut() = axum::http::StatusCode::TOO_MANY_REQUESTS;
    let wait = until.wait_time_from(DefaultClock::default().now());
    // `Retry-After` counts whole seconds.
    let seconds = HeaderValue::from(wait.as_secs() + 1);
    response.headers_mut().insert(header::RETRY_AFTER, seconds);
    response
}

/// A `Host` header, shortened for display.
fn shown(host: &HeaderValue) -> String {
    let text = String::from_utf8_lossy(host.as_bytes());
    text.chars().take(NAME_CHARS_SHOWN).collect()
}

/// Whether a `Host` header names this machine's loopback.
fn is_loopback_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost")
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests;
