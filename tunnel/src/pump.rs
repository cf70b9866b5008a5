//! Copies a local socket to a QUIC stream and back until both directions end.

use std::io::{self, IoSlice};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes};
use quinn::{ReadError, RecvStream, SendStream, VarInt, WriteError};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{ReadHalf, WriteHalf};
use tokio::time::timeout;
use towpath_protocol::channel::Class;
use towpath_protocol::fault::{Code, Fault};

use crate::link::Link;
use crate::pool::Pool;
use crate::wire;

/// Pieces of a stream taken at once: a packet's payload each, about what a Unix socket takes at once.
const PIECES_PER_READ: usize = 256;

/// Copies both ways. Either direction may end by itself; a fault in one ends both, and the peer is
/// told with a reset, so that what was cut off is never taken for a whole stream.
///
/// # Errors
///
/// `E_STALLED` if a side did not read for too long, `E_UNREACHABLE` if the link or the local program
/// went away.
pub(crate) async fn run(
    local: &mut UnixStream,
    mut send: SendStream,
    mut recv: RecvStream,
    link: &Link,
    class: Class,
    (pool, stall): (&Arc<Pool>, Duration),
) -> Result<(), Fault> {
    let (mut read, mut write) = local.split();
    let ended = tokio::try_join!(
        outward(&mut read, &mut send, link, class, (pool, stall)),
        inward(&mut recv, &mut write, link, class, stall),
    );
    match ended {
        Ok(((), ())) => Ok(()),
        Err(fault) => {
            let code = wire::code(fault.code);
            // Both fail only on streams that are already over.
            let _ = send.reset(code);
            let _ = recv.stop(code);
            Err(fault)
        }
    }
}

async fn outward(
    local: &mut ReadHalf<'_>,
    send: &mut SendStream,
    link: &Link,
    class: Class,
    (pool, stall): (&Arc<Pool>, Duration),
) -> Result<(), Fault> {
    let mut stopped = pin!(send.stopped());
    let mut spare = None;
    loop {
        let mut buffer = spare.take().unwrap_or_else(|| pool.take());
        let count = tokio::select! {
            read = local.read(buffer.as_mut()) => read.map_err(|error| local_gone(&error))?,
            // The peer wants no more, or the link is gone: nobody else would tell us while the
            // local program is silent.
            code = &mut stopped => return match code {
                Ok(code) => Err(ended_by_peer(code)),
                Err(_) => Err(link_gone()),
            },
        };
        if count == 0 {
            // Fails only if the peer has stopped the stream, and then there is nothing to finish.
            let _ = send.finish();
            return Ok(());
        }
        let (mut bytes, kept) = buffer.fill(count);
        spare = kept;
        let backlog = link.pace.backlog(class);
        while !bytes.is_empty() {
            let granted = backlog.grant(bytes.len() as u64).await;
            let piece = bytes.split_to(usize::try_from(granted).unwrap_or(bytes.len()));
            link.counters.add_sent(class, piece.len() as u64);
            match timeout(stall, send.write_chunk(piece)).await {
                Ok(written) => written.map_err(|error| write_fault(&error))?,
                Err(_) => return Err(stalled("the peer", stall)),
            }
        }
    }
}

async fn inward(
    recv: &mut RecvStream,
    local: &mut WriteHalf<'_>,
    link: &Link,
    class: Class,
    stall: Duration,
) -> Result<(), Fault> {
    let mut pieces: [Bytes; PIECES_PER_READ] = std::array::from_fn(|_| Bytes::new());
    loop {
        let count = recv
            .read_chunks(&mut pieces)
            .await
            .map_err(|error| read_fault(&error))?;
        let Some(count) = count else {
            // A program that closed its side wants no more, and that is not an error of the stream.
            let _ = local.shutdown().await;
            return Ok(());
        };
        let bytes: usize = pieces[..count].iter().map(Bytes::len).sum();
        link.counters.add_received(class, bytes as u64);
        write_all(local, &mut pieces[..count], stall).await?;
    }
}

async fn write_all(
    local: &mut WriteHalf<'_>,
    mut pieces: &mut [Bytes],
    stall: Duration,
) -> Result<(), Fault> {
    while !pieces.is_empty() {
        let mut slices = [IoSlice::new(&[]); PIECES_PER_READ];
        for (slice, piece) in slices.iter_mut().zip(pieces.iter()) {
            *slice = IoSlice::new(piece);
        }
        let writing = local.write_vectored(&slices[..pieces.len()]);
        let mut written = match timeout(stall, writing).await {
            Ok(written) => written.map_err(|error| local_gone(&error))?,
            Err(_) => return Err(stalled("the local program", stall)),
        };
        if written == 0 {
            return Err(local_gone(&io::ErrorKind::WriteZero.into()));
        }
        let whole = pieces
            .iter()
            .take_while(|piece| {
                let fits = piece.len() <= written;
                written -= if fits { piece.len() } else { 0 };
                fits
            })
            .count();
        pieces[..whole].fill(Bytes::new());
        pieces = &mut pieces[whole..];
        if let Some(first) = pieces.first_mut() {
            first.advance(written);
        }
    }
    Ok(())
}

fn stalled(who: &str, stall: Duration) -> Fault {
    Fault::new(
        Code::Stalled,
        format!("{who} has read nothing for {stall:?}"),
    )
}

fn local_gone(error: &io::Error) -> Fault {
    Fault::new(Code::Gone, format!("the local program: {error}"))
}

fn link_gone() -> Fault {
    Fault::new(Code::Unreachable, "the link went down")
}

fn ended_by_peer(code: Option<VarInt>) -> Fault {
    let told = code.and_then(wire::code_of);
    Fault::new(told.unwrap_or(Code::Gone), "the peer ended the stream")
}

fn write_fault(error: &WriteError) -> Fault {
    match error {
        WriteError::Stopped(code) => ended_by_peer(Some(*code)),
        _ => link_gone(),
    }
}

fn read_fault(error: &ReadError) -> Fault {
    match error {
        ReadError::Reset(code) => ended_by_peer(Some(*code)),
        _ => link_gone(),
    }
}
