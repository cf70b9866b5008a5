//! What all Towpath daemons share: configuration, coded errors, sockets, logs.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | TOML files, with errors that name file, line, column and the fix |
//! | [`problem`] | a fault as an operator or an API client sees it: code, sentence, cause, remedy |
//! | [`socket`] | Unix sockets for this user and root, and for one group if the service manager says so |
//! | [`activation`] | sockets that the service manager opened |
//! | [`stream`] | streams through the tunnel: open one, or accept one |
//! | [`lock`] | one daemon per folder |
//! | [`http`] | serving an HTTP API on a Unix socket or on loopback |
//! | [`openapi`] | describing such an API |
//! | [`client`] | calling such an API |
//! | [`strict`] | request bodies with a cap on size and depth |
//! | [`lines`] | a rate limit on log lines that others cause |
//! | [`log`] | log lines on stderr, as text or JSON |
//! | [`notify`] | telling the service manager the daemon's state: ready, reloading, stopping |
//! | [`liveness`] | feeding the manager's watchdog while every part of the daemon answers |
//! | [`shutdown`] | a request to stop that reaches all tasks |
//! | [`crash`] | a panic anywhere ends the whole daemon |
//! | [`units`] | durations as operators write them, sizes and rates as they read them |
#![forbid(unsafe_code)]

pub mod activation;
pub mod client;
pub mod config;
pub mod crash;
pub mod http;
pub mod lines;
pub mod liveness;
pub mod lock;
pub mod log;
pub mod notify;
pub mod openapi;
pub mod problem;
pub mod shutdown;
pub mod socket;
pub mod stream;
pub mod strict;
pub mod units;
