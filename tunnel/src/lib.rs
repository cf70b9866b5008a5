//! The tunnel daemon: links between sites over QUIC and TLS 1.3.
#![forbid(unsafe_code)]

pub mod estimate;
pub mod shaper;
