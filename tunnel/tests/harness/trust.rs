//! Sites whose certificates, authorities and lists change while their link carries load.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use towpath_bench::relay::Direction;
use towpath_certs::register::Reason;
use towpath_certs::renewal::{LIST_VALIDITY, RevocationTarget};
use towpath_certs::{Authority, Identity, IdentityPaths, Validity, view};
use towpath_protocol::class::Class;
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::Config;
use towpath_tunnel::status::CertificateStatusView;

use super::{Pair, SOON, client, counts_refusal, echo, pattern, rejected, soon, until};

/// A stream that carries a pattern to the echo and checks every byte that comes back.
pub struct Load {
    is_over: Arc<AtomicBool>,
    returned: Arc<AtomicU64>,
    pub task: JoinHandle<()>,
}

/// Period of the data. A prime, so that the period never hides lost or repeated bytes.
pub const PERIOD: usize = 1_000_003;

impl Load {
    pub fn start(local: UnixStream) -> Self {
        let (is_over, returned) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (ending, counted) = (Arc::clone(&is_over), Arc::clone(&returned));
        let task = tokio::spawn(async move {
            let bytes = Arc::new(pattern(9, PERIOD));
            let (mut read, mut write) = local.into_split();
            let sent = Arc::clone(&bytes);
            let writing = tokio::spawn(async move {
                let mut total = 0;
                while !ending.load(Ordering::Relaxed) {
                    let at = total % PERIOD;
                    let until = PERIOD.min(at + 30_000);
                    write.write_all(&sent[at..until]).await.unwrap();
                    total += until - at;
                }
                write.shutdown().await.unwrap();
                total
            });
            let (mut at, mut chunk) = (0, vec![0; 64 * 1024]);
            loop {
                let count = read.read(&mut chunk).await.unwrap();
                if count == 0 {
                    break;
                }
                for byte in &chunk[..count] {
                    assert!(*byte == bytes[at % PERIOD], "byte {at} is wrong");
                    at += 1;
                }
                counted.store(at as u64, Ordering::Relaxed);
            }
            assert_eq!(at, writing.await.unwrap());
        });
        Self {
            is_over,
            returned,
            task,
        }
    }

    /// Waits until more bytes have come back.
    pub async fn flows(&self) {
        let wanted = self.returned.load(Ordering::Relaxed) + 200_000;
        let flowing = async {
            while self.returned.load(Ordering::Relaxed) < wanted {
                assert!(!self.task.is_finished(), "the stream was dropped");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(flowing).await;
    }

    /// Ends the stream from this side and checks that everything came back.
    pub async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        soon(self.task).await.unwrap();
    }
}

/// Ends all streams, and checks that everything came back.
pub async fn end_all(loads: Vec<Load>) {
    for load in loads {
        load.end().await;
    }
}

/// Waits until more bytes have come back on each stream.
pub async fn all_flow(loads: &[Load]) {
    for load in loads {
        load.flows().await;
    }
}

/// Cuts the path between two sites, and waits until a tunnel has no link and all of its streams
/// wait.
pub async fn cut_apart(pair: &Pair, tunnel: &Tunnel, loads: &[Load]) {
    pair.relay.as_ref().unwrap().control().cut_both();
    let (count, link) = (loads.len() as u64, || tunnel.status().links.remove(0));
    until("they wait", || link().streams_paused == count).await;
    until("there is no link", || link().host.is_none()).await;
}

/// Two linked sites with a revocation list, and loads over their link.
pub async fn loaded_pair(path: Option<Direction>) -> (Pair, Vec<Load>, JoinHandle<()>) {
    let pair = Pair::start_with(
        |edge, region| {
            for config in [edge, region] {
                let crl = config.certificates.ca.with_file_name("crl.pem");
                // Both start with the authority's first list.
                let ca = crl.parent().unwrap().parent().unwrap().join("ca");
                let authority = Authority::open(&ca).unwrap();
                if !ca.join("crl.pem").exists() {
                    sign(&authority, LIST_VALIDITY);
                }
                fs::copy(ca.join("crl.pem"), &crl).unwrap();
                config.certificates.crl = Some(crl);
            }
        },
        path,
    )
    .await;
    let echo = echo(pair.echo());
    let mut loads = Vec::new();
    for class in [Class::Control, Class::Bulk, Class::Bulk] {
        loads.push(Load::start(pair.open("echo", class).await.unwrap()));
    }
    for load in &loads {
        load.flows().await;
    }
    (pair, loads, echo)
}

/// Signs the authority's next list.
pub fn sign(authority: &Authority, lasting: Duration) {
    let signed = authority.sign_next_list(lasting, SystemTime::now());
    signed.unwrap();
}

pub fn revoke(authority: &Authority, target: &RevocationTarget) {
    let (reason, now) = (Reason::KeyCompromise, SystemTime::now());
    let signed = authority.revoke(target, reason, LIST_VALIDITY, now);
    signed.unwrap();
}

pub fn lasting(duration: Duration) -> Validity {
    Validity::lasting(duration, SystemTime::now())
}

pub fn serial(config: &Config) -> String {
    towpath_certs::show(&config.certificates.cert)
        .unwrap()
        .serial
}

/// Copies the authority's list to a host atomically, as an operator would.
pub fn carry_list(authority: &Path, config: &Config) {
    let crl = config.certificates.crl.as_ref().unwrap();
    let new = crl.with_extension("new");
    fs::copy(authority.join("crl.pem"), &new).unwrap();
    fs::rename(&new, crl).unwrap();
}

/// Waits until a tunnel's certificate status meets a condition.
pub async fn says(tunnel: &Tunnel, is_wanted: impl Fn(&CertificateStatusView) -> bool) {
    let waiting = async {
        while !is_wanted(&tunnel.status().certificate) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    assert!(waited.is_ok(), "{:?}", tunnel.status().certificate);
}

pub async fn uses(tunnel: &Tunnel, config: &Config) {
    let wanted = serial(config);
    says(tunnel, |view| {
        view.serial == wanted && view.problem.is_none()
    })
    .await;
}

/// The TLS settings of a host with these files; with `resumes` it tries to resume sessions.
pub fn client_of(folder: &Path, resumes: bool) -> rustls::ClientConfig {
    let file = |name| folder.join(name);
    let identity = Identity::load(&IdentityPaths {
        certificate: &file("cert.pem"),
        key: &file("key.pem"),
        authorities: &file("ca.pem"),
    })
    .unwrap();
    let mut client = client(&identity);
    if resumes {
        client.resumption = rustls::client::Resumption::in_memory_sessions(64);
        client.enable_early_data = true;
    }
    client
}

/// The same settings for QUIC.
pub fn quic(client: rustls::ClientConfig) -> Arc<QuicClientConfig> {
    Arc::new(QuicClientConfig::try_from(client).unwrap())
}

/// Makes a handmade handshake with the region.
pub async fn shake(
    pair: &Pair,
    client: &Arc<QuicClientConfig>,
) -> Result<Connection, ConnectionError> {
    let endpoint = Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    let config = quinn::ClientConfig::new(Arc::clone(client) as _);
    let target = pair.region.listen_address().unwrap();
    let connecting = endpoint
        .connect_with(config, target, "towpath.invalid")
        .unwrap();
    soon(connecting).await
}

/// The serial number of the certificate that the other end of a connection has shown.
pub fn shown(connection: &Connection) -> String {
    let chain = connection.peer_identity().unwrap();
    let chain = chain.downcast::<Vec<CertificateDer<'static>>>().unwrap();
    view::of_der(&chain[0]).unwrap().serial
}

/// Checks that the region refuses this client for this reason.
pub async fn check_refused(pair: &Pair, client: &Arc<QuicClientConfig>, reason: &str) {
    let before = rejected(&pair.region_config, reason).await;
    if let Ok(connection) = shake(pair, client).await {
        soon(connection.closed()).await;
    }
    counts_refusal(&pair.region_config, reason, before).await;
}
