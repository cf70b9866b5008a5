//! The server and the client against each other, and against rude clients.

use super::*;
use crate::client::Client;
use crate::shutdown;
use crate::strict::{BODY_TIMEOUT, StrictJson};
use axum::Json;
use axum::routing::{get, post};
use serde_json::{Value, json};
use std::path::Path;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

fn router() -> Router {
    // More than the kernel's socket buffers hold.
    let large = Bytes::from(vec![7; 16 << 20]);
    Router::new()
        .route("/v", get(async || Json(json!({"a": 1}))))
        .route(
            "/echo",
            post(async |StrictJson(value): StrictJson<Value>| Json(value)),
        )
        .route(
            "/fail",
            get(async || Problem::from(Fault::new(Code::Quota, "too much"))),
        )
        .route("/count", get(count))
        .route("/silent", get(silent))
        .route("/large", get(async move || large.clone()))
        .route("/slow", get(async || std::future::pending::<()>().await))
}

async fn count() -> Response {
    let (lines, body) = mpsc::channel(1);
    tokio::spawn(async move {
        for number in 0..3 {
            // An empty line is no value.
            let line = format!("{number}\n\n");
            if lines.send(line.into()).await.is_err() {
                return;
            }
        }
    });
    ndjson(body)
}

/// A stream that sends nothing and does not end.
async fn silent() -> Response {
    let (lines, body) = mpsc::channel(1);
    tokio::spawn(async move { lines.closed().await });
    ndjson(body)
}

async fn with_server<F: Future<Output = ()>>(test: impl FnOnce(Client, shutdown::Trigger) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/api.sock");
    let (trigger, shutdown) = shutdown::channel();
    let socket = Socket::bind(&path).unwrap();
    let server = tokio::spawn(serve_unix(socket, router(), shutdown));
    test(Client::new(&path), trigger.clone()).await;
    trigger.stop();
    server.await.unwrap().unwrap();
    assert!(!path.exists());
}

async fn raw(socket: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // A reset is an answer too: what came before it counts.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn documents_problems_and_streams_reach_the_client() {
    with_server(async |client, _| {
        assert_eq!(client.get::<Value>("/v").await.unwrap(), json!({"a": 1}));
        let body = json!({"b": [1, 2]});
        assert_eq!(client.post::<_, Value>("/echo", &body).await.unwrap(), body);
        let problem = client.get::<Value>("/fail").await.unwrap_err();
        assert_eq!(
            (problem.code.as_str(), problem.cause.as_str()),
            ("E_QUOTA", "too much")
        );
        assert!(!problem.remedy.is_empty());
        let mut stream = client.follow::<u32>("/count").await.unwrap();
        let mut numbers = Vec::new();
        while let Some(number) = stream.next().await.unwrap() {
            numbers.push(number);
        }
        assert_eq!(numbers, [0, 1, 2]);
    })
    .await;
}

#[tokio::test]
async fn a_stream_that_says_nothing_is_a_daemon_that_hangs() {
    with_server(async |client, _| {
        let impatient = client.timeout(Duration::from_millis(200));
        let mut stream = impatient.follow::<u32>("/silent").await.unwrap();
        let problem = stream.next().await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Stalled), "{problem:?}");
    })
    .await;
}

#[tokio::test]
async fn unknown_paths_methods_and_answers_are_problems() {
    with_server(async |client, _| {
        let problem = client.get::<Value>("/../../etc/passwd").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::NotFound));
        let problem = client.delete::<Value>("/v").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Usage));
        let problem = client.get::<u32>("/v").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Meta));
        let patient = client.clone().timeout(Duration::from_millis(50));
        let problem = patient.get::<Value>("/slow").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Stalled));
        let nowhere = Client::new(client.socket().with_extension("gone"));
        let problem = nowhere.get::<Value>("/v").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Unreachable));
        assert!(problem.remedy.contains("--socket"));
    })
    .await;
}

#[tokio::test]
async fn f28_a_huge_body_is_refused_by_its_size() {
    with_server(async |client, _| {
        let problem = client
            .post::<_, Value>("/echo", &"x".repeat(1 << 20))
            .await
            .unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Meta));
        assert!(problem.cause.contains("65536"), "{problem}");
    })
    .await;
}

#[tokio::test]
async fn l05_a_huge_header_and_a_crowd_are_refused_and_others_are_served() {
    with_server(async |client, _| {
        let header = format!(
            "GET /v HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
            "y".repeat(1 << 20)
        );
        let mut stream = UnixStream::connect(client.socket()).await.unwrap();
        // The server closes before it has read the whole header. Its answer can still be read.
        let _ = stream.write_all(header.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
        let mut crowd = Vec::new();
        for _ in 0..32 {
            let mut stream = UnixStream::connect(client.socket()).await.unwrap();
            stream
                .write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n")
                .await
                .unwrap();
            crowd.push(stream);
        }
        let answer = raw(client.socket(), "GET /v HTTP/1.1\r\nhost: x\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
        let problem = client.get::<Value>("/v").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Busy), "{problem:?}");
        assert_eq!(problem.message, "too many clients at once");
        drop(crowd);
        let deadline = tokio::time::Instant::now() + Duration::from_secs(5);
        while client.get::<Value>("/v").await.is_err() {
            assert!(
                tokio::time::Instant::now() < deadline,
                "the crowd left, its places did not"
            );
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn l05_a_slow_header_is_cut_off() {
    with_server(async |client, _| {
        let answered = tokio::time::timeout(2 * HEADER_TIMEOUT, raw(client.socket(), "GET /v HT"));
        let answer = answered.await.expect("it is not cut off");
        let told = "HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        assert_eq!(answer, told);
    })
    .await;
}

#[tokio::test]
async fn l05_a_slow_body_is_cut_off_and_leaves_its_place() {
    with_server(async |client, _| {
        let path = client.socket();
        let head = "POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{";
        let slow = (0..CLIENTS_MAX).map(|_| {
            let path = path.to_owned();
            tokio::spawn(async move { raw(&path, head).await })
        });
        let slow: Vec<_> = slow.collect();
        for client in slow {
            let answered = tokio::time::timeout(2 * BODY_TIMEOUT, client);
            let answer = answered.await.expect("it is not cut off").unwrap();
            assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
        }
        let answer: Value = client.post("/echo", &json!({"a": 1})).await.unwrap();
        assert_eq!(answer, json!({"a": 1}));
    })
    .await;
}

#[tokio::test]
async fn l05_loopback_is_read_only_and_knows_its_name() {
    assert!(bind_loopback("0.0.0.0:0".parse().unwrap()).await.is_err());
    let listener = bind_loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (trigger, shutdown) = shutdown::channel();
    let server = tokio::spawn(serve_loopback(listener, router(), shutdown));
    for (request, status) in [
        ("GET /v HTTP/1.1\r\nhost: localhost:9\r\n", "200"),
        ("GET /v HTTP/1.1\r\nhost: 127.0.0.1\r\n", "200"),
        ("GET /v HTTP/1.1\r\nhost: [::1]:80\r\n", "200"),
        ("GET /v HTTP/1.1\r\nhost: evil.example\r\n", "403"),
        ("GET /v HTTP/1.1\r\nhost: localhost.evil.example\r\n", "403"),
        ("GET /nothing HTTP/1.1\r\nhost: localhost\r\n", "404"),
        (
            "POST /echo HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n",
            "405",
        ),
    ] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{request}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{request}: {answer}"
        );
    }
    trigger.stop();
    server.await.unwrap();
}

/// A log in memory.
#[derive(Clone, Default)]
struct Kept(Arc<std::sync::Mutex<Vec<u8>>>);

impl io::Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn l05_requests_under_a_foreign_name_fill_no_log() {
    let (kept, options) = (Kept::default(), crate::log::Options::default());
    let writer = kept.clone();
    let lines = crate::log::lines(&options, false, move || writer.clone()).unwrap();
    // The server runs on this thread too, so its log lines are captured.
    let _logging = tracing::dispatcher::set_default(&lines);
    let (trigger, shutdown) = shutdown::channel();
    let listener = bind_loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve_loopback(listener, router(), shutdown));
    let began = tokio::time::Instant::now();
    let name = format!("evil.example{}end", "x".repeat(HEADER_BYTES_MAX / 2));
    let mut refused = 0;
    while refused < 90 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET /v HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(!answer.contains("end is not"), "{answer}");
        refused += u32::from(answer.starts_with("HTTP/1.1 403"));
    }
    trigger.stop();
    server.await.unwrap();
    let log = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    let told: Vec<_> = log
        .lines()
        .filter(|line| line.contains("evil.example"))
        .collect();
    let most = 33.0 + began.elapsed().as_secs_f64();
    let count = u32::try_from(told.len()).unwrap();
    assert!(count >= 32 && f64::from(count) <= most, "{count} of {most}");
    for line in told {
        assert!(line.contains("audit") && line.len() < 300, "{line}");
    }
}

#[tokio::test]
async fn l05_over_tcp_only_so_many_requests_a_second_are_answered() {
    let (trigger, shutdown) = shutdown::channel();
    let listener = bind_loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve_loopback(listener, router(), shutdown));
    let ask = async || {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = "GET /v HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.split(' ').nth(1).unwrap().parse::<u16>().unwrap()
    };
    let began = tokio::time::Instant::now();
    let mut answered = 0;
    // However slow the machine is, the rate limit is reached in the end.
    let refused = loop {
        match ask().await {
            200 => answered += 1,
            other => break other,
        }
        assert!(answered < 100_000, "nobody is ever held back");
    };
    let most = 100.0 + 50.0 * began.elapsed().as_secs_f64() + 1.0;
    assert_eq!(refused, 429);
    assert!(f64::from(answered) <= most, "{answered} of {most}");
    // Requests are answered again as time goes by.
    while ask().await != 200 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    trigger.stop();
    server.await.unwrap();
}

#[tokio::test]
async fn l05_only_so_many_changes_a_second_are_made_and_reading_goes_on() {
    with_server(async |client, _| {
        let began = tokio::time::Instant::now();
        let mut made = 0;
        // However slow the machine is, the rate limit is reached in the end.
        let problem = loop {
            match client.post::<_, Value>("/echo", &json!(1)).await {
                Ok(_) => made += 1,
                Err(problem) => break problem,
            }
            assert!(made < 100_000, "nobody is ever held back");
        };
        let most = 1024.0 + 20.0 * began.elapsed().as_secs_f64() + 1.0;
        assert!(made >= 1024 && f64::from(made) <= most, "{made} of {most}");
        assert_eq!(problem.known_code(), Some(Code::Busy), "{problem:?}");
        assert_eq!(problem.cause, "more than 20 changes a second");
        for _ in 0..200 {
            client.get::<Value>("/v").await.unwrap();
        }
        // Requests that would be refused anyway count against the limit too.
        let body = "POST /v HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        let refused = loop {
            let answer = raw(client.socket(), body).await;
            if !answer.starts_with("HTTP/1.1 405") {
                break answer;
            }
        };
        assert!(refused.starts_with("HTTP/1.1 429"), "{refused}");
        assert!(refused.contains("\r\nretry-after: 1\r\n"), "{refused}");
        // Changes are made again as time goes by.
        while client.post::<_, Value>("/echo", &json!(1)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn l05_clients_that_read_no_answer_give_their_places_back() {
    let (trigger, shutdown) = shutdown::channel();
    let listener = bind_loopback("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(serve_loopback(listener, router(), shutdown));
    let ask = async |path: &str| {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    };
    let mut deaf = Vec::new();
    for _ in 0..CLIENTS_MAX {
        let stream = ask("/large").await;
        // The answer has begun to arrive.
        stream.readable().await.unwrap();
        deaf.push(stream);
    }
    let status = async || {
        let mut answer = Vec::new();
        // A client without a place may be reset.
        let _ = ask("/v").await.read_to_end(&mut answer).await;
        let answer = String::from_utf8_lossy(&answer);
        answer.split(' ').nth(1).unwrap_or_default().to_owned()
    };
    assert_ne!(status().await, "200", "there is a place");
    let again = async {
        while status().await != "200" {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let most = Duration::from_millis(UNREAD_MS_MAX.into()) + Duration::from_secs(20);
    tokio::time::timeout(most, again)
        .await
        .expect("they keep their places");
    trigger.stop();
    server.await.unwrap();
}

#[tokio::test]
async fn l05_connections_that_cannot_be_accepted_fill_no_log() {
    let (kept, options) = (Kept::default(), crate::log::Options::default());
    let writer = kept.clone();
    let lines = crate::log::lines(&options, false, move || writer.clone()).unwrap();
    let _logging = tracing::dispatcher::set_default(&lines);
    let (failures, began) = (Arc::new(RateLimit::default()), tokio::time::Instant::now());
    let mut pauses = JoinSet::new();
    for _ in 0..200 {
        let failures = Arc::clone(&failures);
        pauses.spawn(async move {
            let error = io::Error::other("too many open files");
            pause_after(&error, &failures).await;
        });
    }
    pauses.join_all().await;
    let log = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
    let count = u32::try_from(log.lines().count()).unwrap();
    let most = 33.0 + began.elapsed().as_secs_f64();
    assert!(count >= 32 && f64::from(count) <= most, "{count} of {most}");
}
