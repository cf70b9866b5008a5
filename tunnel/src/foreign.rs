//! Entry points for fuzzers to the parsers of foreign bytes that only this daemon uses.

use towpath_protocol::fault::Fault;

use crate::channels;
use crate::links::network;
use crate::quic::malformed;

/// Decodes the register of channels, as kept over a restart, and encodes it again.
///
/// # Errors
///
/// `E_META` if no tunnel would have written it.
pub fn channel_register(text: &[u8]) -> Result<Vec<u8>, Fault> {
    channels::reread_register(text)
}

/// Whether a datagram can belong neither to a handshake nor to a connection.
#[must_use]
pub fn is_malformed(datagram: &[u8]) -> bool {
    malformed::is_malformed(datagram)
}

/// Returns the number of kernel announcements (netlink messages) in a datagram.
#[must_use]
pub fn announcement_count(datagram: &[u8]) -> usize {
    network::kinds(datagram).count()
}
