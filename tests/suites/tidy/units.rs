//! Checks the systemd units.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::house::{File, files, no_complaints};

/// Units, each with the highest exposure, out of 10, that `systemd-analyze security` may report.
const EXPOSURE_MAX: [(&str, f64); 2] = [
    ("towpath-tunnel.service", 1.5),
    ("towpath-migrator.service", 1.0),
];

/// All services and sockets.
fn units() -> Vec<File> {
    let all = [files(".service"), files(".socket")].into_iter().flatten();
    all.filter(|unit| unit.path.starts_with("systemd/"))
        .collect()
}

fn name(unit: &File) -> &str {
    unit.path.rsplit('/').next().expect("a path has a name")
}

/// A unit's values of a key.
fn values<'a>(unit: &'a File, key: &str) -> Vec<&'a str> {
    let assigned = unit.text.lines().filter_map(|line| line.split_once('='));
    let of_key = assigned.filter(|(name, _)| *name == key);
    of_key.flat_map(|(_, value)| value.split(' ')).collect()
}

/// Whether `systemd-analyze` is installed; prints a note if not.
fn has_judge() -> bool {
    let asked = Command::new("systemd-analyze").arg("--version").output();
    if asked.is_err() {
        println!("skipped: systemd-analyze is not here");
    }
    asked.is_ok()
}

/// The keys of a unit's own section that have no comment with a reason directly above them.
fn without_reason(text: &str) -> Vec<&str> {
    let is_section = |line: &&str| ["[Service]", "[Socket]"].contains(line);
    let keys = text.lines().skip_while(|line| !is_section(line)).skip(1);
    let keys = keys.take_while(|line| *line != "[Install]");
    let mut missing = Vec::new();
    let mut has_reason = false;
    for line in keys {
        let is_reason = line.starts_with("# ");
        if !is_reason && !line.is_empty() && !has_reason {
            missing.push(line);
        }
        has_reason = is_reason;
    }
    missing
}

#[test]
fn each_key_of_a_unit_has_a_reason_of_its_own() {
    let mut complaints = Vec::new();
    for unit in &units() {
        let section = unit.text.split_once("\n[S").map(|(_, rest)| rest);
        let section = section.unwrap_or_else(|| panic!("{}: no section", unit.path));
        assert!(section.contains("\n# "), "{}: no reasons", unit.path);
        let missing = without_reason(&unit.text);
        let complain = |line| format!("{}: no reason right above {line}", unit.path);
        complaints.extend(missing.into_iter().map(complain));
    }
    no_complaints(&complaints);
    // A reason covers only the key directly below it.
    let shared =
        "[Service]\n# Why.\nUser=one\nGroup=one\n\n# Why.\n\nUMask=0077\n[Install]\nAlso=x\n";
    assert_eq!(without_reason(shared), ["Group=one", "UMask=0077"]);
}

/// A credential keeps the value it had when its unit started. So a reload has to copy a renewed key
/// to the path in the package's configuration.
#[test]
fn a_reload_hands_over_the_key_where_the_tunnel_looks_for_it() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let read = |path: &str| fs::read_to_string(format!("{root}/{path}")).unwrap();
    let units = units();
    let unit = units.iter().find(|unit| name(unit) == EXPOSURE_MAX[0].0);
    let unit = unit.expect("the tunnel has a unit");
    let config: toml::Table = toml::from_str(&read("packaging/etc/tunnel.toml")).unwrap();
    let named = |key: &str| config["certificates"][key].as_str().unwrap().to_owned();

    let credential = values(unit, "LoadCredential")[0];
    let (credential, source) = credential.split_once(':').expect("a name and a file");
    let handed = format!("/run/credentials/{}/{credential}", name(unit));
    assert_eq!(named("key"), handed);
    let place = named("next_key");
    let user = values(unit, "User")[0];
    // The key is copied before the tunnel is signalled, in one line: a second line would exchange
    // the credential in some versions of systemd.
    let reload = format!(
        "+/bin/sh -c '/usr/bin/install -T -m 0600 -o {user} -g {user} {source} {place} && kill -HUP \"$$MAINPID\"'"
    );
    let of = |key: &str| {
        let lines = unit.text.lines().filter_map(|line| line.split_once('='));
        let found = lines.filter(|(name, _)| *name == key);
        found.map(|(_, value)| value).collect::<Vec<_>>()
    };
    assert_eq!(of("ExecReload"), [reload]);
    assert_eq!(of("ExecStopPost"), [format!("+/usr/bin/rm -f {place}")]);
    // No other user can redirect what root does in that folder.
    let folder = place.rsplit_once('/').expect("an absolute path").0;
    let made = format!("d {folder} 0755 root root -");
    let folders = read("systemd/tmpfiles.d/towpath.conf");
    assert!(folders.lines().any(|line| line == made), "{made}");
}

/// An unset clock, a missing address or a full disk can outlast the few quick restarts that systemd
/// allows by default.
#[test]
fn a_daemon_that_fails_is_started_again_however_often() {
    let mut restarted = 0;
    for unit in units() {
        if values(&unit, "Restart").is_empty() {
            continue;
        }
        restarted += 1;
        let head = unit.text.split("[Service]").next().unwrap_or_default();
        let is_unlimited = head.lines().any(|line| line == "StartLimitIntervalSec=0");
        assert!(is_unlimited, "{}: its starts are counted", unit.path);
        // Without a pause between restarts it would spin.
        assert!(!values(&unit, "RestartSec").is_empty(), "{}", unit.path);
    }
    assert_eq!(restarted, EXPOSURE_MAX.len());
}

#[test]
fn sockets_and_services_know_each_other() {
    let units = units();
    let find = |wanted: &str| units.iter().find(|unit| name(unit) == wanted);
    for socket in units.iter().filter(|unit| unit.path.ends_with(".socket")) {
        let own = name(socket).replace(".socket", ".service");
        let service = values(socket, "Service").first().copied().unwrap_or(&own);
        let service = find(service).unwrap_or_else(|| panic!("{}: {service}", socket.path));
        // A socket that the operator enables must not be started by its service.
        let is_optional = socket.text.contains("Not enabled by itself");
        let is_required = values(service, "Requires").contains(&name(socket));
        assert_ne!(is_optional, is_required, "{}", socket.path);
        // A socket whose service may not start would be activated over and over.
        let of = |unit| values(unit, "ConditionPathExists");
        assert_eq!(of(socket), of(service), "{}", socket.path);
    }
    let services = units.iter().filter(|unit| unit.path.ends_with(".service"));
    for required in services.flat_map(|unit| values(unit, "Requires")) {
        assert!(find(required).is_some(), "{required} is not there");
    }
}

#[test]
fn the_service_manager_accepts_the_units() {
    if !has_judge() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for unit in units() {
        // The program need not be installed to check its unit.
        let text = unit
            .text
            .replace("/usr/lib/towpath/towpath-tunnel", "/bin/true");
        let text = text.replace("/usr/bin/towpath", "/bin/true");
        let path: PathBuf = folder.path().join(name(&unit));
        fs::write(&path, text).unwrap();
        paths.push(path);
    }
    let verify = Command::new("systemd-analyze")
        .args(["verify", "--man=no", "--recursive-errors=no"])
        .args(&paths)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verify.stderr);
    let names: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    let complaints: Vec<_> = said
        .lines()
        .filter(|line| names.iter().any(|name| line.contains(name)))
        .map(str::to_owned)
        .collect();
    no_complaints(&complaints);
    assert!(verify.status.success(), "{said}");
}

#[test]
fn the_daemons_are_hardly_exposed() {
    if !has_judge() {
        return;
    }
    for (unit, most) in EXPOSURE_MAX {
        let path = format!("{}/../systemd/{unit}", env!("CARGO_MANIFEST_DIR"));
        let judged = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager", &path])
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&judged.stdout);
        let Some((_, level)) = said.split_once("Overall exposure level for ") else {
            // Before version 250, only units of a running manager can be checked.
            println!("skipped: this systemd-analyze does not judge files");
            return;
        };
        let number = level.split_whitespace().nth(1).unwrap_or_default();
        let number: f64 = number.parse().unwrap_or_else(|_| panic!("{level}"));
        println!("{unit}: {number} of 10");
        assert!(number <= most, "{unit}: {number}, at most {most}\n{said}");
    }
}
