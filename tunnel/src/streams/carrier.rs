//! What carries a stream for now: a QUIC stream of one link, given up or passed on whole.

use std::sync::Arc;

use quinn::{RecvStream, SendStream, VarInt};
use towpath_protocol::channel::Leg;
use towpath_protocol::fault::Code;

use crate::link::{Carrying, Link};
use crate::wire;

/// Says that a stream goes on elsewhere: a reset with this code is no end. No fault has this number.
pub(crate) const MOVED: VarInt = VarInt::from_u32(64);

/// A QUIC stream; when it is dropped before its end, it is given up with [`MOVED`], or for good while the peer has not
/// said that it takes the stream: the word that it is cut off may have come before it, and find nothing.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub link: Arc<Link>,
    pub send: SendStream,
    pub recv: RecvStream,
    /// What a drop says.
    parting: VarInt,
    /// Keeps the link from closing while another takes its place.
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

    /// The same for a stream that the peer has yet to take.
    pub(crate) fn untaken(link: &Arc<Link>, leg: Leg, stream: (SendStream, RecvStream)) -> Self {
        let mut carrier = Self::new(link, leg, stream);
        carrier.parting = wire::code(Code::Gone);
        carrier
    }

    /// The peer has taken it.
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
        // Left to itself, the library would finish the stream, and what was cut off would look whole.
        self.cut(self.parting);
    }
}
