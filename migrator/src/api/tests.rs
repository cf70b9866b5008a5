//! Tests the API over a real socket, against a host that only remembers what it was told.

use super::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::Duration;
use towpath_daemon::client::Client;
use towpath_daemon::{http, openapi, shutdown, socket::Socket};
use towpath_protocol::fault::Code;
use towpath_protocol::identity::{Epoch, GuestId};

/// A host that keeps its guests and moves in memory only.
#[derive(Default)]
struct Notebook {
    guests: Mutex<Vec<GuestView>>,
    migrations: Mutex<Vec<MigrationView>>,
}

impl Notebook {
    fn change(&self, change: impl FnOnce(&mut MigrationView)) {
        change(&mut self.migrations.lock().unwrap()[0]);
    }
}

fn not_found(what: &dyn std::fmt::Display) -> Fault {
    Fault::new(Code::NotFound, format!("{what} is not here"))
}

impl Host for Notebook {
    fn status(&self) -> HostView {
        HostView {
            version: "1".into(),
            site: "edge".parse().unwrap(),
            host: "box".parse().unwrap(),
            ready: false,
            not_ready_reason: Some("tunnel is down".into()),
            tunnel: LinkState::Down,
            kvm_missing_reason: None,
            guest_count: 0,
            guest_count_max: 1,
            memory_used_bytes: 0,
            memory_quota_bytes: 1,
            migration_count: 0,
            started_unix_ms: 0,
        }
    }

    fn guests(&self) -> Vec<GuestView> {
        self.guests.lock().unwrap().clone()
    }

    fn guest(&self, name: &Name) -> Result<GuestView, Fault> {
        let guests = self.guests.lock().unwrap();
        let found = guests.iter().find(|guest| guest.name == *name);
        found.cloned().ok_or_else(|| not_found(name))
    }

    fn start_guest(&self, request: GuestRequest) -> Result<GuestView, Fault> {
        let view = GuestView {
            name: request.name,
            id: GuestId(7),
            kind: request.kind,
            state: GuestState::Running,
            ownership: Ownership::Owned,
            epoch: Epoch(1),
            memory_bytes: request.memory_bytes,
            dirty_pages_per_second: request.dirty_pages_per_second,
            working_set_bytes: request.working_set_bytes.unwrap_or(request.memory_bytes),
            incompressible_percent: request.incompressible_percent,
            heartbeat_interval_us: request.heartbeat_interval_us,
            heartbeat_sequence: None,
            process_id: None,
            moved_to: None,
            migration: None,
            console: None,
            error: None,
        };
        self.guests.lock().unwrap().push(view.clone());
        Ok(view)
    }

    fn boot_guest(&self, name: &Name) -> Result<GuestView, Fault> {
        self.guest(name)
    }

    fn give_up_missing(&self, name: &Name) -> Result<GuestView, Fault> {
        self.guest(name)
    }

    fn stop_guest(&self, name: &Name) -> Result<(), Fault> {
        self.guest(name)?;
        self.guests
            .lock()
            .unwrap()
            .retain(|guest| guest.name != *name);
        Ok(())
    }

    fn verify_guest(&self, name: &Name) -> Result<VerifyView, Fault> {
        let pages = self.guest(name)?.memory_bytes / 4096;
        Ok(VerifyView {
            pages,
            verified: true,
            detail: "all right".into(),
        })
    }

    fn migrate(&self, request: MigrationRequest) -> Result<MigrationView, Fault> {
        self.guest(&request.guest)?;
        let ids = (MigrationId(5), request.guest);
        let sites = ("edge".parse().unwrap(), request.site);
        let view = MigrationView {
            mode: Some(request.mode),
            max_pause_ms: Some(request.max_pause_ms),
            rate_bits_per_second: request.rate_bits_per_second,
            link: LinkState::Up,
            attempts: Some(1),
            blocks_total: 256,
            blocks_left: 256,
            ..MigrationView::begun(ids, Role::Source, sites, Phase::Preparing)
        };
        self.migrations.lock().unwrap().push(view.clone());
        Ok(view)
    }

    fn cancel(&self, id: MigrationId) -> Result<MigrationView, Fault> {
        self.migration(id)?;
        self.change(|view| view.phase = Phase::Cancelled);
        self.migration(id)
    }

    fn migrations(&self) -> Vec<MigrationView> {
        self.migrations.lock().unwrap().clone()
    }

    fn migration(&self, id: MigrationId) -> Result<MigrationView, Fault> {
        let migrations = self.migrations.lock().unwrap();
        let found = migrations.iter().find(|view| view.id == id);
        found.cloned().ok_or_else(|| not_found(&id))
    }

    fn metrics(&self) -> String {
        "towpath_build_info 1\n".into()
    }
}

async fn with_host<F: Future<Output = ()>>(test: impl FnOnce(Client, Arc<Notebook>) -> F) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run/m.sock");
    let (trigger, shutdown) = shutdown::channel();
    let host = Arc::new(Notebook::default());
    let socket = Socket::bind(&path).unwrap();
    let routes = router(Arc::clone(&host) as Arc<dyn Host>);
    let server = tokio::spawn(http::serve_unix(socket, routes, shutdown));
    test(Client::new(&path), host).await;
    trigger.stop();
    server.await.unwrap().unwrap();
}

fn guest_request(name: &str) -> Value {
    json!({"name": name, "memory_bytes": 8 << 20})
}

async fn refusal(client: &Client, path: &str, body: &Value) -> Option<Code> {
    let problem = client
        .post::<_, Value>(path, body)
        .await
        .expect_err("refused");
    problem.known_code()
}

#[tokio::test]
async fn a_guest_is_started_shown_verified_and_stopped() {
    with_host(async |client, _| {
        let guest: GuestView = client
            .post("/v1/guests", &guest_request("a"))
            .await
            .unwrap();
        assert_eq!(guest.kind, GuestKind::Auto);
        let list: GuestList = client.get("/v1/guests").await.unwrap();
        assert_eq!(list.guests, std::slice::from_ref(&guest));
        assert_eq!(
            client.get::<GuestView>("/v1/guests/a").await.unwrap(),
            guest
        );
        let again: GuestView = client.post("/v1/guests/a/start", &()).await.unwrap();
        assert_eq!(again, guest);
        let verify: VerifyView = client.post("/v1/guests/a/verify", &()).await.unwrap();
        assert_eq!((verify.pages, verify.verified), (2048, true));
        let stopped: StoppedView = client.delete("/v1/guests/a").await.unwrap();
        assert_eq!(stopped.name.as_str(), "a");
        let problem = client.get::<GuestView>("/v1/guests/a").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::NotFound));
    })
    .await;
}

#[tokio::test]
async fn f28_wrong_requests_are_refused_before_the_host_is_asked() {
    with_host(async |client, host| {
        let wrong = [
            ("memory_bytes", json!(0)),
            ("memory_bytes", json!((8 << 20) + 4096)),
            ("memory_bytes", json!(u64::MAX)),
            ("working_set_bytes", json!(1 << 24)),
            ("working_set_bytes", json!((8 << 20) - (4 << 20) + 4096)),
            ("incompressible_percent", json!(101)),
            ("heartbeat_interval_us", json!(0)),
            ("dirty_pages_per_second", json!(u64::MAX)),
        ];
        let of_another_shape = [
            ("name", json!("../etc")),
            ("name", json!("x".repeat(64))),
            ("kind", json!("qemu")),
            ("memory_bytes", json!(-1)),
            ("memory_bytes", json!(1.5)),
            ("memory_bytes", json!("1")),
            ("colour", json!("red")),
        ];
        let cases = [
            (Code::Usage, wrong.as_slice()),
            (Code::Meta, of_another_shape.as_slice()),
        ];
        for (expected, requests) in cases {
            for (key, value) in requests {
                let mut body = guest_request("a");
                body[key] = value.clone();
                let code = refusal(&client, "/v1/guests", &body).await;
                assert_eq!(code, Some(expected), "{body}");
            }
        }
        let mut deep = json!(1);
        for _ in 0..20 {
            deep = json!([deep]);
        }
        assert_eq!(
            refusal(&client, "/v1/guests", &deep).await,
            Some(Code::Meta)
        );
        let long = json!({"name": "x".repeat(1 << 17)});
        assert_eq!(
            refusal(&client, "/v1/guests", &long).await,
            Some(Code::Meta)
        );
        for (key, value, expected) in [
            ("max_pause_ms", json!(0), Code::Usage),
            ("rate_bits_per_second", json!(0), Code::Usage),
            ("mode", json!("x"), Code::Meta),
        ] {
            let mut body = json!({"guest": "a", "site": "region"});
            body[key] = value;
            assert_eq!(
                refusal(&client, "/v1/migrations", &body).await,
                Some(expected)
            );
        }
        let problem = client
            .get::<Value>("/v1/guests/..%2f..%2fetc")
            .await
            .unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Name));
        let problem = client.get::<Value>("/v1/migrations/7").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Usage));
        assert!(host.guests().is_empty() && host.migrations().is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_move_is_watched_to_its_end() {
    with_host(async |client, host| {
        let _: GuestView = client
            .post("/v1/guests", &guest_request("a"))
            .await
            .unwrap();
        let body = json!({"guest": "a", "site": "region"});
        let view: MigrationView = client.post("/v1/migrations", &body).await.unwrap();
        assert_eq!(view.max_pause_ms, Some(200));
        assert_eq!(view.mode, Some(MigrationMode::Auto));
        let path = format!("/v1/migrations/{}/watch", view.id);
        let mut stream = client.follow::<MigrationView>(&path).await.unwrap();
        assert_eq!(stream.next().await.unwrap(), Some(view.clone()));
        host.change(|view| view.phase = Phase::Copying);
        let next = stream.next().await.unwrap().expect("a change");
        assert_eq!(next.phase, Phase::Copying);
        // Nothing changes, so no line is sent.
        let silence = tokio::time::timeout(Duration::from_millis(500), stream.next()).await;
        assert!(silence.is_err());
        host.change(|view| view.phase = Phase::Done);
        let last = stream.next().await.unwrap().expect("the end");
        assert_eq!(last.phase, Phase::Done);
        assert_eq!(stream.next().await.unwrap(), None);
        let list: MigrationList = client.get("/v1/migrations").await.unwrap();
        assert_eq!(list.migrations, [last]);
    })
    .await;
}

#[tokio::test]
async fn who_follows_a_move_hears_that_the_migrator_is_there() {
    with_host(async |client, _| {
        let _: GuestView = client
            .post("/v1/guests", &guest_request("a"))
            .await
            .unwrap();
        let body = json!({"guest": "a", "site": "region"});
        let view: MigrationView = client.post("/v1/migrations", &body).await.unwrap();
        let path = format!("/v1/migrations/{}/watch", view.id);
        let mut streams = Vec::new();
        let refused = loop {
            match client.follow::<MigrationView>(&path).await {
                Ok(stream) => streams.push(stream),
                Err(problem) => break problem,
            }
        };
        assert_eq!(refused.message, "too many follow moves at once");
        // Others are served meanwhile.
        let _: MigrationList = client.get("/v1/migrations").await.unwrap();
        streams.clear();
        let impatient = client.clone().timeout(Duration::from_secs(3));
        let mut stream = loop {
            match impatient.follow::<MigrationView>(&path).await {
                Ok(stream) => break stream,
                // The places of clients that left are freed after a moment.
                Err(problem) => assert_eq!(problem.known_code(), Some(Code::Busy)),
            }
        };
        assert_eq!(stream.next().await.unwrap(), Some(view));
        let longer = tokio::time::timeout(Duration::from_secs(5), stream.next());
        assert!(longer.await.is_err(), "no change, and no silence either");
    })
    .await;
}

#[tokio::test]
async fn a_move_is_cancelled_and_an_unknown_one_is_a_problem() {
    with_host(async |client, _| {
        let _: GuestView = client
            .post("/v1/guests", &guest_request("a"))
            .await
            .unwrap();
        let body = json!({"guest": "a", "site": "region", "mode": "post", "rate_bits_per_second": 1_000_000});
        let view: MigrationView = client.post("/v1/migrations", &body).await.unwrap();
        let path = format!("/v1/migrations/{}/cancel", view.id);
        let cancelled: MigrationView = client.post(&path, &()).await.unwrap();
        assert_eq!(cancelled.phase, Phase::Cancelled);
        let unknown = format!("/v1/migrations/{}/watch", MigrationId(6));
        let problem = client.follow::<MigrationView>(&unknown).await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::NotFound));
    })
    .await;
}

#[tokio::test]
async fn health_metrics_and_the_document_are_served() {
    with_host(async |client, _| {
        assert_eq!(client.text("/live").await.unwrap(), "live\n");
        assert_eq!(
            client.text("/metrics").await.unwrap(),
            "towpath_build_info 1\n"
        );
        let problem = client.text("/ready").await.unwrap_err();
        assert_eq!(problem.known_code(), Some(Code::Busy));
        assert_eq!(
            client.text("/openapi.json").await.unwrap(),
            openapi::document::<Document>()
        );
    })
    .await;
}

#[test]
fn the_document_covers_every_route_and_is_checked_in() {
    let text = openapi::document::<Document>();
    let document: Value = serde_json::from_str(&text).unwrap();
    let paths = document["paths"].as_object().unwrap();
    let documented: BTreeSet<&str> = paths.keys().map(String::as_str).collect();
    let source = include_str!("../api.rs");
    let routed: BTreeSet<&str> = source
        .split(".route(")
        .skip(1)
        .filter_map(|rest| rest.trim_start().strip_prefix('"')?.split('"').next())
        .collect();
    assert!(routed.len() >= 13, "{routed:?}");
    assert_eq!(routed, documented);
    let routed_methods = ["get(", "post(", "delete("]
        .map(|method| source.matches(&format!("{method}routes::")).count())
        .iter()
        .sum::<usize>();
    let methods: usize = paths
        .values()
        .map(|path| path.as_object().unwrap().len())
        .sum();
    assert_eq!(
        routed_methods + 1,
        methods,
        "watch is the one route of another module"
    );

    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/migrator-openapi.json");
    if std::env::var_os("TOWPATH_UPDATE_DOCS").is_some() {
        std::fs::write(file, &text).unwrap();
    }
    let checked_in = std::fs::read_to_string(file).unwrap_or_default();
    assert!(
        checked_in == text,
        "docs/migrator-openapi.json is stale: run the tests with TOWPATH_UPDATE_DOCS=1"
    );
}

#[test]
fn phases_are_written_alike_in_json_and_in_tables() {
    for phase in Phase::ALL {
        assert_eq!(serde_json::to_value(phase).unwrap(), json!(phase.as_str()));
    }
}
