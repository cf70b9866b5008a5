//! The Unix socket where local programs ask for streams: one connection is one stream.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use towpath_daemon::shutdown::Shutdown;
use towpath_daemon::socket::Socket;
use towpath_protocol::channel::{Open, Preamble};
use towpath_protocol::fault::{Code, Fault};

use crate::core::Core;
use crate::link::{Link, OpenStream};
use crate::{pump, wire};

/// Pause after a failed accept, which mostly means that descriptors ran out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Programs that are told at once that too many streams are open; more are only closed.
const REFUSAL_COUNT_MAX: usize = 32;

/// How long the peer may take to answer: its service's wait and a few round trips.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Serves local programs until the tunnel stops.
///
/// # Errors
///
/// `E_IO` if the socket cannot be polled.
pub(crate) async fn serve(
    core: Arc<Core>,
    socket: Socket,
    mut stop: Shutdown,
) -> Result<(), Fault> {
    let listener = socket.for_tokio()?;
    let places = Arc::new(Semaphore::new(core.limits.local_streams));
    let refusals = Arc::new(Semaphore::new(REFUSAL_COUNT_MAX));
    loop {
        let accepted = tokio::select! {
            () = stop.requested() => return Ok(()),
            accepted = listener.accept() => accepted,
        };
        let local = match accepted {
            Ok((local, _)) => local,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a local stream");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        if socket.check_peer(&local).is_err() {
            continue;
        }
        let (permit, is_admitted) = match Arc::clone(&places).try_acquire_owned() {
            Ok(permit) => (permit, true),
            Err(_) => match Arc::clone(&refusals).try_acquire_owned() {
                Ok(permit) => (permit, false),
                Err(_) => continue,
            },
        };
        let core = Arc::clone(&core);
        let copiers = core.copiers.handle().clone();
        // A socket belongs to the threads that first touch it.
        let Ok(local) = local.into_std() else {
            continue;
        };
        copiers.spawn(async move {
            let _permit = permit;
            let Ok(mut local) = UnixStream::from_std(local) else {
                return;
            };
            if is_admitted {
                converse(&core, local).await;
            } else {
                turn_away(&core, &mut local).await;
            }
        });
    }
}

/// Says that too many streams are open, once the program has said what it wants: closing a socket with
/// unread bytes would take the answer away with it.
async fn turn_away(core: &Core, local: &mut UnixStream) {
    if read_open(core, local).await.is_ok() {
        let detail = format!("{} local streams are open", core.limits.local_streams);
        answer(local, &Preamble::Refused(Fault::new(Code::Busy, detail))).await;
    }
}

async fn converse(core: &Core, mut local: UnixStream) {
    let opened = match read_open(core, &mut local).await {
        Ok(open) => open_stream(core, &open).await.map(|stream| (open, stream)),
        Err(fault) => Err(fault),
    };
    let (open, stream) = match opened {
        Ok(opened) => opened,
        Err(fault) => {
            answer(&mut local, &Preamble::Refused(fault)).await;
            return;
        }
    };
    answer(&mut local, &Preamble::Opened(stream.link.peer.clone())).await;
    let Stream {
        link,
        send,
        recv,
        _open,
    } = stream;
    let limits = (&core.pool, core.stall());
    if let Err(fault) = pump::run(&mut local, send, recv, &link, open.class, limits).await {
        let Open {
            peer,
            service,
            class,
        } = &open;
        tracing::debug!(%peer, %service, %class, %fault, "stream cut off");
    }
}

async fn read_open(core: &Core, local: &mut UnixStream) -> Result<Open, Fault> {
    match wire::read_local(local, core.preamble_wait()).await? {
        Preamble::Open(open) => Ok(open),
        other => {
            let detail = format!("{} from a local program", other.name());
            Err(Fault::new(Code::Unexpected, detail))
        }
    }
}

struct Stream {
    link: Arc<Link>,
    send: quinn::SendStream,
    recv: quinn::RecvStream,
    _open: OpenStream,
}

/// Opens a stream to a peer's service.
async fn open_stream(core: &Core, open: &Open) -> Result<Stream, Fault> {
    let site = &open.peer;
    let peer = core.peers.get(site).ok_or_else(|| {
        let detail = format!("{site} is no peer of this tunnel");
        Fault::new(Code::NotFound, detail)
    })?;
    let link = peer.link()?;
    let gone = |why: String| Fault::new(Code::Unreachable, format!("link to {site}: {why}"));
    let opening = link.connection(open.class.leg()).open_bi();
    let (mut send, mut recv) = timeout(core.preamble_wait(), opening)
        .await
        .map_err(|_| Fault::new(Code::Busy, format!("{site} takes no more streams for now")))?
        .map_err(|error| gone(error.to_string()))?;
    send.set_priority(open.class.priority())
        .map_err(|error| gone(error.to_string()))?;
    wire::write(&mut send, &Preamble::Open(open.clone())).await?;
    match wire::read(&mut recv, ANSWER_WAIT).await? {
        // Who it is the certificate says, not the answer.
        Preamble::Opened(_) => Ok(Stream {
            _open: link.open_stream(),
            link,
            send,
            recv,
        }),
        Preamble::Refused(fault) => Err(fault),
        other => {
            let detail = format!("{} in answer to Open", other.name());
            Err(Fault::new(Code::Unexpected, detail))
        }
    }
}

async fn answer(local: &mut UnixStream, preamble: &Preamble) {
    // A program that has gone misses nothing, and the next read or write notices it.
    let _ = local.write_all(&preamble.encode()).await;
}
