//! The authority's files: who may read them, what is refused, and what the errors tell the operator.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use towpath_certs::authority::{IdentityFiles, LEAF_VALIDITY};
use towpath_certs::{Authority, Identity, IdentityPaths, Validity, show};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::HostIdentity;

const DAY: Duration = Duration::from_hours(24);

fn host(text: &str) -> HostIdentity {
    HostIdentity::from_uri(text).unwrap()
}

fn box_1() -> HostIdentity {
    host("spiffe://shop.example/site/edge/host/box-1")
}

fn authority(folder: &TempDir, name: &str) -> Authority {
    Authority::init(&folder.path().join(name), &"shop.example".parse().unwrap()).unwrap()
}

fn now() -> Validity {
    Validity::lasting(LEAF_VALIDITY, SystemTime::now())
}

fn load(files: &IdentityFiles) -> Result<Identity, Fault> {
    Identity::load(&files.paths())
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn an_issued_identity_loads_and_shows_what_was_asked_for() {
    let folder = TempDir::new().unwrap();
    let made = authority(&folder, "ca");
    assert_eq!(made.trust_domain().as_str(), "shop.example");
    let files = Authority::open(&folder.path().join("ca"))
        .unwrap()
        .issue(&box_1(), now(), &folder.path().join("box"))
        .unwrap();
    let identity = load(&files).unwrap();
    assert_eq!(identity.host(), &box_1());

    let leaf = show(&files.cert).unwrap();
    assert_eq!(leaf.identity, Some(box_1()));
    assert_eq!(leaf.usages, ["digital-signature", "client", "server"]);
    assert!(!leaf.is_authority);
    assert_eq!(leaf.serial.len(), 32);
    let root = show(&files.ca).unwrap();
    assert_eq!(root.uri.as_deref(), Some("spiffe://shop.example"));
    assert!(root.is_authority);
    assert_ne!(leaf.serial, root.serial);
    let ten_years = 3650 * DAY.as_secs();
    let quarter = 90 * DAY.as_secs();
    assert!(root.not_after_unix_seconds - leaf.not_after_unix_seconds >= ten_years - quarter - 60);
}

#[test]
fn key_files_and_folders_are_for_their_owner_only() {
    let folder = TempDir::new().unwrap();
    let made = authority(&folder, "ca");
    let files = made
        .issue(&box_1(), now(), &folder.path().join("box"))
        .unwrap();
    assert_eq!(mode(&files.key), 0o600);
    assert_eq!(mode(&folder.path().join("ca/ca.key")), 0o600);
    assert_eq!(mode(&folder.path().join("ca")), 0o700);
    assert_eq!(mode(&folder.path().join("box")), 0o700);
}

#[test]
fn l06_a_key_that_others_may_read_is_refused_with_the_remedy() {
    let folder = TempDir::new().unwrap();
    let made = authority(&folder, "ca");
    let files = made
        .issue(&box_1(), now(), &folder.path().join("box"))
        .unwrap();
    for open_to in [0o640, 0o604, 0o660, 0o644] {
        fs::set_permissions(&files.key, fs::Permissions::from_mode(open_to)).unwrap();
        let fault = load(&files).unwrap_err();
        assert_eq!(fault.code, Code::Certificate);
        let remedy = fault.remedy.unwrap();
        assert!(remedy.contains("chmod 600"), "{remedy}");
    }
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o400)).unwrap();
    load(&files).unwrap();
}

#[test]
fn l06_missing_and_foreign_files_are_named() {
    let folder = TempDir::new().unwrap();
    let made = authority(&folder, "ca");
    let files = made
        .issue(&box_1(), now(), &folder.path().join("one"))
        .unwrap();
    let other = made
        .issue(&box_1(), now(), &folder.path().join("two"))
        .unwrap();

    let fault = Identity::load(&IdentityPaths {
        key: &other.key,
        ..files.paths()
    })
    .unwrap_err();
    assert!(fault.detail.contains("is not the key of"), "{fault}");
    let fault = Identity::load(&IdentityPaths {
        certificate: &folder.path().join("none"),
        ..files.paths()
    })
    .unwrap_err();
    assert!(fault.detail.contains("none"), "{fault}");
    let fault = Identity::load(&IdentityPaths {
        certificate: &files.key,
        ..files.paths()
    })
    .unwrap_err();
    assert_eq!(fault.code, Code::Certificate);
    let stranger = authority(&folder, "stranger");
    let theirs = stranger
        .issue(&box_1(), now(), &folder.path().join("three"))
        .unwrap();
    let fault = Identity::load(&IdentityPaths {
        authorities: &theirs.ca,
        ..files.paths()
    })
    .unwrap_err();
    assert!(
        fault.detail.contains("not signed by the authority"),
        "{fault}"
    );
    fs::write(&files.cert, "a".repeat(70_000)).unwrap();
    assert!(load(&files).unwrap_err().detail.contains("larger than"));
}

#[test]
fn an_expired_or_early_certificate_does_not_load_and_names_the_clock() {
    let folder = TempDir::new().unwrap();
    let made = authority(&folder, "ca");
    let now = SystemTime::now();
    for (name, from, until, word) in [
        ("old", now - 3 * DAY, now - DAY, "expired"),
        ("early", now + DAY, now + 2 * DAY, "not valid yet"),
    ] {
        let validity = Validity {
            not_before: from,
            not_after: until,
        };
        let files = made
            .issue(&box_1(), validity, &folder.path().join(name))
            .unwrap();
        let fault = load(&files).unwrap_err();
        assert_eq!(fault.code, Code::Certificate);
        assert!(
            fault.detail.contains(word) && fault.detail.contains("clock"),
            "{fault}"
        );
    }
}

#[test]
fn nothing_that_exists_is_ever_written_over() {
    let folder = TempDir::new().unwrap();
    let made = authority(&folder, "ca");
    let again = Authority::init(&folder.path().join("ca"), &"other".parse().unwrap());
    assert_eq!(again.unwrap_err().code, Code::State);

    let target = folder.path().join("precious");
    fs::write(&target, "keep me").unwrap();
    let box_folder = folder.path().join("box");
    fs::create_dir(&box_folder).unwrap();
    fs::set_permissions(&box_folder, fs::Permissions::from_mode(0o700)).unwrap();
    symlink(&target, box_folder.join("key.pem")).unwrap();
    let fault = made.issue(&box_1(), now(), &box_folder).unwrap_err();
    assert_eq!(fault.code, Code::State);
    assert_eq!(fs::read_to_string(&target).unwrap(), "keep me");
    assert!(!box_folder.join("cert.pem").exists());
}

#[test]
fn folders_that_are_links_or_open_to_others_are_refused() {
    let folder = TempDir::new().unwrap();
    let made = authority(&folder, "ca");
    let real = folder.path().join("real");
    fs::create_dir(&real).unwrap();
    let link = folder.path().join("link");
    symlink(&real, &link).unwrap();
    assert_eq!(
        made.issue(&box_1(), now(), &link).unwrap_err().code,
        Code::Path
    );
    fs::set_permissions(&real, fs::Permissions::from_mode(0o777)).unwrap();
    let fault = made.issue(&box_1(), now(), &real).unwrap_err();
    let remedy = fault.remedy.unwrap();
    assert!(remedy.contains("chmod 700"), "{remedy}");
}

#[test]
fn hosts_of_other_domains_and_impossible_validities_are_refused() {
    let folder = TempDir::new().unwrap();
    let made = authority(&folder, "ca");
    let stranger = host("spiffe://other.example/site/edge/host/box-1");
    let into = folder.path().join("box");
    assert_eq!(
        made.issue(&stranger, now(), &into).unwrap_err().code,
        Code::Usage
    );
    let start = SystemTime::now();
    for (from, until) in [
        (start, start - DAY),
        (start, start + 900 * DAY),
        (start + 3600 * DAY, start + 3651 * DAY),
    ] {
        let validity = Validity {
            not_before: from,
            not_after: until,
        };
        let fault = made.issue(&box_1(), validity, &into).unwrap_err();
        assert_eq!(fault.code, Code::Usage);
    }
    assert!(!into.exists());
}

#[test]
fn an_authority_whose_files_are_no_pair_does_not_open() {
    let folder = TempDir::new().unwrap();
    let _one = authority(&folder, "one");
    let _two = authority(&folder, "two");
    fs::copy(
        folder.path().join("two/ca.key"),
        folder.path().join("one/ca.key"),
    )
    .unwrap();
    let fault = Authority::open(&folder.path().join("one")).unwrap_err();
    assert!(fault.detail.contains("no pair"), "{fault}");
}
