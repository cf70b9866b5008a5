//! Views of the tunnel for people, scripts and the service manager.
//!
//! | module | contents |
//! |---|---|
//! | `admin` | the HTTP API |
//! | [`status`] | the `/status` document |
//! | `health` | judges the state of a link, with reason and remedy; pure |
//! | `metrics` | the `/metrics` document |
//! | `page`, `last_hour` | the status page, and the hour of samples in its charts |
//! | `service_manager` | status line, watchdog and reload for systemd |

pub(crate) mod admin;
pub(crate) mod health;
pub(crate) mod last_hour;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod service_manager;
pub mod status;
