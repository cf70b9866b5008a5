//! The classes of traffic, and the two connections of a link that carry them.

mod per_leg;

use serde::{Deserialize, Serialize};

pub use per_leg::PerLeg;

/// Class of a stream's bytes, which decides their priority when the link is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Messages of the handover: few bytes that decide everything.
    Control,
    /// Blocks that a stopped guest processor waits for.
    Demand,
    /// Messages between portions of a distributed application.
    App,
    /// State that is sent while a guest is paused.
    Switch,
    /// Pre-copy, push and synchronisation. Fills the rest of the link.
    Bulk,
    /// Snapshots without a deadline, and preload. Uses what bulk leaves.
    Scavenger,
}

impl Class {
    /// Every class, most urgent first.
    pub const ALL: [Self; 6] = [
        Self::Control,
        Self::Demand,
        Self::App,
        Self::Switch,
        Self::Bulk,
        Self::Scavenger,
    ];

    /// The class's name in logs, metrics and configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Demand => "demand",
            Self::App => "app",
            Self::Switch => "switch",
            Self::Bulk => "bulk",
            Self::Scavenger => "scavenger",
        }
    }

    /// The class's position in [`Class::ALL`], for tables with one entry per class.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Which of the link's two connections carries the class.
    #[must_use]
    pub const fn leg(self) -> Leg {
        match self {
            Self::Control | Self::Demand | Self::App | Self::Switch => Leg::Urgent,
            Self::Bulk | Self::Scavenger => Leg::Bulk,
        }
    }

    /// Priority inside its connection. Higher goes first, strictly.
    #[must_use]
    pub const fn priority(self) -> i32 {
        match self {
            Self::Control => 100,
            Self::Demand => 90,
            // An application waits for each of its messages, a paused guest for the whole of
            // `switch`. Both wait, but messages are short.
            Self::App => 10,
            Self::Switch => 5,
            Self::Bulk => 0,
            Self::Scavenger => -10,
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// One of the two connections of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Leg {
    /// For traffic that someone waits for.
    Urgent,
    /// For traffic that fills the link.
    Bulk,
}

impl Leg {
    /// Both, the urgent one first.
    pub const ALL: [Self; 2] = [Self::Urgent, Self::Bulk];

    /// The leg's name in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Urgent => "urgent",
            Self::Bulk => "bulk",
        }
    }
}
