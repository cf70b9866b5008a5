//! What carries a stream for now: a QUIC stream of one link, given up or passed on whole.

use std::sync::Arc;

use quinn::{RecvStream, SendStream, VarInt};
use towpath_protocol::channel::Leg;

use crate::link::{Carrying, Link};

/// Says that a stream goes on elsewhere: a reset with this code is no end. No fault has this number.
pub(crate) const MOVED: VarInt = VarInt::from_u32(64);

/// A QUIC stream; given up with [`MOVED`] when it is dropped before its end.
#[derive(Debug)]
pub(crate) struct Carrier {
    pub link: Arc<Link>,
    pub send: SendStream,
    pub recv: RecvStream,
    /// Keeps the link from closing while another takes its place.
    _carrying: Carrying,
}

impl Carrier {
    pub(crate) fn new(link: &Arc<Link>, leg: Leg, (send, recv): (SendStream, RecvStream)) -> Self {
        Self {
            link: Arc::clone(link),
            send,
            recv,
            _carrying: link.carry(leg),
        }
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
        self.cut(MOVED);
    }
}
