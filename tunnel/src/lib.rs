//! The tunnel daemon: links between sites over QUIC and TLS 1.3.
