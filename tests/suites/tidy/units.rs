//! The units a service manager runs.

use std::fs;
use std::process::Command;

use crate::house::{files, no_complaints};

#[test]
fn units_parse_and_each_hardening_has_its_reason() {
    let units = files(".service");
    let mut complaints = Vec::new();
    for unit in &units {
        let lines: Vec<_> = unit.text.lines().collect();
        let service = lines.iter().position(|line| *line == "[Service]");
        let service = service.unwrap_or_else(|| panic!("{}: no [Service]", unit.path));
        let end = lines.iter().position(|line| *line == "[Install]");
        let keys = lines[service + 1..end.unwrap_or(lines.len())].iter();
        let mut has_reason = false;
        for line in keys {
            match line.chars().next() {
                Some('#') => has_reason = true,
                None => has_reason = false,
                Some(_) if has_reason => {}
                Some(_) => complaints.push(format!("{}: no reason above {line}", unit.path)),
            }
        }
    }
    no_complaints(&complaints);
}

#[test]
fn the_service_manager_accepts_the_units() {
    if Command::new("systemd-analyze")
        .arg("--version")
        .output()
        .is_err()
    {
        eprintln!("skipped: systemd-analyze is not here");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut paths = Vec::new();
    for unit in files(".service") {
        let name = unit.path.rsplit('/').next().unwrap().to_owned();
        // The program need not be installed to check the unit that runs it.
        let text = unit.text.replace("/usr/bin/towpath", "/bin/true");
        let path = folder.path().join(name);
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
