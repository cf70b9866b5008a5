//! What every Towpath daemon does alike: configuration, coded errors, sockets, logs.
