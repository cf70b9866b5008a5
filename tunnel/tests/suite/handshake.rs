//! Admission: hostile datagrams, certificates, protocols and preambles, over real sockets.

use std::net::UdpSocket;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use crate::harness::kept::Kept;
use crate::harness::peer::{Joined, answer, closed_with, join, joined, joined_with};
use crate::harness::{
    Door, Pair, SOON, World, counts_refusal, echo, metric, name, open, pattern, rejected, soon,
    until,
};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ConnectionError, Endpoint, TransportConfig};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::UnixListener;
use towpath_certs::{Authority, Identity, Rejections, Validity, tls};
use towpath_daemon::units::Span;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint as Place;
use towpath_protocol::fault::Code;
use towpath_protocol::identity::HostIdentity;
use towpath_protocol::preamble::{
    Begin, LinkId, Open, PathReport, Preamble, Received, Resume, StreamId,
};
use towpath_protocol::version::VersionRange;
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::{Config, Limits};

const DAY: Duration = Duration::from_hours(24);

impl Door {
    /// Checks that the region refuses this client for this reason before any message of a link.
    async fn check_refused(&self, client: rustls::ClientConfig, reason: &str) {
        let before = rejected(&self.config, reason).await;
        match self.connect(client).await {
            Err(_) => {}
            // In TLS 1.3 the dialling side is done before its certificate has been verified.
            Ok(connection) => {
                let closed = soon(connection.closed()).await;
                let told = matches!(closed, ConnectionError::ConnectionClosed(_));
                assert!(told, "{reason}: {closed}");
            }
        }
        counts_refusal(&self.config, reason, before).await;
        assert_eq!(self.region.status().links[0].host, None);
    }
}

fn show(client: &mut rustls::ClientConfig, cert: &Path, key: &Path) {
    let chain = CertificateDer::pem_file_iter(cert)
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let keys = rustls::sign::CertifiedKey::from_der(chain, key, &tls::provider()).unwrap();
    client.client_auth_cert_resolver = Arc::new(rustls::sign::SingleCertAndKey::from(keys));
}

/// A certificate of the domain's authority with any name and usage.
fn forge(world: &World, uri: &str, usage: ExtendedKeyUsagePurpose) -> [std::path::PathBuf; 2] {
    let key = std::fs::read_to_string(world.path("ca/ca.key")).unwrap();
    let pem = std::fs::read_to_string(world.path("ca/ca.pem")).unwrap();
    let issuer = Issuer::from_ca_cert_pem(&pem, KeyPair::from_pem(&key).unwrap()).unwrap();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    let cert = params.signed_by(&key, &issuer).unwrap();
    let paths = [world.path("forged.pem"), world.path("forged.key")];
    std::fs::write(&paths[0], cert.pem()).unwrap();
    std::fs::write(&paths[1], key.serialize_pem()).unwrap();
    paths
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t01_random_datagrams_are_dropped_without_an_answer() {
    let door = Door::open().await;
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    for length in [0, 1, 5, 20, 100, 1199, 1200, 1472] {
        let mut datagram = pattern(length as u64, length);
        if let Some(first) = datagram.first_mut() {
            // A long header of QUIC version 1 gets deepest into the parser.
            *first |= 0xc0;
        }
        if length > 5 {
            datagram[1..5].copy_from_slice(&1_u32.to_be_bytes());
        }
        socket.send_to(&datagram, door.address()).unwrap();
    }
    let connection = door.connect(door.client()).await.unwrap();
    assert!(connection.close_reason().is_none());
    socket.set_nonblocking(true).unwrap();
    let answered = socket.recv_from(&mut [0; 2000]).is_ok();
    assert!(!answered, "something was answered");
    let series = "towpath_quic_incoming_dropped_total{reason=\"malformed\"}";
    let malformed = metric(&door.config, series).await;
    // Noise may occasionally look like a packet.
    assert!((3..=7).contains(&malformed), "{malformed}");
}

/// Shows no certificate.
fn anonymous() -> Arc<dyn rustls::client::ResolvesClientCert> {
    rustls::ClientConfig::builder_with_provider(tls::provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth()
        .client_auth_cert_resolver
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_without_a_certificate() {
    let door = Door::open().await;
    let mut client = door.client();
    client.client_auth_cert_resolver = anonymous();
    door.check_refused(client, "no_certificate").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_from_another_authority() {
    let door = Door::open().await;
    let folder = door.world.path("stranger");
    let stranger = Authority::init(&folder, &name("shop.example")).unwrap();
    let edge = "spiffe://shop.example/site/edge/host/box-1";
    let host = HostIdentity::from_uri(edge).unwrap();
    let validity = Validity::lasting(DAY, SystemTime::now());
    let files = stranger
        .issue(&host, validity, &door.world.path("s"))
        .unwrap();
    let mut client = door.client();
    show(&mut client, &files.cert, &files.key);
    door.check_refused(client, "unknown_authority").await;
    // It is reported for the host, never for the peer that the stranger claims to be.
    let refused = || door.region.status().refused;
    until("it is told", || refused().is_some()).await;
    assert_eq!(refused().unwrap().reason, "unknown_authority");
    let link = door.region.status().links.remove(0);
    assert!(link.reason.starts_with("not reached yet"), "{link:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_expired_and_not_yet_valid() {
    let door = Door::open().await;
    let now = SystemTime::now();
    for (reason, not_before, not_after) in [
        ("expired", now - 2 * DAY, now - DAY),
        ("not_yet_valid", now + DAY, now + 2 * DAY),
    ] {
        let validity = Validity {
            not_before,
            not_after,
        };
        let files = door.world.issue_for("edge", validity, reason);
        let mut client = door.client_once(reason);
        show(&mut client, &files.cert, &files.key);
        door.check_refused(client, reason).await;
    }
}

impl Door {
    /// Like [`Door::client`], with files of its own.
    fn client_once(&self, folder: &str) -> rustls::ClientConfig {
        let validity = Validity::lasting(DAY, SystemTime::now());
        let files = self
            .world
            .issue_for("edge", validity, &format!("{folder}-good"));
        let identity = Identity::load(&files.paths()).unwrap();
        tls::client_config(&identity, &name("region"), &Arc::new(Rejections::default())).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t09_for_another_use_or_under_another_name() {
    let door = Door::open().await;
    let ours = "spiffe://shop.example/site/edge/host/box-1";
    let theirs = "spiffe://other.example/site/edge/host/box-1";
    for (reason, uri, usage) in [
        ("wrong_usage", ours, ExtendedKeyUsagePurpose::ServerAuth),
        ("wrong_name", theirs, ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let [cert, key] = forge(&door.world, uri, usage);
        let mut client = door.client_once(reason);
        show(&mut client, &cert, &key);
        door.check_refused(client, reason).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t13_early_data_is_never_had() {
    let door = Door::open().await;
    let mut client = door.client();
    client.enable_early_data = true;
    client.resumption = rustls::client::Resumption::in_memory_sessions(8);
    let crypto = Arc::new(QuicClientConfig::try_from(client).unwrap());
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    for attempt in 0..3 {
        let config = quinn::ClientConfig::new(crypto.clone());
        let connecting = endpoint
            .connect_with(config, door.address(), "towpath.invalid")
            .unwrap();
        let Err(connecting) = connecting.into_0rtt() else {
            panic!("attempt {attempt} had early keys");
        };
        let connection = soon(connecting).await.unwrap();
        // Tickets would come right after the handshake, before any answer.
        let unheard = VersionRange { min: 98, max: 99 };
        let (_send, mut recv) = join(&connection, |join| join.versions = unheard).await;
        assert!(matches!(answer(&mut recv).await, Preamble::Refused(_)));
        connection.close(0_u32.into(), b"");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t14_other_protocols_and_weaker_key_exchanges() {
    let door = Door::open().await;
    let mut client = door.client();
    client.alpn_protocols = vec![b"h3".to_vec()];
    door.check_refused(client, "wrong_protocol").await;

    let mut classical = rustls::crypto::aws_lc_rs::default_provider();
    classical.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    let mut weak = rustls::ClientConfig::builder_with_provider(Arc::new(classical))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    weak.alpn_protocols = vec![tls::ALPN.to_vec()];
    door.check_refused(weak, "wrong_protocol").await;
}

/// The preamble of a stream to the region's service.
pub(crate) fn begin(class: Class) -> Preamble {
    Preamble::Begin(Begin {
        stream: StreamId(7),
        open: Open {
            peer: name("region"),
            service: name("echo"),
            class,
        },
        is_datagrams: false,
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_site_that_is_no_peer_is_denied() {
    let knows_others = |config: &mut Config| {
        config.peers[0].site = name("elsewhere");
        config.services.clear();
    };
    let door = Door::open_with(knows_others).await;
    let connection = door.connect(door.client()).await.unwrap();
    closed_with(&connection, "no peer").await;
}

/// Someone who has a channel's metadata knows where to connect and what to ask for, and nothing
/// else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn con_4_metadata_without_a_listed_identity_lets_nobody_in() {
    let target = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let till = Place::Tcp(target.local_addr().unwrap());
    let door = Door::open_with(|config| {
        config.services[0].socket = std::path::PathBuf::new();
        config.services[0].target = Some(till);
    })
    .await;
    // No certificate, one of another authority, an expired one.
    let mut nobody = door.client_once("nobody");
    nobody.client_auth_cert_resolver = anonymous();
    door.check_refused(nobody, "no_certificate").await;
    let stranger = World::new();
    for (world, reason, ended) in [
        (&stranger, "unknown_authority", Duration::ZERO),
        (&door.world, "expired", DAY),
    ] {
        let now = SystemTime::now();
        let validity = Validity {
            not_before: now - 2 * DAY,
            not_after: now + DAY - 2 * ended,
        };
        let files = world.issue_for("edge", validity, reason);
        let mut client = door.client_once(&format!("{reason}-frame"));
        show(&mut client, &files.cert, &files.key);
        door.check_refused(client, reason).await;
    }
    // A site that the metadata does not name, though the authority has certified it.
    let files = door.world.issue("west");
    let mut unlisted = door.client_once("unlisted");
    show(&mut unlisted, &files.cert, &files.key);
    let connection = door.connect(unlisted).await.unwrap();
    closed_with(&connection, "no peer").await;
    assert_eq!(door.region.status().links[0].host, None);
    // And the reverse: a server that answers for the region must be the region.
    let impostor = World::new();
    let region = Tunnel::start(&impostor.site("region", "edge"))
        .await
        .unwrap();
    let address = region.listen_address().unwrap();
    let told = door.connect_to(door.client(), address).await.unwrap_err();
    assert!(told.to_string().contains("certificate"), "{told}");
    // The service behind it was never reached.
    target.set_nonblocking(true).unwrap();
    assert!(target.accept().is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn first_words_that_are_no_join_end_the_connection() {
    let brief = Span::new(Duration::from_millis(300));
    let door = Door::open_with(|config| config.limits.preamble_wait = brief).await;
    let client = door.client();

    let silent = door.connect(client.clone()).await.unwrap();
    closed_with(&silent, "no words").await;

    let wrong = door.connect(client.clone()).await.unwrap();
    let (mut send, _recv) = wrong.open_bi().await.unwrap();
    let opened = Preamble::Opened(HostIdentity {
        trust_domain: "test".parse().unwrap(),
        site: "edge".parse().unwrap(),
        host: "box".parse().unwrap(),
    });
    send.write_all(&opened.encode()).await.unwrap();
    closed_with(&wrong, "Opened on a new connection").await;

    let noise = door.connect(client.clone()).await.unwrap();
    let (mut send, _recv) = noise.open_bi().await.unwrap();
    send.write_all(&[0xff; 64]).await.unwrap();
    closed_with(&noise, "no frame begins").await;

    let half = door.connect(client.clone()).await.unwrap();
    let (_send, _recv) = join(&half, |_| ()).await;
    closed_with(&half, "other leg never came").await;

    let newer = door.connect(client).await.unwrap();
    let range = VersionRange { min: 8, max: 9 };
    let (_send, mut recv) = join(&newer, |join| join.versions = range).await;
    let Preamble::Refused(fault) = answer(&mut recv).await else {
        panic!("not refused");
    };
    assert_eq!(fault.code, Code::Version);
    assert!(fault.detail.contains("8..=9"), "{fault}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leg_that_joins_twice_ends_both() {
    let door = Door::open().await;
    let client = door.client();
    let one = door.connect(client.clone()).await.unwrap();
    let two = door.connect(client).await.unwrap();
    let (_a, _b) = join(&one, |_| ()).await;
    let (_c, _d) = join(&two, |_| ()).await;
    closed_with(&one, "joined twice").await;
    closed_with(&two, "joined twice").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_a_peer_that_takes_no_word_of_the_link_loses_it() {
    let brief = Span::new(Duration::from_millis(500));
    let door = Door::open_with(|config| config.limits.stall_wait = brief).await;
    let service = UnixListener::bind(&door.config.services[0].socket).unwrap();
    let echo = echo(service);
    let how = || {
        let mut transport = TransportConfig::default();
        // Room for an answer, which is read, and for a few reports, which are not.
        transport.stream_receive_window(200_u32.into());
        transport
    };
    let link = joined_with(&door, LinkId(7), how).await;
    let talking = async {
        for number in 0_u128.. {
            let (mut send, mut recv) = link.urgent.open_bi().await?;
            let begin = Preamble::Begin(Begin {
                stream: StreamId(number << 64),
                open: Open {
                    peer: name("region"),
                    service: name("echo"),
                    class: Class::Demand,
                },
                is_datagrams: false,
            });
            // A connection that has ended shows at the next stream.
            let _ = send.write_all(&begin.encode()).await;
            let _ = send.write_all(b"ping").await;
            let _ = recv.read(&mut [0; 500]).await;
        }
        Ok::<_, ConnectionError>(())
    };
    let end = soon(talking).await.unwrap_err().to_string();
    assert!(end.contains("own words"), "{end}");
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_three_streams_without_whole_first_words_end_the_link() {
    let usual = Limits::default();
    assert_eq!(usual.preamble_wait, Span::new(Duration::from_secs(5)));
    let brief = Span::new(Duration::from_millis(300));
    let door = Door::open_with(|config| config.limits.preamble_wait = brief).await;
    let link = joined(&door, LinkId(7)).await;
    let mut kept = Vec::new();
    for _ in 0..3 {
        let (mut send, recv) = link.urgent.open_bi().await.unwrap();
        // One byte of many, and then nothing more.
        send.write_all(b"T").await.unwrap();
        kept.push((send, recv));
    }
    closed_with(&link.urgent, "first words").await;
    soon(link.bulk.closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_streams_that_are_taken_back_end_no_link() {
    let door = Door::open().await;
    let echo = echo(UnixListener::bind(&door.config.services[0].socket).unwrap());
    let link = joined(&door, LinkId(7)).await;
    for _ in 0..10 {
        let (mut send, mut recv) = link.urgent.open_bi().await.unwrap();
        send.write_all(b"T").await.unwrap();
        send.reset(0_u32.into()).unwrap();
        // The other side has seen its end.
        let _ = soon(recv.read_to_end(1000)).await;
    }
    let (mut send, mut recv) = link.urgent.open_bi().await.unwrap();
    send.write_all(&begin(Class::Demand).encode())
        .await
        .unwrap();
    assert!(matches!(answer(&mut recv).await, Preamble::Opened(_)));
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_a_stream_resumes_on_the_leg_of_its_class_only() {
    let door = Door::open().await;
    let echo = echo(UnixListener::bind(&door.config.services[0].socket).unwrap());
    let link = joined(&door, LinkId(7)).await;
    let (mut send, mut recv) = link.urgent.open_bi().await.unwrap();
    send.write_all(&begin(Class::Demand).encode())
        .await
        .unwrap();
    assert!(matches!(answer(&mut recv).await, Preamble::Opened(_)));
    let (mut moving, mut moved) = link.bulk.open_bi().await.unwrap();
    let resume = Preamble::Resume(Resume {
        stream: StreamId(7),
        received: Received::default(),
    });
    moving.write_all(&resume.encode()).await.unwrap();
    let reset = soon(moved.read_to_end(1000)).await.unwrap_err().to_string();
    assert!(reset.contains("reset"), "{reset}");
    // It continues on its own leg.
    send.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    soon(recv.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"ping");
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t16_streams_beyond_the_limit_cannot_be_opened() {
    let door = Door::open_with(|config| config.limits.peer_streams = 4).await;
    let link = joined(&door, LinkId(7)).await;
    let mut kept = Vec::new();
    let opening = async {
        loop {
            kept.push(link.urgent.open_bi().await.unwrap());
        }
    };
    let full = tokio::time::timeout(Duration::from_millis(300), opening).await;
    assert!(full.is_err());
    assert!(kept.len() <= 5, "{} streams", kept.len());
    let uni = tokio::time::timeout(Duration::from_millis(100), link.urgent.open_uni()).await;
    assert!(uni.is_err(), "a stream in one direction has no use");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t15_a_class_on_the_wrong_leg_is_refused() {
    let door = Door::open().await;
    let link = joined(&door, LinkId(7)).await;
    let (mut send, mut recv) = link.urgent.open_bi().await.unwrap();
    send.write_all(&begin(Class::Bulk).encode()).await.unwrap();
    let reset = soon(recv.read_to_end(1000)).await.unwrap_err().to_string();
    assert!(reset.contains("reset"), "{reset}");
    assert!(link.urgent.close_reason().is_none());
}

/// A dialler drops a link that is being made if the previous one answers again, or it loses the new
/// one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_is_back_in_its_place_if_the_one_that_replaced_it_ends_first() {
    let door = Door::open().await;
    let service = UnixListener::bind(&door.config.services[0].socket).unwrap();
    let echo = echo(service);
    let first = joined(&door, LinkId(7)).await;
    let (mut send, mut recv) = first.urgent.open_bi().await.unwrap();
    send.write_all(&begin(Class::Demand).encode())
        .await
        .unwrap();
    assert!(matches!(answer(&mut recv).await, Preamble::Opened(_)));

    let second = joined(&door, LinkId(8)).await;
    for connection in [&second.urgent, &second.bulk] {
        connection.close(0_u32.into(), b"");
    }
    // The stream that had not moved continues, and new ones can be opened.
    send.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    soon(recv.read_exact(&mut heard)).await.unwrap();
    assert_eq!(&heard, b"ping");
    let socket = door.config.socket.clone();
    let opening = tokio::spawn(async move {
        // Streams opened before the end of the second link is known are lost with it.
        while open(&socket, "edge", "echo", Class::Demand).await.is_err() {}
    });
    let _begun = soon(first.urgent.accept_bi()).await.unwrap();
    opening.abort();
    assert_eq!(door.region.status().links[0].links_lost, 0);
    echo.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_does_not_answer_leaves_the_tunnel_dialling() {
    let world = World::new();
    let mut config = world.site("edge", "region");
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    config.peers[0].address = Some(silent.local_addr().unwrap().to_string());
    let edge = Tunnel::start(&config).await.unwrap();
    let fault = edge.linked(&name("region"), Duration::from_secs(1)).await;
    assert_eq!(fault.unwrap_err().code, Code::Unreachable);
    let fresh = soon(tokio::task::spawn_blocking(move || {
        silent.set_read_timeout(Some(SOON)).unwrap();
        let mut ports = std::collections::BTreeSet::new();
        while ports.len() < 6 {
            ports.insert(silent.recv_from(&mut [0; 2000]).unwrap().1.port());
        }
        ports
    }));
    // Three attempts of two connections each, all from different sockets.
    assert_eq!(fresh.await.unwrap().len(), 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_host_of_a_site_does_not_push_the_first_one_out() {
    let pair = Pair::start().await;
    let validity = Validity::lasting(DAY, SystemTime::now());
    let uri = "spiffe://shop.example/site/edge/host/box-2";
    let host = HostIdentity::from_uri(uri).unwrap();
    let files = pair
        .world
        .authority
        .issue(&host, validity, &pair.world.path("two"))
        .unwrap();
    let mut config = pair.edge_config.clone();
    config.host = name("box-2");
    config.certificates.cert = files.cert;
    config.certificates.key = files.key;
    config.socket = pair.world.path("two-run/tunnel.sock");
    config.admin.socket = pair.world.path("two-run/admin.sock");
    let second = Tunnel::start(&config).await.unwrap();
    until("the second host is refused", || {
        second.status().links[0].reason.contains("already linked")
    })
    .await;
    assert_eq!(pair.region.status().links[0].host.as_deref(), Some("box-1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t17_a_peer_that_changes_its_wish_without_end_holds_nobody_up() {
    let log = Kept::log();
    let door = Door::open().await;
    let _echo = echo(UnixListener::bind(&door.config.services[0].socket).unwrap());
    let Joined {
        urgent, control, ..
    } = joined(&door, LinkId(7)).await;
    let wish = |bytes_per_second| {
        let receive_rate_max = Some(bytes_per_second);
        let report = PathReport {
            receive_rate_max,
            ..PathReport::default()
        };
        Preamble::Path(report).encode()
    };
    let words: Vec<u8> = (0..100_000)
        .flat_map(|count| wish(3_000_000 + count % 2))
        .collect();
    let [(mut words_out, _words_in), _bulk] = control;
    let last = wish(2_000_000);
    let saying = tokio::spawn(async move {
        words_out.write_all(&words).await.unwrap();
        words_out.write_all(&last).await.unwrap();
        words_out
    });
    let (mut send, mut recv) = soon(urgent.open_bi()).await.unwrap();
    send.write_all(&begin(Class::Demand).encode())
        .await
        .unwrap();
    assert!(matches!(answer(&mut recv).await, Preamble::Opened(_)));
    let page = pattern(5, 4096);
    // Other peers are served all the while.
    let mut pages = 0;
    while pages < 10 || !saying.is_finished() {
        pages += 1;
        let began = Instant::now();
        send.write_all(&page).await.unwrap();
        let mut heard = vec![0; page.len()];
        soon(recv.read_exact(&mut heard)).await.unwrap();
        assert!(heard == page);
        assert!(began.elapsed() < Duration::from_secs(3));
    }
    let _words_out = soon(saying).await.unwrap();
    until("the last wish holds", || {
        door.region.status().links[0].cap_bits_per_second == Some(16_000_000)
    })
    .await;
    let text = log.text();
    let lines = text
        .lines()
        .filter(|line| line.contains("wants to receive"));
    // Other tests of this process have links too.
    let count = lines.count();
    assert!(count < 100, "{count} lines");
}
