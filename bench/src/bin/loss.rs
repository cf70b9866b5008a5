//! Whether a connection with large windows survives loss: of many transfers, none may end in an
//! error.
//!
//! Each run sends through windows of 128 MiB, the largest that the tunnel gives by default, three
//! times as many bytes as they hold, over a path of 200 ms that loses 0.1 to 2 % of all packets.
//! Half of the runs use the tunnel's own QUIC settings and controller. The other half use a
//! controller that never slows down, except for the limit that the tunnel sets where packets are
//! lost ([`Gaps`]); this leaves as many gaps as possible in the target's buffer. Every byte is
//! checked. The runs use the protocol alone, without sockets and in virtual time; the path has no
//! rate limit and no queue, and the seed of every run is its number. A second part compares the
//! tunnel's controller with CUBIC, the library's own, over a path that loses 1 %. `loss RUNS
//! MEBIBYTES` or `--smoke`.

use std::any::Any;
use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use quinn_proto::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig,
    Event, RttEstimator, ServerConfig, StreamId, TransportConfig, VarInt,
};
use serde::Serialize;
use towpath_bench::goals::Goals;
use towpath_bench::program::{finish, median};
use towpath_bench::sites::{Failure, site};
use towpath_certs::{Authority, Identity, Rejections, tls};
use towpath_protocol::class::Leg;
use towpath_tunnel::config::Limits;
use towpath_tunnel::loss_gaps::Gaps;
use towpath_tunnel::transport;

/// Number of runs, and mebibytes of each.
const FULL: (usize, usize) = (1000, 384);
const SMOKE: (usize, usize) = (8, 2);

/// Runs of each controller in the comparison, and mebibytes of each: CUBIC takes a minute for
/// these.
const FULL_BESIDE: (usize, usize) = (5, 8);
const SMOKE_BESIDE: (usize, usize) = (1, 1);

/// Packets lost per thousand in the comparison, and how many times CUBIC's rate the tunnel must
/// reach.
const BESIDE_PER_MILLE: u64 = 10;
const BESIDE_RATIO: f64 = 3.0;

/// Bytes of the stream, connection and send windows, and so in flight.
const WINDOW_BYTES: u32 = 128 << 20;

/// The smallest packets that QUIC allows: they leave the most gaps.
const PACKET_BYTES: u16 = 1200;

/// The initial congestion window.
const FIRST_BYTES: u64 = 1 << 20;

/// Half of the round trip.
const ONE_WAY: Duration = Duration::from_millis(100);

/// Packets lost per thousand; the runs cycle through these.
const LOSSES_PER_MILLE: [u64; 4] = [1, 5, 10, 20];

/// Virtual time after which a transfer counts as stuck.
const TIME_MAX: Duration = Duration::from_secs(300);

/// Bytes handed to the library at a time. It is also the period of the data: a prime, so that lost
/// or repeated bytes are never hidden by the period.
const PIECE_BYTES: usize = 65_521;

/// Packets that the library builds at a time, as over a real socket.
const BATCH_COUNT: usize = 10;

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    mebibytes_per_run: usize,
    window_bytes: u32,
    round_trip_ms: u128,
    runs: Vec<Runs>,
    beside_cubic: Beside,
}

/// The median runs of the tunnel's controller and of CUBIC, with the same windows and path.
#[derive(Debug, Serialize)]
struct Beside {
    loss_per_mille: u64,
    mebibytes_per_run: usize,
    goal_ratio: f64,
    ratio: f64,
    tunnel_bytes_per_second: f64,
    cubic_bytes_per_second: f64,
}

/// The results of the runs with one controller at one loss rate.
#[derive(Debug, Serialize)]
struct Runs {
    controller: &'static str,
    loss_per_mille: u64,
    count: usize,
    errors: Vec<String>,
    /// Virtual seconds of the slowest run.
    slowest_seconds: f64,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let scale = match words.as_slice() {
        [] => Some((FULL, FULL_BESIDE)),
        ["--smoke"] => Some((SMOKE, SMOKE_BESIDE)),
        [runs, mebibytes] => {
            let numbers = runs.parse().ok().zip(mebibytes.parse().ok());
            numbers.map(|numbers| (numbers, FULL_BESIDE))
        }
        _ => None,
    };
    let Some((numbers, beside)) = scale else {
        eprintln!("usage: loss [--smoke | RUNS MEBIBYTES]");
        return ExitCode::FAILURE;
    };
    finish(measure(numbers, beside))
}

fn measure((runs, mebibytes): (usize, usize), beside: (usize, usize)) -> Result<(), Failure> {
    let [own, hardest, cubic] = settings()?;
    let cases = LOSSES_PER_MILLE.iter();
    let cases = cases.flat_map(|loss| [(*loss, &own), (*loss, &hardest)]);
    let cases: Vec<_> = cases.collect();
    let mut all = Vec::new();
    for (index, (loss_per_mille, settings)) in cases.iter().enumerate() {
        let mut at = Runs {
            controller: settings.controller,
            loss_per_mille: *loss_per_mille,
            count: 0,
            errors: Vec::new(),
            slowest_seconds: 0.0,
        };
        for run in (index..runs).step_by(cases.len()) {
            at.count += 1;
            let mut path = Path::new(settings, run as u64, *loss_per_mille)?;
            match path.carry(mebibytes << 20) {
                Ok(time) => at.slowest_seconds = at.slowest_seconds.max(time.as_secs_f64()),
                Err(error) => at.errors.push(format!("run {run}: {error}")),
            }
        }
        all.push(at);
    }
    let report = Report {
        schema: "towpath.v1.bench.loss",
        mebibytes_per_run: mebibytes,
        window_bytes: WINDOW_BYTES,
        round_trip_ms: 2 * ONE_WAY.as_millis(),
        runs: all,
        beside_cubic: beside_cubic(&own, &cubic, beside)?,
    };
    Goals::judge(&report, Some(report.goals(beside == FULL_BESIDE)))
}

impl Report {
    /// No run may end in an error, however small the run.
    fn goals(&self, is_full: bool) -> Goals {
        let mut goals = Goals::default();
        for runs in &self.runs {
            let what = format!(
                "runs of {} at {} of 1000 that ended in an error",
                runs.controller, runs.loss_per_mille
            );
            goals.at_most(what, runs.errors.len() as f64, 0.0);
        }
        if is_full {
            let beside = &self.beside_cubic;
            goals.at_least("times CUBIC's goodput", beside.ratio, beside.goal_ratio);
        }
        goals
    }
}

/// Runs both controllers over the same paths, with the same number of bytes.
fn beside_cubic(
    own: &Settings,
    cubic: &Settings,
    (runs, mebibytes): (usize, usize),
) -> Result<Beside, Failure> {
    let bytes = mebibytes << 20;
    let carried = |settings: &Settings| -> Result<f64, Failure> {
        let mut rates = Vec::new();
        for run in 0..runs {
            let mut path = Path::new(settings, run as u64, BESIDE_PER_MILLE)?;
            rates.push(bytes as f64 / path.carry(bytes)?.as_secs_f64());
        }
        Ok(median(rates).round())
    };
    let [tunnel, cubic] = [carried(own)?, carried(cubic)?];
    Ok(Beside {
        loss_per_mille: BESIDE_PER_MILLE,
        mebibytes_per_run: mebibytes,
        goal_ratio: BESIDE_RATIO,
        ratio: tunnel / cubic,
        tunnel_bytes_per_second: tunnel,
        cubic_bytes_per_second: cubic,
    })
}

/// A controller that doubles what it sends each round trip, up to the window, regardless of loss.
#[derive(Debug, Clone, Copy)]
struct Unmoved {
    window_bytes: u64,
    packet_bytes: u64,
    gaps: Gaps,
}

impl Controller for Unmoved {
    fn on_ack(&mut self, _: Instant, _: Instant, bytes: u64, _: bool, _: &RttEstimator) {
        self.window_bytes = (self.window_bytes + bytes).min(WINDOW_BYTES.into());
        self.gaps.arrived(bytes);
    }

    fn on_congestion_event(&mut self, _: Instant, _: Instant, _: bool, lost_bytes: u64) {
        self.gaps.lost(lost_bytes);
    }

    fn on_mtu_update(&mut self, packet_bytes: u16) {
        self.packet_bytes = packet_bytes.into();
    }

    fn window(&self) -> u64 {
        let most = self.gaps.window_bytes_max(self.packet_bytes);
        self.window_bytes.min(most)
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(*self)
    }

    fn initial_window(&self) -> u64 {
        self.window_bytes
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for Unmoved {
    fn build(self: Arc<Self>, _: Instant, packet_bytes: u16) -> Box<dyn Controller> {
        Box::new(Self {
            packet_bytes: packet_bytes.into(),
            ..*self
        })
    }
}

/// Settings of both ends.
struct Settings {
    controller: &'static str,
    client: ClientConfig,
    server: Arc<ServerConfig>,
}

/// The tunnel's own settings, the harshest possible, and the library's CUBIC.
fn settings() -> Result<[Settings; 3], Failure> {
    let folder = tempfile::TempDir::new()?;
    let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
    let identity = |own: &str, peer: &str| -> Result<Identity, Failure> {
        let files = site(&authority, folder.path(), own, peer)?.certificates;
        Ok(files.identity()?)
    };
    let (edge, region) = (identity("edge", "region")?, identity("region", "edge")?);
    let unmoved = Arc::new(Unmoved {
        window_bytes: FIRST_BYTES,
        packet_bytes: PACKET_BYTES.into(),
        gaps: Gaps::default(),
    });
    let rejections = Arc::new(Rejections::default());
    let server = tls::server_config(&region, &rejections)?;
    let client = tls::client_config(&edge, &"region".parse()?, &rejections)?;
    Ok([
        own(client.clone(), server.clone())?,
        wide("unmoved", (client.clone(), server.clone()), unmoved)?,
        wide("cubic", (client, server), Arc::new(CubicConfig::default()))?,
    ])
}

fn own(client: rustls::ClientConfig, server: rustls::ServerConfig) -> Result<Settings, Failure> {
    let limits = Limits {
        udp_payload_bytes: PACKET_BYTES,
        ..Limits::default()
    };
    Ok(Settings {
        controller: "tunnel",
        client: transport::client(client, &limits, Leg::Bulk)?,
        server: Arc::new(transport::server(server, &limits)?),
    })
}

/// The library's settings, with the same windows and a given controller.
fn wide(
    controller: &'static str,
    (client, server): (rustls::ClientConfig, rustls::ServerConfig),
    factory: Arc<dyn ControllerFactory + Send + Sync>,
) -> Result<Settings, Failure> {
    let mut transport = TransportConfig::default();
    transport
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .mtu_discovery_config(None)
        .congestion_controller_factory(factory);
    let transport = Arc::new(transport);
    let mut server = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(server)?));
    server.transport_config(Arc::clone(&transport));
    let mut client = ClientConfig::new(Arc::new(QuicClientConfig::try_from(client)?));
    client.transport_config(transport);
    Ok(Settings {
        controller,
        client,
        server: Arc::new(server),
    })
}

/// Sets the windows to what the tunnel gives a live link whose path holds that much.
fn widen(connection: &mut Connection) {
    connection.set_send_window(WINDOW_BYTES.into());
    connection.set_receive_window(VarInt::from_u32(WINDOW_BYTES));
}

/// One end of the path.
struct End {
    endpoint: Endpoint,
    connection: Option<(ConnectionHandle, Connection)>,
    /// Datagrams in flight to this end, with their arrival times.
    arriving: VecDeque<(Instant, BytesMut)>,
}

/// Two ends, the path between them, and the clock.
struct Path {
    now: Instant,
    began: Instant,
    /// Source and target.
    ends: [End; 2],
    loss_per_mille: u64,
    chance: u64,
    buffer: Vec<u8>,
}

const fn address(end: usize) -> SocketAddr {
    let port = if end == 0 { 1000 } else { 2000 };
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

impl Path {
    fn new(settings: &Settings, seed: u64, loss_per_mille: u64) -> Result<Self, Failure> {
        let now = Instant::now();
        let end = |server: Option<Arc<ServerConfig>>| {
            let mut bytes = [0; 32];
            bytes[..8].copy_from_slice(&seed.to_le_bytes());
            let config = Arc::new(EndpointConfig::default());
            End {
                endpoint: Endpoint::new(config, server, true, Some(bytes)),
                connection: None,
                arriving: VecDeque::new(),
            }
        };
        let mut source = end(None);
        let config = settings.client.clone();
        let (handle, mut connection) =
            source
                .endpoint
                .connect(now, config, address(1), "towpath.invalid")?;
        widen(&mut connection);
        source.connection = Some((handle, connection));
        Ok(Self {
            now,
            began: now,
            ends: [source, end(Some(Arc::clone(&settings.server)))],
            loss_per_mille,
            chance: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
            buffer: Vec::new(),
        })
    }

    /// Sends this many bytes; returns the virtual time until the last one was read.
    fn carry(&mut self, bytes: usize) -> Result<Duration, Failure> {
        let piece = Bytes::from(pattern());
        let (mut written_bytes, mut read_bytes) = (0, 0);
        let (mut outgoing, mut incoming) = (None, None);
        loop {
            for end in 0..2 {
                self.look_for_loss(end)?;
            }
            if let Some((_, source)) = &mut self.ends[0].connection {
                write(source, &mut outgoing, (&mut written_bytes, bytes), &piece)?;
            }
            if let Some((_, target)) = &mut self.ends[1].connection {
                read(target, &mut incoming, &mut read_bytes, &piece)?;
            }
            if read_bytes == bytes {
                return Ok(self.now - self.began);
            }
            for end in 0..2 {
                self.transmit(end);
            }
            self.pass_time()?;
        }
    }

    fn look_for_loss(&mut self, end: usize) -> Result<(), Failure> {
        let Some((_, connection)) = &mut self.ends[end].connection else {
            return Ok(());
        };
        while let Some(event) = connection.poll() {
            if let Event::ConnectionLost { reason } = event {
                return Err(reason.into());
            }
        }
        Ok(())
    }

    /// Puts an end's outgoing datagrams on the path, except those that are lost.
    fn transmit(&mut self, end: usize) {
        loop {
            let Some((_, connection)) = &mut self.ends[end].connection else {
                return;
            };
            self.buffer.clear();
            let transmit = connection.poll_transmit(self.now, BATCH_COUNT, &mut self.buffer);
            let Some(transmit) = transmit else { return };
            let size = transmit.segment_size.unwrap_or(transmit.size);
            for packet in self.buffer[..transmit.size].chunks(size) {
                self.chance ^= self.chance << 13;
                self.chance ^= self.chance >> 7;
                self.chance ^= self.chance << 17;
                if (self.chance >> 20) % 1000 >= self.loss_per_mille {
                    let due = self.now + ONE_WAY;
                    self.ends[1 - end].arriving.push_back((due, packet.into()));
                }
            }
        }
    }

    /// Advances the clock to the next event and handles it.
    fn pass_time(&mut self) -> Result<(), Failure> {
        let moments = self.ends.iter_mut().flat_map(|end| {
            let arrival = end.arriving.front().map(|(due, _)| *due);
            let timer = end
                .connection
                .as_mut()
                .and_then(|(_, it)| it.poll_timeout());
            [arrival, timer]
        });
        let next = moments.flatten().min().ok_or("nothing will ever happen")?;
        self.now = self.now.max(next);
        if self.now - self.began > TIME_MAX {
            return Err("stuck".into());
        }
        for end in 0..2 {
            self.deliver(end)?;
        }
        Ok(())
    }

    fn deliver(&mut self, index: usize) -> Result<(), Failure> {
        let (now, end) = (self.now, &mut self.ends[index]);
        while end.arriving.front().is_some_and(|(due, _)| *due <= now) {
            let Some((_, packet)) = end.arriving.pop_front() else {
                break;
            };
            self.buffer.clear();
            let from = address(1 - index);
            let buffer = &mut self.buffer;
            match end.endpoint.handle(now, from, None, None, packet, buffer) {
                Some(DatagramEvent::ConnectionEvent(_, event)) => {
                    if let Some((_, connection)) = &mut end.connection {
                        connection.handle_event(event);
                    }
                }
                Some(DatagramEvent::NewConnection(incoming)) => {
                    let accepted = end.endpoint.accept(incoming, now, buffer, None);
                    let (handle, mut connection) = accepted.map_err(|error| error.cause)?;
                    widen(&mut connection);
                    end.connection = Some((handle, connection));
                }
                Some(DatagramEvent::Response(_)) | None => {}
            }
        }
        let Some((handle, connection)) = &mut end.connection else {
            return Ok(());
        };
        if connection.poll_timeout().is_some_and(|due| due <= now) {
            connection.handle_timeout(now);
        }
        while let Some(event) = connection.poll_endpoint_events() {
            if let Some(event) = end.endpoint.handle_event(*handle, event) {
                connection.handle_event(event);
            }
        }
        Ok(())
    }
}

/// Writes up to the total of `bytes`, until the window is full.
fn write(
    source: &mut Connection,
    stream: &mut Option<StreamId>,
    (written_bytes, bytes): (&mut usize, usize),
    piece: &Bytes,
) -> Result<(), Failure> {
    if source.is_handshaking() {
        return Ok(());
    }
    if stream.is_none() {
        *stream = source.streams().open(Dir::Bi);
    }
    let Some(stream) = *stream else { return Ok(()) };
    while *written_bytes < bytes {
        let at = *written_bytes % PIECE_BYTES;
        let until = PIECE_BYTES.min(at + bytes - *written_bytes);
        let mut next = [piece.slice(at..until)];
        match source.send_stream(stream).write_chunks(&mut next) {
            Ok(written) => *written_bytes += written.bytes,
            Err(quinn_proto::WriteError::Blocked) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads everything available, and checks it against what was written.
fn read(
    target: &mut Connection,
    stream: &mut Option<StreamId>,
    read_bytes: &mut usize,
    piece: &[u8],
) -> Result<(), Failure> {
    if stream.is_none() {
        *stream = target.streams().accept(Dir::Bi);
    }
    let Some(stream) = *stream else { return Ok(()) };
    let mut stream = target.recv_stream(stream);
    let mut chunks = stream.read(true)?;
    loop {
        let chunk = match chunks.next(usize::MAX) {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) | Err(quinn_proto::ReadError::Blocked) => break,
            Err(error) => return Err(error.into()),
        };
        if !stands_at(piece, *read_bytes, &chunk) {
            return Err(format!("a wrong byte came behind {read_bytes}").into());
        }
        *read_bytes += chunk.len();
    }
    // What it asks to have sent goes with the next packet anyway.
    let _ = chunks.finalize();
    Ok(())
}

/// The data that is sent over and over: each byte depends on its position.
fn pattern() -> Vec<u8> {
    let byte = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    (0..).take(PIECE_BYTES).map(byte).collect()
}

/// Whether `bytes` are the expected ones at this offset.
fn stands_at(piece: &[u8], mut at: usize, mut bytes: &[u8]) -> bool {
    while !bytes.is_empty() {
        let rest = &piece[at % PIECE_BYTES..];
        let (head, tail) = bytes.split_at(bytes.len().min(rest.len()));
        if head != &rest[..head.len()] {
            return false;
        }
        at += head.len();
        bytes = tail;
    }
    true
}
