//! The tunnel's own service: it swallows, sends or echoes what `towpath tunnel bench` asks for.
//!
//! A service like any other: it has a name in the configuration, sites that may reach it, and nobody
//! else may. Its socket is `builtin:bench` in place of a path. A stream begins with one [`Wish`]:
//!
//! ```text
//!  sink    bytes, end ──►            ◄── how many came, 8 bytes
//!  source  end when it is enough ──► ◄── bytes
//!  echo    bytes ──►                 ◄── the same
//!  usage                             ◄── processor time of the tunnel, nanoseconds, 8 bytes
//! ```

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// What stands in a service's `socket` for this one.
pub const SOCKET: &str = "builtin:bench";

/// Longest life of a stream: an hour's bench would be an outage.
pub const STREAM_TIME_MAX: Duration = Duration::from_mins(5);

/// Streams at once: a bench of 16 in parallel, its pings, and another one beside it.
const STREAM_COUNT_MAX: usize = 40;

/// Bytes copied at once, as bulk goes in pieces of that size.
const CHUNK_BYTES: usize = 64 * 1024;

static PLACES: Semaphore = Semaphore::const_new(STREAM_COUNT_MAX);

/// What a stream to this service is for: its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// Swallow what comes, and say how much it was.
    Sink,
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
            b's' => Some(Self::Source),
            b'e' => Some(Self::Echo),
            b'u' => Some(Self::Usage),
            _ => None,
        }
    }
}

/// Connects to a service's socket, or to the service in this process.
pub(crate) async fn connect(socket: &Path) -> io::Result<UnixStream> {
    if socket != Path::new(SOCKET) {
        return UnixStream::connect(socket).await;
    }
    let Ok(place) = PLACES.try_acquire() else {
        return Err(io::Error::other("as many benches as there may be"));
    };
    let (ours, theirs) = UnixStream::pair()?;
    tokio::spawn(async move {
        let _place = place;
        // Who asked sees for himself how it ended.
        let _ = timeout(STREAM_TIME_MAX, serve(theirs)).await;
    });
    Ok(ours)
}

/// Serves one stream. The words of the tunnel about who asks have been written into it before.
async fn serve(mut stream: UnixStream) -> io::Result<()> {
    skip_accepted(&mut stream).await?;
    let wish = Wish::of(stream.read_u8().await?);
    match wish {
        Some(Wish::Sink) => {
            let count = swallow(&mut stream).await?;
            stream.write_u64_le(count).await
        }
        Some(Wish::Source) => source(&mut stream).await,
        Some(Wish::Echo) => {
            let (mut read, mut write) = stream.split();
            tokio::io::copy(&mut read, &mut write).await.map(drop)
        }
        Some(Wish::Usage) => stream.write_u64_le(used_nanos()).await,
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

async fn swallow(stream: &mut UnixStream) -> io::Result<u64> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut count = 0;
    loop {
        match stream.read(&mut chunk).await? {
            0 => return Ok(count),
            more => count += more as u64,
        }
    }
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
