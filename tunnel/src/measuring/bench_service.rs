//! The tunnel's built-in service: discards, sends or echoes bytes for `towpath tunnel bench`.
//!
//! It is configured like any other service, with a name and the sites that may reach it. Its socket
//! is `builtin:bench` in place of a path. A stream begins with one [`BenchRequest`]:
//!
//! ```text
//!  sink    bytes, end ──►            ◄── total received, 8 bytes
//!  count   bytes, end ──►            ◄── received so far, 8 bytes, repeatedly until the total
//!  source  end when it is enough ──► ◄── bytes
//!  echo    bytes ──►                 ◄── the same bytes
//!  usage                             ◄── what the tunnel has used and done so far: [`Usage`]
//! ```

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{MissedTickBehavior, interval, timeout};
use towpath_protocol::class::{Class, Leg};
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;

use crate::links::link::Link;
use crate::links::peer::Peer;
use crate::places::{Place, Places};

/// The `socket` of a service that selects this one.
pub const SOCKET: &str = "builtin:bench";

/// Longest life of a stream: a bench of an hour would be an outage.
pub const STREAM_TIME_MAX: Duration = Duration::from_mins(5);

/// Most concurrent streams of a site: a bench with 16 in parallel, its pings, and another bench
/// beside it. A limit per site, so that one site cannot keep others from their benches and probes.
const SITE_STREAM_COUNT_MAX: usize = 20;

/// Most concurrent streams of all sites.
const STREAM_COUNT_MAX: usize = 2 * SITE_STREAM_COUNT_MAX;

/// Time between two counts: short against any bench, and long against the cost of a count.
const COUNT_INTERVAL: Duration = Duration::from_millis(10);

/// Bytes copied at once; bulk is sent in pieces of this size.
const CHUNK_BYTES: usize = 64 * 1024;

/// The streams of each site.
static PLACES: LazyLock<Arc<Places<Name>>> = LazyLock::new(Arc::default);

/// Takes a place for a stream of a site, if one is left.
fn take_place(places: &Arc<Places<Name>>, site: &Name) -> io::Result<Place<Name>> {
    places.take_if(site, |all, theirs| {
        let full = |why: &str| Err(io::Error::other(why));
        if theirs >= SITE_STREAM_COUNT_MAX {
            return full("as many benches as a site may have");
        }
        if all >= STREAM_COUNT_MAX {
            return full("as many benches as there may be");
        }
        Ok(())
    })
}

/// What a stream to this service asks for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BenchRequest {
    /// Discard what arrives, and send the total at the end.
    Sink,
    /// Discard what arrives, and send the count so far meanwhile.
    Count,
    /// Send until the other side ends its direction.
    Source,
    /// Send back what arrives.
    Echo,
    /// Send a [`Usage`].
    Usage,
}

impl BenchRequest {
    /// The byte that stands for it.
    #[must_use]
    pub const fn byte(self) -> u8 {
        match self {
            Self::Sink => b'k',
            Self::Count => b'c',
            Self::Source => b's',
            Self::Echo => b'e',
            Self::Usage => b'u',
        }
    }

    /// The wish that a byte stands for.
    #[must_use]
    pub const fn of(byte: u8) -> Option<Self> {
        match byte {
            b'k' => Some(Self::Sink),
            b'c' => Some(Self::Count),
            b's' => Some(Self::Source),
            b'e' => Some(Self::Echo),
            b'u' => Some(Self::Usage),
            _ => None,
        }
    }
}

/// Encoded size of a [`Usage`].
pub const USAGE_BYTES: usize = 8 * USAGE_COUNT;

/// Encoded size of a [`Usage`] without the caps of the classes, as older tunnels send it.
const USAGE_BYTES_MIN: usize = 32;

/// Numbers in a [`Usage`].
const USAGE_COUNT: usize = 4 + Class::ALL.len();

/// What a tunnel has used so far, and sent on its links to the asking peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of the tunnel process in nanoseconds.
    pub cpu_nanos: u64,
    /// The cap on what it sends, in bytes per second on the wire; 0 without a cap.
    pub cap_bytes_per_second: u64,
    /// Packets sent over all links to the asking peer.
    pub sent_packets: u64,
    /// How many of them were lost.
    pub lost_packets: u64,
    /// The cap of each class on what it sends to the asking peer, in the order of [`Class::ALL`],
    /// in bytes per second on the wire; 0 without a cap, and from a tunnel that does not say it.
    pub class_caps_bytes_per_second: [u64; Class::ALL.len()],
}

impl Usage {
    fn of(peer: &Peer, link: &Link) -> Self {
        let shaped = peer.shaped();
        let cap_of = |class| shaped.rules.shares.of(class).cap;
        let packets = Leg::ALL.map(|leg| link.counters.packets(leg));
        let [sent_packets, lost_packets] = packets
            .iter()
            .fold([0; 2], |[sent, lost], more| [sent + more.0, lost + more.1]);
        Self {
            cpu_nanos: used_nanos(),
            cap_bytes_per_second: link.pace.rate().map_or(0, Rate::bytes_per_second),
            sent_packets,
            lost_packets,
            class_caps_bytes_per_second: Class::ALL
                .map(|class| cap_of(class).map_or(0, Rate::bytes_per_second)),
        }
    }

    /// Encodes it as little-endian numbers of eight bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; USAGE_BYTES] {
        let mut bytes = [0; USAGE_BYTES];
        let figures = [
            self.cpu_nanos,
            self.cap_bytes_per_second,
            self.sent_packets,
            self.lost_packets,
        ];
        let figures = figures.iter().chain(&self.class_caps_bytes_per_second);
        for (place, figure) in bytes.chunks_exact_mut(8).zip(figures) {
            place.copy_from_slice(&figure.to_le_bytes());
        }
        bytes
    }

    /// Decodes what [`Self::encode`] wrote, or an older tunnel's, which ends before the caps of the
    /// classes. `None` if it is cut off. Numbers that a newer tunnel adds are ignored.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (figures, _) = bytes.as_chunks::<8>();
        let mut figures = figures.iter().map(|figure| u64::from_le_bytes(*figure));
        let mut next = || figures.next().unwrap_or_default();
        (bytes.len() >= USAGE_BYTES_MIN).then(|| Self {
            cpu_nanos: next(),
            cap_bytes_per_second: next(),
            sent_packets: next(),
            lost_packets: next(),
            class_caps_bytes_per_second: std::array::from_fn(|_| next()),
        })
    }
}

/// Connects to a service's socket, or to the built-in service, for the peer of `link`.
pub(crate) async fn connect(socket: &Path, (peer, link): (&Peer, &Link)) -> io::Result<UnixStream> {
    if socket != Path::new(SOCKET) {
        return UnixStream::connect(socket).await;
    }
    let place = take_place(&PLACES, &link.peer.site)?;
    let (ours, theirs) = UnixStream::pair()?;
    let usage = Usage::of(peer, link);
    tokio::spawn(async move {
        let _place = place;
        // The other side sees for itself how the stream ended.
        let _ = timeout(STREAM_TIME_MAX, serve(theirs, usage)).await;
    });
    Ok(ours)
}

/// Serves one stream, after the tunnel has written its `Accepted` into it.
async fn serve(mut stream: UnixStream, usage: Usage) -> io::Result<()> {
    skip_accepted(&mut stream).await?;
    let wish = BenchRequest::of(stream.read_u8().await?);
    match wish {
        Some(BenchRequest::Sink) => {
            let came = AtomicU64::new(0);
            swallow(&mut stream, &came).await?;
            stream.write_u64_le(came.into_inner()).await
        }
        Some(BenchRequest::Count) => count(&mut stream).await,
        Some(BenchRequest::Source) => source(&mut stream).await,
        Some(BenchRequest::Echo) => {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.map(drop)
        }
        Some(BenchRequest::Usage) => stream.write_all(&usage.encode()).await,
        None => Ok(()),
    }
}

/// Skips the `Accepted` that every service receives first.
async fn skip_accepted(stream: &mut UnixStream) -> io::Result<()> {
    use towpath_protocol::frame::HEADER_BYTES;
    use towpath_protocol::preamble::Preamble;
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let header = Preamble::parse_header(&header).map_err(io::Error::other)?;
    let mut body = vec![0; header.body_bytes as usize];
    stream.read_exact(&mut body).await.map(drop)
}

/// Discards everything up to the end; `came` counts the bytes so far.
async fn swallow(read: &mut (impl AsyncRead + Unpin), came: &AtomicU64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match read.read(&mut chunk).await? {
            0 => return Ok(()),
            more => came.fetch_add(more as u64, Ordering::Relaxed),
        };
    }
}

/// Discards everything, and sends counts: as often as they are read, and at the end.
async fn count(stream: &mut UnixStream) -> io::Result<()> {
    let (mut read, write) = stream.split();
    let came = AtomicU64::new(0);
    let swallowing = swallow(&mut read, &came);
    let saying = async {
        let mut ticks = interval(COUNT_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut said = 0;
        loop {
            ticks.tick().await;
            let now = came.load(Ordering::Relaxed);
            if now > said {
                // A count is never cut in two before the end, because it is shorter than any
                // buffer.
                write.writable().await?;
                match write.try_write(&now.to_le_bytes()) {
                    Ok(_) => said = now,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
        }
    };
    let ended: io::Result<()> = tokio::select! {
        ended = swallowing => ended,
        ended = saying => ended,
    };
    ended?;
    stream.write_u64_le(came.load(Ordering::Relaxed)).await
}

async fn source(stream: &mut UnixStream) -> io::Result<()> {
    let (mut read, mut write) = stream.split();
    let chunk = vec![0; CHUNK_BYTES];
    let sending = async {
        loop {
            write.write_all(&chunk).await?;
        }
    };
    let mut word = [0; 1];
    // Anything but the end is ignored.
    let enough = async {
        while read.read(&mut word).await? > 0 {}
        Ok(())
    };
    let ended: io::Result<()> = tokio::select! {
        ended = sending => ended,
        ended = enough => ended,
    };
    ended?;
    stream.shutdown().await
}

/// Processor time of this process, all threads together.
pub(crate) fn used_nanos() -> u64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    // Neither is negative.
    used.tv_sec.unsigned_abs() * 1_000_000_000 + used.tv_nsec.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_that_holds_all_of_its_places_keeps_no_other_from_its_own() {
        let places = Arc::default();
        let [greedy, modest, third] = ["depot", "edge", "shop"].map(|site| site.parse().unwrap());
        let take = |site: &Name, count: usize| -> Vec<_> {
            (0..count)
                .map_while(|_| take_place(&places, site).ok())
                .collect()
        };
        let held = take(&greedy, STREAM_COUNT_MAX);
        assert_eq!(held.len(), STREAM_COUNT_MAX / 2);
        let others = take(&modest, STREAM_COUNT_MAX);
        assert_eq!(others.len(), STREAM_COUNT_MAX / 2);
        assert!(
            take_place(&places, &third).is_err(),
            "there are no more at all"
        );
        drop(others);
        let again = take(&third, 3);
        assert_eq!(again.len(), 3);
        drop((held, again));
        assert!(places.is_empty(), "nothing is kept of who has gone");
    }

    #[test]
    fn what_is_said_is_understood() {
        let usage = Usage {
            cpu_nanos: 1,
            cap_bytes_per_second: 2 << 40,
            sent_packets: 3,
            lost_packets: u64::MAX,
            class_caps_bytes_per_second: [5, 6, 7, 8, 9, 10],
        };
        let encoded = usage.encode();
        assert_eq!(Usage::decode(&encoded), Some(usage));
        let newer = [&encoded[..], &[1; 8]].concat();
        assert_eq!(Usage::decode(&newer), Some(usage));
        let older = Usage {
            class_caps_bytes_per_second: Default::default(),
            ..usage
        };
        assert_eq!(Usage::decode(&encoded[..USAGE_BYTES_MIN]), Some(older));
        assert_eq!(Usage::decode(&encoded[..USAGE_BYTES_MIN - 1]), None);
        for wish in [
            BenchRequest::Sink,
            BenchRequest::Count,
            BenchRequest::Source,
            BenchRequest::Echo,
            BenchRequest::Usage,
        ] {
            assert_eq!(BenchRequest::of(wish.byte()), Some(wish));
        }
    }
}
