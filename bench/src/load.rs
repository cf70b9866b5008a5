//! Two tunnels with bulk streams between them that check every byte, for benches of disturbances.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use towpath_certs::Authority;
use towpath_daemon::stream;
use towpath_protocol::class::Class;
use towpath_protocol::preamble::Open;
use towpath_tunnel::Tunnel;
use towpath_tunnel::config::Config;

use crate::sites::{Failure, site};

/// Concurrent streams: one move's bulk stream and another's.
const STREAM_COUNT: usize = 4;

/// Timeout for operations that should take milliseconds.
const WAIT: Duration = Duration::from_secs(30);

/// Bytes per write and per read.
const CHUNK_BYTES: usize = 64 * 1024;

/// Period of the data. A prime, so that the period never hides lost or repeated bytes.
const PERIOD: usize = 65_521;

/// Opens a bulk stream from the edge's program to the region's service `sink`, which listens on
/// `listener`.
///
/// # Errors
///
/// If it is refused or times out.
pub async fn bulk_stream(
    edge: &Config,
    listener: &UnixListener,
) -> Result<(UnixStream, UnixStream), Failure> {
    let open = Open {
        peer: "region".parse()?,
        service: "sink".parse()?,
        class: Class::Bulk,
    };
    let socket = edge.socket.clone();
    let opening = tokio::task::spawn_blocking(move || stream::open_stream(&socket, &open, WAIT));
    let (sink, _) = timeout(WAIT, listener.accept()).await??;
    let sink = sink.into_std()?;
    let accepting = tokio::task::spawn_blocking(move || {
        sink.set_nonblocking(false)?;
        stream::accept_stream(&sink)?;
        sink.set_nonblocking(true)?;
        Ok::<_, Failure>(sink)
    });
    let (source, _) = opening.await??;
    source.set_nonblocking(true)?;
    Ok((
        UnixStream::from_std(source)?,
        UnixStream::from_std(accepting.await??)?,
    ))
}

/// The longest time in which nothing arrived on a stream.
#[derive(Debug)]
struct Stall {
    last: Instant,
    longest: Duration,
}

impl Stall {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    fn end(&mut self) {
        let now = Instant::now();
        self.longest = self.longest.max(now - self.last);
        self.last = now;
    }

    /// The longest stall since the last call, including one that is still going on.
    fn take(&mut self) -> Duration {
        let lasting = self.last.elapsed();
        std::mem::take(&mut self.longest).max(lasting)
    }
}

/// Two linked tunnels with streams in progress.
#[derive(Debug)]
pub struct Loaded {
    /// The folder of certificates and sockets.
    pub folder: TempDir,
    /// The authority that signed the certificates.
    pub authority: Authority,
    /// The side that dials and sends.
    pub edge: Tunnel,
    /// The side that listens and receives.
    pub region: Tunnel,
    /// Their configurations.
    pub configs: [Config; 2],
    received: Arc<AtomicU64>,
    /// One for each stream.
    stalls: Vec<Arc<Mutex<Stall>>>,
    is_over: Arc<AtomicBool>,
    streams: Vec<JoinHandle<Result<(), Failure>>>,
}

impl Loaded {
    /// Starts both tunnels after `change` has changed their configurations, edge first. The edge
    /// sends at most at `rate`.
    ///
    /// # Errors
    ///
    /// If any part of that fails.
    pub async fn start(
        rate: Option<&str>,
        change: impl FnOnce(&Authority, [&mut Config; 2]) -> Result<(), Failure>,
    ) -> Result<Self, Failure> {
        let folder = TempDir::new()?;
        let authority = Authority::init(&folder.path().join("ca"), &"bench.example".parse()?)?;
        let mut edge_config = site(&authority, folder.path(), "edge", "region")?;
        let mut region_config = site(&authority, folder.path(), "region", "edge")?;
        region_config.listen = Some("127.0.0.1:0".parse()?);
        edge_config.peers[0].send_rate = rate.map(str::parse).transpose()?;
        change(&authority, [&mut edge_config, &mut region_config])?;
        let listener = UnixListener::bind(&region_config.services[0].socket)?;
        let region = Tunnel::start(&region_config).await?;
        let address = region.listen_address().ok_or("the region listens")?;
        edge_config.peers[0].address = Some(address.to_string());
        let edge = Tunnel::start(&edge_config).await?;
        edge.linked(&"region".parse()?, WAIT).await?;
        let mut loaded = Self {
            folder,
            authority,
            edge,
            region,
            received: Arc::default(),
            stalls: Vec::new(),
            is_over: Arc::default(),
            streams: Vec::new(),
            configs: [edge_config, region_config],
        };
        for _ in 0..STREAM_COUNT {
            loaded.open(&listener).await?;
        }
        Ok(loaded)
    }

    async fn open(&mut self, listener: &UnixListener) -> Result<(), Failure> {
        let (source, sink) = bulk_stream(&self.configs[0], listener).await?;
        let sending = tokio::spawn(send(source, Arc::clone(&self.is_over)));
        self.streams.push(sending);
        let stall = Arc::new(Mutex::new(Stall::new()));
        self.stalls.push(Arc::clone(&stall));
        let receiving = tokio::spawn(receive(sink, Arc::clone(&self.received), stall));
        self.streams.push(receiving);
        Ok(())
    }

    /// Bytes received so far, all of them verified.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// The longest time between two reads of any one stream since the last call.
    #[must_use]
    pub fn longest_stall(&self) -> Duration {
        let stalls = self.stalls.iter();
        let stalls = stalls.map(|stall| stall.lock().take());
        stalls.max().unwrap_or_default()
    }

    /// Bytes per second since `began`, when the count was `before`.
    ///
    /// # Errors
    ///
    /// If a stream was dropped.
    pub fn rate_since(&self, before: u64, began: Instant) -> Result<u64, Failure> {
        if let Some(at) = self.streams.iter().position(JoinHandle::is_finished) {
            return Err(format!("stream {at} was dropped").into());
        }
        let micros = began.elapsed().as_micros().max(1);
        let bytes = u128::from(self.received() - before);
        Ok(u64::try_from(bytes * 1_000_000 / micros)?)
    }

    /// Bytes per second over a window.
    ///
    /// # Errors
    ///
    /// If a stream was dropped.
    pub async fn goodput(&self, window: Duration) -> Result<u64, Failure> {
        let (before, began) = (self.received(), Instant::now());
        sleep(window).await;
        self.rate_since(before, began)
    }

    /// The number of concurrent streams.
    #[must_use]
    pub const fn stream_count(&self) -> usize {
        STREAM_COUNT
    }

    /// Ends every stream cleanly and stops both tunnels.
    ///
    /// # Errors
    ///
    /// If a stream was dropped, or a byte was wrong.
    pub async fn stop(self) -> Result<(), Failure> {
        self.is_over.store(true, Ordering::Relaxed);
        for stream in self.streams {
            timeout(WAIT, stream).await???;
        }
        self.edge.stop().await;
        self.region.stop().await;
        Ok(())
    }
}

fn pattern() -> Vec<u8> {
    let byte = |at: u64| at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
    (0..).take(PERIOD).map(byte).collect()
}

async fn send(mut source: UnixStream, is_over: Arc<AtomicBool>) -> Result<(), Failure> {
    let bytes = pattern();
    while !is_over.load(Ordering::Relaxed) {
        source.write_all(&bytes).await?;
    }
    source.shutdown().await?;
    Ok(())
}

async fn receive(
    mut sink: UnixStream,
    received: Arc<AtomicU64>,
    stall: Arc<Mutex<Stall>>,
) -> Result<(), Failure> {
    let (bytes, mut at) = (pattern(), 0);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let count = sink.read(&mut chunk).await?;
        stall.lock().end();
        if count == 0 {
            return if at == 0 {
                Ok(())
            } else {
                Err("a stream ended in the middle".into())
            };
        }
        received.fetch_add(count as u64, Ordering::Relaxed);
        let mut rest = &chunk[..count];
        while !rest.is_empty() {
            let (piece, more) = rest.split_at(rest.len().min(PERIOD - at));
            if piece != &bytes[at..at + piece.len()] {
                return Err("a wrong byte came".into());
            }
            at = (at + piece.len()) % PERIOD;
            rest = more;
        }
    }
}

/// Resident memory of this process, in bytes.
///
/// # Errors
///
/// If `/proc` does not say.
pub fn resident_bytes() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.ok_or("no VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kib.parse::<u64>()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_is_told_once_and_while_it_lasts() {
        let ago = |seconds| Instant::now() - Duration::from_secs(seconds);
        let mut stall = Stall::new();
        stall.last = ago(5);
        assert!(stall.take() >= Duration::from_secs(5), "it lasts");
        stall.end();
        assert!(stall.take() >= Duration::from_secs(5), "it has ended");
        assert!(stall.take() < Duration::from_secs(5), "it was told");
    }
}
