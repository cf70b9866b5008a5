//! The time of day, in seconds since 1970. The caller always passes it in.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The last moment, at the end of the year 9999. Later ones have no date.
pub const MOMENT_MAX: Moment = Moment(253_402_207_200);

/// Whole seconds since 1970 in UTC, at most [`MOMENT_MAX`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(from = "u64", into = "u64")]
pub struct Moment(u64);

impl Moment {
    /// The moment this many seconds after the beginning of 1970.
    #[must_use]
    pub const fn from_unix_seconds(seconds: u64) -> Self {
        if seconds > MOMENT_MAX.0 {
            return MOMENT_MAX;
        }
        Self(seconds)
    }

    /// Seconds since the beginning of 1970.
    #[must_use]
    pub const fn unix_seconds(self) -> u64 {
        self.0
    }

    /// The time since `earlier`; zero if that lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    /// The moment this many seconds later.
    #[must_use]
    pub const fn plus_seconds(self, seconds: u64) -> Self {
        Self::from_unix_seconds(self.0.saturating_add(seconds))
    }
}

impl From<u64> for Moment {
    fn from(seconds: u64) -> Self {
        Self::from_unix_seconds(seconds)
    }
}

impl From<Moment> for u64 {
    fn from(moment: Moment) -> Self {
        moment.0
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{}", self.0)
    }
}
