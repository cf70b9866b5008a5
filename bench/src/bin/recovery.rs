//! How soon, and at what rate, bytes flow again after an outage: a stream through the tunnel,
//! compared with one of bare quinn.
//!
//! Both write continuously over the same emulated path, which is cut, and mended after the outage.
//! The main result is the time from the mending to the first new byte at the other end. For the
//! tunnel, every byte is checked and repeated bytes are counted. For both, the share of the path's
//! rate that arrived in the first seconds of the connection and after the outage is measured. One
//! of the paths also loses one packet in a hundred. After two of the outages a router has lost its
//! table, so that only a new connection gets through; bare quinn makes none. The two alternate five
//! times, and the median is judged: by one goal for all paths, by what quinn took in the same run,
//! and over the far path also by what our design takes there, which distinguishes a regression from
//! a goal that is out of reach. `--smoke` cuts for a second, once.

use std::cell::Cell;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::num::ParseIntError;
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::{Endpoint, IdleTimeout, TransportConfig};
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixListener;
use tokio::time::{Instant, sleep};
use towpath_bench::goals::Goals;
use towpath_bench::load::bulk_stream;
use towpath_bench::program::{finish, median};
use towpath_bench::relay::{Control, Direction, Door, Options, Relay, Side};
use towpath_bench::sites::{Failure, site};
use towpath_certs::{Authority, Identity, Rejections, tls};
use towpath_tunnel::Tunnel;

/// The path: the rate of an ordinary line, and the round trip if none is given.
const BITS_PER_SECOND: u64 = 100_000_000;
const ROUND_TRIP_MS: u64 = 40;

/// The round trip of a far path, and the packets lost per thousand on a poor one.
const FAR_ROUND_TRIP_MS: u64 = 200;
const LOST_PER_MILLE: u32 = 10;

/// Goal for the time to the first byte, on any path.
const GOAL_MS: u64 = 400;

/// Intervals while the peer does not answer, which add to the recovery on any path: between probes
/// over the existing link, and between attempts to dial a new one.
const ASK_INTERVAL_MS: u64 = 50;
const DIAL_INTERVAL_MS: u64 = 250;

/// Half round trips from the first packet that gets through to the first byte of a resumed stream.
const ASK_HALF_ROUND_TRIPS: u64 = 3;
const DIAL_HALF_ROUND_TRIPS: u64 = 5;

/// Most bytes that may be sent again, on a path that holds less than that.
const RESENT_BYTES: u64 = 1 << 20;

/// How often each outage is played, and for how long its streams run before and after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scale {
    runs: usize,
    /// Time for the stream to fill the path before the cut.
    start: Duration,
    /// Time after the outage in which bytes are counted.
    after: Duration,
}

const FULL: Scale = Scale {
    runs: 5,
    start: Duration::from_secs(3),
    after: Duration::from_secs(5),
};
const SMOKE: Scale = Scale {
    runs: 1,
    start: Duration::from_millis(500),
    after: Duration::from_millis(500),
};

/// Timeout for a stream to come back.
const BACK_WAIT: Duration = Duration::from_secs(60);

/// Interval between checks for returned bytes.
const LOOK: Duration = Duration::from_millis(10);

/// Bytes per write and per read.
const CHUNK_BYTES: usize = 64 * 1024;

/// An outage of some seconds on a path with this round trip and loss.
#[derive(Debug, Clone, Copy)]
struct Case {
    seconds: u64,
    round_trip_ms: u64,
    lost_per_mille: u32,
    /// Whether the router has lost its table after the outage, so that only a new connection gets
    /// through.
    is_forgotten: bool,
}

impl Case {
    const fn new(seconds: u64) -> Self {
        Self {
            seconds,
            round_trip_ms: ROUND_TRIP_MS,
            lost_per_mille: 0,
            is_forgotten: false,
        }
    }

    const fn far(seconds: u64) -> Self {
        Self {
            round_trip_ms: FAR_ROUND_TRIP_MS,
            ..Self::new(seconds)
        }
    }

    const fn lossy(seconds: u64) -> Self {
        Self {
            lost_per_mille: LOST_PER_MILLE,
            ..Self::new(seconds)
        }
    }

    const fn forgotten(self) -> Self {
        Self {
            is_forgotten: true,
            ..self
        }
    }

    /// Whether the path is one that goals are set for; others are only measured.
    const fn is_judged(self) -> bool {
        matches!(
            (self.round_trip_ms, self.lost_per_mille),
            (ROUND_TRIP_MS, 0 | LOST_PER_MILLE) | (FAR_ROUND_TRIP_MS, 0)
        )
    }

    /// The goal for the time to the first byte.
    fn goal_ms(self) -> Option<u64> {
        self.is_judged().then_some(GOAL_MS)
    }

    /// The time to the first byte by our design, if that is above the goal.
    fn design_ms(self) -> Option<u64> {
        let (interval_ms, half_round_trips) = if self.is_forgotten {
            (DIAL_INTERVAL_MS, DIAL_HALF_ROUND_TRIPS)
        } else {
            (ASK_INTERVAL_MS, ASK_HALF_ROUND_TRIPS)
        };
        let takes = interval_ms + half_round_trips * self.round_trip_ms / 2;
        (self.is_judged() && takes > GOAL_MS).then_some(takes)
    }

    /// Most bytes that may be sent again. None for a far path, which holds more than the limit in
    /// flight.
    fn goal_resent_bytes(self) -> Option<u64> {
        let is_near = self.round_trip_ms == ROUND_TRIP_MS;
        (self.is_judged() && is_near).then_some(RESENT_BYTES)
    }

    const fn round_trip(self) -> Duration {
        Duration::from_millis(self.round_trip_ms)
    }
}

impl FromStr for Case {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let kept = text.strip_suffix('*');
        let (is_forgotten, text) = (kept.is_some(), kept.unwrap_or(text));
        let (path, lost) = text.split_once('/').unzip();
        let path = path.unwrap_or(text);
        let (seconds, round_trip) = path.split_once('@').unzip();
        Ok(Self {
            seconds: seconds.unwrap_or(path).parse()?,
            round_trip_ms: round_trip.map_or(Ok(ROUND_TRIP_MS), str::parse)?,
            lost_per_mille: lost.map_or(Ok(0), str::parse)?,
            is_forgotten,
        })
    }
}

/// The outages.
const CASES: [Case; 8] = [
    Case::new(3),
    Case::new(3).forgotten(),
    Case::far(3),
    Case::far(3).forgotten(),
    Case::lossy(3),
    Case::new(10),
    Case::new(30),
    Case::new(120),
];

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    bits_per_second: u64,
    outages: Vec<Outage>,
}

/// The results of one outage: times to the first byte in milliseconds, and shares of the path's
/// rate.
#[derive(Debug, Default, Serialize)]
struct Outage {
    seconds: u64,
    round_trip_ms: u64,
    lost_per_mille: u32,
    /// Whether only a new connection gets through after it.
    is_forgotten: bool,
    /// The goal for the tunnel's median; `None` if it is only measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    goal_ms: Option<u64>,
    /// The time by our design, if that is above the goal.
    #[serde(skip_serializing_if = "Option::is_none")]
    design_ms: Option<u64>,
    /// Most bytes that may be sent twice; `None` if they are only counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    goal_resent_bytes: Option<u64>,
    tunnel_ms: Vec<u128>,
    tunnel_median_ms: f64,
    /// `None` for a run in which it was not back within a minute.
    bare_quinn_ms: Vec<Option<u128>>,
    /// `None` if the median run was not back in time.
    bare_quinn_median_ms: Option<f64>,
    /// Bytes that the tunnel sent twice, in each run.
    tunnel_resent_bytes: Vec<u64>,
    /// Bytes that arrived, all of them correct: a wrong byte ends the bench.
    tunnel_bytes: Vec<u64>,
    /// In the first seconds of a new connection.
    tunnel_start_shares: Vec<f64>,
    bare_quinn_start_shares: Vec<f64>,
    /// In the seconds after the outage.
    tunnel_after_shares: Vec<f64>,
    bare_quinn_after_shares: Vec<f64>,
}

/// The results of one stream.
#[derive(Debug, Clone, Copy)]
struct Played {
    /// From the mending of the path to the first byte, if one came in time.
    back: Option<Duration>,
    /// All bytes that arrived.
    bytes: u64,
    start_share: f64,
    after_share: f64,
}

impl Played {
    fn back_ms(&self) -> Option<u128> {
        self.back.map(|back| back.as_millis())
    }
}

/// Bytes as a share of what the path could have carried in that time, rounded to a thousandth.
#[allow(clippy::cast_precision_loss, reason = "a share for people")]
fn share(bytes: u64, time: Duration) -> f64 {
    let most = BITS_PER_SECOND as f64 / 8.0 * time.as_secs_f64();
    (bytes as f64 / most * 1000.0).round() / 1000.0
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let cases: Result<Vec<Case>, _> = arguments.iter().map(|text| text.parse()).collect();
    let (outages, scale) = match (arguments.as_slice(), &cases) {
        ([], _) => (&CASES[..], FULL),
        ([smoke], _) if smoke == "--smoke" => (&[Case::new(1)][..], SMOKE),
        (_, Ok(cases)) => (cases.as_slice(), FULL),
        _ => {
            return finish(Err(
                "usage: recovery [--smoke | SECONDS[@ROUND_TRIP_MS][/LOST_PER_MILLE][*]...]".into(),
            ));
        }
    };
    let runtime = tokio::runtime::Runtime::new();
    let done = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(measure(outages, scale)))
        .and_then(|report| Goals::judge(&report, (scale == FULL).then(|| report.goals())));
    finish(done)
}

impl Report {
    /// Goals of the paths that have any; the others are only measured.
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        for outage in &self.outages {
            outage.judge(&mut goals);
        }
        goals
    }
}

impl Outage {
    fn new(case: Case) -> Self {
        Self {
            seconds: case.seconds,
            round_trip_ms: case.round_trip_ms,
            lost_per_mille: case.lost_per_mille,
            is_forgotten: case.is_forgotten,
            goal_ms: case.goal_ms(),
            design_ms: case.design_ms(),
            goal_resent_bytes: case.goal_resent_bytes(),
            ..Self::default()
        }
    }

    fn judge(&self, goals: &mut Goals) {
        let back = format!("the first byte {}", self.behind());
        let median = self.tunnel_median_ms;
        if let Some(most) = self.goal_ms {
            goals.at_most(&back, median, most as f64);
            let quinns = self.bare_quinn_median_ms.unwrap_or(f64::INFINITY);
            goals.at_most(format!("{back}, beside bare quinn's"), median, quinns);
        }
        if let Some(most) = self.design_ms {
            goals.at_most(format!("{back}, by our design"), median, most as f64);
        }
        if let Some(most) = self.goal_resent_bytes {
            let resent = self.tunnel_resent_bytes.iter().max().copied();
            let resent = resent.unwrap_or(u64::MAX) as f64;
            let again = format!("what is sent again {}", self.behind());
            goals.at_most(again, resent, most as f64);
        }
    }

    /// Describes the outage, for people.
    fn behind(&self) -> String {
        let forgotten = if self.is_forgotten {
            ", and is another one then"
        } else {
            ""
        };
        format!(
            "behind {} s without a path of {} ms that loses {} of 1000{forgotten}",
            self.seconds, self.round_trip_ms, self.lost_per_mille
        )
    }
}

async fn measure(cases: &[Case], scale: Scale) -> Result<Report, Failure> {
    let mut report = Report {
        schema: "towpath.v1.bench.recovery",
        bits_per_second: BITS_PER_SECOND,
        outages: Vec::new(),
    };
    for case in cases {
        let mut outage = Outage::new(*case);
        for _ in 0..scale.runs {
            let (played, resent) = through_tunnels(*case, scale).await?;
            let back = played.back_ms();
            let back = back.ok_or("nothing came back through the tunnels in time")?;
            outage.tunnel_ms.push(back);
            outage.tunnel_bytes.push(played.bytes);
            outage.tunnel_resent_bytes.push(resent);
            outage.tunnel_start_shares.push(played.start_share);
            outage.tunnel_after_shares.push(played.after_share);
            if case.is_forgotten {
                outage.bare_quinn_ms.push(None);
                continue;
            }
            let played = through_quinn(*case, scale).await?;
            outage.bare_quinn_ms.push(played.back_ms());
            outage.bare_quinn_start_shares.push(played.start_share);
            outage.bare_quinn_after_shares.push(played.after_share);
        }
        let times = outage.tunnel_ms.iter().map(|back| *back as f64);
        outage.tunnel_median_ms = median(times.collect());
        let never = f64::INFINITY;
        let times = outage.bare_quinn_ms.iter();
        let times = times.map(|back| back.map_or(never, |back| back as f64));
        outage.bare_quinn_median_ms = Some(median(times.collect())).filter(|ms| ms.is_finite());
        report.outages.push(outage);
    }
    Ok(report)
}

fn relay_to(to: SocketAddr, case: Case) -> Result<(Relay, SocketAddr), Failure> {
    let direction = Direction {
        bits_per_second: Some(BITS_PER_SECOND),
        delay: case.round_trip() / 2,
        loss: f64::from(case.lost_per_mille) / 1000.0,
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

async fn through_tunnels(case: Case, scale: Scale) -> Result<(Played, u64), Failure> {
    let folder = tempfile::TempDir::new()?;
    let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
    let mut edge_config = site(&authority, folder.path(), "edge", "region")?;
    let mut region = site(&authority, folder.path(), "region", "edge")?;
    region.listen = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
    let listener = UnixListener::bind(&region.services[0].socket)?;
    let region = Tunnel::start(&region).await?;
    let listens = region.listen_address().ok_or("the region listens")?;
    let (relay, address) = relay_to(listens, case)?;
    edge_config.peers[0].address = Some(address.to_string());
    let edge = Tunnel::start(&edge_config).await?;
    edge.linked(&"region".parse()?, BACK_WAIT).await?;
    let (source, sink) = bulk_stream(&edge_config, &listener).await?;
    let played = play(&relay.control(), (case, scale), (source, sink), 0).await?;
    let resent = edge.status().links[0].resent_bytes;
    edge.stop().await;
    region.stop().await;
    Ok((played, resent))
}

async fn through_quinn(case: Case, scale: Scale) -> Result<Played, Failure> {
    let folder = tempfile::TempDir::new()?;
    let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
    let rejections = Arc::new(Rejections::default());
    let identity = |own: &str, peer: &str| -> Result<Identity, Failure> {
        let files = site(&authority, folder.path(), own, peer)?.certificates;
        Ok(files.identity()?)
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
    let (relay, address) = relay_to(region.local_addr()?, case)?;
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
    play(&relay.control(), (case, scale), (source, sink), 1).await
}

/// The bytes of the stream from an offset: each depends on its position.
fn expected(offset: u64, count: usize) -> Vec<u8> {
    let byte = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    (offset..).take(count).map(byte).collect()
}

/// Writes continuously, cuts the path and mends it.
async fn play(
    control: &Control,
    (case, scale): (Case, Scale),
    (mut source, mut sink): (impl AsyncWrite + Unpin, impl AsyncRead + Unpin),
    offset: u64,
) -> Result<Played, Failure> {
    let writing = async {
        let mut at = offset;
        loop {
            let chunk = expected(at, CHUNK_BYTES);
            source.write_all(&chunk).await?;
            at += chunk.len() as u64;
        }
    };
    let read_bytes = Cell::new(offset);
    // When the path was mended, and the time from then to the first byte.
    let (mended, back) = (Cell::new(None), Cell::new(None));
    let reading = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let at = read_bytes.get();
            let count = sink.read(&mut chunk).await?;
            if count == 0 || chunk[..count] != expected(at, count) {
                return Err(Failure::from(format!("wrong bytes behind {at}")));
            }
            read_bytes.set(at + count as u64);
            if let (Some(mended), None) = (mended.get(), back.get()) {
                back.set(Some(Instant::now().duration_since(mended)));
            }
        }
    };
    let cutting = async {
        sleep(scale.start).await;
        let start_share = share(read_bytes.get(), scale.start);
        control.cut_both();
        sleep(Duration::from_secs(case.seconds)).await;
        // Taken before the path can carry anything, so that no byte after the outage is missed.
        let (began, before) = (Instant::now(), read_bytes.get());
        mended.set(Some(began));
        if case.is_forgotten {
            control.change_addresses();
        }
        control.heal();
        sleep(scale.after).await;
        let after_share = share(read_bytes.get() - before, scale.after);
        while back.get().is_none() && began.elapsed() < BACK_WAIT {
            sleep(LOOK).await;
        }
        Played {
            back: back.get(),
            bytes: read_bytes.get(),
            start_share,
            after_share,
        }
    };
    tokio::select! {
        ended = reading => {
            let Err(error): Result<Infallible, Failure> = ended;
            Err(error)
        }
        ended = writing => {
            let Err(error): Result<Infallible, std::io::Error> = ended;
            Err(error.into())
        }
        played = cutting => Ok(played),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missed(case: Case, tunnel_ms: f64, quinn_ms: Option<f64>, resent_bytes: u64) -> String {
        let outage = Outage {
            tunnel_median_ms: tunnel_ms,
            bare_quinn_median_ms: quinn_ms,
            tunnel_resent_bytes: vec![0, resent_bytes],
            ..Outage::new(case)
        };
        let mut goals = Goals::default();
        outage.judge(&mut goals);
        let missed = goals.reached().err();
        missed.map_or_else(String::new, |missed| missed.to_string())
    }

    #[test]
    fn every_path_is_judged_by_the_goal_and_by_bare_quinn() {
        for case in [
            Case::new(3),
            Case::new(3).forgotten(),
            Case::lossy(3),
            Case::far(3),
        ] {
            assert_eq!(missed(case, 390.0, None, 1 << 20), "");
            assert!(missed(case, 410.0, None, 0).contains("may be 400"));
            assert!(missed(case, 390.0, Some(380.0), 0).contains("bare quinn's"));
        }
        let only_measured = Case {
            round_trip_ms: 100,
            ..Case::new(3)
        };
        assert_eq!(missed(only_measured, 9000.0, Some(1.0), 1 << 30), "");
    }

    #[test]
    fn what_a_far_path_takes_by_design_is_told_from_what_is_worse() {
        let far = |ms| missed(Case::far(3).forgotten(), ms, None, 0);
        assert!(!far(740.0).contains("design"), "{}", far(740.0));
        assert!(far(760.0).contains("may be 750"), "{}", far(760.0));
        assert_eq!(missed(Case::far(3), 350.0, None, 0), "");
    }

    #[test]
    fn what_is_sent_again_is_judged_where_the_path_holds_less() {
        let again = |case| missed(case, 1.0, None, (1 << 20) + 1);
        for case in [Case::new(3), Case::lossy(3)] {
            assert!(again(case).contains("sent again"), "{}", again(case));
        }
        assert_eq!(again(Case::far(3)), "");
    }
}
