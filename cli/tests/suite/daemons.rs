//! The commands that need no host: configuration, certificates, completions, the relay, and a
//! tunnel alone.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::{DEADLINE, Ran, run, towpath, word};
use rustix::fs::{CWD, Mode, mkfifoat};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn write(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// Waits for a child that is about to end, and returns what it did.
pub(crate) fn end_of(mut child: Child) -> Ran {
    let deadline = Instant::now() + DEADLINE;
    while child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it did not end");
        std::thread::yield_now();
    }
    Ran::of(&child.wait_with_output().unwrap())
}

#[test]
fn l06_config_check_names_the_place_and_the_fix() {
    let folder = tempfile::tempdir().unwrap();
    let good = "trust_domain = \"d\"\nsite = \"edge\"\nhost = \"box\"\n";
    let path = write(folder.path(), "m.toml", good);
    let check = |path: &Path| run(&["config", "check", word(path)]);
    let ran = check(&path);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stdout.contains("migrator"), "{ran:?}");
    let document = run(&["config", "check", word(&path), "-o", "json"]).document("config");
    assert_eq!(document["valid"], true);
    for (text, place) in [
        (
            "trust_domain = \"d\"\nsite = \"edge\"\nhots = \"box\"\n",
            ":3:1: unknown key `hots`; did you mean `host`?",
        ),
        (
            "trust_domain = \"d\"\nsite = 7\n",
            ":2:8: 7 is a number, and a text is wanted",
        ),
        (
            "trust_domain = \"d\"\ntrust_domain = \"d\"\n",
            ":2:1: duplicate key",
        ),
        ("[quota]\nguests = 0\n", "`trust_domain` is missing"),
    ] {
        let ran = check(&write(folder.path(), "bad.toml", text));
        ran.failed(2, "E_CONFIG");
        assert!(ran.stderr.contains(place), "{ran:?}");
    }
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let ran = check(&path);
    ran.failed(2, "E_CONFIG");
    assert!(ran.stderr.contains("chmod go-w"), "{ran:?}");
    let none = check(&folder.path().join("none.toml"));
    none.failed(2, "E_CONFIG");
    assert!(
        none.stderr.contains("remedy: check that the path is right"),
        "{none:?}"
    );
    let unclear = write(folder.path(), "u.toml", "site = \"edge\"\n");
    check(&unclear).failed(2, "E_USAGE");
}

#[test]
fn l06_config_check_opens_the_files_that_the_start_will() {
    let folder = tempfile::tempdir().unwrap();
    let config = tunnel_config(folder.path());
    let good = fs::read_to_string(&config).unwrap();
    let identity = folder.path().join("box");
    let key = identity.join("key.pem");
    let refused = |text: &str, place: &str, why: &str| {
        let path = write(folder.path(), "bad.toml", text);
        let ran = run(&["config", "check", word(&path)]);
        ran.failed(1, "E_CERTIFICATE");
        let place = format!("bad.toml{place}: ");
        assert!(ran.stderr.contains(&place), "{place} {ran:?}");
        assert!(ran.stderr.contains(why), "{why} {ran:?}");
    };
    // Each file has a line of its own in the configuration, in the order in which files are opened.
    for (line, name) in [(8, "cert"), (9, "key"), (10, "ca")] {
        let text = good.replace(&format!("/{name}.pem"), "/none.pem");
        let place = format!(":{line}:1: certificates.{name}");
        refused(&text, &place, "No such file");
    }
    let other = good.replace("/key.pem", "/ca.pem");
    fs::set_permissions(identity.join("ca.pem"), fs::Permissions::from_mode(0o600)).unwrap();
    refused(&other, ":9:1: certificates.key", "no private key");
    let lists = format!("{good}crl = \"{}/none.pem\"\n", identity.display());
    refused(&lists, ":11:1: certificates.crl", "No such file");
    let authority = folder.path().join("authority");
    let host = ["--site=edge", "--host=box"];
    let revoke = [&["revoke", "--authority", word(&authority)], &host[..]].concat();
    certs(&revoke).document("revocation-list");
    fs::copy(authority.join("crl.pem"), identity.join("none.pem")).unwrap();
    refused(&lists, ":8:1: certificates.cert", "is revoked by");
    fs::remove_file(identity.join("none.pem")).unwrap();
    // A pipe to which nobody ever writes.
    let pipe = identity.join("pipe.pem");
    mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
    let piped = good.replace("/cert.pem", "/pipe.pem");
    refused(&piped, ":8:1: certificates.cert", "plain file");
    let other = good.replace("host = \"box\"", "host = \"rack\"");
    refused(&other, ":2:1: host", "names edge/box");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    refused(&good, ":9:1: certificates.key", "chmod 600");
    // The start of the daemon reports the same place.
    let started = run(&["tunnel", "run", "--config", word(&config)]);
    assert_ne!(started.status, 0, "{started:?}");
    for part in [":9:1: certificates.key", "chmod 600"] {
        assert!(started.stderr.contains(part), "{started:?}");
    }
}

#[test]
fn config_check_takes_whichever_key_is_the_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let config = tunnel_config(folder.path());
    let [key, next] = ["key.pem", "next.pem"].map(|name| folder.path().join("box").join(name));
    let text = fs::read_to_string(&config).unwrap();
    let text = text + &format!("next_key = \"{}\"\n", next.display());
    fs::write(&config, text).unwrap();
    let check = || run(&["config", "check", word(&config)]);
    // The next key is optional.
    assert_eq!(check().status, 0);
    fs::copy(&key, &next).unwrap();
    fs::write(&key, "the one before").unwrap();
    assert_eq!(check().status, 0);
    fs::set_permissions(&next, fs::Permissions::from_mode(0o644)).unwrap();
    let open = check();
    for part in [": certificates.next_key: ", "chmod 600"] {
        assert!(open.status != 0 && open.stderr.contains(part), "{open:?}");
    }
}

#[test]
fn config_check_says_which_files_it_may_not_open() {
    let folder = tempfile::tempdir().unwrap();
    let config = tunnel_config(folder.path());
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let key = folder.path().join("box/key.pem");
    for path in [folder.path(), &folder.path().join("box")] {
        mode(path, 0o755);
    }
    for name in ["tunnel.toml", "box/cert.pem", "box/ca.pem"] {
        mode(&folder.path().join(name), 0o644);
    }
    let mut command = towpath(&["config", "check", word(&config), "-o", "json"]);
    if rustix::process::geteuid().is_root() {
        command.uid(65534).gid(65534);
    } else {
        mode(&key, 0o000);
    }
    let Ok(output) = command.output() else {
        println!("skipped: the program cannot be run as another user");
        return;
    };
    let checked = Ran::of(&output).document("config");
    assert_eq!(checked["not_opened"], serde_json::json!([word(&key)]));
    let own = run(&["config", "check", word(&config), "-o", "json"]).document("config");
    if rustix::process::geteuid().is_root() {
        assert_eq!(own["not_opened"], serde_json::json!([]));
    }
}

#[test]
fn config_check_knows_that_a_unit_which_does_not_run_has_no_credentials() {
    let folder = tempfile::tempdir().unwrap();
    let config = tunnel_config(folder.path());
    let text = fs::read_to_string(&config).unwrap();
    let at = |key: &str| {
        let line = |line: &str| match line.starts_with("key = ") {
            true => format!("key = \"{key}\"\n"),
            false => format!("{line}\n"),
        };
        fs::write(&config, text.lines().map(line).collect::<String>()).unwrap();
        run(&["config", "check", word(&config), "-o", "json"])
    };
    let credential = "/run/credentials/towpath-test-that-never-runs.service/key.pem";
    let checked = at(credential).document("config");
    assert_eq!(checked["not_opened"], serde_json::json!([credential]));
    // A missing file that is no credential is an error.
    let missing = folder.path().join("box/nothing.pem");
    assert_ne!(at(word(&missing)).status, 0);
}

#[test]
fn the_configurations_in_the_documentation_are_right() {
    let folder = tempfile::tempdir().unwrap();
    let document = include_str!("../../../docs/cli.md");
    let examples: Vec<&str> = document
        .split("```toml\n")
        .skip(1)
        .filter_map(|rest| rest.split("```").next())
        .collect();
    assert_eq!(examples.len(), 3);
    // Replaces the certificate files of the examples by those of real hosts.
    let identities = [("edge", "box-1"), ("region", "rack-1")];
    let identities = identities.map(|host| (host.1, identity_of(folder.path(), host)));
    for example in examples {
        let host = |(name, _): &&(&str, PathBuf)| example.contains(&format!("host = \"{name}\""));
        let (_, identity) = identities.iter().find(host).unwrap();
        let example = example.replace("/etc/towpath/identity", word(identity));
        let ran = run(&[
            "config",
            "check",
            word(&write(folder.path(), "e.toml", &example)),
        ]);
        assert_eq!(ran.status, 0, "{ran:?}");
    }
}

#[test]
fn certificates_are_made_issued_and_shown() {
    let folder = tempfile::tempdir().unwrap();
    let (authority, host) = (folder.path().join("authority"), folder.path().join("box-1"));
    let init = [
        "certs",
        "init",
        "--trust-domain=shop.example",
        "--dir",
        word(&authority),
    ];
    let ran = run(&init);
    assert_eq!(ran.status, 0, "{ran:?}");
    assert!(ran.stdout.contains("next: towpath certs issue"), "{ran:?}");
    let again = run(&init);
    again.failed(1, "E_STATE");
    assert!(
        again.stderr.contains("another folder with --dir"),
        "{again:?}"
    );
    let deep = folder.path().join("none/authority");
    let deep = run(&[&init[..4], &[word(&deep)]].concat());
    deep.failed(1, "E_PATH");
    assert!(deep.stderr.contains("the folder above it"), "{deep:?}");
    let issue = [
        "certs",
        "issue",
        "--authority",
        word(&authority),
        "--site=edge",
        "--host=box-1",
        "--out",
        word(&host),
        "-o",
        "json",
    ];
    let issued = run(&issue).document("issued");
    assert_eq!(
        issued["identity"],
        "spiffe://shop.example/site/edge/host/box-1"
    );
    let key = Path::new(issued["key"].as_str().unwrap());
    assert_eq!(
        fs::metadata(key).unwrap().permissions().mode() & 0o777,
        0o600
    );
    let ran = run(&["certs", "show", issued["cert"].as_str().unwrap()]);
    assert!(
        ran.stdout.contains("edge") && ran.stdout.contains("box-1"),
        "{ran:?}"
    );
    let shown = run(&["certs", "show", word(key)]);
    shown.failed(1, "E_CERTIFICATE");
    assert!(shown.stderr.contains("such as cert.pem"), "{shown:?}");
    let again = run(&issue[..issue.len() - 2]);
    again.failed(1, "E_STATE");
    assert!(
        again.stderr.contains("another folder with --out"),
        "{again:?}"
    );
}

/// The arguments for the first host.
const BOX_1: [&str; 2] = ["--site=edge", "--host=box-1"];

/// Runs `towpath certs` with JSON output.
fn certs(words: &[&str]) -> Ran {
    run(&[&["certs"], words, &["-o", "json"]].concat())
}

fn make_authorities(folders: &[&str]) {
    for folder in folders {
        let init = ["init", "--trust-domain=shop.example", "--dir", folder];
        certs(&init).document("authority");
    }
}

#[test]
fn certificates_are_renewed_listed_checked_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (old, next, host) = (path("authority"), path("next"), path("box-1"));
    make_authorities(&[&old, &next]);
    let issue = [&["issue", "--authority", &old, "--out", &host], &BOX_1[..]].concat();
    let first = certs(&issue).document("issued");
    let renewed = certs(&["renew", "--authority", &old, "--dir", &host, "--new-key"]);
    assert_ne!(renewed.document("issued")["serial"], first["serial"]);
    let moved = [
        "renew",
        "--authority",
        &next,
        "--overlap",
        &old,
        "--dir",
        &host,
    ];
    certs(&moved).document("issued");
    let checked = certs(&["verify", &host]).document("certificate-check");
    assert_eq!(checked["is_good"], true);
    let checks = checked["checks"].as_array().unwrap();
    let of = |check: &str| {
        let found = checks.iter().find(|one| one["check"] == check);
        found.unwrap()["detail"].as_str().unwrap().to_owned()
    };
    assert_eq!(of("authority").matches("shop.example").count(), 2);

    let list = certs(&["ls", "--authority", &old]).document("certificates");
    assert_eq!(list["certificates"].as_array().unwrap().len(), 2);
    let table = run(&["certs", "ls", "--authority", &old]).stdout;
    assert_eq!(table.matches("superseded").count(), 1, "{table}");
    let reason = "--reason=key-compromise";
    let revoke = [&["revoke", "--authority", &old, reason], &BOX_1[..]].concat();
    let revoked = certs(&revoke).document("revocation-list");
    assert_eq!(
        (&revoked["number"], &revoked["revoked_count"]),
        (&1.into(), &2.into())
    );
    let twice = certs(&revoke).document("revocation-list");
    assert_eq!(
        (&twice["is_new"], &twice["number"]),
        (&false.into(), &1.into())
    );
    assert_eq!(run(&["certs", "revoke", "--authority", &old]).status, 2);
    let refresh = ["revoke", "--authority", &old, "--refresh", "--days=7"];
    assert_eq!(certs(&refresh).document("revocation-list")["number"], 2);
    let table = run(&["certs", "ls", "--authority", &old]).stdout;
    assert_eq!(table.matches("key-compromise").count(), 2, "{table}");

    fs::set_permissions(format!("{host}/key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let wrong = run(&["certs", "verify", &host]);
    assert!(wrong.stdout.contains("chmod 600"), "{wrong:?}");
    wrong.failed(1, "E_CERTIFICATE");

    let other = path("box-2");
    let box_2 = ["--site=edge", "--host=box-2"];
    let issue = [&["issue", "--authority", &old, "--out", &other], &box_2[..]].concat();
    certs(&issue).document("issued");
    certs(&[&["revoke", "--authority", &old], &box_2[..]].concat()).document("revocation-list");
    fs::copy(format!("{old}/crl.pem"), format!("{other}/crl.pem")).unwrap();
    let renew = ["renew", "--authority", &old, "--dir", &other];
    for (words, code) in [
        (&["verify", &other][..], "E_CERTIFICATE"),
        (&renew, "E_STATE"),
    ] {
        let ran = run(&[&["certs"], words].concat());
        ran.failed(1, code);
        assert!(ran.stderr.contains("issue another certificate"), "{ran:?}");
    }
}

#[test]
fn all_certificates_and_lists_of_a_file_are_shown_and_a_prefix_names_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (old, next, host) = (path("authority"), path("next"), path("box-1"));
    make_authorities(&[&old, &next]);
    let issue = [&["issue", "--authority", &old, "--out", &host], &BOX_1[..]].concat();
    let serial = certs(&issue).document("issued")["serial"].clone();
    let serial = serial.as_str().unwrap();
    let overlap = [
        "renew",
        "--authority",
        &old,
        "--overlap",
        &next,
        "--dir",
        &host,
    ];
    let renewed = run(&[&["certs"], &overlap[..]].concat()).stdout;
    let carried = "to be carried  ca.pem, cert.pem to the host; the rest is as it was\n";
    assert!(renewed.ends_with(carried), "{renewed}");

    let both = format!("{host}/ca.pem");
    let shown = run(&["certs", "show", &both]).stdout;
    assert_eq!(shown.matches("authority   yes").count(), 2, "{shown}");
    let document = certs(&["show", &both]).document("certificate");
    let chain = document["chain"].as_array().unwrap();
    assert_eq!((chain.len(), &chain[0]["serial"]), (2, &document["serial"]));

    let table = run(&["certs", "ls", "--authority", &old]).stdout;
    let is_short = |word: &&str| serial.starts_with(*word);
    let prefix = table.split_whitespace().find(is_short).expect("a prefix");
    assert!(prefix.len() >= 8 && prefix.len() < serial.len(), "{table}");
    let few = ["revoke", "--authority", &old, "--serial", &prefix[..7]];
    let ran = run(&[&["certs"], &few[..]].concat());
    ran.failed(2, "E_USAGE");
    assert!(
        ran.stderr.contains("towpath certs revoke --help"),
        "{ran:?}"
    );
    let revoke = ["revoke", "--authority", &old, "--serial", prefix];
    let revoked = certs(&revoke).document("revocation-list");
    assert_eq!(revoked["revoked"][0]["serial"], serial);

    let list = format!("{old}/crl.pem");
    let shown = run(&["certs", "show", &list]);
    assert!(shown.stdout.contains(serial), "{shown:?}");
    let document = certs(&["show", &list]).document("revocation-lists");
    assert_eq!(document["lists"][0]["number"], 1);
    assert_eq!(document["lists"][0]["revoked"], serde_json::json!([serial]));
}

#[test]
fn config_show_fills_in_every_default_and_its_file_is_right() {
    let folder = tempfile::tempdir().unwrap();
    let tunnel = tunnel_config(folder.path());
    let text = fs::read_to_string(&tunnel).unwrap();
    let with_peer = format!(
        "{text}\n[[peers]]\nsite = \"region\"\nsend_rate = \"100Mbit\"\n\
         [[services]]\nname = \"web\"\ntarget = \"tcp:127.0.0.1:80\"\nallow = [\"region\"]\n"
    );
    let tunnel = write(folder.path(), "tunnel.toml", &with_peer);
    let migrator = "trust_domain = \"d\"\nsite = \"edge\"\nhost = \"box\"\n";
    let migrator = write(folder.path(), "migrator.toml", migrator);
    for (file, daemon, parts) in [
        (
            &tunnel,
            "tunnel",
            &[
                "peer_streams = 64",
                "time_zone = \"UTC\"",
                "[peers.shares.bulk]\nweight = 1\n",
                "send_rate = \"100Mbit\"",
            ][..],
        ),
        (
            &migrator,
            "migrator",
            &[
                "socket = \"/run/towpath/migrator.sock\"",
                "memory = \"16GiB\"",
                "\"guest-process\"]",
                "filter = \"info\"",
            ],
        ),
    ] {
        let show = |file: &Path| run(&["config", "show", word(file)]);
        let shown = show(file);
        assert_eq!((shown.status, shown.stderr.as_str()), (0, ""), "{shown:?}");
        for part in parts {
            assert!(shown.stdout.contains(part), "{part}: {}", shown.stdout);
        }
        let words = ["config", "show", word(file), "-o", "json"];
        let document = run(&words).document("effective-config");
        assert_eq!(document["daemon"], daemon);
        assert!(document["config"]["limits"].is_object(), "{document}");
        // The output is a configuration file with the same meaning.
        let copy = write(folder.path(), &format!("{daemon}-copy.toml"), &shown.stdout);
        let checked = run(&["config", "check", word(&copy)]);
        assert_eq!(checked.status, 0, "{checked:?}");
        let again = show(&copy).stdout;
        let rest = |text: &str| text.split_once('\n').unwrap().1.to_owned();
        assert_eq!(rest(&again), rest(&shown.stdout));
    }
    let wrong = write(folder.path(), "wrong.toml", "[quota]\nguests = 0\n");
    run(&["config", "show", word(&wrong)]).failed(2, "E_CONFIG");
}

#[test]
fn completions_name_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let ran = run(&["completions", shell]);
        assert_eq!(ran.status, 0);
        assert!(ran.stdout.contains("migrate"), "{shell}");
    }
}

#[test]
fn scripts_and_pages_are_had_as_documents() {
    let script = run(&["completions", "fish"]).stdout;
    let document = run(&["completions", "fish", "-o", "json"]).document("completions");
    assert_eq!(document["shell"], "fish");
    assert_eq!(document["script"], script.as_str());
    let folder = tempfile::tempdir().unwrap();
    let man = folder.path().join("man1");
    let man = man.to_str().unwrap();
    assert_eq!(run(&["man", man]).stdout, "");
    let document = run(&["man", man, "--output=json"]).document("man");
    let pages = document["pages"].as_array().unwrap();
    assert_eq!(pages.len(), fs::read_dir(man).unwrap().count());
    assert!(
        pages
            .iter()
            .all(|page| fs::exists(page.as_str().unwrap()).unwrap())
    );
}

#[test]
fn daemons_log_documents_and_fail_with_one() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    for daemon in ["tunnel", "migrator"] {
        let config = missing.to_str().unwrap();
        let ran = run(&[daemon, "run", "--config", config, "-o", "json"]);
        let document: Value = serde_json::from_str(&ran.stderr).unwrap();
        assert_eq!(document["schema"], "towpath.v1.error", "{ran:?}");
    }
    // A daemon that is given the other daemon's file is told so.
    for (daemon, text, other) in [
        (
            "tunnel",
            "run_dir = \"/run/x\"\n",
            "start the migrator with it",
        ),
        ("migrator", "[[peers]]\n", "start the tunnel with it"),
    ] {
        let file = write(folder.path(), "others.toml", text);
        let ran = run(&[daemon, "run", "--config", word(&file)]);
        ran.failed(2, "E_CONFIG");
        assert!(ran.stderr.contains(other), "{ran:?}");
    }
    // A daemon that starts, and ends once its standard input is closed.
    let [state, run_dir] = ["state", "run"].map(|name| folder.path().join(name));
    let text = format!(
        "trust_domain = \"d\"\nsite = \"edge\"\nhost = \"box\"\nstate_dir = {state:?}\nrun_dir = {run_dir:?}\n"
    );
    let config = write(folder.path(), "migrator.toml", &text);
    let config = word(&config);
    let words = [
        "migrator",
        "run",
        "--until-stdin-closes",
        "--config",
        config,
        "-o",
        "json",
    ];
    let mut daemon = towpath(&words)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(daemon.stderr.take().unwrap());
    let mut text = String::new();
    while !text.contains("migrator is ready") {
        assert_ne!(log.read_line(&mut text).unwrap(), 0, "{text}");
    }
    drop(daemon.stdin.take());
    log.read_to_string(&mut text).unwrap();
    assert!(daemon.wait().unwrap().success(), "{text}");
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines.collect();
    assert!(!lines.is_empty());
    for line in &lines {
        assert_eq!(line["schema"], "towpath.v1.log", "{line}");
    }
}

#[test]
fn a_closed_pipe_behind_help_is_no_failure() {
    let script = format!("{} --help | true", env!("CARGO_BIN_EXE_towpath"));
    let output = Command::new("sh").arg("-c").arg(script).output().unwrap();
    assert_eq!(Ran::of(&output).stderr, "");
}

#[test]
fn the_relay_says_its_door_relays_and_ends_with_its_standard_input() {
    let far = UdpSocket::bind("127.0.0.1:0").unwrap();
    far.set_read_timeout(Some(DEADLINE)).unwrap();
    let to = format!("--to={}", far.local_addr().unwrap());
    let mut child = towpath(&["relay", &to, "--rate=1Gbit", "--rtt=2ms"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let ready: Value = serde_json::from_str(&line).unwrap();
    let near = UdpSocket::bind("127.0.0.1:0").unwrap();
    near.send_to(b"hello", ready["door"].as_str().unwrap())
        .unwrap();
    let mut buffer = [0; 16];
    assert_eq!(far.recv(&mut buffer).unwrap(), 5);
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"cut a\nheal\n").unwrap();
    drop(stdin);
    assert_eq!(end_of(child).status, 0);
}

/// Writes a tunnel's configuration, with all the files it needs, to a folder.
pub(crate) fn tunnel_config(folder: &Path) -> PathBuf {
    let host = tunnel_identity(folder, "box");
    let (run_dir, host) = (folder.join("run"), host.display());
    let run_dir = run_dir.display();
    let text = format!(
        "site = \"edge\"\nhost = \"box\"\nlisten = \"127.0.0.1:0\"\nsocket = \"{run_dir}/t.sock\"\n\
         [admin]\nsocket = \"{run_dir}/admin.sock\"\n\
         [certificates]\ncert = \"{host}/cert.pem\"\nkey = \"{host}/key.pem\"\nca = \"{host}/ca.pem\"\n"
    );
    write(folder, "tunnel.toml", &text)
}

/// Issues an identity to a host at the edge, by an authority of its own.
fn tunnel_identity(folder: &Path, name: &str) -> PathBuf {
    identity_of(folder, ("edge", name))
}

fn identity_of(folder: &Path, (site, name): (&str, &str)) -> PathBuf {
    let (authority, host) = (folder.join("authority"), folder.join(name));
    run(&[
        "certs",
        "init",
        "--trust-domain=d",
        "--dir",
        word(&authority),
    ]);
    run(&[
        "certs",
        "issue",
        "--authority",
        word(&authority),
        &format!("--site={site}"),
        &format!("--host={name}"),
        "--out",
        word(&host),
    ]);
    host
}

fn start_tunnel(config: &Path, notify: &Path, more: &[&str]) -> Child {
    towpath(&[&["tunnel", "run", "--config", word(config)], more].concat())
        .env("NOTIFY_SOCKET", notify)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn a_second_tunnel_is_told_of_the_first_though_its_address_is_taken_too() {
    let folder = tempfile::tempdir().unwrap();
    let config = tunnel_config(folder.path());
    let path = folder.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut first = start_tunnel(&config, &path, &["--until-stdin-closes"]);
    assert!(
        notify.recv(&mut [0; 512]).unwrap() > 0,
        "it says that it is ready"
    );
    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let text = fs::read_to_string(&config).unwrap();
    let text = text.replace("127.0.0.1:0", &listen);
    let config = write(folder.path(), "second.toml", &text);
    let second = end_of(start_tunnel(&config, &path, &[]));
    assert_eq!(second.status, 69, "{second:?}");
    assert!(
        second.stderr.contains("error E_ALREADY_RUNNING: "),
        "{second:?}"
    );
    drop(first.stdin.take());
    assert_eq!(end_of(first).status, 0);
}

#[test]
fn a_hangup_while_it_starts_ends_no_tunnel() {
    let folder = tempfile::tempdir().unwrap();
    let (path, state) = (folder.path().join("notify"), folder.path().join("state"));
    let text = fs::read_to_string(tunnel_config(folder.path())).unwrap();
    let text = format!("state_dir = \"{}\"\n{text}", state.display());
    let config = write(folder.path(), "kept.toml", &text);
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut tunnel = start_tunnel(&config, &path, &["--until-stdin-closes"]);
    // Its lock comes before all that takes time.
    let deadline = Instant::now() + DEADLINE;
    while !fs::read_dir(&state).is_ok_and(|mut files| files.next().is_some()) {
        assert!(Instant::now() < deadline, "it takes no lock");
        std::thread::yield_now();
    }
    kill_process(Pid::from_child(&tunnel), Signal::HUP).unwrap();
    let mut heard = [0; 512];
    let count = loop {
        match notify.recv(&mut heard) {
            // A wait with a limit is not taken up again after a signal.
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            other => break other.unwrap(),
        }
    };
    assert!(heard[..count].starts_with(b"READY=1"));
    drop(tunnel.stdin.take());
    assert_eq!(end_of(tunnel).status, 0);
}

#[test]
fn a_tunnel_says_when_it_is_ready_is_there_once_and_ends_when_told() {
    let folder = tempfile::tempdir().unwrap();
    let config = tunnel_config(folder.path());
    let ran = run(&["config", "check", word(&config)]);
    assert!(ran.stdout.contains("tunnel"), "{ran:?}");
    let path = folder.path().join("notify");
    let notify = UnixDatagram::bind(&path).unwrap();
    notify.set_read_timeout(Some(DEADLINE)).unwrap();
    // Skips the messages about links in between.
    let hear_until = |wanted: &str| {
        let mut heard = [0; 512];
        loop {
            match notify.recv(&mut heard) {
                Ok(count) if heard[..count] == *wanted.as_bytes() => return,
                // After a signal, a receive with a timeout is not restarted.
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => drop(other.unwrap()),
            }
        }
    };
    for way_to_end in ["SIGTERM", "stdin"] {
        let mut first = start_tunnel(&config, &path, &["--until-stdin-closes"]);
        hear_until("READY=1\n");
        let second = end_of(start_tunnel(&config, &path, &[]));
        assert_eq!(second.status, 69, "{second:?}");
        assert!(
            second.stderr.contains("error E_ALREADY_RUNNING: "),
            "{second:?}"
        );
        let admin = folder.path().join("run/admin.sock");
        let none = folder.path().join("none.sock");
        let status = run(&[
            "status",
            "--tunnel-socket",
            word(&admin),
            "--socket",
            word(&none),
            "-o",
            "json",
        ]);
        let document = status.document("overview");
        assert_eq!(document["tunnel"]["status"]["site"], "edge");
        if way_to_end == "SIGTERM" {
            kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
            hear_until("STOPPING=1\n");
        } else {
            drop(first.stdin.take());
        }
        let ran = end_of(first);
        assert_eq!(ran.status, 0, "{way_to_end}: {ran:?}");
    }
}
