//! The operator's commands for tunnels, against two linked tunnels: as tables and as documents.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::linked::{Pair, Tunnel, field, line, now_unix, wait_until};
use crate::support::{DEADLINE, run};

/// The command that opens a channel to the echo service.
pub(crate) const OPEN: [&str; 6] = [
    "channel",
    "open",
    "till",
    "--listen=tcp:127.0.0.1:0",
    "--peer=region",
    "--service=till",
];

const SHAPE: [&str; 3] = ["tunnel", "shape", "region"];

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

    // Each change gets the next generation. What is not named has its default.
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
    let remedy = "remedy: use a generation above 7";
    assert!(ran.stderr.contains(remedy), "{ran:?}");
    let list = edge.document(&["channel", "ls"], "channels");
    let names: Vec<_> = list["channels"].as_array().unwrap().iter().collect();
    assert_eq!((names.len(), &names[0]["name"]), (1, &"dns".into()));
    // A channel that everybody can reach is opened, with a warning.
    let wide = ["channel", "open", "wide", "--listen=udp:0.0.0.0:0"];
    let ran = edge.run(&line(&wide, &to_dns));
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stderr.contains("every interface"), "{ran:?}");
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

    let table = edge.table(&line(&SHAPE, &["--timetable=30Mbit otherwise"]));
    assert_eq!(field(&table, "now"), "30.0 Mbit/s");
    assert_eq!(edge.link()["cap_bits_per_second"], 30_000_000);
    // A floor is a part of a cap: without a cap it would be shown but have no effect.
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
fn the_status_shows_the_link_what_it_carries_and_when_it_is_gone() {
    let mut pair = Pair::start();
    let table = pair.edge.table(&["status"]);
    assert!(table.starts_with("site edge, host box: "), "{table}");
    let mut lines = table
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>());
    // A link is shown by its site, which commands take, with the host beside it.
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
    // Without a link there are no measurements.
    let mut lines = table.lines().map(|line| line.split_whitespace().collect());
    let is_it = |line: &Vec<&str>| {
        // A number of seconds stands between.
        line.starts_with(&["region", "-", "down"]) && line[5..].starts_with(&["-"; 6])
    };
    assert!(lines.any(|line| is_it(&line)), "{table}");
    let probe = ["tunnel", "probe", "region"];
    pair.edge.refuses(&probe, (75, "E_UNREACHABLE"), "region");
    // Settings can be changed without a link; they apply when the link is back.
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

#[test]
fn a_script_learns_from_the_status_whether_links_and_channels_are_well() {
    let mut pair = Pair::start();
    pair.edge.document(&OPEN, "channel");
    let edge = &pair.edge;
    let shown = edge.table(&["status"]);
    assert!(shown.starts_with("site edge, host box: tunnel "), "{shown}");
    let last = shown.lines().last().unwrap();
    assert!(last.starts_with("migrator: not running here"), "{shown}");
    assert!(!shown.contains("E_UNREACHABLE"), "{shown}");
    edge.table(&["status", "--check", "--wait=20s"]);
    edge.table(&["status", "--check", "--peer=region"]);
    let unknown = edge.run(&["status", "--check", "--peer=mars", "--wait=20s"]);
    unknown.failed(1, "E_NOT_FOUND");
    pair.region.child.kill().unwrap();
    let edge = &pair.edge;
    wait_until("the link is lost", || edge.link()["state"] == "down");
    let down = edge.run(&["status", "--check", "--wait=1s"]);
    down.failed(6, "E_UNREACHABLE");
    let said = "the link to region is down, channel till is down";
    assert!(down.stderr.contains(said), "{down:?}");
    let waits = down.stdout.contains("\n1 channel waits for region\n");
    assert!(waits && !down.stdout.contains("channel till"), "{down:?}");
    assert_eq!(edge.run(&["status"]).status, 0);
}

#[test]
fn services_are_listed_with_who_may_reach_them() {
    let pair = Pair::start();
    let table = pair.region.table(&["tunnel", "service"]);
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("SERVICE"), "{table}");
    let bench = lines.iter().find(|line| line.starts_with("bench"));
    let bench = bench.unwrap_or_else(|| panic!("{table}"));
    assert!(bench.contains("builtin:bench") && bench.ends_with("edge"));
    let document = pair.region.document(&["tunnel", "services"], "services");
    let till = &document["services"][1];
    assert_eq!(
        (&till["name"], &till["streams"]),
        (&"till".into(), &0.into())
    );
    let empty = pair.edge.table(&["tunnel", "service"]);
    assert!(empty.contains("[[services]]"), "{empty}");
}

#[test]
fn a_channel_is_tried_without_a_program() {
    let pair = Pair::start();
    pair.edge.document(&OPEN, "channel");
    let test = ["channel", "test", "till"];
    let reached = pair.edge.table(&test);
    assert!(
        reached.starts_with("till at region is reached, in "),
        "{reached}"
    );
    let view = pair.edge.document(&test, "channel-test");
    assert_eq!(view["is_reached"], true, "{view}");
    let none = [
        "channel",
        "open",
        "none",
        "--listen=tcp:127.0.0.1:0",
        "--peer=region",
    ];
    pair.edge
        .document(&line(&none, &["--service=none"]), "channel");
    let denied = ["channel", "test", "none"];
    pair.edge
        .refuses(&denied, (1, "E_DENIED"), "no service none");
    let view = pair.edge.document(&["channel", "show", "none"], "channel");
    assert_eq!(view["state"], "failing", "{view}");
    std::fs::remove_file(pair.folder.path().join("echo.sock")).unwrap();
    pair.edge
        .refuses(&test, (75, "E_UNREACHABLE"), "service till at region");
    pair.edge.refuses(
        &["channel", "test", "nothing"],
        (1, "E_NOT_FOUND"),
        "nothing",
    );
}
