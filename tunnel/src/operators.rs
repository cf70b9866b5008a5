//! What people, scripts and the service manager see.
//!
//! | module | what it holds |
//! |---|---|
//! | `admin` | the HTTP API |
//! | [`status`] | the `/status` document |
//! | `health` | the state of a link, its reason and its remedy; pure |
//! | `metrics` | the `/metrics` document |
//! | `page`, `last_hour` | the status page, and the hour of samples that it draws |
//! | `service_manager` | readiness, watchdog and reload, as systemd sees them |

pub(crate) mod admin;
pub(crate) mod health;
pub(crate) mod last_hour;
pub(crate) mod metrics;
pub(crate) mod page;
pub(crate) mod service_manager;
pub mod status;
