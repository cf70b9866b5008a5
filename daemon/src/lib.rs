//! What every Towpath daemon does alike: configuration, coded errors, sockets, logs.

pub mod stream;
