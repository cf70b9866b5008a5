//! The tunnel's own service: it swallows, sends or echoes what `towpath tunnel bench` asks for.
//!
//! A service like any other: it has a name in the configuration, sites that may reach it, and nobody
//! else may. Its socket is `builtin:bench` in place of a path. A stream begins with one [`Wish`]:
//!
//! ```text
//!  sink    bytes, end ──►            ◄── how many came, 8 bytes
//!  count   bytes, end ──►            ◄── how many came so far, 8 bytes, again and again until all did
//!  source  end when it is enough ──► ◄── bytes
//!  echo    bytes ──►                 ◄── the same
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
use towpath_protocol::channel::Leg;
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;

use crate::link::Link;
use crate::places::{Place, Places};

/// What stands in a service's `socket` for this one.
pub const SOCKET: &str = "builtin:bench";

/// Longest life of a stream: an hour's bench would be an outage.
pub const STREAM_TIME_MAX: Duration = Duration::from_mins(5);

/// Streams of a site at once: a bench of 16 in parallel, its pings, and another one beside it. One site that holds all
/// of its own keeps no other from its benches and probes.
const SITE_STREAM_COUNT_MAX: usize = 20;

/// Streams of all sites at once.
const STREAM_COUNT_MAX: usize = 2 * SITE_STREAM_COUNT_MAX;

/// Time between two counts: short beside any bench, and long beside what a count costs.
const COUNT_INTERVAL: Duration = Duration::from_millis(10);

/// Bytes copied at once, as bulk goes in pieces of that size.
const CHUNK_BYTES: usize = 64 * 1024;

/// The streams that each site has.
static PLACES: LazyLock<Arc<Places<Name>>> = LazyLock::new(Arc::default);

/// A place for a stream of a site, if there is one left for it.
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

/// What a stream to this service is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Swallow what comes, and say how much it was.
    Sink,
    /// Swallow what comes, and say meanwhile how much it is so far.
    Count,
    /// Send until the other side has ended its direction.
    Source,
    /// Send back what comes.
    Echo,
    /// Say what the tunnel has used.
    Usage,
}

impl Wish {
    /// The byte that asks for it.
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

    /// What a byte asks for.
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

/// Bytes of a [`Usage`].
pub const USAGE_BYTES: usize = 32;

/// What a tunnel has used so far, and done on its links to whoever asks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time of the tunnel in nanoseconds.
    pub cpu_nanos: u64,
    /// The cap on what it sends, in bytes per second on the wire; 0 without one.
    pub cap_bytes_per_second: u64,
    /// Packets that it has sent over all links to whoever asks.
    pub sent_packets: u64,
    /// Those of them that were lost.
    pub lost_packets: u64,
}

impl Usage {
    fn of(link: &Link) -> Self {
        let packets = Leg::ALL.map(|leg| link.counters.packets(leg));
        let [sent_packets, lost_packets] = packets
            .iter()
            .fold([0; 2], |[sent, lost], more| [sent + more.0, lost + more.1]);
        Self {
            cpu_nanos: used_nanos(),
            cap_bytes_per_second: link.pace.rate().map_or(0, Rate::bytes_per_second),
            sent_packets,
            lost_packets,
        }
    }

    /// As it is said: four numbers of eight bytes, the lowest first.
    #[must_use]
    pub fn encode(&self) -> [u8; USAGE_BYTES] {
        let mut bytes = [0; USAGE_BYTES];
        let figures = [
            self.cpu_nanos,
            self.cap_bytes_per_second,
            self.sent_packets,
            self.lost_packets,
        ];
        for (place, figure) in bytes.chunks_exact_mut(8).zip(figures) {
            place.copy_from_slice(&figure.to_le_bytes());
        }
        bytes
    }

    /// What was said.
    #[must_use]
    pub fn decode(bytes: &[u8; USAGE_BYTES]) -> Self {
        let mut figures = bytes
            .chunks_exact(8)
            .map(|figure| u64::from_le_bytes(figure.try_into().expect("chunks of eight bytes")));
        let mut next = || figures.next().unwrap_or_default();
        Self {
            cpu_nanos: next(),
            cap_bytes_per_second: next(),
            sent_packets: next(),
            lost_packets: next(),
        }
    }
}

/// Connects to a service's socket, or to the service in this process, for who is at the link's other end.
pub(crate) async fn connect(socket: &Path, link: &Link) -> io::Result<UnixStream> {
    if socket != Path::new(SOCKET) {
        return UnixStream::connect(socket).await;
    }
    let place = take_place(&PLACES, &link.peer.site)?;
    let (ours, theirs) = UnixStream::pair()?;
    let usage = Usage::of(link);
    tokio::spawn(async move {
        let _place = place;
        // Who asked sees for himself how it ended.
        let _ = timeout(STREAM_TIME_MAX, serve(theirs, usage)).await;
    });
    Ok(ours)
}

/// Serves one stream. The words of the tunnel about who asks have been written into it before.
async fn serve(mut stream: UnixStream, usage: Usage) -> io::Result<()> {
    skip_accepted(&mut stream).await?;
    let wish = Wish::of(stream.read_u8().await?);
    match wish {
        Some(Wish::Sink) => {
            let came = AtomicU64::new(0);
            swallow(&mut stream, &came).await?;
            stream.write_u64_le(came.into_inner()).await
        }
        Some(Wish::Count) => count(&mut stream).await,
        Some(Wish::Source) => source(&mut stream).await,
        Some(Wish::Echo) => {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.map(drop)
        }
        Some(Wish::Usage) => stream.write_all(&usage.encode()).await,
        None => Ok(()),
    }
}

/// Reads past the `Accepted` that every service hears first.
async fn skip_accepted(stream: &mut UnixStream) -> io::Result<()> {
    use towpath_protocol::channel::Preamble;
    use towpath_protocol::frame::HEADER_BYTES;
    let mut header = [0; HEADER_BYTES];
    stream.read_exact(&mut header).await?;
    let header = Preamble::parse_header(&header).map_err(io::Error::other)?;
    let mut body = vec![0; header.body_bytes as usize];
    stream.read_exact(&mut body).await.map(drop)
}

/// Swallows to the end; `came` tells how much it is so far.
async fn swallow(read: &mut (impl AsyncRead + Unpin), came: &AtomicU64) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        match read.read(&mut chunk).await? {
            0 => return Ok(()),
            more => came.fetch_add(more as u64, Ordering::Relaxed),
        };
    }
}

/// Swallows, and says how much came: at the end, and before it as often as who asked takes note.
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
                // Words are cut in two by nothing but the end of the whole: they are shorter than any buffer.
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
    // Whatever is said but the end is said in vain.
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
        };
        assert_eq!(Usage::decode(&usage.encode()), usage);
        for wish in [
            Wish::Sink,
            Wish::Count,
            Wish::Source,
            Wish::Echo,
            Wish::Usage,
        ] {
            assert_eq!(Wish::of(wish.byte()), Some(wish));
        }
    }
}
