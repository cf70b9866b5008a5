//! Active measurements, and forecasts from all measurements.
//!
//! | module | what it holds |
//! |---|---|
//! | `outlook` | what links will carry: sampled, kept, forecast, scored |
//! | [`probe`] | active measurements, asked for or in the background |
//! | [`bench_service`] | the tunnel's own service that benches and probes talk to |

pub mod bench_service;
pub(crate) mod outlook;
pub mod probe;
