//! What the hybrid key exchange costs: a QUIC handshake with X25519MLKEM768 beside one with X25519.
//!
//! Same certificates, same provider of cryptography, both ends in one thread of this process and over
//! loopback, so that the time is that of both processors. The two take turns; the ratio of the medians is
//! the result, and the quartiles of the pairs' own ratios tell how sure it is. What each side sent for one
//! handshake is told too. `--smoke` does few, to show that it runs.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use quinn::Endpoint;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::crypto::CryptoProvider;
use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::program::finish;
use towpath_bench::sites::{Failure, site};
use towpath_certs::{Authority, Identity, Rejections, tls};

/// Pairs of handshakes, and of those that only warm everything up.
const FULL: (usize, usize) = (1000, 50);
const SMOKE: (usize, usize) = (5, 1);

/// Most that the hybrid one may cost.
const GOAL: f64 = 1.15;

/// How long a handshake may take.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    pairs: usize,
    hybrid_median_us: f64,
    classical_median_us: f64,
    goal_ratio: f64,
    ratio: f64,
    /// Of the ratios of each pair: quartiles.
    pair_ratio_quartiles: [f64; 3],
    hybrid_sent: [Sent; 2],
    classical_sent: [Sent; 2],
}

/// What a side sent until both were sure: edge, then region.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Sent {
    datagrams: u64,
    bytes: u64,
    calls: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let pairs = match words.as_slice() {
        [] => FULL,
        ["--smoke"] => SMOKE,
        _ => {
            eprintln!("usage: handshake [--smoke]");
            return ExitCode::FAILURE;
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let done = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(measure(pairs)))
        .and_then(|report| Goals::judge(&report, (pairs == FULL).then(|| report.goals())));
    finish(done)
}

impl Report {
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        goals.at_most("the hybrid handshake", self.ratio, self.goal_ratio);
        goals
    }
}

async fn measure((pairs, warm): (usize, usize)) -> Result<Report, Failure> {
    let folder = tempfile::TempDir::new()?;
    let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
    let identity = |own: &str, peer: &str| -> Result<Identity, Failure> {
        let files = site(&authority, folder.path(), own, peer)?.certificates;
        Ok(Identity::load(&files.cert, &files.key, &files.ca)?)
    };
    let identities = [identity("edge", "region")?, identity("region", "edge")?];
    let hybrid = Side::new(&tls::provider(), &identities)?;
    let classical = Side::new(&tls::classical_provider(), &identities)?;
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut sent = <[[Sent; 2]; 2]>::default();
    for pair in 0..warm + pairs {
        // Who goes first alternates too.
        let (first, second) = match pair % 2 {
            0 => (hybrid.shake().await?, classical.shake().await?),
            _ => {
                let classical = classical.shake().await?;
                (hybrid.shake().await?, classical)
            }
        };
        if pair >= warm {
            ours.push(first.took.as_secs_f64());
            theirs.push(second.took.as_secs_f64());
            ratios.push(first.took.as_secs_f64() / second.took.as_secs_f64());
            sent = [first.sent, second.sent];
        }
    }
    let (ours, theirs) = (quartiles(ours)[1], quartiles(theirs)[1]);
    Ok(Report {
        schema: "towpath.v1.bench.handshake",
        pairs,
        hybrid_median_us: ours * 1e6,
        classical_median_us: theirs * 1e6,
        goal_ratio: GOAL,
        ratio: ours / theirs,
        pair_ratio_quartiles: quartiles(ratios),
        hybrid_sent: sent[0],
        classical_sent: sent[1],
    })
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

/// What one handshake took.
struct Shaken {
    took: Duration,
    sent: [Sent; 2],
}

/// Both ends, with one key exchange.
struct Side {
    edge: Endpoint,
    region: Endpoint,
}

impl Side {
    fn new(
        provider: &Arc<CryptoProvider>,
        [edge, region]: &[Identity; 2],
    ) -> Result<Self, Failure> {
        let rejections = Arc::new(Rejections::default());
        let tls = tls::server_config_with(Arc::clone(provider), region, &rejections)?;
        let crypto = Arc::new(QuicServerConfig::try_from(tls)?);
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let region = Endpoint::server(quinn::ServerConfig::with_crypto(crypto), any)?;
        let site = "region".parse()?;
        let tls = tls::client_config_with(Arc::clone(provider), edge, &site, &rejections)?;
        let mut edge = Endpoint::client(any)?;
        let crypto = Arc::new(QuicClientConfig::try_from(tls)?);
        edge.set_default_client_config(quinn::ClientConfig::new(crypto));
        Ok(Self { edge, region })
    }

    /// One handshake, until both sides are sure.
    async fn shake(&self) -> Result<Shaken, Failure> {
        let began = Instant::now();
        let connecting = async {
            let address = self.region.local_addr()?;
            Ok::<_, Failure>(self.edge.connect(address, "towpath.invalid")?.await?)
        };
        let accepting = async {
            let incoming = self.region.accept().await.ok_or("the endpoint accepts")?;
            Ok::<_, Failure>(incoming.await?)
        };
        let both = async { tokio::try_join!(connecting, accepting) };
        let (connected, accepted) = tokio::time::timeout(WAIT, both).await??;
        let took = began.elapsed();
        let sent = [&connected, &accepted].map(|connection| {
            let sent = connection.stats().udp_tx;
            Sent {
                datagrams: sent.datagrams,
                bytes: sent.bytes,
                calls: sent.ios,
            }
        });
        connected.close(0_u32.into(), b"");
        accepted.closed().await;
        Ok(Shaken { took, sent })
    }
}
