//! What every Towpath daemon does alike: configuration, coded errors, sockets, logs.
//!
//! | module | what it holds |
//! |---|---|
//! | [`config`] | TOML files, refused with file, line, column and what to do |
//! | [`problem`] | a fault as an operator or an API client sees it: code, sentence, cause, remedy |
//! | [`socket`] | Unix sockets for this user and root, or a group more if the service manager says so |
//! | [`activation`] | sockets that the service manager opened |
//! | [`stream`] | streams through the tunnel: open one, or be handed one |
//! | [`lock`] | one daemon per folder |
//! | [`http`] | serving an HTTP API on a Unix socket or on loopback |
//! | [`openapi`] | describing such an API |
//! | [`client`] | calling such an API |
//! | [`strict`] | request bodies with a cap on size and depth |
//! | [`lines`] | which events that others cause have a line of the log |
//! | [`log`] | log lines on stderr, as text or JSON |
//! | [`notify`] | telling the service manager how the daemon is: ready, reloading, stopping |
//! | [`liveness`] | feeding its watchdog for as long as every part of the daemon answers |
//! | [`shutdown`] | one wish to stop, heard everywhere |
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
