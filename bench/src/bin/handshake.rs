//! The cost of the hybrid key exchange: a QUIC handshake with X25519MLKEM768, compared with X25519.
//!
//! Both use the same certificates and the same crypto provider. Both ends run in one thread of this
//! process over loopback, so the time is that of both processors. The two kinds alternate; the
//! ratio of the medians is the result, and the quartiles of the ratios of each pair show how
//! certain it is. The bytes that each side sent for one handshake are reported too. The same
//! measured over an emulated path of 5 ms, the shortest that links are made for, shows how long
//! users of a link wait for it. `--smoke` does few handshakes, to show that it runs.

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
use towpath_bench::relay::{Direction, Door, Options, Relay, Side as RelaySide};
use towpath_bench::sites::{Failure, site};
use towpath_certs::{Authority, Identity, Rejections, tls};

/// Pairs of handshakes on this host, pairs over the path, and additional pairs of each for warming
/// up.
const FULL: [usize; 3] = [1000, 200, 50];
const SMOKE: [usize; 3] = [5, 2, 1];

/// One-way delay of the path.
const ONE_WAY: Duration = Duration::from_micros(2500);

/// The most that the hybrid handshake may cost, relative to the other.
const GOAL: f64 = 1.15;

/// Timeout of a handshake.
const WAIT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    goal_ratio: f64,
    /// On this host: the processor time of both ends.
    here: Pairs,
    /// Over the path: the time that a user waits.
    over_5_ms: Pairs,
    hybrid_sent: [Sent; 2],
    classical_sent: [Sent; 2],
}

/// Handshakes of the two kinds, alternating.
#[derive(Debug, Serialize)]
struct Pairs {
    pairs: usize,
    hybrid_median_us: f64,
    classical_median_us: f64,
    ratio: f64,
    /// Quartiles of the ratios of each pair.
    pair_ratio_quartiles: [f64; 3],
    #[serde(skip)]
    sent: [[Sent; 2]; 2],
}

/// What a side sent until both had confirmed the handshake: edge, then region.
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
        let (here, far) = (self.here.ratio, self.over_5_ms.ratio);
        goals.at_most("the hybrid handshake's processors", here, self.goal_ratio);
        goals.at_most("the hybrid handshake over 5 ms", far, self.goal_ratio);
        goals
    }
}

async fn measure([here, over_path, warm]: [usize; 3]) -> Result<Report, Failure> {
    let folder = tempfile::TempDir::new()?;
    let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
    let identity = |own: &str, peer: &str| -> Result<Identity, Failure> {
        let files = site(&authority, folder.path(), own, peer)?.certificates;
        Ok(files.identity()?)
    };
    let identities = [identity("edge", "region")?, identity("region", "edge")?];
    let hybrid = Side::new(&tls::provider(), &identities)?;
    let classical = Side::new(&tls::classical_provider(), &identities)?;
    let sides = [&hybrid, &classical];
    let direct = [hybrid.region.local_addr()?, classical.region.local_addr()?];
    let here = take_turns((here, warm), sides, direct).await?;
    let relays = [path_to(direct[0])?, path_to(direct[1])?];
    let far = relays.each_ref().map(|relay| relay.doors()[0]);
    let over_5_ms = take_turns((over_path, warm), sides, far).await?;
    Ok(Report {
        schema: "towpath.v1.bench.handshake",
        goal_ratio: GOAL,
        hybrid_sent: here.sent[0],
        classical_sent: here.sent[1],
        here,
        over_5_ms,
    })
}

/// Makes this many handshakes of each kind, to these addresses; the hybrid kind is the first of
/// each.
async fn take_turns(
    (pairs, warm): (usize, usize),
    [hybrid, classical]: [&Side; 2],
    addresses: [SocketAddr; 2],
) -> Result<Pairs, Failure> {
    let (mut ours, mut theirs, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    let mut sent = <[[Sent; 2]; 2]>::default();
    for pair in 0..warm + pairs {
        // The order alternates too.
        let (first, second) = match pair % 2 {
            0 => (
                hybrid.shake(addresses[0]).await?,
                classical.shake(addresses[1]).await?,
            ),
            _ => {
                let second = classical.shake(addresses[1]).await?;
                (hybrid.shake(addresses[0]).await?, second)
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
    Ok(Pairs {
        pairs,
        hybrid_median_us: ours * 1e6,
        classical_median_us: theirs * 1e6,
        ratio: ours / theirs,
        pair_ratio_quartiles: quartiles(ratios),
        sent,
    })
}

/// An emulated path to an address.
fn path_to(address: SocketAddr) -> Result<Relay, Failure> {
    let direction = Direction {
        delay: ONE_WAY,
        ..Direction::default()
    };
    let door = Door {
        from: RelaySide::A,
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        to: address,
    };
    Ok(Relay::start(&Options {
        doors: vec![door],
        from_a: direction,
        from_b: direction,
        seed: 1,
    })?)
}

fn quartiles(mut values: Vec<f64>) -> [f64; 3] {
    values.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
}

/// The result of one handshake.
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

    /// One handshake, until both sides have confirmed it.
    async fn shake(&self, address: SocketAddr) -> Result<Shaken, Failure> {
        let began = Instant::now();
        let connecting =
            async { Ok::<_, Failure>(self.edge.connect(address, "towpath.invalid")?.await?) };
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
