//! How soon bytes flow again after an outage: a stream through the tunnel, beside one of bare quinn.
//!
//! Both write without end over the same emulated path, which is cut, and mended after the outage. The
//! time from there to the first new byte at the other end is the result, and for the tunnel whether all
//! bytes were the right ones and how many of them went twice. The two take turns. `--smoke` cuts for a
//! second, once.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, IdleTimeout, TransportConfig};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep};
use towpath_bench::load::bulk_stream;
use towpath_bench::program::{finish, print};
use towpath_bench::relay::{Control, Direction, Door, Options, Relay, Side};
use towpath_bench::sites::{Failure, site};
use towpath_certs::{Authority, Identity, Rejections, tls};
use towpath_tunnel::Tunnel;

/// The path: what an ordinary line has.
const BITS_PER_SECOND: u64 = 100_000_000;
const ROUND_TRIP: Duration = Duration::from_millis(40);

/// Time in which the stream fills the path before the cut.
const WARM: Duration = Duration::from_secs(1);

/// How long a stream may take to come back.
const BACK_WAIT: Duration = Duration::from_secs(60);

/// Bytes written and read at once.
const CHUNK_BYTES: usize = 64 * 1024;

/// Seconds of the outages, and how often each is played.
const FULL: (&[u64], usize) = (&[3, 10, 30, 120], 3);
const SMOKE: (&[u64], usize) = (&[1], 1);

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    bits_per_second: u64,
    round_trip_ms: u128,
    goal_ms: u128,
    goal_resent_bytes: u64,
    outages: Vec<Outage>,
}

/// One length of outage: each side's times to the first byte, in milliseconds.
#[derive(Debug, Serialize)]
struct Outage {
    seconds: u64,
    tunnel_ms: Vec<u128>,
    /// Nothing where it was not back within a minute.
    bare_quinn_ms: Vec<Option<u128>>,
    /// Bytes the tunnel sent twice, in each run.
    tunnel_resent_bytes: Vec<u64>,
    /// Bytes that arrived, all of them the right ones: a wrong one ends the bench.
    tunnel_bytes: Vec<u64>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds: Result<Vec<u64>, _> = arguments.iter().map(|text| text.parse()).collect();
    let (outages, runs) = match (arguments.as_slice(), &seconds) {
        ([], _) => FULL,
        ([smoke], _) if smoke == "--smoke" => SMOKE,
        (_, Ok(seconds)) => (seconds.as_slice(), FULL.1),
        _ => return finish(Err("usage: recovery [--smoke | SECONDS...]".into())),
    };
    let runtime = tokio::runtime::Runtime::new();
    let done = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(measure((outages, runs))))
        .and_then(|report| print(&report));
    finish(done)
}

async fn measure((outages, runs): (&[u64], usize)) -> Result<Report, Failure> {
    let mut report = Report {
        schema: "towpath.v1.bench.recovery",
        bits_per_second: BITS_PER_SECOND,
        round_trip_ms: ROUND_TRIP.as_millis(),
        goal_ms: 400,
        goal_resent_bytes: 1 << 20,
        outages: Vec::new(),
    };
    for seconds in outages {
        let mut outage = Outage {
            seconds: *seconds,
            tunnel_ms: Vec::new(),
            bare_quinn_ms: Vec::new(),
            tunnel_resent_bytes: Vec::new(),
            tunnel_bytes: Vec::new(),
        };
        for _ in 0..runs {
            let cut = Duration::from_secs(*seconds);
            let (back, bytes, resent) = through_tunnels(cut).await?;
            let back = back.ok_or("nothing came back through the tunnels in time")?;
            outage.tunnel_ms.push(back.as_millis());
            outage.tunnel_bytes.push(bytes);
            outage.tunnel_resent_bytes.push(resent);
            let (back, _) = through_quinn(cut).await?;
            outage.bare_quinn_ms.push(back.map(|back| back.as_millis()));
        }
        report.outages.push(outage);
    }
    Ok(report)
}

fn relay_to(to: SocketAddr) -> Result<(Relay, SocketAddr), Failure> {
    let direction = Direction {
        bits_per_second: Some(BITS_PER_SECOND),
        delay: ROUND_TRIP / 2,
        ..Direction::default()
    };
    let door = Door {
        from: Side::A,
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        to,
    };
    let relay = Relay::start(&Options {
        doors: vec![door],
        from_a: direction,
        from_b: direction,
        seed: 1,
    })?;
    let address = relay.doors()[0];
    Ok((relay, address))
}

async fn through_tunnels(cut: Duration) -> Result<(Option<Duration>, u64, u64), Failure> {
    let folder = tempfile::TempDir::new()?;
    let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
    let mut edge_config = site(&authority, folder.path(), "edge", "region")?;
    let mut region = site(&authority, folder.path(), "region", "edge")?;
    region.listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let listener = UnixListener::bind(&region.services[0].socket)?;
    let region = Tunnel::start(&region).await?;
    let listens = region.listen_address().ok_or("the region listens")?;
    let (relay, address) = relay_to(listens)?;
    edge_config.peers[0].address = Some(address.to_string());
    let edge = Tunnel::start(&edge_config).await?;
    edge.linked(&"region".parse()?, BACK_WAIT).await?;
    let (source, sink) = bulk_stream(&edge_config, &listener).await?;
    let (back, bytes) = play(&relay.control(), cut, source, sink, 0).await?;
    let resent = edge.status().links[0].resent_bytes;
    edge.stop().await;
    region.stop().await;
    Ok((back, bytes, resent))
}

async fn through_quinn(cut: Duration) -> Result<(Option<Duration>, u64), Failure> {
    let folder = tempfile::TempDir::new()?;
    let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
    let rejections = Arc::new(Rejections::default());
    let identity = |own: &str, peer: &str| -> Result<Identity, Failure> {
        let files = site(&authority, folder.path(), own, peer)?.certificates;
        Ok(Identity::load(&files.cert, &files.key, &files.ca)?)
    };
    let (edge, region) = (identity("edge", "region")?, identity("region", "edge")?);
    let mut transport = TransportConfig::default();
    // A connection that gave up could not come back at all.
    transport
        .max_idle_timeout(Some(IdleTimeout::try_from(Duration::from_secs(300))?))
        .keep_alive_interval(Some(Duration::from_millis(500)));
    let transport = Arc::new(transport);
    let tls = QuicServerConfig::try_from(tls::server_config(&region, &rejections)?)?;
    let mut server = quinn::ServerConfig::with_crypto(Arc::new(tls));
    server.transport_config(Arc::clone(&transport));
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let region = Endpoint::server(server, any)?;
    let (relay, address) = relay_to(region.local_addr()?)?;
    let tls = tls::client_config(&edge, &"region".parse()?, &rejections)?;
    let mut client = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls)?));
    client.transport_config(transport);
    let edge = Endpoint::client(any)?;
    let accepting = async {
        let incoming = region.accept().await.ok_or("the endpoint accepts")?;
        Ok::<_, Failure>(incoming.await?)
    };
    let connecting = async {
        Ok(edge
            .connect_with(client, address, "towpath.invalid")?
            .await?)
    };
    let (accepted, connected) = tokio::try_join!(accepting, connecting)?;
    let mut source = connected.open_uni().await?;
    source.write_all(&expected(0, 1)).await?;
    let mut sink = accepted.accept_uni().await?;
    sink.read_exact(&mut [0]).await?;
    play(&relay.control(), cut, source, sink, 1).await
}

/// Bytes of the stream from an offset on: each tells where it stands.
fn expected(offset: u64, count: usize) -> Vec<u8> {
    let byte = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    (offset..).take(count).map(byte).collect()
}

/// Writes without end, cuts and mends; gives the time to the first byte after that, if it came in time, and
/// all bytes read.
async fn play(
    control: &Control,
    cut: Duration,
    mut source: impl AsyncWrite + Unpin,
    mut sink: impl AsyncRead + Unpin,
    offset: u64,
) -> Result<(Option<Duration>, u64), Failure> {
    let mended = Cell::new(None);
    let writing = async {
        let mut at = offset;
        loop {
            let chunk = expected(at, CHUNK_BYTES);
            source.write_all(&chunk).await?;
            at += chunk.len() as u64;
        }
    };
    let read_bytes = Cell::new(offset);
    let reading = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let mut at = read_bytes.get();
            let count = sink.read(&mut chunk).await?;
            let now = Instant::now();
            if count == 0 || chunk[..count] != expected(at, count) {
                return Err(Failure::from(format!("wrong bytes behind {at}")));
            }
            at += count as u64;
            read_bytes.set(at);
            if let Some(mended) = mended.get() {
                return Ok((Some(now.duration_since(mended)), at));
            }
        }
    };
    let cutting = async {
        sleep(WARM).await;
        control.cut_both();
        sleep(cut).await;
        // Before the path can carry anything, so that no byte of the outage's end is missed.
        mended.set(Some(Instant::now()));
        control.heal();
        sleep(BACK_WAIT).await;
    };
    tokio::select! {
        read = reading => read,
        error = async { let ended: Result<Infallible, std::io::Error> = writing.await; ended } => {
            let Err(error) = error;
            Err(error.into())
        }
        () = cutting => Ok((None, read_bytes.get())),
    }
}
