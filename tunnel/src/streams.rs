//! Streams: opened by local programs, accepted for services, copied, resumed over the next link,
//! ended.
//!
//! | module | what it holds |
//! |---|---|
//! | `local` | the Unix socket on which local programs open streams |
//! | `serve` | streams that a peer begins |
//! | `services` | the local services that peers may reach |
//! | `seats` | limits on the streams that this side begins with a peer |
//! | `table` | the live streams, by number; meters of bytes |
//! | `life` | a stream from its beginning to its end, over as many links as it takes |
//! | `carrier` | the QUIC stream that carries a stream now |
//! | `resume` | offsets and tails: the state that lets a stream resume over another link; pure |
//! | `tails` | how long the unacknowledged tail of a stream may be |
//! | `pump`, `pool` | copying between a program's socket and a QUIC stream; buffers for that |
//! | `datagrams` | UDP flows in QUIC datagrams |

pub(crate) mod carrier;
pub(crate) mod datagrams;
pub(crate) mod life;
pub(crate) mod local;
pub(crate) mod pool;
pub(crate) mod pump;
pub(crate) mod resume;
pub(crate) mod seats;
pub(crate) mod serve;
pub(crate) mod services;
pub(crate) mod table;
pub(crate) mod tails;
