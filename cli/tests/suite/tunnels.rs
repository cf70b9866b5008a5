//! The operator's commands for tunnels against two that are really linked, as tables and as documents.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{DEADLINE, Ran, run, screen, towpath, word};

/// Pause between two looks at something that is waited for.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// In which the kernel tells processor time.
const TICKS_PER_SECOND: f64 = 100.0;

/// One site's tunnel.
struct Tunnel {
    run: PathBuf,
    child: Child,
}

impl Tunnel {
    fn start(folder: &Path, site: &str, more: &str) -> Self {
        let (authority, here) = (folder.join("authority"), folder.join(site));
        fs::create_dir(&here).unwrap();
        let [identity, run_dir] = ["identity", "run"].map(|name| here.join(name));
        let issued = run(&[
            "certs",
            "issue",
            "--authority",
            word(&authority),
            "--host=box",
            &format!("--site={site}"),
            "--out",
            word(&identity),
        ]);
        assert_eq!(issued.status, 0, "{issued:?}");
        let (files, sockets) = (identity.display(), run_dir.display());
        let text = format!(
            "site = \"{site}\"\nhost = \"box\"\nsocket = \"{sockets}/tunnel.sock\"\n{more}\n\
             [admin]\nsocket = \"{sockets}/admin.sock\"\n\
             [certificates]\ncert = \"{files}/cert.pem\"\nkey = \"{files}/key.pem\"\n\
             ca = \"{files}/ca.pem\"\n"
        );
        let config = here.join("tunnel.toml");
        fs::write(&config, text).unwrap();
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        let path = here.join("notify");
        let notify = UnixDatagram::bind(&path).unwrap();
        notify.set_read_timeout(Some(DEADLINE)).unwrap();
        let child = towpath(&["tunnel", "run", "--config", word(&config)])
            .env("NOTIFY_SOCKET", &path)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let tunnel = Self {
            run: run_dir,
            child,
        };
        let mut heard = [0; 512];
        loop {
            let count = notify.recv(&mut heard).unwrap();
            if heard[..count].starts_with(b"READY=1") {
                return tunnel;
            }
        }
    }

    /// A command of an operator at this site.
    fn command(&self, words: &[&str]) -> Command {
        let mut command = towpath(words);
        command
            .env("TOWPATH_TUNNEL_SOCKET", self.run.join("admin.sock"))
            .env("TOWPATH_STREAM_SOCKET", self.run.join("tunnel.sock"))
            .env("TOWPATH_SOCKET", self.run.join("none.sock"));
        command
    }

    /// Runs a command of an operator at this site.
    fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&self.command(words).output().unwrap())
    }

    /// What a command of an operator shows on a terminal of so many columns, where there can be one.
    fn screen(&self, words: &[&str], columns: usize) -> Option<String> {
        screen(&self.command(words), columns)
    }

    /// Runs a command that must succeed and writes a table: nothing on stderr, and no document.
    #[track_caller]
    fn table(&self, words: &[&str]) -> String {
        let ran = self.run(words);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
        assert!(!ran.stdout.starts_with('{'), "{ran:?}");
        ran.stdout
    }

    /// The same as one document of a kind.
    #[track_caller]
    fn document(&self, words: &[&str], kind: &str) -> Value {
        self.run(&[words, &["-o", "json"]].concat()).document(kind)
    }

    /// Checks that a command fails with this status and code, in both forms, and says what it met.
    #[track_caller]
    fn refuses(&self, words: &[&str], (status, code): (i32, &str), cause: &str) {
        let ran = self.run(words);
        ran.failed(status, code);
        assert!(ran.stderr.contains(cause), "{ran:?}");
        assert_eq!(ran.stdout, "", "{ran:?}");
        let ran = self.run(&[words, &["-o", "json"]].concat());
        assert_eq!(
            (ran.status, ran.stdout.as_str()),
            (status, ""),
            "{words:?} {ran:?}"
        );
        let problem: Value = serde_json::from_str(&ran.stderr).unwrap_or_default();
        assert_eq!(
            problem["schema"], "towpath.v1.error",
            "{words:?}: {}",
            ran.stderr
        );
        assert_eq!(problem["code"], code, "{problem}");
        let said = problem["cause"].as_str().unwrap();
        assert!(said.contains(cause), "{problem}");
        for field in ["message", "remedy"] {
            let text = problem[field].as_str();
            assert!(text.is_some_and(|text| !text.is_empty()), "{problem}");
        }
    }

    /// Processor time of the tunnel's process in seconds, as the kernel counts it.
    fn cpu_seconds(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let (_, behind_name) = stat.rsplit_once(") ").unwrap();
        let ticks = behind_name.split(' ').skip(11).take(2);
        ticks
            .map(|ticks| ticks.parse::<f64>().unwrap())
            .sum::<f64>()
            / TICKS_PER_SECOND
    }

    /// The way to the other site, as `towpath status` has it.
    fn link(&self) -> Value {
        self.document(&["status"], "overview")["tunnel"]["status"]["links"][0].clone()
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Two linked tunnels: the edge dials the region, where there is an echo and a bench.
struct Pair {
    edge: Tunnel,
    region: Tunnel,
    folder: TempDir,
}

impl Pair {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let authority = path.join("authority");
        let made = run(&[
            "certs",
            "init",
            "--trust-domain=shop.example",
            "--dir",
            word(&authority),
        ]);
        assert_eq!(made.status, 0, "{made:?}");
        echo(&path.join("echo.sock"));
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let services = format!(
            "listen = \"{address}\"\n[[peers]]\nsite = \"edge\"\n\
             [[services]]\nname = \"till\"\ntarget = \"unix:{}\"\nallow = [\"edge\"]\n\
             [[services]]\nname = \"bench\"\nsocket = \"builtin:bench\"\nallow = [\"edge\"]",
            path.join("echo.sock").display()
        );
        let region = Tunnel::start(path, "region", &services);
        let peer = format!("[[peers]]\nsite = \"region\"\naddress = \"{address}\"");
        let edge = Tunnel::start(path, "edge", &peer);
        let pair = Self {
            edge,
            region,
            folder,
        };
        for tunnel in [&pair.edge, &pair.region] {
            wait_until("there is no link", || tunnel.link()["state"] == "healthy");
        }
        pair
    }
}

#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(LOOK_PAUSE);
    }
}

/// A program that says back what it hears, at a socket.
fn echo(socket: &Path) {
    let listener = UnixListener::bind(socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut read) = stream else { return };
            let mut write = read.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut read, &mut write));
        }
    });
}

/// The value beside a title in a table of fields.
#[track_caller]
fn field<'a>(table: &'a str, title: &str) -> &'a str {
    let spaced = format!("{title}  ");
    let mut lines = table.lines();
    let found = lines.find_map(|line| line.strip_prefix(&spaced));
    found
        .unwrap_or_else(|| panic!("no {title} in {table}"))
        .trim()
}

/// A command with more words.
fn line<'a>(begin: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [begin, more].concat()
}

fn now_unix() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    since.as_secs()
}

/// Opens a channel that leads to the echo.
const OPEN: [&str; 6] = [
    "channel",
    "open",
    "till",
    "--listen=tcp:127.0.0.1:0",
    "--peer=region",
    "--service=till",
];

const SHAPE: [&str; 3] = ["tunnel", "shape", "region"];

const FORECAST: [&str; 2] = ["forecast", "region"];

const BENCH: [&str; 4] = ["tunnel", "bench", "region", "--time=1s"];

#[test]
fn a_channel_is_opened_used_led_elsewhere_capped_and_closed() {
    let pair = Pair::start();
    let edge = &pair.edge;
    let empty = edge.table(&["channel", "ls"]);
    assert!(empty.contains("towpath channel open NAME"), "{empty}");
    let none = edge.document(&["channel", "ls"], "channels");
    assert_eq!(none["channels"].as_array().map(Vec::len), Some(0));

    let before = now_unix();
    let opened = edge.document(&OPEN, "channel");
    assert_eq!(
        (&opened["class"], &opened["peer"]),
        (&"app".into(), &"region".into())
    );
    let first = opened["generation"].as_u64().unwrap();
    assert!(first >= before, "{opened}");
    let listen = opened["listen"].as_str().unwrap().to_owned();
    let mut program = TcpStream::connect(listen.strip_prefix("tcp:").unwrap()).unwrap();
    program.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut said_back = |words: &[u8]| {
        program.write_all(words).unwrap();
        let mut heard = vec![0; words.len()];
        program.read_exact(&mut heard).unwrap();
        assert_eq!(heard, words);
    };
    said_back(b"hello");
    let show = ["channel", "show", "till"];
    wait_until("what was carried is not shown", || {
        let view = edge.document(&show, "channel");
        view["connections"] == 1 && view["sent_bytes"] == 5 && view["received_bytes"] == 5
    });

    // Each change is the next generation, and what is not named is as it is by default.
    let urgent = [
        &OPEN[..],
        &["--class=demand", "--cap=8Mbit", "--expires=1h"],
    ]
    .concat();
    let changed = edge.table(&urgent);
    let value = |table: &str, title| field(table, title).to_owned();
    assert_eq!(value(&changed, "generation"), (first + 1).to_string());
    assert_eq!(value(&changed, "class"), "demand");
    assert_eq!(value(&changed, "cap"), "8.0 Mbit/s");
    let view = edge.document(&show, "channel");
    assert_eq!(view["cap_bits_per_second"], 8_000_000);
    let expires = view["expires_unix_seconds"].as_u64().unwrap();
    assert!(expires >= before + 3600, "{view}");
    assert_eq!(view["listen"], *listen, "its port stays");

    let capped = edge.document(&["channel", "cap", "till", "9Mbit"], "channel");
    assert_eq!(capped["generation"], first + 2);
    assert_eq!(capped["cap_bits_per_second"], 9_000_000);
    for kept in ["listen", "class", "service", "expires_unix_seconds"] {
        assert_eq!(capped[kept], view[kept], "a cap changes the cap alone");
    }
    edge.table(&["channel", "cap", "till", "none"]);
    let table = edge.table(&show);
    assert!(!table.contains("\ncap "), "{table}");
    assert_eq!(value(&table, "generation"), (first + 3).to_string());
    assert_eq!(value(&table, "leads to"), "till at region");
    assert_eq!(value(&table, "connections"), "1 now, 1 in all");
    said_back(b"still here");

    let list = edge.table(&["channel", "ls"]);
    let lines: Vec<&str> = list.lines().collect();
    assert_eq!(lines.len(), 2, "{list}");
    assert!(lines[0].starts_with("CHANNEL") && lines[1].starts_with("till"));
    assert_eq!(lines[0].find("STATE"), lines[1].find("healthy"), "{list}");
    let status = edge.document(&["status"], "overview");
    let shown = &status["tunnel"]["status"]["channels"][0];
    assert_eq!(shown["generation"], first + 3);

    let named = ["channel", "close", "till", "--generation=1"];
    edge.refuses(&named, (1, "E_STATE"), "generation 1 is too old");
    let closed = edge.document(&["channel", "close", "till"], "closed");
    assert_eq!(closed["name"], "till");
    assert_eq!(program.read(&mut [0; 8]).unwrap_or_default(), 0, "it ends");
    edge.refuses(&show, (1, "E_NOT_FOUND"), "till");
}

#[test]
fn a_channel_whose_address_is_taken_is_listed_with_why() {
    let pair = Pair::start();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let more = format!(
        "listen = \"127.0.0.1:0\"\n[[peers]]\nsite = \"region\"\n\
         [[channels]]\nname = \"late\"\nlisten = \"tcp:{address}\"\npeer = \"region\"\nservice = \"till\"\n"
    );
    let branch = Tunnel::start(pair.folder.path(), "branch", &more);
    let list = branch.table(&["channel", "ls"]);
    let mut lines = list.lines();
    let why = lines.find(|line| line.starts_with("late: does not listen: "));
    assert!(
        why.is_some_and(|why| why.contains(&address.to_string())),
        "{list}"
    );
    let status = branch.table(&["status"]);
    assert!(
        status.contains("channel late: down: does not listen: "),
        "{status}"
    );
}

#[test]
fn a_channel_that_was_changed_and_closed_can_be_opened_again_at_once() {
    let pair = Pair::start();
    pair.edge.table(&OPEN);
    for _ in 0..3 {
        pair.edge.table(&["channel", "cap", "till", "9Mbit"]);
    }
    let last = pair.edge.document(&["channel", "show", "till"], "channel");
    pair.edge.table(&["channel", "close", "till"]);
    let again = pair.edge.document(&OPEN, "channel");
    let generation = |view: &Value| view["generation"].as_u64().unwrap();
    assert!(generation(&again) > generation(&last), "{again}");
}

#[test]
fn what_a_channel_cannot_be_is_refused_with_a_cause_and_changes_nothing() {
    let pair = Pair::start();
    let edge = &pair.edge;
    let nowhere = [&OPEN[..4], &["--peer=branch", "--service=till"]].concat();
    edge.refuses(&nowhere, (1, "E_NOT_FOUND"), "branch is no peer");
    for words in [
        ["channel", "show", "none"].as_slice(),
        &["channel", "close", "none"],
        &["channel", "cap", "none", "9Mbit"],
    ] {
        edge.refuses(words, (1, "E_NOT_FOUND"), "none");
    }
    let to_dns = ["--peer=region", "--service=dns"];
    let dns = ["channel", "open", "dns", "--listen=udp:127.0.0.1:0"];
    let dns = line(&dns, &to_dns);
    let opened = edge.document(&line(&dns, &["--generation=7"]), "channel");
    assert_eq!(opened["generation"], 7);
    let taken = format!("--listen={}", opened["listen"].as_str().unwrap());
    let beside = line(&["channel", "open", "ntp", &taken], &to_dns);
    edge.refuses(&beside, (1, "E_IO"), "cannot listen at udp:");
    let old = line(&dns, &["--generation=6"]);
    edge.refuses(&old, (1, "E_STATE"), "generation 6 is too old");
    let other = line(&dns, &["--generation=7", "--class=bulk"]);
    edge.refuses(&other, (1, "E_STATE"), "said something else");
    let ran = edge.run(&other);
    let remedy = "remedy: use a generation above 7, or leave it out";
    assert!(ran.stderr.contains(remedy), "{ran:?}");
    let list = edge.document(&["channel", "ls"], "channels");
    let names: Vec<_> = list["channels"].as_array().unwrap().iter().collect();
    assert_eq!((names.len(), &names[0]["name"]), (1, &"dns".into()));
}

#[test]
fn caps_and_shares_are_changed_and_show() {
    let pair = Pair::start();
    let edge = &pair.edge;
    let begun = edge.table(&SHAPE);
    assert_eq!(field(&begun, "cap"), "none");
    let changed = edge.document(
        &line(
            &SHAPE,
            &[
                "--send-rate=50Mbit",
                "--receive-rate=20Mbit",
                "--class=bulk",
                "--weight=3",
                "--cap=9Mbit",
            ],
        ),
        "shaping",
    );
    assert_eq!(changed["shares"]["bulk"]["weight"], 3);
    assert_eq!(changed["peer"], "region");
    let weights = &changed["weights"];
    assert_eq!((&weights["bulk"], &weights["app"]), (&3.into(), &8.into()));
    assert_eq!(weights["demand"], Value::Null);
    let table = edge.table(&line(&SHAPE, &["--class=app", "--floor=5Mbit"]));
    assert_eq!(field(&table, "cap"), "50.0 Mbit/s");
    assert_eq!(field(&table, "asked of it"), "20.0 Mbit/s");
    let row = |class: &str| {
        let mut rows = table.lines().map(|line| line.split_whitespace());
        let found = rows.find(|words| words.clone().next() == Some(class));
        found
            .unwrap()
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(row("bulk"), "bulk 3 - 9.0 Mbit/s");
    assert_eq!(row("app"), "app 8 5.0 Mbit/s -");
    assert_eq!(row("demand"), "demand first - -");
    let link = edge.link();
    assert_eq!(link["cap_bits_per_second"], 50_000_000);
    assert_eq!(link["receive_cap_bits_per_second"], 20_000_000);
    let classes = link["classes"].as_array().unwrap();
    let bulk = classes.iter().find(|one| one["class"] == "bulk").unwrap();
    assert_eq!(
        (&bulk["weight"], &bulk["cap_bits_per_second"]),
        (&3.into(), &9_000_000.into())
    );
    let shown = edge.table(&["status"]);
    assert!(shown.contains("50.0 Mbit/s"), "{shown}");

    edge.table(&line(&SHAPE, &["--timetable=30Mbit otherwise"]));
    assert_eq!(edge.link()["cap_bits_per_second"], 30_000_000);
    // A floor is a part of a cap: without one it would be shown and hold nothing.
    let lift = line(&SHAPE, &["--send-rate=none"]);
    edge.refuses(
        &lift,
        (2, "E_USAGE"),
        "shares.app.floor: is a part of a cap",
    );
    assert_eq!(edge.link()["cap_bits_per_second"], 30_000_000);
    let lift = line(&lift, &["--class=app", "--floor=none"]);
    let lifted = edge.document(&lift, "shaping");
    assert_eq!(lifted["send_timetable"], Value::Null);
    assert_eq!(edge.link()["cap_bits_per_second"], Value::Null);

    let nobody = ["tunnel", "shape", "branch"];
    edge.refuses(&nobody, (1, "E_NOT_FOUND"), "branch is no peer");
    let silent = line(&SHAPE, &["--class=bulk"]);
    edge.refuses(&silent, (2, "E_USAGE"), "--class needs");
    let much = line(
        &SHAPE,
        &["--send-rate=1Mbit", "--class=app", "--floor=5Mbit"],
    );
    edge.refuses(&much, (2, "E_USAGE"), "nine tenths");
    assert_eq!(edge.link()["cap_bits_per_second"], Value::Null);
}

#[test]
fn a_service_is_shown_and_capped() {
    let pair = Pair::start();
    let region = &pair.region;
    let service = ["tunnel", "service", "till"];
    let table = region.table(&service);
    assert_eq!(
        (field(&table, "cap"), field(&table, "allowed")),
        ("none", "edge")
    );
    let cap = |cap| [&service[..], &["--cap", cap]].concat();
    let capped = region.document(&cap("20Mbit"), "service");
    assert_eq!(capped["cap_bits_per_second"], 20_000_000);
    assert_eq!(field(&region.table(&service), "cap"), "20.0 Mbit/s");
    let status = region.document(&["status"], "overview");
    let services = status["tunnel"]["status"]["services"].as_array().unwrap();
    let till = services.iter().find(|one| one["name"] == "till").unwrap();
    assert_eq!(till["cap_bits_per_second"], 20_000_000);
    assert_eq!(field(&region.table(&cap("none")), "cap"), "none");
    region.refuses(
        &["tunnel", "service", "backup"],
        (1, "E_NOT_FOUND"),
        "backup",
    );
}

#[test]
fn forecasts_are_for_the_moments_and_bytes_that_are_asked_for() {
    let pair = Pair::start();
    let edge = &pair.edge;
    wait_until("the history is not read", || {
        edge.run(&FORECAST).status == 0
    });
    let table = edge.table(&FORECAST);
    assert_eq!(
        table
            .lines()
            .filter(|line| line.contains("unknown"))
            .count(),
        7,
        "{table}"
    );
    assert_eq!(field(&table, "hours known"), "0");
    let document = edge.document(&FORECAST, "forecast");
    let horizons = document["forecasts"].as_array().unwrap().iter();
    let horizons: Vec<_> = horizons
        .map(|one| one["horizon"].as_str().unwrap())
        .collect();
    assert_eq!(horizons, ["1s", "10s", "1m", "1h", "6h", "24h", "7d"]);
    assert_eq!(
        (&document["direction"], &document["bytes"]),
        (&"send".into(), &Value::Null)
    );

    let before = now_unix();
    let more = ["--at=+6h", "--bytes=1GiB", "--direction=receive"];
    let document = edge.document(&line(&FORECAST, &more), "forecast");
    assert_eq!(document["direction"], "receive");
    assert_eq!(document["bytes"], 1_u64 << 30);
    let forecasts = document["forecasts"].as_array().unwrap();
    assert_eq!(forecasts.len(), 1);
    let at = forecasts[0]["at_unix_seconds"].as_u64().unwrap();
    assert!(
        (before + 21_600..before + 21_600 + 60).contains(&at),
        "{at}"
    );
    let table = edge.table(&line(&FORECAST, &more));
    assert!(table.contains("through, p50  not known yet"), "{table}");

    // A cap that is set is what the forecast is made under.
    edge.table(&["tunnel", "shape", "region", "--send-rate=30Mbit"]);
    let document = edge.document(&line(&FORECAST, &["--at=+1h"]), "forecast");
    assert_eq!(document["forecasts"][0]["cap_bits_per_second"], 30_000_000);

    edge.refuses(&["forecast", "branch"], (1, "E_NOT_FOUND"), "is no peer");
    edge.refuses(&line(&FORECAST, &["--at=+8d"]), (2, "E_USAGE"), "");
}

#[test]
fn a_way_is_probed_within_its_budget() {
    let pair = Pair::start();
    let probe = ["tunnel", "probe", "region", "--bytes=256KiB", "--time=5s"];
    let view = pair.edge.document(&probe, "tunnel-probe");
    assert_eq!(
        (&view["peer"], &view["budget_bytes"]),
        (&"region".into(), &262_144.into())
    );
    assert_eq!(view["bytes"], 262_144, "{view}");
    assert!(view["bits_per_second"].as_u64().unwrap() > 0, "{view}");
    let table = pair.edge.table(&probe);
    assert!(field(&table, "carries").ends_with("too small to fill the path"));
    assert_eq!(field(&table, "sent"), "256 KiB of 256 KiB");
    let nobody = ["tunnel", "probe", "branch"];
    pair.edge
        .refuses(&nobody, (1, "E_NOT_FOUND"), "branch is no peer");
    let little = ["tunnel", "probe", "region", "--bytes=1KiB"];
    pair.edge.refuses(&little, (2, "E_USAGE"), "bytes is 1024");
    // The edge lets nobody measure it.
    pair.region
        .refuses(&["tunnel", "probe", "edge"], (1, "E_DENIED"), "bench");
}

/// Benches the link twice, for what came before is none of a bench: each tunnel has used what it is said to have.
fn bench_twice(pair: &Pair) -> Value {
    let mut told = Value::Null;
    for _ in 0..2 {
        let used = || [&pair.edge, &pair.region].map(Tunnel::cpu_seconds);
        let before = used();
        told = pair.edge.document(&BENCH, "tunnel-bench");
        let (after, gib) = (used(), told["bytes"].as_f64().unwrap() / f64::from(1 << 30));
        for (at, side) in ["near", "far"].into_iter().enumerate() {
            let used = after[at] - before[at];
            let cost = told["cpu_seconds_per_gib"][side].as_f64().unwrap() * gib;
            // Most of what it did meanwhile is the load, and the kernel counts in steps of 10 ms.
            let is_sane = cost > 0.0 && (used / 2.0 - 0.05..=used + 0.05).contains(&cost);
            assert!(is_sane, "{side}: {cost} s of {used} s");
        }
    }
    told
}

#[test]
fn a_link_is_benched_either_way_in_a_class_and_side_by_side() {
    let pair = Pair::start();
    let told = bench_twice(&pair);
    assert!(told["loss_ratio"].is_number(), "{told}");
    assert_eq!(
        (&told["class"], &told["reverse"]),
        (&"bulk".into(), &false.into())
    );
    let more = ["--class=app", "--reverse", "--parallel=2"];
    let other = pair.edge.document(&line(&BENCH, &more), "tunnel-bench");
    assert_eq!(
        (&other["class"], &other["reverse"]),
        (&"app".into(), &true.into())
    );
    assert_eq!(other["parallel"], 2);
    for outcome in [&told, &other] {
        for figure in ["bytes", "time_ms", "goodput_bytes_per_second"] {
            assert!(outcome[figure].as_u64().unwrap() > 0, "{outcome}");
        }
        assert_eq!(outcome["idle_ping"]["count"], 20);
        assert!(outcome["loaded_ping"]["count"].as_u64().unwrap() > 0);
        assert!(outcome["cpu_seconds_per_gib"]["far"].as_f64().unwrap() > 0.0);
    }
    // What is missing on the line is named once.
    let ran = pair.edge.run(&["tunnel", "bench"]);
    ran.failed(2, "E_USAGE");
    assert_eq!(ran.stderr.matches("<PEER>").count(), 1, "{ran:?}");
    let nowhere = ["tunnel", "bench", "branch"];
    let ran = pair.edge.run(&nowhere);
    ran.failed(1, "E_NOT_FOUND");
    assert!(ran.stderr.contains("its peers: region"), "{ran:?}");
    // Who fills a link that has a cap is told so, beside the result.
    pair.edge
        .table(&["tunnel", "shape", "region", "--send-rate=20Mbit"]);
    let ran = pair.edge.run(&BENCH);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stderr.contains("capped at 20.0 Mbit/s"), "{ran:?}");
    assert_eq!(field(&ran.stdout, "load"), "bulk to region, 1 side by side");
    assert_eq!(field(&ran.stdout, "cap"), "20.0 Mbit/s");
    // With JSON too, and of what the peer sends as well as the peer knows it.
    let told = |more: &[&str]| {
        let begin = ["tunnel", "bench", "region", "--output=json"];
        let ran = pair.edge.run(&line(&begin, more));
        assert_eq!(ran.status, 0, "{ran:?}");
        let told: Value = serde_json::from_str(&ran.stdout).unwrap();
        (told, ran.stderr)
    };
    let (outcome, noted) = told(&["--time=1s"]);
    assert_eq!(outcome["cap_bytes_per_second"], 2_500_000);
    assert!(noted.contains("capped at 20.0 Mbit/s"), "{noted}");
    pair.region
        .table(&["tunnel", "shape", "edge", "--send-rate=8Mbit"]);
    let (outcome, noted) = told(&["--time=1s", "--reverse"]);
    assert_eq!(outcome["cap_bytes_per_second"], 1_000_000);
    assert!(noted.contains("from region is capped at 8.0"), "{noted}");
    assert!(outcome["loss_ratio"].as_f64().is_some(), "{outcome}");
    // A thin link is not filled for longer than was asked for by what waits in front of it.
    pair.edge
        .table(&["tunnel", "shape", "region", "--send-rate=1Mbit"]);
    let (outcome, _) = told(&["--time=2s"]);
    let time_ms = outcome["time_ms"].as_u64().unwrap();
    assert!((500..4500).contains(&time_ms), "{outcome}");

    let nobody = ["tunnel", "bench", "branch"];
    pair.edge.refuses(&nobody, (1, "E_NOT_FOUND"), "branch");
    pair.region
        .refuses(&["tunnel", "bench", "edge"], (1, "E_DENIED"), "bench");
}

#[test]
fn measurements_show_on_a_terminal_how_far_they_are_and_tables_fit_it() {
    let pair = Pair::start();
    let probe = ["tunnel", "probe", "region", "--bytes=1GiB", "--time=1s"];
    let mut opened = OPEN;
    opened[2] = "a-channel-of-a-long-name";
    pair.edge.table(&opened);
    for (words, what) in [
        (&BENCH[..], "bench to region: 1 s left, "),
        (
            &line(&BENCH, &["--reverse"]),
            "bench from region: 1 s left, ",
        ),
        (&probe, "probe to region: 1 s left, "),
    ] {
        let Some(shown) = pair.edge.screen(words, 100) else {
            return;
        };
        assert!(shown.contains(what), "{words:?}: {shown:?}");
        assert!(shown.contains(" so far"), "{words:?}: {shown:?}");
        // The line is gone when the result comes.
        let erased = shown.rfind("\x1b[2K").expect("a line was drawn");
        assert!(!shown[erased..].contains(" so far"), "{words:?}: {shown:?}");
        let ran = pair.edge.run(words);
        assert!(!ran.stderr.contains("left"), "{ran:?}");
    }
    for words in [&["status"][..], &["channel", "ls"], &FORECAST] {
        let shown = pair.edge.screen(words, 80).expect("there was one before");
        let columns = shown.lines().find(|line| line.starts_with("PEER"));
        let table = if words == ["status"] {
            let from = shown.find("PEER").expect("a table of links");
            shown[from..].lines().take(3).collect()
        } else {
            shown.lines().collect::<Vec<_>>()
        };
        let widest = table.iter().map(|line| line.chars().count()).max();
        assert!(
            widest.is_some_and(|widest| widest <= 80),
            "{columns:?} {shown}"
        );
    }
}

#[test]
fn the_status_shows_the_link_what_it_carries_and_when_it_is_gone() {
    let mut pair = Pair::start();
    let table = pair.edge.table(&["status"]);
    assert!(table.starts_with("migrator  E_UNREACHABLE"), "{table}");
    let mut lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // The site is what commands take; its host stands beside it.
    let is_it = |line: &Vec<&str>| line.starts_with(&["region", "box", "healthy"]);
    assert!(lines.any(|line| is_it(&line)), "{table}");
    assert!(field(&table, "key exchange").ends_with("hybrid"), "{table}");
    let document = pair.edge.document(&["status"], "overview");
    assert_eq!(document["migrator"]["problem"]["code"], "E_UNREACHABLE");
    let tunnel = &document["tunnel"]["status"];
    assert_eq!(
        (&tunnel["site"], &tunnel["links"][0]["host"]),
        (&"edge".into(), &"box".into())
    );

    kill_process(Pid::from_child(&pair.region.child), Signal::TERM).unwrap();
    pair.region.child.wait().unwrap();
    wait_until("the link is not seen to go", || {
        pair.edge.link()["state"] == "down"
    });
    let table = pair.edge.table(&["status"]);
    assert!(table.contains("\nregion: "), "a remedy: {table}");
    // What is not there is not measured.
    let mut lines = table.lines().map(|line| line.split_whitespace().collect());
    let is_it =
        |line: &Vec<&str>| line.starts_with(&["region", "-", "down", "-", "-", "-", "-", "-", "-"]);
    assert!(lines.any(|line| is_it(&line)), "{table}");
    let probe = ["tunnel", "probe", "region"];
    pair.edge.refuses(&probe, (75, "E_UNREACHABLE"), "region");
    // What was wished before holds when the link is back.
    let shaped = ["tunnel", "shape", "region", "--send-rate=50Mbit"];
    assert_eq!(field(&pair.edge.table(&shaped), "cap"), "50.0 Mbit/s");
}

#[test]
fn a_tunnel_that_does_not_run_is_named_with_its_option() {
    for words in [
        ["channel", "ls"].as_slice(),
        &["channel", "cap", "till", "none"],
        &["forecast", "region"],
        &["tunnel", "probe", "region"],
        &["tunnel", "shape", "region"],
        &["tunnel", "service", "till"],
        &["tunnel", "bench", "region"],
    ] {
        let ran = run(&[words, &["--tunnel-socket=/nowhere/t.sock"]].concat());
        ran.failed(75, "E_UNREACHABLE");
        let is_named = ran
            .stderr
            .contains("--tunnel-socket or TOWPATH_TUNNEL_SOCKET");
        assert!(is_named, "{words:?}: {ran:?}");
    }
}

#[test]
fn words_that_no_command_knows_are_refused_as_text_and_as_a_document() {
    for words in [
        ["tunnel", "bench", "region", "--class=bolk"].as_slice(),
        &["tunnel", "shape", "region", "--class=bolk", "--weight=3"],
        &["tunnel", "shape", "region", "--weight=3"],
        &["tunnel", "bench", "region", "--time=1ms"],
        &["forecast", "region", "--at=tomorrow"],
        &["forecast", "region", "--direction=sideways"],
        &[
            "channel",
            "open",
            "till",
            "--listen=till:1",
            "--peer=a",
            "--service=b",
        ],
    ] {
        let ran = run(words);
        assert_eq!(ran.status, 2, "{ran:?}");
        assert!(ran.stderr.starts_with("error E_USAGE: "), "{ran:?}");
        for form in [["-o", "json"].as_slice(), &["-ojson"], &["--output=json"]] {
            let ran = run(&[words, form].concat());
            assert_eq!((ran.status, ran.stdout.as_str()), (2, ""), "{ran:?}");
            let problem: Value = serde_json::from_str(&ran.stderr).unwrap_or_default();
            assert_eq!(problem["schema"], "towpath.v1.error", "{words:?}: {ran:?}");
            assert_eq!(problem["code"], "E_USAGE");
            for field in ["message", "cause", "remedy"] {
                let text = problem[field].as_str();
                assert!(text.is_some_and(|text| !text.is_empty()), "{problem}");
            }
        }
    }
}
