//! Folders of hosts in which a renewal was interrupted.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::time::SystemTime;

use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::renewal::KeyChoice;
use towpath_certs::{Authority, Identity, Validity};
use towpath_protocol::fault::Code;
use towpath_protocol::identity::HostIdentity;

#[test]
fn a_renewal_that_was_interrupted_between_key_and_certificate_is_no_pair_to_renew() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let domain = "shop.example".parse().unwrap();
    let authority = Authority::init(&path("ca"), &domain).unwrap();
    let host = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
    let validity = || Validity::lasting(LEAF_VALIDITY, SystemTime::now());
    let issue = |name: &str| authority.issue(&host, validity(), &path(name)).unwrap();
    let (files, other) = (issue("edge"), issue("other"));
    // The new key is there, the certificate of before still is.
    fs::copy(&other.key, &files.key).unwrap();
    let renew = |key| authority.renew(&path("edge"), key, validity(), None);
    let before = fs::read(&files.cert).unwrap();
    let fault = renew(KeyChoice::Same).unwrap_err();
    assert_eq!(fault.code, Code::Certificate, "{fault}");
    let remedy = fault.remedy.unwrap();
    assert!(remedy.contains("--new-key"), "{remedy}");
    assert_eq!(fs::read(&files.cert).unwrap(), before);
    renew(KeyChoice::New).unwrap();
    Identity::load(&files.paths()).unwrap();
    renew(KeyChoice::Same).unwrap();
    // The host may keep its key to itself.
    fs::remove_file(&files.key).unwrap();
    renew(KeyChoice::Same).unwrap();
}
