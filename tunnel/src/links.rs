//! Links to peers: dialling, accepting, joining two connections, watching, replacing, ending.
//!
//! | module | contents |
//! |---|---|
//! | `peer` | one peer: its link, and the choice between two links |
//! | `peers` | the peers of a running tunnel |
//! | `link` | one link: two QUIC connections and the measurements taken over them |
//! | `dial`, `backoff`, `addresses` | keeping the link to a peer that we dial; pauses between attempts; the peer's addresses |
//! | `listen` | accepting links: admission, handshake, the pairing of two connections |
//! | `join` | the dialling side's half of making a link of two connections |
//! | `control` | the control stream of a link: acknowledgements, ends of streams, caps |
//! | `watchdog` | when a peer counts as silent; pure |
//! | `network` | the kernel's notifications of network changes |
//! | `counters` | bytes and packets exchanged with a peer, over all its links |

pub(crate) mod addresses;
pub(crate) mod backoff;
pub(crate) mod control;
pub(crate) mod counters;
pub(crate) mod dial;
pub(crate) mod join;
pub(crate) mod link;
pub(crate) mod listen;
pub(crate) mod network;
pub(crate) mod peer;
pub(crate) mod peers;
pub(crate) mod watchdog;
