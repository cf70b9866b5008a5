//! Parsers of foreign bytes that only this daemon calls, each as something a fuzzer can call.

use towpath_protocol::fault::Fault;

use crate::channels;
use crate::links::network;
use crate::quic::malformed;

/// Reads what is remembered of channels over a restart, and writes it again.
///
/// # Errors
///
/// `E_META` if that is not what a tunnel would have written.
pub fn channel_register(text: &[u8]) -> Result<Vec<u8>, Fault> {
    channels::reread_register(text)
}

/// Whether a datagram from anybody is nothing that a handshake or a connection could take.
#[must_use]
pub fn is_malformed(datagram: &[u8]) -> bool {
    malformed::is_malformed(datagram)
}

/// How many announcements of the kernel are in a datagram.
#[must_use]
pub fn announcement_count(datagram: &[u8]) -> usize {
    network::kinds(datagram).count()
}
