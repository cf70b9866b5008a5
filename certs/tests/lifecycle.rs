//! A certificate's life after it was issued: listed, renewed, revoked, moved to the next authority.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod harness;

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateRevocationListParams, CrlDistributionPoint, CrlIssuingDistributionPoint, Issuer,
    KeyIdMethod, KeyPair, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use towpath_certs::authority::IdentityFiles;
use towpath_certs::check::{self, CheckView, Outcome};
use towpath_certs::register::{IssuedState, REGISTER, Reason};
use towpath_certs::renewal::{KeyChoice, OtherAuthority, RevocationTarget};
use towpath_certs::{Authority, Freshness, Identity, IdentityPaths, Revocations, Validity, show};
use towpath_protocol::fault::Code;

use harness::{DAY, World, host, leaf, load, now, trusted};

#[test]
fn the_register_knows_every_certificate_and_what_became_of_it() {
    let world = World::new();
    let edge = world.issue("edge", "edge");
    world.issue("region", "region");
    let short = Validity::lasting(Duration::from_secs(2), SystemTime::now());
    let gone = world.path("gone");
    world.authority.issue(&host("gone"), short, &gone).unwrap();
    world.revoke(&RevocationTarget::Host(host("edge"))).unwrap();

    let later = SystemTime::now() + DAY;
    let again = Authority::open(&world.path("ca")).unwrap();
    let issued = again.issued(later).unwrap();
    let states: Vec<_> = issued
        .iter()
        .map(|one| (one.identity.site.to_string(), one.state))
        .collect();
    assert_eq!(
        states,
        [
            ("edge".to_owned(), IssuedState::Revoked),
            ("region".to_owned(), IssuedState::Good),
            ("gone".to_owned(), IssuedState::Expired),
        ]
    );
    assert_eq!(issued[0].serial, show(&edge.cert).unwrap().serial);
    assert_eq!(issued[0].reason, Some(Reason::KeyCompromise));
    assert_eq!(issued[0].not_after, show(&edge.cert).unwrap().not_after);
}

#[test]
fn a_register_whose_last_line_was_cut_off_goes_on_and_a_damaged_one_says_where() {
    let world = World::new();
    world.issue("edge", "edge");
    let register = world.path("ca").join(REGISTER);
    let mut file = fs::OpenOptions::new().append(true).open(&register).unwrap();
    file.write_all(b"{\"event\":\"issued\",\"ser").unwrap();
    world.issue("region", "region");
    assert_eq!(world.authority.issued(SystemTime::now()).unwrap().len(), 2);

    file.write_all(b"{\"event\":\"issued\"}\n").unwrap();
    let fault = world.authority.issued(SystemTime::now()).unwrap_err();
    assert_eq!(fault.code, Code::Io);
    assert!(fault.detail.contains("register.jsonl:3"), "{fault}");
}

#[test]
fn a_register_with_a_time_that_no_calendar_has_says_where() {
    let world = World::new();
    world.issue("edge", "edge");
    let register = world.path("ca").join(REGISTER);
    let text = fs::read_to_string(&register).unwrap();
    let (key, end) = ("\"not_after_unix_seconds\":", ['}', ',']);
    let at = text.find(key).unwrap() + key.len();
    let length = text[at..].find(end).unwrap();
    let never = text.replace(&text[at..at + length], &u64::MAX.to_string());
    fs::write(&register, never).unwrap();
    let fault = world
        .revoke(&RevocationTarget::Host(host("edge")))
        .unwrap_err();
    assert_eq!(fault.code, Code::Io);
    assert!(fault.detail.contains("register.jsonl:1"), "{fault}");
}

#[test]
fn renewing_keeps_the_identity_and_the_key_or_changes_the_key_alone() {
    let world = World::new();
    let files = world.issue("edge", "edge");
    let (first, key) = (show(&files.cert).unwrap(), fs::read(&files.key).unwrap());
    let renew = |key| {
        let renewed = world.authority.renew(&world.path("edge"), key, now(), None);
        load(&renewed.unwrap().files).unwrap()
    };
    let same = renew(KeyChoice::Same);
    assert_eq!(*same.host(), host("edge"));
    assert_ne!(same.view().serial, first.serial);
    assert!(fs::read(&files.key).unwrap() == key);

    let new = renew(KeyChoice::New);
    assert_eq!(*new.host(), host("edge"));
    assert!(fs::read(&files.key).unwrap() != key);
    let mode = fs::metadata(&files.key).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert_eq!(world.authority.issued(SystemTime::now()).unwrap().len(), 3);
}

#[test]
fn an_expired_certificate_is_renewed_and_a_revoked_or_foreign_one_is_not() {
    let world = World::new();
    let old = Validity {
        not_before: SystemTime::now() - 3 * DAY,
        not_after: SystemTime::now() - DAY,
    };
    let folder = world.path("edge");
    world.authority.issue(&host("edge"), old, &folder).unwrap();
    let renew = |authority: &Authority| authority.renew(&folder, KeyChoice::Same, now(), None);
    load(&renew(&world.authority).unwrap().files).unwrap();

    let stranger = World::new();
    let fault = renew(&stranger.authority).unwrap_err();
    assert_eq!(fault.code, Code::Certificate);
    world.revoke(&RevocationTarget::Host(host("edge"))).unwrap();
    let fault = renew(&world.authority).unwrap_err();
    assert_eq!(fault.code, Code::State);
    assert!(fault.detail.contains("revoked"), "{fault}");
}

#[test]
fn revoking_names_certificates_by_number_or_by_host_and_numbers_its_lists() {
    let world = World::new();
    let edge = world.issue("edge", "edge");
    let twin = world.issue("edge", "twin");
    let region = world.issue("region", "region");
    let empty = world.sign_next_list().unwrap();
    assert_eq!((empty.number, empty.revoked_count), (1, 0));

    let serial = show(&region.cert).unwrap().serial;
    let signed = world
        .revoke(&RevocationTarget::Serial(serial.clone()))
        .unwrap();
    assert_eq!((signed.number, signed.revoked_count), (2, 1));
    assert_eq!(signed.revoked[0].serial, serial);
    let signed = world.revoke(&RevocationTarget::Host(host("edge"))).unwrap();
    assert_eq!((signed.number, signed.revoked_count), (3, 3));
    let list = world.read(&signed.file, &Revocations::default()).unwrap();
    for files in [&edge, &twin, &region] {
        assert!(list.is_revoked(&leaf(files)));
    }
    assert!(!list.is_revoked(&leaf(&world.issue("other", "other"))));
    let due = list.next_update_unix_seconds().map(Duration::from_secs);
    let due = SystemTime::UNIX_EPOCH + due.unwrap();
    // The same command again is no failure, and signs no other list.
    for (which, count) in [
        (RevocationTarget::Serial(serial), 1),
        (RevocationTarget::Host(host("edge")), 2),
    ] {
        let again = world.revoke(&which).unwrap();
        let seen = (again.is_new, again.number, again.revoked_count);
        assert_eq!(seen, (false, 3, 3), "{which:?}");
        assert_eq!(again.revoked.len(), count);
        assert_eq!((again.file, again.next_update), (signed.file.clone(), due));
    }
    for which in [
        RevocationTarget::Serial("abcd".to_owned()),
        RevocationTarget::Host(host("nobody")),
    ] {
        let fault = world.revoke(&which).unwrap_err();
        assert_eq!(fault.code, Code::NotFound, "{which:?}");
    }
    let now = SystemTime::now();
    let long = world.authority.sign_next_list(100 * DAY, now);
    assert_eq!(long.unwrap_err().code, Code::Usage);
}

#[test]
fn t11_lists_that_are_damaged_foreign_partial_or_old_are_refused() {
    let world = World::new();
    let none = Revocations::default();
    let refused = |file: &Path, current: &Revocations, word: &str| {
        let fault = world.read(file, current).unwrap_err();
        let goes_back = current.views().next().is_some();
        let code = if goes_back {
            Code::CrlRollback
        } else {
            Code::Certificate
        };
        assert_eq!(fault.code, code);
        assert!(fault.detail.contains(word), "{fault}");
    };
    let first = world.path("first.pem");
    fs::copy(world.sign_next_list().unwrap().file, &first).unwrap();
    let second = world.sign_next_list().unwrap().file;
    let current = world.read(&second, &none).unwrap();
    refused(&first, &current, "holds list 1");

    let stranger = World::new();
    let theirs = stranger.sign_next_list().unwrap().file;
    refused(&theirs, &none, "not signed by an authority");
    let partial = world.forge(|list| {
        list.issuing_distribution_point = Some(CrlIssuingDistributionPoint {
            distribution_point: CrlDistributionPoint {
                uris: vec!["http://shop.example/part".to_owned()],
            },
            scope: None,
        });
    });
    refused(&partial, &none, "some certificates only");
    let twin = world.forge(|list| list.crl_number = SerialNumber::from(2_u64));
    refused(&twin, &current, "another list 2");

    // Flipping any bit of a list is noticed, or changes nothing that matters.
    let der = rustls_pki_types::CertificateRevocationListDer::from_pem_file(&second).unwrap();
    let damaged = world.path("damaged.pem");
    let mut spelt = 0;
    for at in 0..der.len() {
        let mut bytes = der.to_vec();
        bytes[at] ^= 1;
        fs::write(&damaged, rcgen_pem(&bytes)).unwrap();
        // The algorithm's name is repeated outside the signed part; its encoding there is not
        // signed.
        if let Ok(list) = world.read(&damaged, &none) {
            assert!(list.views().eq(current.views()), "bit of byte {at}");
            spelt += 1;
        }
    }
    assert!(spelt <= 2, "{spelt} flips were not noticed");
    for text in [
        "",
        "no list",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
    ] {
        fs::write(&damaged, text).unwrap();
        assert!(world.read(&damaged, &none).is_err(), "{text:?}");
    }
    fs::write(&damaged, vec![b'a'; 2 << 20]).unwrap();
    refused(&damaged, &none, "larger than");
}

/// A revocation list's DER as PEM.
fn rcgen_pem(der: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::from("-----BEGIN X509 CRL-----\n");
    for three in der.chunks(3) {
        let bits = three
            .iter()
            .fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place)) & 63;
            let is_filled = place <= three.len();
            text.push(if is_filled {
                ALPHABET[digit as usize] as char
            } else {
                '='
            });
        }
    }
    text.push_str("\n-----END X509 CRL-----\n");
    text
}

#[test]
fn a_list_is_fresh_then_aging_then_stale() {
    let world = World::new();
    let file = world.sign_next_list().unwrap().file;
    let list = world.read(&file, &Revocations::default()).unwrap();
    let start = SystemTime::now();
    for (days, freshness) in [
        (0, Freshness::Fresh),
        (22, Freshness::Fresh),
        (24, Freshness::Aging),
        (31, Freshness::Stale),
    ] {
        assert_eq!(
            list.freshness(start + days * DAY),
            Some(freshness),
            "{days}"
        );
    }
    // If the signer's clock was years ahead, the list would otherwise stay fresh for as long.
    assert_eq!(list.freshness(start - 200 * DAY), Some(Freshness::Aging));
    assert_eq!(Revocations::default().freshness(start), None);
}

#[test]
fn a_host_moves_to_the_next_authority_through_an_overlap_of_both() {
    let world = World::new();
    let domain = "shop.example".parse().unwrap();
    let next = Authority::init(&world.path("next"), &domain).unwrap();
    let (before, after) = ["ca", "next"]
        .map(|name| OtherAuthority::open(&world.path(name)).unwrap())
        .into();
    let files = world.issue("edge", "edge");
    world.sign_next_list().unwrap();
    next.sign_next_list(DAY, SystemTime::now()).unwrap();
    let after_lists = OtherAuthority::open(&world.path("next")).unwrap();

    // Four steps: the old authority alone, the old with the next, the next with the old, the next
    // alone.
    assert_eq!(load(&files).unwrap().authorities().count(), 1);
    let renew = |authority: &Authority, overlap: Option<&OtherAuthority>| {
        let folder = world.path("edge");
        let renewed = authority.renew(&folder, KeyChoice::Same, now(), overlap);
        renewed.map(|renewed| renewed.files)
    };
    let files = renew(&world.authority, Some(&after_lists)).unwrap();
    let identity = load(&files).unwrap();
    assert_eq!(identity.authorities().count(), 2);
    let lists = identity.load_revocations(files.crl.as_ref().unwrap(), &Revocations::default());
    assert_eq!(lists.unwrap().views().count(), 2);

    let files = renew(&next, Some(&before)).unwrap();
    let identity = load(&files).unwrap();
    assert_eq!(identity.authorities().count(), 2);
    assert!(identity.view().issuer.contains("shop.example"));
    let files = renew(&next, None).unwrap();
    assert_eq!(load(&files).unwrap().authorities().count(), 1);
    // There is no way back to the old authority.
    assert!(renew(&world.authority, None).is_err());
    assert!(renew(&world.authority, Some(&after)).is_ok());

    let other = Authority::init(&world.path("other"), &"other.example".parse().unwrap()).unwrap();
    drop(other);
    let foreign = OtherAuthority::open(&world.path("other")).unwrap();
    assert_eq!(renew(&next, Some(&foreign)).unwrap_err().code, Code::Usage);
}

#[test]
fn an_old_list_is_missed_while_its_authority_is_trusted_and_not_after() {
    let world = World::new();
    let domain = "shop.example".parse().unwrap();
    let next = Authority::init(&world.path("next"), &domain).unwrap();
    let sign = |authority: &Authority| {
        let now = SystemTime::now();
        let signed = authority.sign_next_list(DAY, now);
        fs::read_to_string(signed.unwrap().file).unwrap()
    };
    let (old_list, new_list) = (sign(&world.authority), sign(&next));
    let roots = ["ca", "next"]
        .map(|name| CertificateDer::from_pem_file(world.path(name).join("ca.pem")).unwrap());
    let file = world.path("lists.pem");
    fs::write(&file, format!("{old_list}{new_list}")).unwrap();
    let both = Revocations::load(&file, &trusted(&roots), &Revocations::default()).unwrap();
    fs::write(&file, &new_list).unwrap();
    let fault = Revocations::load(&file, &trusted(&roots), &both).unwrap_err();
    assert!(fault.detail.contains("lacks the list"), "{fault}");
    Revocations::load(&file, &trusted(&roots[1..]), &both).unwrap();
    fs::write(&file, format!("{new_list}{new_list}")).unwrap();
    assert!(Revocations::load(&file, &trusted(&roots), &Revocations::default()).is_err());
}

#[test]
fn a_folder_is_checked_whole_and_all_that_is_wrong_shows() {
    let world = World::new();
    world.sign_next_list().unwrap();
    let files = world.issue("edge", "edge");
    let of = |when: SystemTime| check::folder(&world.path("edge"), when);
    let outcome = |name: &str, when: SystemTime| {
        let view = of(when);
        view.checks
            .iter()
            .find(|one| one.check == name)
            .unwrap()
            .outcome
    };
    let start = SystemTime::now();
    assert!(of(start).is_good, "{:?}", of(start));
    assert_eq!(of(start).identity, Some(host("edge").uri()));
    assert_eq!(outcome("time", start + 80 * DAY), Outcome::Warning);
    assert_eq!(outcome("time", start + 91 * DAY), Outcome::Wrong);
    assert_eq!(outcome("time", start - DAY), Outcome::Wrong);
    assert_eq!(outcome("revocation", start + 24 * DAY), Outcome::Warning);
    // A tunnel still starts with a list that has ended; it only begins no move.
    assert_eq!(outcome("revocation", start + 31 * DAY), Outcome::Warning);
    assert!(of(start + 31 * DAY).is_good);

    let list = files.crl.clone().unwrap();
    let revoked = world.revoke(&RevocationTarget::Host(host("edge"))).unwrap();
    fs::copy(revoked.file, &list).unwrap();
    assert_eq!(outcome("revocation", start), Outcome::Wrong);
    fs::remove_file(&list).unwrap();
    assert_eq!(outcome("revocation", start), Outcome::Absent);
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(outcome("key", start), Outcome::Wrong);
    let other = world.issue("edge", "twin");
    fs::copy(&other.cert, &files.cert).unwrap();
    fs::set_permissions(&files.key, fs::Permissions::from_mode(0o600)).unwrap();
    assert_eq!(outcome("key", start), Outcome::Wrong);
    assert_eq!(outcome("chain", start), Outcome::Good);
    let stranger = World::new();
    fs::copy(stranger.path("ca/ca.pem"), &files.ca).unwrap();
    assert_eq!(outcome("chain", start), Outcome::Wrong);
    assert!(!of(start).is_good);
    let empty = check::folder(&world.path("nothing"), start);
    assert!(!empty.is_good && empty.identity.is_none());
    let is_good = |check: &CheckView| check.outcome == Outcome::Good;
    assert!(!empty.checks.iter().any(is_good), "{empty:?}");
    // What names no authority is said to name none, by whoever reads it.
    fs::copy(&other.cert, &files.ca).unwrap();
    for cert in [&files.cert, &other.cert] {
        let refused = Identity::load(&IdentityPaths {
            certificate: cert,
            key: &other.key,
            ..files.paths()
        })
        .unwrap_err();
        assert!(refused.detail.contains("no authority's"), "{refused}");
    }
}

#[test]
fn two_who_issue_at_once_do_not_tear_the_register() {
    let world = Arc::new(World::new());
    let issuers: Vec<_> = (0..4)
        .map(|number| {
            let world = Arc::clone(&world);
            std::thread::spawn(move || {
                for round in 0..3 {
                    world.issue("edge", &format!("box-{number}-{round}"));
                    world.sign_next_list().unwrap();
                }
            })
        })
        .collect();
    for issuer in issuers {
        issuer.join().unwrap();
    }
    let issued = world.authority.issued(SystemTime::now()).unwrap();
    assert_eq!(issued.len(), 12);
    assert_eq!(world.sign_next_list().unwrap().number, 13);
}

#[test]
fn a_certificate_that_the_authority_before_revoked_is_not_named_by_the_next() {
    let world = World::new();
    let domain = "shop.example".parse().unwrap();
    let next = Authority::init(&world.path("next"), &domain).unwrap();
    world.issue("edge", "edge");
    world.revoke(&RevocationTarget::Host(host("edge"))).unwrap();
    let before = OtherAuthority::open(&world.path("ca")).unwrap();
    let folder = world.path("edge");
    let fault = next
        .renew(&folder, KeyChoice::Same, now(), Some(&before))
        .unwrap_err();
    assert_eq!(fault.code, Code::State);
    assert!(fault.detail.contains("revoked"), "{fault}");
    assert!(next.issued(SystemTime::now()).unwrap().is_empty());
}

#[test]
fn a_host_that_is_led_to_an_authority_without_a_list_gets_one() {
    let world = World::new();
    let domain = "shop.example".parse().unwrap();
    let next = Authority::init(&world.path("next"), &domain).unwrap();
    world.sign_next_list().unwrap();
    world.issue("edge", "edge");
    let [before, after] =
        ["ca", "next"].map(|name| OtherAuthority::open(&world.path(name)).unwrap());
    let folder = world.path("edge");
    let renew = |authority: &Authority, overlap: Option<&OtherAuthority>| {
        let read = || {
            ["ca.pem", "crl.pem", "key.pem", "cert.pem"]
                .map(|name| (name, fs::read(folder.join(name)).ok()))
        };
        let before = read();
        let renewed = authority
            .renew(&folder, KeyChoice::Same, now(), overlap)
            .unwrap();
        let view = check::folder(&folder, SystemTime::now());
        assert!(view.is_good, "{view:?}");
        let differ = read()
            .into_iter()
            .zip(before)
            .filter(|(now, before)| now != before);
        let differ: Vec<_> = differ.map(|((name, _), _)| name).collect();
        assert_eq!(renewed.changed, differ, "what has to be carried");
        renewed.files
    };
    let one = OtherAuthority::open(&world.path("ca")).unwrap();
    let fault = world
        .authority
        .renew(&folder, KeyChoice::Same, now(), Some(&one))
        .unwrap_err();
    assert_eq!(fault.code, Code::Usage, "{fault}");
    renew(&world.authority, Some(&after));
    renew(&next, Some(&before));
    let files = renew(&next, None);
    let list = files.crl.unwrap();
    let lists = load(&renew(&next, None)).unwrap();
    let lists = lists.load_revocations(&list, &Revocations::default());
    assert_eq!(lists.unwrap().views().next().unwrap().number, 1);
}

#[test]
fn what_was_revoked_without_a_list_is_revoked_when_it_is_repeated() {
    for stopped_behind_the_list in [false, true] {
        let world = World::new();
        let [edge, region] = ["edge", "region"].map(|site| world.issue(site, site));
        let file = world.sign_next_list().unwrap().file;
        let old = fs::read(&file).unwrap();
        let serial = show(&edge.cert).unwrap().serial;
        if stopped_behind_the_list {
            world
                .revoke(&RevocationTarget::Serial(serial.clone()))
                .unwrap();
            fs::write(&file, old).unwrap();
        } else {
            let line = format!(
                "{{\"event\":\"revoked\",\"serial\":\"{serial}\",\"reason\":\"superseded\",\"at_unix_seconds\":9}}\n"
            );
            let register = world.path("ca").join(REGISTER);
            let mut file = fs::OpenOptions::new().append(true).open(register).unwrap();
            file.write_all(line.as_bytes()).unwrap();
        }
        let which = [
            RevocationTarget::Host(host("edge")),
            RevocationTarget::Serial(serial.clone()),
        ];
        let signed = world
            .revoke(&which[usize::from(stopped_behind_the_list)])
            .unwrap();
        assert_eq!(signed.revoked[0].serial, serial);
        let list = world.read(&signed.file, &Revocations::default()).unwrap();
        assert!(list.is_revoked(&leaf(&edge)));
        assert!(!list.is_revoked(&leaf(&region)));
        for which in which {
            assert!(!world.revoke(&which).unwrap().is_new, "it is done");
        }
    }
}

#[test]
fn a_renewal_that_cannot_write_leaves_the_pair_of_before() {
    let world = World::new();
    let files = world.issue("edge", "edge");
    let serial = load(&files).unwrap().view().serial.clone();
    for name in ["ca.pem", "key.pem", "cert.pem"] {
        let in_the_way = world.path("edge").join(format!(".{name}.new"));
        fs::create_dir(&in_the_way).unwrap();
        let renewed = world
            .authority
            .renew(&world.path("edge"), KeyChoice::New, now(), None);
        renewed.unwrap_err();
        assert_eq!(load(&files).unwrap().view().serial, serial, "{name}");
        fs::remove_dir(&in_the_way).unwrap();
    }
    let left = fs::read_dir(world.path("edge")).unwrap();
    assert_eq!(left.count(), 3, "nothing lies about");
}

#[test]
fn a_register_that_is_full_still_revokes_and_a_list_that_nobody_reads_is_not_signed() {
    let world = World::new();
    let edge = world.issue("edge", "edge");
    let register = world.path("ca").join(REGISTER);
    let good = fs::read_to_string(&register).unwrap();
    let number = |at: usize| format!("4{at:031x}");
    let line = good.lines().next().unwrap();
    let serial = show(&edge.cert).unwrap().serial;
    let mut text = good.clone();
    for at in 0..70_000 {
        text.push_str(&line.replace(&serial, &number(at)));
        text.push('\n');
        if text.len() > 12 << 20 {
            break;
        }
    }
    fs::write(&register, &text).unwrap();
    let refused = world
        .authority
        .issue(&host("region"), now(), &world.path("region"))
        .unwrap_err();
    assert_eq!(refused.code, Code::State);
    assert!(refused.detail.contains("is full"), "{refused}");
    let signed = world.revoke(&RevocationTarget::Host(host("region")));
    assert_eq!(signed.unwrap_err().code, Code::NotFound);
    world.revoke(&RevocationTarget::Serial(serial)).unwrap();

    for at in 0..25_000 {
        let serial = number(at);
        text.push_str(&format!(
            "{{\"event\":\"revoked\",\"serial\":\"{serial}\",\"reason\":\"superseded\",\"at_unix_seconds\":9}}\n"
        ));
    }
    fs::write(&register, &text).unwrap();
    let list = fs::read(world.path("ca/crl.pem")).unwrap();
    let fault = world.sign_next_list().unwrap_err();
    assert_eq!(fault.code, Code::State);
    assert!(fault.detail.contains("larger than"), "{fault}");
    assert!(fs::read(world.path("ca/crl.pem")).unwrap() == list);
    // Certificates that ended years ago are left out of the list.
    let later = SystemTime::now() + 1000 * DAY;
    let signed = world.authority.sign_next_list(DAY, later).unwrap();
    assert_eq!(signed.revoked_count, 0);
}

#[test]
fn an_authority_that_has_ended_is_trusted_no_longer() {
    let world = World::new();
    let files = world.issue("edge", "edge");
    let key = KeyPair::generate().unwrap();
    let ended = {
        let mut params = rcgen::CertificateParams::default();
        let uri = "spiffe://shop.example".try_into().unwrap();
        params.subject_alt_names = vec![rcgen::SanType::URI(uri)];
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        params.not_before = (SystemTime::now() - 9 * DAY).into();
        params.not_after = (SystemTime::now() - DAY).into();
        params.self_signed(&key).unwrap().pem()
    };
    let outcome = |when| {
        let view = check::folder(&world.path("edge"), when);
        view.checks[2].outcome
    };
    let start = SystemTime::now();
    assert_eq!(outcome(start + 3500 * DAY), Outcome::Warning);
    assert_eq!(outcome(start + 3651 * DAY), Outcome::Wrong);
    let good = fs::read_to_string(&files.ca).unwrap();
    fs::write(&files.ca, format!("{good}{ended}")).unwrap();
    let identity = load(&files).unwrap();
    assert_eq!(identity.authorities().count(), 1);
    assert_eq!(outcome(start), Outcome::Warning);
    // When a clock that was ahead is corrected, the ended authority is trusted again; when one that
    // was behind is, the authority is dropped.
    assert!(!identity.has_other_authorities(start));
    assert!(identity.has_other_authorities(start - 2 * DAY));
    assert!(identity.has_other_authorities(start + 3651 * DAY));
    // A file with a list of the ended authority beside a list of the valid one.
    let listed = |number: u64, issuer: &Issuer<'_, KeyPair>| {
        let list = CertificateRevocationListParams {
            this_update: start.into(),
            next_update: (start + DAY).into(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(issuer).unwrap().pem().unwrap()
    };
    let old = Issuer::from_ca_cert_pem(&ended, key).unwrap();
    let both = world.path("both.pem");
    let mut current = Revocations::default();
    for _ in 0..2 {
        let ours = fs::read_to_string(world.sign_next_list().unwrap().file).unwrap();
        fs::write(&both, format!("{}{ours}", listed(5, &old))).unwrap();
        current = load(&files)
            .unwrap()
            .load_revocations(&both, &current)
            .unwrap();
        assert_eq!(current.views().count(), 1);
    }
    // A tunnel starts with such a folder, so the check passes.
    fs::copy(&both, world.path("edge/crl.pem")).unwrap();
    let view = check::folder(&world.path("edge"), start);
    assert!(view.is_good, "{view:?}");
    fs::write(&files.ca, ended).unwrap();
    let fault = load(&files).unwrap_err();
    assert!(fault.detail.contains("has ended"), "{fault}");
}

#[test]
fn no_host_is_handed_a_list_that_has_ended_or_is_about_to() {
    let world = World::new();
    let sign = |lasting, when| {
        let signed = world.authority.sign_next_list(lasting, when);
        signed.unwrap().number
    };
    let handed = |files: &IdentityFiles| {
        let lists = world.read(files.crl.as_ref().unwrap(), &Revocations::default());
        lists.unwrap()
    };
    let is_next = |lists: &Revocations, last: u64| {
        let number = lists.views().next().unwrap().number;
        let is_fresh = lists.freshness(SystemTime::now()) == Some(Freshness::Fresh);
        (number, is_fresh) == (last + 1, true)
    };
    // The list that is signed for a host contains the revoked certificates too.
    let thief = world.issue("thief", "thief");
    world
        .revoke(&RevocationTarget::Host(host("thief")))
        .unwrap();
    let ended = sign(DAY, SystemTime::now() - 2 * DAY);
    let lists = handed(&world.issue("edge", "edge"));
    assert!(is_next(&lists, ended), "{lists:?}");
    assert!(lists.is_revoked(&leaf(&thief)));
    // A list with enough time left is handed out unchanged.
    let lists = handed(&world.issue("region", "region"));
    assert!(is_next(&lists, ended), "{lists:?}");

    let brief = sign(3 * DAY, SystemTime::now());
    let folder = world.path("edge");
    let renewed = world
        .authority
        .renew(&folder, KeyChoice::Same, now(), None)
        .unwrap();
    let lists = handed(&renewed.files);
    assert!(is_next(&lists, brief), "{lists:?}");
    assert!(renewed.changed.contains(&"crl.pem"));
}

#[test]
fn whoever_could_read_what_is_replaced_can_read_what_takes_its_place() {
    let world = World::new();
    let files = world.issue("edge", "edge");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let renew = |key| {
        let renewed = world.authority.renew(&world.path("edge"), key, now(), None);
        renewed.unwrap()
    };
    assert_eq!(mode(&files.cert), 0o644);
    assert_eq!(mode(&files.ca), 0o644);
    let of_group = fs::Permissions::from_mode(0o640);
    fs::set_permissions(&files.cert, of_group.clone()).unwrap();
    renew(KeyChoice::Same);
    assert_eq!(mode(&files.cert), 0o640);
    assert_eq!(mode(&files.ca), 0o644);
    // A key stays readable by its owner alone, whatever the mode of the old key.
    fs::set_permissions(&files.key, of_group).unwrap();
    renew(KeyChoice::New);
    assert_eq!(mode(&files.key), 0o600);
    world.sign_next_list().unwrap();
    let listed = renew(KeyChoice::Same).files;
    assert_eq!(mode(&listed.crl.unwrap()), 0o644);
}
