//! The cost of replacing certificates, authorities and revocation lists under load, and how soon a
//! revoked peer is shut out.
//!
//! A transfer runs over a capped link. Windows in which something is replaced at both sites
//! alternate with windows in which nothing is. Every byte is checked, and every stream has to end
//! cleanly. Two hosts are revoked: a second host that keeps whatever a session could be resumed
//! with, and the sending host of a second pair. `--smoke` plays each once, in short windows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{Connection, ConnectionError, Endpoint, TransportErrorCode};
use rustls::NamedGroup;
use rustls::client::{
    ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue,
    Tls13ClientSessionValue,
};
use rustls::pki_types::ServerName;
use serde::Serialize;
use tokio::time::{Instant, sleep, timeout};
use towpath_bench::goals::Goals;
use towpath_bench::load::Loaded;
use towpath_bench::program::finish;
use towpath_bench::sites::Failure;
use towpath_certs::authority::LEAF_VALIDITY;
use towpath_certs::register::Reason;
use towpath_certs::renewal::{KeyChoice, LIST_VALIDITY, OtherAuthority, RevocationTarget};
use towpath_certs::{Authority, Identity, Rejections, Validity, tls};
use towpath_protocol::identity::HostIdentity;
use towpath_tunnel::Tunnel;

/// The cap of the transfer: a typical site's line, far below what the processors can handle.
const RATE: &str = "200Mbit";

/// Length of a window, and number of windows of each kind.
const FULL: (Duration, usize) = (Duration::from_secs(4), 5);
const SMOKE: (Duration, usize) = (Duration::from_millis(1500), 1);

/// Timeout for operations that should take milliseconds.
const WAIT: Duration = Duration::from_secs(20);

/// Interval between checks.
const LOOK: Duration = Duration::from_millis(5);

/// The TLS alert for a revoked certificate (RFC 8446, 6).
const CERTIFICATE_REVOKED: u8 = 44;

/// The trust domain of the benches.
const DOMAIN: &str = "bench.example";

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    goal_dip_max: f64,
    goal_out_ms: u128,
    window_ms: u128,
    exchanges: Vec<Exchange>,
    /// Streams that lasted and ended cleanly, with every byte correct; any other ends the bench.
    streams: usize,
    /// From the list's arrival until the live link of the revoked host was closed.
    link_closed_ms: u128,
    /// From the list's arrival until a host that tried to resume a session was refused.
    session_refused_ms: u128,
    /// Tickets issued to that host, with any of which it could have resumed a session.
    ticket_count: usize,
}

/// One kind of replacement.
#[derive(Debug, Serialize)]
struct Exchange {
    what: &'static str,
    /// Bytes per second in the windows without it, and with it.
    calm_bytes_per_second: Vec<u64>,
    exchanging_bytes_per_second: Vec<u64>,
    /// One minus the ratio of the median with it to the median without.
    dip: f64,
    /// The longest time between two reads of any one stream, in each of those windows.
    calm_stall_ms: Vec<u128>,
    exchanging_stall_ms: Vec<u128>,
}

fn main() -> ExitCode {
    let scale = match std::env::args().nth(1).as_deref() {
        None => FULL,
        Some("--smoke") => SMOKE,
        Some(other) => {
            eprintln!("unknown option {other}");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::from);
    let measured = runtime.and_then(|runtime| runtime.block_on(measure(scale)));
    let judge = |report: Report| Goals::judge(&report, (scale == FULL).then(|| report.goals()));
    finish(measured.and_then(judge))
}

impl Report {
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        for exchange in &self.exchanges {
            let what = format!("the dip of {}", exchange.what);
            goals.at_most(what, exchange.dip, self.goal_dip_max);
        }
        let most = self.goal_out_ms as f64;
        let [closed, refused] = [self.link_closed_ms, self.session_refused_ms];
        goals.at_most("the end of a revoked link", closed as f64, most);
        goals.at_most("the refusal of a revoked session", refused as f64, most);
        let tickets = self.ticket_count as f64;
        goals.at_most("tickets to resume sessions with", tickets, 0.0);
        goals
    }
}

/// The authority that signs now, and the number of authorities before it.
struct Signer {
    authority: Authority,
    folder: PathBuf,
    count: usize,
}

/// Two loaded tunnels that have the list of revoked certificates, and their authority.
async fn start() -> Result<(Loaded, Signer), Failure> {
    let loaded = Loaded::start(Some(RATE), |authority, configs| {
        sign(authority, None)?;
        for config in configs {
            let crl = config.certificates.ca.with_file_name("crl.pem");
            let folder = crl.parent().and_then(Path::parent).ok_or("a folder")?;
            fs::copy(folder.join("ca/crl.pem"), &crl)?;
            config.certificates.crl = Some(crl);
        }
        Ok(())
    })
    .await?;
    let folder = loaded.folder.path().join("ca");
    let signer = Signer {
        authority: Authority::open(&folder)?,
        folder,
        count: 0,
    };
    sleep(Duration::from_secs(1)).await;
    Ok((loaded, signer))
}

async fn measure((window, rounds): (Duration, usize)) -> Result<Report, Failure> {
    let (loaded, mut signer) = start().await?;
    let mut exchanges = Vec::new();
    for what in ["identity", "authority", "list"] {
        let (mut calm, mut exchanging) = (Vec::new(), Vec::new());
        let (mut calm_stall_ms, mut exchanging_stall_ms) = (Vec::new(), Vec::new());
        let stall_ms = || loaded.longest_stall().as_millis();
        for _ in 0..rounds {
            stall_ms();
            calm.push(loaded.goodput(window).await?);
            calm_stall_ms.push(stall_ms());
            let (before, began) = (loaded.received(), Instant::now());
            match what {
                "identity" => renew(&loaded, &signer.authority, KeyChoice::New, None).await?,
                "authority" => signer.follow(&loaded).await?,
                _ => carry(&loaded, &signer, None).await?,
            }
            sleep(window.saturating_sub(began.elapsed())).await;
            exchanging.push(loaded.rate_since(before, began)?);
            exchanging_stall_ms.push(stall_ms());
        }
        let dip = 1.0 - median(&exchanging) / median(&calm).max(1.0);
        exchanges.push(Exchange {
            what,
            calm_bytes_per_second: calm,
            exchanging_bytes_per_second: exchanging,
            dip,
            calm_stall_ms,
            exchanging_stall_ms,
        });
    }
    let (session_refused, ticket_count) = refuse_session(&loaded, &signer).await?;
    let streams = loaded.stream_count();
    loaded.stop().await?;
    let (loaded, signer) = start().await?;
    let link_closed = close_link(&loaded, &signer).await?;
    Ok(Report {
        schema: "towpath.v1.bench.rotation",
        goal_dip_max: 0.01,
        goal_out_ms: 1000,
        window_ms: window.as_millis(),
        exchanges,
        streams,
        link_closed_ms: link_closed.as_millis(),
        session_refused_ms: session_refused.as_millis(),
        ticket_count,
    })
}

fn median(rates: &[u64]) -> f64 {
    let mut rates = rates.to_vec();
    rates.sort_unstable();
    rates[rates.len() / 2] as f64
}

fn sign(authority: &Authority, target: Option<&RevocationTarget>) -> Result<(), Failure> {
    let now = SystemTime::now();
    match target {
        Some(target) => authority.revoke(target, Reason::KeyCompromise, LIST_VALIDITY, now)?,
        None => authority.sign_next_list(LIST_VALIDITY, now)?,
    };
    Ok(())
}

/// The sites' folders and tunnels, the listening one first.
fn sites(loaded: &Loaded) -> [(PathBuf, &Tunnel); 2] {
    let folder = |site: &str| loaded.folder.path().join(site);
    [
        (folder("region"), &loaded.region),
        (folder("edge"), &loaded.edge),
    ]
}

/// Renews both sites' certificates, and waits until the new ones are in use.
async fn renew(
    loaded: &Loaded,
    authority: &Authority,
    key: KeyChoice,
    overlap: Option<&OtherAuthority>,
) -> Result<(), Failure> {
    for (folder, tunnel) in sites(loaded) {
        let validity = Validity::lasting(LEAF_VALIDITY, SystemTime::now());
        authority.renew(&folder, key, validity, overlap)?;
        let wanted = towpath_certs::show(&folder.join("cert.pem"))?.serial;
        until("a certificate in use", || {
            let view = tunnel.status().certificate;
            view.serial == wanted && view.problem.is_none()
        })
        .await?;
    }
    Ok(())
}

impl Signer {
    /// Replaces this authority by the next one, through an overlap of both.
    async fn follow(&mut self, loaded: &Loaded) -> Result<(), Failure> {
        let folder = loaded.folder.path().join(format!("ca-{}", self.count + 1));
        let next = Authority::init(&folder, &DOMAIN.parse()?)?;
        sign(&next, None)?;
        let (old_half, new_half) = (
            OtherAuthority::open(&self.folder)?,
            OtherAuthority::open(&folder)?,
        );
        renew(loaded, &self.authority, KeyChoice::Same, Some(&new_half)).await?;
        renew(loaded, &next, KeyChoice::Same, Some(&old_half)).await?;
        renew(loaded, &next, KeyChoice::Same, None).await?;
        *self = Self {
            authority: next,
            folder,
            count: self.count + 1,
        };
        Ok(())
    }
}

/// Signs the next list, copies it to both sites, and waits until it is in use.
async fn carry(
    loaded: &Loaded,
    signer: &Signer,
    target: Option<&RevocationTarget>,
) -> Result<(), Failure> {
    sign(&signer.authority, target)?;
    for (folder, tunnel) in sites(loaded) {
        let number = |tunnel: &Tunnel| {
            let lists = tunnel.status().certificate.revocation_lists;
            lists.first().map_or(0, |list| list.number)
        };
        let before = number(tunnel);
        bring(signer, &folder)?;
        until("a list in use", || number(tunnel) > before).await?;
    }
    Ok(())
}

/// Copies the newest list to a site, atomically.
fn bring(signer: &Signer, folder: &Path) -> Result<(), Failure> {
    let new = folder.join("crl.new");
    fs::copy(signer.folder.join("crl.pem"), &new)?;
    fs::rename(&new, folder.join("crl.pem"))?;
    Ok(())
}

/// Revokes a second host that keeps whatever a session could be resumed with. Returns the time
/// until it is refused, and the number of tickets it was issued.
async fn refuse_session(loaded: &Loaded, signer: &Signer) -> Result<(Duration, usize), Failure> {
    let thief = HostIdentity::from_uri("spiffe://bench.example/site/edge/host/box-9")?;
    let folder = loaded.folder.path().join("thief");
    let validity = Validity::lasting(LEAF_VALIDITY, SystemTime::now());
    let files = signer.authority.issue(&thief, validity, &folder)?;
    let identity = Identity::load(&files.paths())?;
    let rejections = Arc::new(Rejections::default());
    let mut client = tls::client_config(&identity, &"region".parse()?, &rejections)?;
    let tickets = Arc::new(Tickets::default());
    client.resumption = Resumption::store(Arc::clone(&tickets) as _);
    client.enable_early_data = true;
    let client = Arc::new(QuicClientConfig::try_from(client)?);
    let target = loaded.region.listen_address().ok_or("the region listens")?;
    let endpoint = Endpoint::client("127.0.0.1:0".parse()?)?;
    for _ in 0..3 {
        let config = quinn::ClientConfig::new(Arc::clone(&client) as _);
        let connecting = endpoint.connect_with(config, target, "towpath.invalid")?;
        is_let_in(&connecting.await?).await?;
    }
    let ticket_count = tickets.count.load(Ordering::Relaxed);
    sign(&signer.authority, Some(&RevocationTarget::Host(thief)))?;
    bring(signer, &loaded.folder.path().join("region"))?;
    let began = Instant::now();
    loop {
        let config = quinn::ClientConfig::new(Arc::clone(&client) as _);
        let connecting = endpoint.connect_with(config, target, "towpath.invalid")?;
        let let_in = match timeout(WAIT, connecting).await? {
            Ok(connection) => is_let_in(&connection).await,
            Err(error) => Err(error),
        };
        match let_in {
            Ok(()) => {}
            Err(error) if is_revocation(&error) => return Ok((began.elapsed(), ticket_count)),
            Err(error) => return Err(format!("kept out, but not as revoked: {error}").into()),
        }
        if began.elapsed() > WAIT {
            return Err("a revoked host is let in".into());
        }
    }
}

/// A client's session store, with a count of the tickets it was issued.
#[derive(Debug)]
struct Tickets {
    kept: ClientSessionMemoryCache,
    count: AtomicUsize,
}

impl Default for Tickets {
    fn default() -> Self {
        Self {
            kept: ClientSessionMemoryCache::new(64),
            count: AtomicUsize::new(0),
        }
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.kept.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.kept.kx_hint(server)
    }

    fn set_tls12_session(&self, server: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.kept.set_tls12_session(server, session);
    }

    fn tls12_session(&self, server: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.kept.tls12_session(server)
    }

    fn remove_tls12_session(&self, server: &ServerName<'static>) {
        self.kept.remove_tls12_session(server);
    }

    fn insert_tls13_ticket(&self, server: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.count.fetch_add(1, Ordering::Relaxed);
        self.kept.insert_tls13_ticket(server, ticket);
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.kept.take_tls13_ticket(server)
    }
}

/// Checks that the other side accepted a handshake too: in TLS 1.3 the dialling side is done before
/// its own certificate has been verified.
async fn is_let_in(connection: &Connection) -> Result<(), ConnectionError> {
    let closed = timeout(Duration::from_millis(100), connection.closed()).await;
    connection.close(0_u32.into(), b"");
    match closed {
        Err(_) => Ok(()),
        Ok(reason) => Err(reason),
    }
}

/// Whether the other side refused the certificate as revoked; a refusal for any other reason does
/// not count.
fn is_revocation(error: &ConnectionError) -> bool {
    let alert = TransportErrorCode::crypto(CERTIFICATE_REVOKED);
    matches!(error, ConnectionError::ConnectionClosed(close) if close.error_code == alert)
}

/// Revokes the sending host; returns the time until its live link is closed.
async fn close_link(loaded: &Loaded, signer: &Signer) -> Result<Duration, Failure> {
    let edge = HostIdentity::from_uri("spiffe://bench.example/site/edge/host/box-1")?;
    sign(&signer.authority, Some(&RevocationTarget::Host(edge)))?;
    bring(signer, &loaded.folder.path().join("region"))?;
    let began = Instant::now();
    let is_linked = || loaded.region.status().links[0].host.is_some();
    until("the link's end", || !is_linked()).await?;
    Ok(began.elapsed())
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) -> Result<(), Failure> {
    let waiting = async {
        while !holds() {
            sleep(LOOK).await;
        }
    };
    let waited = timeout(WAIT, waiting).await;
    waited.map_err(|_| format!("never: {what}").into())
}
