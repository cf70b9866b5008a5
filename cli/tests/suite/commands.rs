//! The operator's commands against a simulated host: documents, tables and exit statuses.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use crate::support::{
    Daemon, Ran, failed, guest, migration, migration_at_target, on_a_terminal, run, screen,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use towpath_migrator::api::{GuestState, GuestView, LinkState, MigrationView, Ownership, Phase};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::MigrationId;

#[test]
fn every_result_is_a_document_with_a_schema() {
    let daemon = Daemon::start();
    let id = "00000000000000000000000000000005";
    for (words, kind) in [
        (["guest", "start", "a", "--memory=8MiB"].as_slice(), "guest"),
        (&["guest", "ls"], "guests"),
        (&["guest", "show", "a"], "guest"),
        (
            &["migrate", "a", "region", "--detach", "--rate=20Mbit"],
            "migration",
        ),
        (&["migration", "ls"], "migrations"),
        (&["migration", "show", id], "migration"),
        (&["migration", "show"], "migration"),
        (&["migration", "cancel"], "migration"),
        (&["status"], "overview"),
        (&["guest", "stop", "a"], "stopped"),
    ] {
        let words = [words, &["-o", "json"]].concat();
        let document = daemon.run(&words).document(kind);
        if words[0] == "migrate" {
            assert_eq!(document["rate_bits_per_second"], 20_000_000);
            assert_eq!(document["max_pause_ms"], 200);
        }
    }
    assert_eq!(daemon.host.notes.lock().unwrap().cancels, 1);
}

#[test]
fn tables_are_plain_and_aligned_and_say_what_to_do_when_empty() {
    let daemon = Daemon::start();
    let empty = daemon.run(&["guest", "ls"]);
    assert!(
        empty.stdout.contains("towpath guest start NAME"),
        "{empty:?}"
    );
    let empty = daemon.run(&["migration", "ls"]);
    assert!(
        empty.stdout.contains("towpath migrate GUEST SITE"),
        "{empty:?}"
    );
    daemon.host.notes.lock().unwrap().guests = vec![guest("a"), guest("till-17")];
    let list = daemon.run(&["guest", "ls"]);
    let lines: Vec<&str> = list.stdout.lines().collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[0].find("STATE"), lines[1].find("running"));
    assert_eq!(lines[1].find("running"), lines[2].find("running"));
    assert!(!list.stdout.contains('\u{1b}') && list.stderr.is_empty());
    let status = daemon.run(&["status"]);
    // The site is shown without the host, because commands take a site.
    assert!(!status.stdout.contains("edge/box"), "{status:?}");
    for (title, value) in [("site", "edge"), ("host", "box")] {
        let mut lines = status.stdout.lines().map(str::split_whitespace);
        let is_there =
            lines.any(|mut line| line.next() == Some(title) && line.next() == Some(value));
        assert!(is_there, "{title}: {status:?}");
    }
    assert!(
        status.stdout.contains("not usable: no /dev/kvm"),
        "{status:?}"
    );
    assert!(
        status.stdout.contains("tunnel  E_UNREACHABLE"),
        "{status:?}"
    );
    assert!(
        status.stdout.contains("\n  remedy: start the daemon"),
        "{status:?}"
    );
}

#[test]
fn an_old_guest_is_booted_again_and_a_running_one_is_not_replaced() {
    let daemon = Daemon::start();
    let mut old = guest("a");
    old.state = GuestState::Crashed;
    daemon.host.notes.lock().unwrap().guests = vec![old];
    let document = daemon
        .run(&["guest", "start", "a", "-o", "json"])
        .document("guest");
    assert_eq!(document["state"], "running");
    assert_eq!(document["made"], false);
    daemon
        .run(&["guest", "start", "a"])
        .failed(3, "E_GUEST_EXISTS");
    // A guest is booted as it was made. Options that differ are refused.
    daemon.host.notes.lock().unwrap().guests[0].state = GuestState::Crashed;
    for other in [
        "--memory=8MiB",
        "--kind=kvm",
        "--dirty-rate=7",
        "--working-set=1MiB",
        "--incompressible=3",
        "--heartbeat=9ms",
    ] {
        let ran = daemon.run(&["guest", "start", "a", other]);
        ran.failed(3, "E_GUEST_EXISTS");
        let option = other.split('=').next().unwrap();
        assert!(
            ran.stderr.contains(&format!("leave {option} out")),
            "{ran:?}"
        );
    }
    let same = [
        "guest",
        "start",
        "a",
        "--memory=256MiB",
        "--kind=auto",
        "--dirty-rate=500",
    ];
    let booted = daemon.run(&same);
    assert!(booted.stdout.starts_with("booted a again"), "{booted:?}");
    assert_eq!(daemon.host.notes.lock().unwrap().guests.len(), 1);
    // After a stop the name is free, and `guest start` reports that it made a new guest.
    let stopped = daemon.run(&["guest", "stop", "a"]).stdout;
    assert!(stopped.contains("nothing is left of it"), "{stopped}");
    let made = daemon.run(&["guest", "start", "a"]);
    assert!(made.stdout.starts_with("made a, a new guest"), "{made:?}");
    let typo = ["guest", "start", "aa", "-o", "json"];
    assert_eq!(daemon.run(&typo).document("guest")["made"], true);
}

#[test]
fn what_is_missing_of_a_guest_is_given_up_and_no_guest_is_made_by_that() {
    let daemon = Daemon::start();
    daemon.host.notes.lock().unwrap().guests = vec![guest("a")];
    let give_up = ["guest", "start", "a", "--give-up"];
    let document = daemon.run(&[&give_up[..], &["-o", "json"]].concat());
    assert_eq!(document.document("guest")["name"], "a");
    daemon
        .run(&["guest", "start", "b", "--give-up"])
        .failed(1, "E_NOT_FOUND");
    let ran = daemon.run(&[&give_up[..], &["--memory=8MiB"]].concat());
    assert_eq!(ran.status, 2, "{ran:?}");
    assert_eq!(daemon.host.notes.lock().unwrap().guests.len(), 1);
}

#[test]
fn a_guest_that_lives_elsewhere_is_not_taken_for_another_of_its_name() {
    let daemon = Daemon::start();
    let (mut moved, mut absent) = (guest("a"), guest("b"));
    (moved.state, moved.ownership) = (GuestState::Moved, Ownership::Released);
    moved.moved_to = Some("region/rack-1".into());
    (absent.state, absent.ownership) = (GuestState::Absent, Ownership::Refused);
    daemon.host.notes.lock().unwrap().guests = vec![moved, absent];
    for (name, said) in [("a", "has moved to region/rack-1"), ("b", "did not come")] {
        let ran = daemon.run(&["guest", "start", name]);
        ran.failed(3, "E_GUEST_EXISTS");
        assert!(ran.stderr.contains(said), "{ran:?}");
        assert!(ran.stderr.contains("forget the record"), "{ran:?}");
    }
    // A guest that is being received cannot be stopped here.
    let mut incoming = guest("c");
    incoming.state = GuestState::Incoming;
    daemon.host.notes.lock().unwrap().guests.push(incoming);
    let ran = daemon.run(&["guest", "start", "c"]);
    ran.failed(3, "E_GUEST_EXISTS");
    assert!(
        ran.stderr.contains("`towpath migration cancel c`"),
        "{ran:?}"
    );
    assert!(!ran.stderr.contains("guest stop"), "{ran:?}");
    let forgot = daemon.run(&["guest", "stop", "a"]).stdout;
    let again = "`towpath guest start a` makes another guest of that name";
    let said = format!("forgot a, which moved to region/rack-1; {again}\n");
    assert_eq!(forgot, said);
    let forgot = daemon.run(&["guest", "stop", "b"]).stdout;
    assert!(
        forgot.starts_with("forgot b, which lives on another host; "),
        "{forgot}"
    );
}

#[test]
fn a_move_is_followed_to_its_end_without_noise() {
    let daemon = Daemon::start();
    let done = MigrationView {
        pause_reported_ms: Some(81),
        switch_reason: Some("converged".into()),
        ..migration(Phase::Done)
    };
    let course = vec![migration(Phase::Preparing), migration(Phase::Copying), done];
    daemon.host.notes.lock().unwrap().course = course;
    let ran = daemon.run(&["migrate", "a", "region"]);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{ran:?}");
    assert!(ran.stdout.contains("pause              81 ms"), "{ran:?}");
    assert!(
        ran.stdout.contains("switched because   converged"),
        "{ran:?}"
    );
    let ran = daemon.run(&["migration", "watch", "-o", "json"]);
    let last: Value = serde_json::from_str(ran.stdout.lines().last().unwrap()).unwrap();
    assert_eq!(last["schema"], "towpath.v1.migration");
    assert_eq!(last["phase"], "done");
}

#[test]
fn a_move_that_fails_says_why_in_its_status() {
    for (end, status, code) in [
        (failed("E_QUOTA", "the guest needs 2 GiB"), 3, "E_QUOTA"),
        (failed("E_ROOT", "roots differ"), 1, "E_ROOT"),
        (failed("E_STALLED", "five times"), 1, "E_STALLED"),
        (failed("E_NOT_CONVERGING", "30"), 3, "E_NOT_CONVERGING"),
        (failed("E_KVM", "no /dev/kvm"), 3, "E_KVM"),
        (
            failed("E_FROM_THE_FUTURE", "who knows"),
            1,
            "E_FROM_THE_FUTURE",
        ),
        (migration(Phase::Cancelled), 1, "E_CANCELLED"),
    ] {
        let daemon = Daemon::start();
        daemon.host.notes.lock().unwrap().course = vec![end];
        let ran = daemon.run(&["migrate", "a", "region"]);
        assert_eq!(ran.status, status, "{ran:?}");
        assert!(
            ran.stderr.starts_with(&format!("error {code}: ")),
            "{ran:?}"
        );
        assert!(ran.stdout.contains("phase"), "{ran:?}");
        assert!(!ran.stderr.contains("by itself"), "it is over: {ran:?}");
    }
}

#[test]
fn what_a_target_refuses_is_said_of_the_target() {
    for (code, remedy) in [
        ("E_GUEST_EXISTS", "`towpath guest ls` at region/rack-1"),
        ("E_KVM", "setting at region/rack-1"),
        ("E_IO", "look at region/rack-1"),
        ("E_QUOTA", "the target's migrator configuration"),
    ] {
        let mut end = failed(code, "so it is there");
        let said = end.error.as_mut().unwrap();
        said.host = Some("region/rack-1".to_owned());
        let daemon = Daemon::start();
        daemon.host.notes.lock().unwrap().course = vec![end];
        let ran = daemon.run(&["migrate", "a", "region"]);
        assert!(
            ran.stderr.contains("region/rack-1 says: so it is there"),
            "{ran:?}"
        );
        assert!(ran.stderr.contains(remedy), "{ran:?}");
        let shown = daemon.run(&["migration", "show"]).stdout;
        let said = format!("{code}: region/rack-1 says: so it is there");
        assert!(shown.contains(&said), "{shown}");
    }
    let daemon = Daemon::start();
    daemon.host.notes.lock().unwrap().refusal = Some(Fault::new(Code::Kvm, "no /dev/kvm"));
    let ran = daemon.run(&["guest", "start", "a", "--kind=kvm"]);
    assert!(ran.stderr.contains("leave `--kind kvm` out"), "{ran:?}");
}

#[test]
fn refusals_have_a_code_a_cause_a_remedy_and_a_status() {
    let daemon = Daemon::start();
    for (code, of_move, of_guest) in [
        (Code::Quota, 3, 3),
        (Code::Busy, 75, 75),
        (Code::Unreachable, 75, 75),
        (Code::State, 3, 1),
        (Code::NotFound, 3, 1),
        (Code::CrlStale, 3, 1),
    ] {
        daemon.host.notes.lock().unwrap().refusal = Some(Fault::new(code, "told to"));
        daemon
            .run(&["migrate", "a", "region"])
            .failed(of_move, code.as_str());
        daemon
            .run(&["guest", "start", "a"])
            .failed(of_guest, code.as_str());
    }
    daemon.run(&["guest", "show", "b"]).failed(1, "E_NOT_FOUND");
    daemon.run(&["migration", "watch"]).failed(1, "E_NOT_FOUND");
    daemon
        .run(&["guest", "start", "b", "--memory=4097"])
        .failed(2, "E_USAGE");
    let gone = ["guest", "ls", "--socket=/nowhere/m.sock"];
    run(&gone).failed(75, "E_UNREACHABLE");
    let ran = run(&["guest", "ls", "--socket=/nowhere/m.sock", "-o", "json"]);
    let problem: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!(problem["schema"], "towpath.v1.error");
    for field in ["code", "message", "cause", "remedy"] {
        assert!(problem[field].is_string(), "{field}");
    }
    run(&["migrate", "a", "../b"]).failed(2, "E_USAGE");
    let ran = run(&["migrate", "a", "b", "--max-pause=2m"]);
    ran.failed(2, "E_USAGE");
    assert!(ran.stderr.contains("must be 1ms to 1m"), "{ran:?}");
    assert!(
        ran.stderr.contains("see `towpath migrate --help`"),
        "{ran:?}"
    );
    daemon.host.notes.lock().unwrap().refusal = Some(Fault::new(Code::Quota, "too large"));
    let ran = daemon.run(&["guest", "start", "c"]);
    assert!(ran.stderr.contains("this host's migrator"), "{ran:?}");
}

#[test]
fn tables_fit_a_narrow_terminal_and_their_ids_are_taken_by_commands() {
    let daemon = Daemon::start();
    let one = MigrationView {
        id: MigrationId(0x0123_4567_89ab << 80),
        pause_reported_ms: Some(1234),
        ..migration(Phase::Done)
    };
    let other = MigrationView {
        id: MigrationId(0x0123_4567_89cd << 80),
        guest: "till-with-a-long-name".parse().unwrap(),
        ..migration(Phase::Cancelled)
    };
    let moved = GuestView {
        moved_to: Some("region/rack-1".into()),
        ..guest("till-with-a-long-name-17")
    };
    {
        let mut notes = daemon.host.notes.lock().unwrap();
        notes.migrations = vec![one.clone(), other];
        notes.guests = vec![guest("a"), moved];
    }
    for words in [["migration", "ls"], ["guest", "ls"]] {
        let Some(shown) = screen(&daemon.command(&words), 80) else {
            return;
        };
        let widest = shown.lines().map(|line| line.chars().count()).max();
        assert!(widest.is_some_and(|widest| widest <= 80), "{shown}");
        let narrow = shown.split_whitespace().count();
        let wide = daemon.run(&words).stdout.split_whitespace().count();
        assert!(narrow < wide, "all of it where nobody looks: {shown}");
    }
    let list = daemon.run(&["migration", "ls"]).stdout;
    let id = list.lines().nth(1).and_then(|line| line.split(' ').next());
    let id = id.unwrap();
    assert_eq!(id, "0123456789a", "{list}");
    let shown = daemon.run(&["migration", "show", id]).stdout;
    assert!(shown.contains(&one.id.to_string()), "{shown}");
    let document = daemon.run(&["migration", "ls", "-o", "json"]);
    let document = document.document("migrations");
    assert_eq!(document["migrations"][0]["id"], one.id.to_string());
}

#[test]
fn the_move_under_way_is_meant_and_several_are_told_apart() {
    let daemon = Daemon::start();
    let (mut other, mut done) = (migration(Phase::Copying), migration(Phase::Done));
    (other.id, other.guest) = (MigrationId(6), "b".parse().unwrap());
    done.id = MigrationId(7);
    {
        let mut notes = daemon.host.notes.lock().unwrap();
        notes.migrations = vec![done, migration(Phase::Copying)];
    }
    let shown = |words: &[&str]| {
        let words = [&["migration"], words, &["-o", "json"]].concat();
        let document = daemon.run(&words).document("migration");
        document["id"].as_str().unwrap().to_owned()
    };
    let [five, six] = [5, 6].map(|id| MigrationId(id).to_string());
    assert_eq!(shown(&["show"]), five);
    assert_eq!(shown(&["cancel"]), five);
    daemon.host.notes.lock().unwrap().migrations.push(other);
    assert_eq!(shown(&["cancel", "b"]), six);
    let ran = daemon.run(&["migration", "cancel"]);
    ran.failed(2, "E_USAGE");
    assert!(
        ran.stderr.contains(&five) && ran.stderr.contains(&six),
        "{ran:?}"
    );
    assert_eq!(daemon.host.notes.lock().unwrap().cancels, 2);
    let none = daemon.run(&["migration", "cancel", "x"]);
    none.failed(1, "E_NOT_FOUND");
}

#[test]
fn rates_of_a_move_have_one_unit_and_what_is_not_known_is_not_shown() {
    let daemon = Daemon::start();
    let known = migration(Phase::Copying);
    let unknown = MigrationView {
        goodput_bytes_per_second: None,
        dirty_bytes_per_second: None,
        ..known.clone()
    };
    daemon.host.notes.lock().unwrap().migrations = vec![known];
    for words in [["status"].as_slice(), &["migration", "show"]] {
        let shown = daemon.run(words).stdout;
        let rates = "copies 10.9 MiB/s  dirties 2.0 MiB/s";
        assert!(shown.contains(rates), "{shown}");
    }
    daemon.host.notes.lock().unwrap().migrations = vec![unknown];
    let shown = daemon.run(&["status"]).stdout;
    assert!(
        !shown.contains("copies") && !shown.contains("dirties"),
        "{shown}"
    );
}

#[test]
fn the_help_of_migrate_is_laid_out_as_that_of_others() {
    let [short, long] = ["-h", "--help"].map(|word| run(&["migrate", word]).stdout);
    assert_eq!(short, long);
    assert!(
        short.contains("[possible values: auto, pre, post]"),
        "{short}"
    );
    for words in [
        ["guest", "ls"],
        ["guest", "show"],
        ["guest", "stop"],
        ["migration", "ls"],
        ["migration", "show"],
        ["migration", "watch"],
        ["migration", "cancel"],
    ] {
        let help = run(&[&words[..], &["--help"]].concat()).stdout;
        assert!(help.contains("\nExamples:\n"), "{help}");
    }
}

#[test]
fn ctrl_c_lets_go_of_a_move_and_does_not_cancel_it() {
    let daemon = Daemon::start();
    daemon.host.notes.lock().unwrap().course = vec![migration(Phase::Copying)];
    for words in [
        ["migrate", "a", "region"].as_slice(),
        &["migration", "watch"],
    ] {
        let looks = daemon.host.notes.lock().unwrap().looks;
        let child = daemon
            .command(words)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The route looks once, then the watcher. By the third look the command handles signals.
        daemon.host.wait_until(|notes| notes.looks >= looks + 3);
        kill_process(Pid::from_child(&child), Signal::INT).unwrap();
        let ran = Ran::of(&child.wait_with_output().unwrap());
        assert_eq!(ran.status, 130, "{ran:?}");
        let again = "towpath migration watch 00000000000000000000000000000005";
        assert!(ran.stderr.contains(again), "{ran:?}");
    }
    assert_eq!(daemon.host.notes.lock().unwrap().cancels, 0);
}

/// A host, and a command on a terminal that follows a move on it. `None` if there can be no
/// terminal.
fn moving_on_a_terminal() -> Option<(Daemon, Child)> {
    let daemon = Daemon::start();
    daemon.host.notes.lock().unwrap().course = vec![migration(Phase::Copying)];
    let child = on_a_terminal(&daemon.command(&["migrate", "a", "region"]), 120)?;
    daemon.host.wait_until(|notes| notes.looks >= 3);
    Some((daemon, child))
}

#[test]
fn on_a_terminal_what_ctrl_c_let_go_of_stays_to_be_read() {
    let Some((_daemon, mut child)) = moving_on_a_terminal() else {
        return;
    };
    let mut keys = child.stdin.take().unwrap();
    keys.write_all(b"\x03").unwrap();
    let output = child.wait_with_output().unwrap();
    let screen = String::from_utf8_lossy(&output.stdout);
    let erased = screen.rfind("\x1b[2K").expect("a bar was drawn");
    let said = screen.find("let go").expect("it is said");
    assert!(erased < said, "{screen:?}");
}

/// The host goes away while the command follows a move.
#[test]
fn on_a_terminal_it_is_said_that_the_migrator_does_not_answer() {
    let Some((daemon, mut child)) = moving_on_a_terminal() else {
        return;
    };
    drop(daemon);
    let (mut screen, mut piece) = (Vec::new(), [0; 4096]);
    let mut output = child.stdout.take().unwrap();
    while !String::from_utf8_lossy(&screen).contains("does not answer, waiting") {
        let count = output.read(&mut piece).unwrap();
        assert!(count > 0, "{:?}", String::from_utf8_lossy(&screen));
        screen.extend_from_slice(&piece[..count]);
    }
    child.stdin.take().unwrap().write_all(b"\x03").unwrap();
    // The rest of the output is not needed, and must not block the command.
    drop(output);
    child.wait().unwrap();
}

#[test]
fn a_wait_that_is_too_long_ends_and_tells_a_blocked_handover_apart() {
    let daemon = Daemon::start();
    daemon.host.notes.lock().unwrap().course = vec![migration(Phase::Copying)];
    let words = ["migrate", "a", "region", "--timeout=300ms"];
    daemon.run(&words).failed(4, "E_STALLED");
    let blocked = MigrationView {
        blocked_ms: Some(61_000),
        ..migration(Phase::Committed)
    };
    daemon.host.notes.lock().unwrap().course = vec![blocked];
    let ran = daemon.run(&words);
    ran.failed(5, "E_STALLED");
    assert!(ran.stderr.contains("1 min 1 s"), "{ran:?}");
}

#[test]
fn a_move_whose_target_says_nothing_shows_that_and_no_eta() {
    let daemon = Daemon::start();
    let silent = MigrationView {
        silent_ms: Some(3_200),
        goodput_bytes_per_second: Some(0),
        eta_ms: None,
        ..migration(Phase::Copying)
    };
    let connecting = MigrationView {
        link: LinkState::Down,
        ..migration(Phase::Preparing)
    };
    for (view, said) in [
        (silent, "LINK SILENT for 3.2 s"),
        (connecting, "connecting"),
    ] {
        daemon.host.notes.lock().unwrap().migrations = vec![view];
        let ran = daemon.run(&["status"]);
        assert!(ran.stdout.contains(said), "{ran:?}");
    }
}

#[test]
fn a_move_at_its_target_shows_nothing_that_only_its_source_knows() {
    let daemon = Daemon::start();
    let at_target = migration_at_target(Phase::Receiving);
    daemon.host.notes.lock().unwrap().migrations = vec![at_target];
    let shown = daemon.run(&["migration", "show"]).stdout;
    for name in [
        "rounds",
        "bytes on the link",
        "mode",
        "pause allowed",
        "attempts",
        "dirties",
    ] {
        assert!(!shown.contains(name), "{name}: {shown}");
    }
    assert!(shown.contains("guest bytes"), "{shown}");
    daemon.host.notes.lock().unwrap().migrations = vec![failed("E_ROOT", "roots differ")];
    let shown = daemon.run(&["migration", "show"]).stdout;
    assert!(
        shown.contains("pause allowed") && shown.contains("left to go"),
        "{shown}"
    );
}

#[test]
fn l07_texts_of_guests_and_peers_are_escaped_in_tables_and_encoded_in_documents() {
    let daemon = Daemon::start();
    let nasty = "region\u{1b}[2J\n\u{202e}x";
    let mut moved = guest("a");
    moved.moved_to = Some(nasty.into());
    moved.console = Some(nasty.into());
    {
        let mut notes = daemon.host.notes.lock().unwrap();
        notes.guests = vec![moved];
        notes.migrations = vec![failed("E_QUOTA", nasty)];
    }
    for words in [
        ["guest", "ls"].as_slice(),
        &["guest", "show", "a"],
        &["migration", "show"],
        &["migration", "watch"],
    ] {
        let ran = daemon.run(words);
        let text = ran.stdout.clone() + &ran.stderr;
        assert!(
            !text.contains('\u{1b}') && !text.contains('\u{202e}'),
            "{text}"
        );
        assert!(text.contains("region\\u{1b}[2J\\n\\u{202e}x"), "{text}");
    }
    let document = daemon
        .run(&["guest", "show", "a", "-o", "json"])
        .document("guest");
    assert_eq!(document["moved_to"], nasty);
}
