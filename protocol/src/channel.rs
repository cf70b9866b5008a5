//! How a local program asks the tunnel for a stream, and the classes of traffic.
