//! Preambles on streams, and codes in QUIC's numbers.

use std::time::Duration;

use quinn::{ReadExactError, RecvStream, SendStream, VarInt};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::frame::HEADER_BYTES;
use towpath_protocol::preamble::Preamble;

/// The codes that end streams and connections, with their numbers on the wire; a number is never
/// given to another code.
const NUMBERS: [(u32, Code); 9] = [
    (1, Code::Gone),
    (2, Code::Denied),
    (3, Code::Stalled),
    (4, Code::Busy),
    (5, Code::Framing),
    (6, Code::Unreachable),
    (7, Code::State),
    (8, Code::NotFound),
    (9, Code::Version),
];

/// A code as a number; what has none of its own goes as `E_GONE`.
pub(crate) fn code(code: Code) -> VarInt {
    let number = NUMBERS.iter().find(|(_, known)| *known == code);
    VarInt::from_u32(number.map_or(1, |(number, _)| *number))
}

/// A number as a code.
pub(crate) fn code_of(number: VarInt) -> Option<Code> {
    NUMBERS
        .iter()
        .find(|(known, _)| u64::from(*known) == number.into_inner())
        .map(|(_, code)| *code)
}

/// Reads one preamble from a peer and not a byte more.
///
/// # Errors
///
/// `E_STALLED` if it is not there in time, `E_UNREACHABLE` if the stream ends, else as the parser.
pub(crate) async fn read(recv: &mut RecvStream, wait: Duration) -> Result<Preamble, Fault> {
    let reading = async {
        let mut header = [0; HEADER_BYTES];
        read_exact(recv, &mut header).await?;
        let header = Preamble::parse_header(&header)?;
        let mut body = vec![0; header.body_bytes as usize];
        read_exact(recv, &mut body).await?;
        Preamble::decode_body(&header, &body)
    };
    timeout(wait, reading)
        .await
        .unwrap_or_else(|_| Err(late(wait)))
}

/// Reads one preamble from a local program and not a byte more.
///
/// # Errors
///
/// As [`read`].
pub(crate) async fn read_local(
    local: &mut (impl AsyncRead + Unpin),
    wait: Duration,
) -> Result<Preamble, Fault> {
    let gone = |error: std::io::Error| {
        Fault::new(Code::Unreachable, format!("the local program: {error}"))
    };
    let reading = async {
        let mut header = [0; HEADER_BYTES];
        local.read_exact(&mut header).await.map_err(gone)?;
        let header = Preamble::parse_header(&header)?;
        let mut body = vec![0; header.body_bytes as usize];
        local.read_exact(&mut body).await.map_err(gone)?;
        Preamble::decode_body(&header, &body)
    };
    timeout(wait, reading)
        .await
        .unwrap_or_else(|_| Err(late(wait)))
}

/// Writes one preamble to a peer.
///
/// # Errors
///
/// `E_UNREACHABLE` if the stream is gone.
pub(crate) async fn write(send: &mut SendStream, preamble: &Preamble) -> Result<(), Fault> {
    send.write_all(&preamble.encode())
        .await
        .map_err(|error| Fault::new(Code::Unreachable, format!("the peer's stream: {error}")))
}

async fn read_exact(recv: &mut RecvStream, bytes: &mut [u8]) -> Result<(), Fault> {
    recv.read_exact(bytes).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(have) => {
            let detail = format!("a preamble ends after {have} bytes");
            Fault::new(Code::Truncated, detail)
        }
        ReadExactError::ReadError(error) => {
            Fault::new(Code::Unreachable, format!("the peer's stream: {error}"))
        }
    })
}

fn late(wait: Duration) -> Fault {
    Fault::new(Code::Stalled, format!("no whole preamble within {wait:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_keep_their_numbers() {
        for (number, known) in NUMBERS {
            assert_eq!(code(known), VarInt::from_u32(number));
            assert_eq!(code_of(VarInt::from_u32(number)), Some(known));
        }
        assert_eq!(code(Code::Kvm), VarInt::from_u32(1));
        assert_eq!(code_of(VarInt::from_u32(99)), None);
    }
}
