//! Quinn, the QUIC library, and the sockets under it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`transport`] | every setting of QUIC, with its reason |
//! | `congestion` | the congestion controller that quinn calls |
//! | `threads` | the two threads that carry bytes, one per leg |
//! | `batch` | sockets that send and receive packets in batches |
//! | `alarm` | timers that are exact to the microsecond |
//! | `lingering` | ending closed connections that quinn would keep |
//! | `malformed` | counting datagrams that are not QUIC packets |
//! | `wire` | reading and writing our messages on QUIC streams |

pub(crate) mod alarm;
pub(crate) mod batch;
pub(crate) mod congestion;
pub(crate) mod lingering;
pub(crate) mod malformed;
pub(crate) mod threads;
pub mod transport;
pub(crate) mod wire;
