//! The time of day a forecast is asked for: seconds since 1970, given by the caller.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The last moment there is, the end of the year 9999: later ones have no date.
pub const MOMENT_MAX: Moment = Moment(253_402_207_200);

/// Whole seconds since 1970 in UTC, within [`MOMENT_MAX`].
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(from = "u64", into = "u64")]
pub struct Moment(u64);

impl Moment {
    /// So many seconds after the beginning of 1970.
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

    /// How long ago `earlier` was; zero if it lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_secs(self.0.saturating_sub(earlier.0))
    }

    /// So many seconds later.
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
