//! The carrier of a stream: the QUIC stream of one link that carries it now, cut off or passed on
//! whole.

use std::sync::Arc;

use quinn::{RecvStream, SendStream, VarInt};
use towpath_protocol::class::Leg;
use towpath_protocol::fault::Code;

use crate::links::link::{Carrying, Link};
use crate::quic::wire;

/// Reset code of a stream that goes on over another carrier: it is not an end. No fault has this
/// number.
pub(crate) const MOVED: VarInt = VarInt::from_u32(64);

/// A QUIC stream. If dropped before its end it is reset with [`MOVED`]; but while the peer has not
/// confirmed that it took the stream, it is cut for good, because the message that it is cut off
/// may have arrived first and found nothing.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub link: Arc<Link>,
    pub send: SendStream,
    pub recv: RecvStream,
    /// The code that a drop sends.
    parting: VarInt,
    /// Keeps the link open while another one replaces it.
    _carrying: Carrying,
}

impl Carrier {
    pub(crate) fn new(link: &Arc<Link>, leg: Leg, (send, recv): (SendStream, RecvStream)) -> Self {
        Self {
            link: Arc::clone(link),
            send,
            recv,
            parting: MOVED,
            _carrying: link.carry(leg),
        }
    }

    /// A carrier of a stream that the peer has not taken yet.
    pub(crate) fn untaken(link: &Arc<Link>, leg: Leg, stream: (SendStream, RecvStream)) -> Self {
        let mut carrier = Self::new(link, leg, stream);
        carrier.parting = wire::code(Code::Gone);
        carrier
    }

    /// Records that the peer has taken the stream.
    pub(crate) const fn note_taken(&mut self) {
        self.parting = MOVED;
    }

    /// Ends both directions for good.
    pub(crate) fn cut(&mut self, code: VarInt) {
        // Both fail only on streams that are already over.
        let _ = self.send.reset(code);
        let _ = self.recv.stop(code);
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // By default the library would finish the stream, and a truncated stream would look
        // complete.
        self.cut(self.parting);
    }
}
