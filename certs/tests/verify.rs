//! In-memory handshakes: what a peer's certificate must prove, and which reason is counted if it
//! does not.
#![allow(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, PKCS_ECDSA_P256_SHA256,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::{
    AlertDescription, ClientConfig, ClientConnection, Error, ServerConfig, ServerConnection,
};
use tempfile::TempDir;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::{
    Authority, Identity, IdentityPaths, Rejection, Rejections, Revocations, Validity, tls,
};
use towpath_protocol::identity::HostIdentity;

const DAY: Duration = Duration::from_hours(24);

/// Two hosts of one domain, and what a test needs to make invalid certificates.
struct Fixture {
    folder: TempDir,
    authority: Authority,
    edge: Identity,
    region: Identity,
    rejections: Arc<Rejections>,
}

impl Fixture {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        let domain = "shop.example".parse().unwrap();
        let authority = Authority::init(&folder.path().join("ca"), &domain).unwrap();
        let edge = issue(&authority, folder.path(), "edge");
        let region = issue(&authority, folder.path(), "region");
        Self {
            folder,
            authority,
            edge,
            region,
            rejections: Arc::default(),
        }
    }

    fn server(&self) -> ServerConfig {
        tls::server_config(&self.region, &self.rejections).unwrap()
    }

    fn client(&self) -> ClientConfig {
        tls::client_config(&self.edge, &"region".parse().unwrap(), &self.rejections).unwrap()
    }

    /// A client that shows a handmade certificate.
    fn client_with(&self, cert: &Path, key: &Path) -> ClientConfig {
        let mut config = self.client();
        let keys = load_unchecked(cert, key);
        config.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(keys));
        config
    }

    /// A server that shows a handmade certificate.
    fn server_with(&self, cert: &Path, key: &Path) -> ServerConfig {
        let mut config = self.server();
        let keys = load_unchecked(cert, key);
        config.cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(keys));
        config
    }

    /// A certificate from our authority with arbitrary names and usages.
    fn forge(
        &self,
        name: &str,
        uris: &[&str],
        uses: &[ExtendedKeyUsagePurpose],
    ) -> [std::path::PathBuf; 2] {
        let ca = self.folder.path().join("ca");
        let ca_key = KeyPair::from_pem(&fs::read_to_string(ca.join("ca.key")).unwrap()).unwrap();
        let ca_pem = fs::read_to_string(ca.join("ca.pem")).unwrap();
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params.extended_key_usages = uses.to_vec();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        let paths = ["cert", "key"].map(|kind| self.folder.path().join(format!("{name}.{kind}")));
        fs::write(&paths[0], cert.pem()).unwrap();
        fs::write(&paths[1], key.serialize_pem()).unwrap();
        paths
    }
}

fn issue(authority: &Authority, folder: &Path, site: &str) -> Identity {
    let uri = format!(
        "spiffe://{}/site/{site}/host/box-1",
        authority.trust_domain()
    );
    let identity = HostIdentity::from_uri(&uri).unwrap();
    let validity = Validity::lasting(LEAF_VALIDITY, SystemTime::now());
    let files = authority
        .issue(&identity, validity, &folder.join(format!("{site}-files")))
        .unwrap();
    Identity::load(&files.paths()).unwrap()
}

fn load_unchecked(cert: &Path, key: &Path) -> rustls::sign::CertifiedKey {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    let chain = CertificateDer::pem_file_iter(cert)
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    rustls::sign::CertifiedKey::from_der(chain, key, &tls::provider()).unwrap()
}

/// Completes a handshake and passes one byte; returns each side's result.
fn shake(client: ClientConfig, server: ServerConfig) -> (Result<(), Error>, Result<(), Error>) {
    shake_through(client, server, |_, _| ())
}

/// Like `shake`, with an attacker on the path who may change each flight that the client sends.
fn shake_through(
    client: ClientConfig,
    server: ServerConfig,
    change: impl Fn(usize, &mut Vec<u8>),
) -> (Result<(), Error>, Result<(), Error>) {
    let name = "towpath.invalid".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let (mut at_client, mut at_server) = (Ok(()), Ok(()));
    client.writer().write_all(b"x").unwrap();
    for flight in 0..8 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        change(flight, &mut wire);
        let mut unread = wire.as_slice();
        while !unread.is_empty() && at_server.is_ok() {
            server.read_tls(&mut unread).unwrap();
            at_server = server.process_new_packets().map(|_| ());
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() && at_client.is_ok() {
            client.read_tls(&mut unread).unwrap();
            at_client = client.process_new_packets().map(|_| ());
        }
    }
    if at_client.is_ok() && at_server.is_ok() {
        let mut byte = [0];
        server.reader().read_exact(&mut byte).unwrap();
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(client.alpn_protocol(), Some(tls::ALPN));
        let group = server.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(format!("{group:?}"), tls::KEY_EXCHANGE);
        let suite = server.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(format!("{suite:?}"), tls::CIPHER_SUITE);
    }
    (at_client, at_server)
}

/// Checks that the server refuses this client for this reason alone.
fn check_client_refused(fixture: &Fixture, client: ClientConfig, reason: Rejection) {
    let before = Rejection::ALL.map(|reason| fixture.rejections.of(reason));
    let (_, at_server) = shake(client, fixture.server());
    at_server.expect_err(reason.as_str());
    check_counted(fixture, before, reason);
}

/// Checks that the client refuses this server for this reason alone.
fn check_server_refused(fixture: &Fixture, server: ServerConfig, reason: Rejection) {
    let before = Rejection::ALL.map(|reason| fixture.rejections.of(reason));
    let (at_client, _) = shake(fixture.client(), server);
    at_client.expect_err(reason.as_str());
    check_counted(fixture, before, reason);
}

fn check_counted(fixture: &Fixture, before: [u64; Rejection::ALL.len()], reason: Rejection) {
    for (position, each) in Rejection::ALL.into_iter().enumerate() {
        let expected = before[position] + u64::from(each == reason);
        assert_eq!(fixture.rejections.of(each), expected, "{}", each.as_str());
    }
}

#[test]
fn two_hosts_of_one_domain_agree_on_the_one_suite() {
    let fixture = Fixture::new();
    let (at_client, at_server) = shake(fixture.client(), fixture.server());
    at_client.unwrap();
    at_server.unwrap();
}

#[test]
fn t09_no_certificate() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    client.client_auth_cert_resolver = ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
        .client_auth_cert_resolver;
    let (_, at_server) = shake(client, fixture.server());
    assert_eq!(at_server, Err(Error::NoCertificatesPresented));
    assert_eq!(
        Rejection::from_alert(AlertDescription::CertificateRequired),
        Some(Rejection::NoCertificate)
    );
}

#[test]
fn t09_wrong_authority() {
    let fixture = Fixture::new();
    let same_name = "shop.example".parse().unwrap();
    let stranger = Authority::init(&fixture.folder.path().join("stranger"), &same_name).unwrap();
    let edge = HostIdentity::from_uri("spiffe://shop.example/site/edge/host/box-1").unwrap();
    let validity = Validity::lasting(LEAF_VALIDITY, SystemTime::now());
    let files = stranger
        .issue(&edge, validity, &fixture.folder.path().join("s"))
        .unwrap();
    let reason = Rejection::UnknownAuthority;
    check_client_refused(
        &fixture,
        fixture.client_with(&files.cert, &files.key),
        reason,
    );
    check_server_refused(
        &fixture,
        fixture.server_with(&files.cert, &files.key),
        reason,
    );
}

#[test]
fn t09_expired_and_not_yet_valid() {
    let fixture = Fixture::new();
    let now = SystemTime::now();
    let edge = HostIdentity::from_uri("spiffe://shop.example/site/region/host/box-1").unwrap();
    for (name, from, until, reason) in [
        ("old", now - 2 * DAY, now - DAY, Rejection::Expired),
        ("early", now + DAY, now + 2 * DAY, Rejection::NotYetValid),
    ] {
        let validity = Validity {
            not_before: from,
            not_after: until,
        };
        let into = fixture.folder.path().join(name);
        let files = fixture.authority.issue(&edge, validity, &into).unwrap();
        check_client_refused(
            &fixture,
            fixture.client_with(&files.cert, &files.key),
            reason,
        );
        check_server_refused(
            &fixture,
            fixture.server_with(&files.cert, &files.key),
            reason,
        );
    }
}

#[test]
fn t09_wrong_usage() {
    let fixture = Fixture::new();
    let region = "spiffe://shop.example/site/region/host/box-1";
    let [cert, key] = fixture.forge("server", &[region], &[ExtendedKeyUsagePurpose::ServerAuth]);
    check_client_refused(
        &fixture,
        fixture.client_with(&cert, &key),
        Rejection::WrongUsage,
    );
    let [cert, key] = fixture.forge("client", &[region], &[ExtendedKeyUsagePurpose::ClientAuth]);
    check_server_refused(
        &fixture,
        fixture.server_with(&cert, &key),
        Rejection::WrongUsage,
    );
}

#[test]
fn t09_wrong_name() {
    let fixture = Fixture::new();
    let both = [
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let good = "spiffe://shop.example/site/region/host/box-1";
    for (name, uris) in [
        (
            "domain",
            &["spiffe://other.example/site/region/host/box-1"][..],
        ),
        ("shape", &["spiffe://shop.example/ns/region/sa/box-1"]),
        ("none", &[]),
        ("two", &[good, "spiffe://shop.example/site/edge/host/box-2"]),
    ] {
        let [cert, key] = fixture.forge(name, uris, &both);
        check_client_refused(
            &fixture,
            fixture.client_with(&cert, &key),
            Rejection::WrongName,
        );
        check_server_refused(
            &fixture,
            fixture.server_with(&cert, &key),
            Rejection::WrongName,
        );
    }
}

#[test]
fn t09_another_site_than_was_dialled() {
    let fixture = Fixture::new();
    let server = tls::server_config(&fixture.edge, &fixture.rejections).unwrap();
    check_server_refused(&fixture, server, Rejection::WrongName);
}

#[test]
fn t14_other_protocols_versions_and_key_exchanges_are_refused() {
    let fixture = Fixture::new();
    let mut alpn = fixture.client();
    alpn.alpn_protocols = vec![b"h3".to_vec()];
    let (_, at_server) = shake(alpn, fixture.server());
    assert_eq!(at_server, Err(Error::NoApplicationProtocol));

    let mut classical = aws_lc_rs::default_provider();
    classical.kx_groups = vec![aws_lc_rs::kx_group::X25519];
    let mut weak = ClientConfig::builder_with_provider(Arc::new(classical))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    weak.alpn_protocols = vec![tls::ALPN.to_vec()];
    let (_, at_server) = shake(weak, fixture.server());
    at_server.expect_err("no key exchange in common");
    for alert in [
        AlertDescription::HandshakeFailure,
        AlertDescription::ProtocolVersion,
        AlertDescription::NoApplicationProtocol,
    ] {
        assert_eq!(Rejection::from_alert(alert), Some(Rejection::WrongProtocol));
    }
}

#[test]
fn t14_a_client_that_speaks_tls_1_2_is_told_which_versions_are_spoken() {
    let fixture = Fixture::new();
    let mut server = ServerConnection::new(Arc::new(fixture.server())).unwrap();
    // A complete ClientHello of TLS 1.2: one suite, P-256, ECDSA with SHA-256, no
    // supported_versions.
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 2, 0xc0, 0x2b, 1, 0]);
    let extensions = [
        0, 10, 0, 4, 0, 2, 0, 23, // supported groups
        0, 11, 0, 2, 1, 0, // point formats
        0, 13, 0, 4, 0, 2, 4, 3, // signature algorithms
    ];
    hello.extend([0, 22]);
    hello.extend(extensions);
    let length = u8::try_from(hello.len()).unwrap();
    let mut record = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    record.extend(&hello);
    server.read_tls(&mut record.as_slice()).unwrap();
    server.process_new_packets().expect_err("version 1.2");
    let mut answer = Vec::new();
    server.write_tls(&mut answer).unwrap();
    // A fatal alert: protocol_version.
    assert_eq!(&answer[answer.len() - 2..], [2, 70]);
}

/// Versions are negotiated under TLS: the link's version by its ALPN, which the handshake's
/// Finished messages cover, and the versions within the link as encrypted bytes.
#[test]
fn f29_whoever_is_on_the_path_lowers_no_offer() {
    let fixture = Fixture::new();
    let (mut client, mut server) = (fixture.client(), fixture.server());
    let newer = b"towpath/9".to_vec();
    client.alpn_protocols.insert(0, newer.clone());
    // A server that speaks only the older version is spoken to in it.
    let (at_client, at_server) = shake(client.clone(), server.clone());
    assert_eq!((at_client, at_server), (Ok(()), Ok(())));
    // A server that speaks the newer version is made to believe that the client did not offer it.
    server.alpn_protocols.insert(0, newer.clone());
    let lower = |_: usize, wire: &mut Vec<u8>| {
        let at = wire.windows(newer.len()).position(|word| word == newer);
        if let Some(at) = at {
            wire[at..at + newer.len()].copy_from_slice(b"towpath/0");
        }
    };
    let (at_client, at_server) = shake_through(client.clone(), server.clone(), lower);
    assert!(at_client.is_err(), "it goes on with the older one");
    drop(at_server);
    // Bytes after the handshake can be neither read nor changed.
    let (client, server) = (fixture.client(), fixture.server());
    let flip = |flight: usize, wire: &mut Vec<u8>| {
        if let Some(last) = wire.last_mut().filter(|_| flight > 0) {
            *last ^= 1;
        }
    };
    let (_, at_server) = shake_through(client, server, flip);
    assert_eq!(at_server, Err(Error::DecryptError));
}

#[test]
fn t13_sessions_are_never_resumed() {
    let fixture = Fixture::new();
    let (mut client, server) = (fixture.client(), fixture.server());
    assert_eq!(server.max_early_data_size, 0);
    assert_eq!(server.send_tls13_tickets, 0);
    assert!(!client.enable_early_data);
    // A client that would resume any session, with a server that might have issued one: still every
    // handshake is verified.
    client.resumption = Resumption::in_memory_sessions(8);
    for _attempt in 0..2 {
        let (at_client, at_server) = shake(client.clone(), server.clone());
        at_client.unwrap();
        at_server.unwrap();
    }
}

#[test]
fn t10_what_leads_from_a_certificate_to_its_authority_may_be_revoked_too() {
    let fixture = Fixture::new();
    let folder = fixture.folder.path();
    // An operator's own root authority, which lets another authority name hosts on its behalf.
    fs::create_dir(folder.join("root")).unwrap();
    let authority = |serial: u64, length| {
        let mut params = CertificateParams::default();
        let uri = "spiffe://shop.example".try_into().unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(length));
        params.serial_number = Some(SerialNumber::from(serial));
        let name = format!("authority {serial}");
        params.distinguished_name.push(DnType::CommonName, name);
        params
    };
    let [root_key, middle_key, leaf_key] =
        [(); 3].map(|()| KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap());
    let root = authority(1, 1).self_signed(&root_key).unwrap();
    fs::write(folder.join("root/ca.pem"), root.pem()).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&root.pem(), root_key).unwrap();
    let middle = authority(2, 0).signed_by(&middle_key, &issuer).unwrap();
    let middle_issuer = Issuer::from_ca_cert_pem(&middle.pem(), middle_key).unwrap();
    let mut params = CertificateParams::default();
    let uri = "spiffe://shop.example/site/edge/host/box-1";
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    let leaf = params.signed_by(&leaf_key, &middle_issuer).unwrap();
    let chain = format!("{}{}", leaf.pem(), middle.pem());
    fs::write(folder.join("root/cert.pem"), chain).unwrap();
    let key = folder.join("root/key.pem");
    fs::write(&key, leaf_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let now = SystemTime::now();
    let list = CertificateRevocationListParams {
        this_update: now.into(),
        next_update: (now + DAY).into(),
        crl_number: SerialNumber::from(1_u64),
        issuing_distribution_point: None,
        revoked_certs: vec![RevokedCertParams {
            serial_number: SerialNumber::from(2_u64),
            revocation_time: now.into(),
            reason_code: None,
            invalidity_date: None,
        }],
        key_identifier_method: KeyIdMethod::Sha256,
    };
    let crl = folder.join("root/crl.pem");
    fs::write(&crl, list.signed_by(&issuer).unwrap().pem().unwrap()).unwrap();

    let path = |name: &str| folder.join("root").join(name);
    let identity = Identity::load(&IdentityPaths {
        certificate: &path("cert.pem"),
        key: &key,
        authorities: &path("ca.pem"),
    })
    .unwrap();
    let server = |identity: &Identity| tls::server_config(identity, &fixture.rejections).unwrap();
    let client = || tls::client_config(&identity, &"edge".parse().unwrap(), &fixture.rejections);
    let shaken = shake(client().unwrap(), server(&identity));
    assert_eq!((shaken.0.is_ok(), shaken.1.is_ok()), (true, true));
    let lists = identity.load_revocations(&crl, &Revocations::default());
    let wary = identity.clone().refusing(Arc::new(lists.unwrap()));
    let before = fixture.rejections.of(Rejection::Revoked);
    let (_, at_server) = shake(client().unwrap(), server(&wary));
    at_server.unwrap_err();
    assert_eq!(fixture.rejections.of(Rejection::Revoked), before + 1);
}
