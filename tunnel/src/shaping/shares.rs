//! The limits of what is sent to a peer: its cap, and the weight, floor and cap of each class.
//! Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use towpath_daemon::config::Wrong;
pub use towpath_forecast::timetable::Week;
use towpath_protocol::channel::Class;
use towpath_protocol::rate::Rate;
use utoipa::ToSchema;

use crate::shaping::shaper::floors_max;

/// The largest weight; a thousandth of a link is the least share that means anything.
pub const WEIGHT_MAX: u32 = 1000;

/// What one class gets, where the configuration says something else than the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Its part of what is left, beside the weights of the others; 0 for what nobody else wants.
    #[serde(default)]
    pub weight: Option<u32>,
    /// What it gets at least while it wants it, counted on the wire.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "5Mbit")]
    pub floor: Option<Rate>,
    /// What it gets at most, counted on the wire.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "80Mbit")]
    pub cap: Option<Rate>,
}

/// How what goes to and comes from a peer is held back: all of it can be changed while the tunnel runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shaping {
    /// Most we send, counted on the wire.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "100Mbit")]
    pub send_rate: Option<Rate>,
    /// The same by the time of the week, in place of `send_rate`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise")]
    pub send_timetable: Option<Week>,
    /// Most we want it to send to us, counted on the wire.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "100Mbit")]
    pub receive_rate: Option<Rate>,
    /// The same by the time of the week, in place of `receive_rate`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise")]
    pub receive_timetable: Option<Week>,
    /// What the classes get of what we send.
    #[serde(default)]
    #[schema(value_type = BTreeMap<String, Share>)]
    pub shares: Shares,
}

impl Shaping {
    /// Checks all values together.
    ///
    /// # Errors
    ///
    /// The first key with an invalid value.
    pub fn check(&self) -> Result<(), Wrong> {
        for (rate, week, key) in [
            (self.send_rate, &self.send_timetable, "send"),
            (self.receive_rate, &self.receive_timetable, "receive"),
        ] {
            if rate.is_some() && week.is_some() {
                let why = format!(
                    "stands beside {key}_rate; say it with `otherwise`, and leave that out"
                );
                return Err(Wrong::new(format!("peers.{key}_timetable"), why));
            }
        }
        let is_capped = self.send_rate.is_some() || self.send_timetable.is_some();
        if !is_capped && let Some(class) = self.shares.first_with_floor() {
            let why = "is a part of a cap, and there is none; give send_rate or send_timetable, or leave the floor out";
            return Err(Wrong::new(format!("peers.shares.{class}.floor"), why));
        }
        self.shares.check(self.send_rate)
    }
}

/// The cap that a service is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceCap {
    /// Most it sends to all peers together, counted on the wire; nothing holds it back without one.
    #[schema(value_type = Option<String>, example = "10Mbit")]
    pub cap: Option<Rate>,
}

/// A cap as text for the log.
pub(crate) fn cap_text(cap: Option<Rate>) -> String {
    cap.map_or_else(|| "none".to_owned(), |cap| cap.to_string())
}

/// The share of each class, by class.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shares(pub BTreeMap<Class, Share>);

impl Shares {
    /// Whether a class goes ahead of all others, so that weights do not apply to it.
    #[must_use]
    pub const fn is_first(class: Class) -> bool {
        matches!(class, Class::Control | Class::Demand)
    }

    /// The weight of a class; `None` for those that go first.
    #[must_use]
    pub fn weight(&self, class: Class) -> Option<u32> {
        let default = match class {
            Class::Control | Class::Demand => return None,
            // A guest is stopped until all of its switch data has arrived.
            Class::Switch => 16,
            Class::App => 8,
            Class::Bulk => 1,
            Class::Scavenger => 0,
        };
        Some(self.of(class).weight.unwrap_or(default))
    }

    /// The same shares with the weight of every class that has one filled in.
    #[must_use]
    pub fn effective(&self) -> Self {
        let with_weight = Class::ALL.into_iter().filter_map(|class| {
            let weight = Some(self.weight(class)?);
            let share = Share {
                weight,
                ..self.of(class)
            };
            Some((class, share))
        });
        let mut all = self.0.clone();
        all.extend(with_weight);
        Self(all)
    }

    /// Whether nothing is configured, so that every class has its defaults.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What is configured for a class.
    #[must_use]
    pub fn of(&self, class: Class) -> Share {
        self.0.get(&class).copied().unwrap_or_default()
    }

    /// The first class with a floor.
    fn first_with_floor(&self) -> Option<Class> {
        let mut floors = self.0.iter().filter(|(_, share)| share.floor.is_some());
        floors.next().map(|(class, _)| *class)
    }

    /// Checks the values together, under the cap of the link.
    ///
    /// # Errors
    ///
    /// The first key with an invalid value.
    pub(crate) fn check(&self, send_rate: Option<Rate>) -> Result<(), Wrong> {
        let mut floors: u64 = 0;
        for (class, share) in &self.0 {
            let wrong = |what: &str, why: String| {
                Err(Wrong::new(format!("peers.shares.{class}.{what}"), why))
            };
            if share.weight.is_some() && Self::is_first(*class) {
                let why = format!("{class} goes ahead of every class with a weight; leave it out");
                return wrong("weight", why);
            }
            if share.weight.is_some_and(|weight| weight > WEIGHT_MAX) {
                return wrong("weight", format!("must be 0 to {WEIGHT_MAX}"));
            }
            let Some(floor) = share.floor else { continue };
            if Self::is_first(*class) {
                let why = format!("{class} goes ahead of every floor; leave it out");
                return wrong("floor", why);
            }
            if share.cap.is_some_and(|cap| cap < floor) {
                return wrong("floor", "is above the cap of the same class".to_owned());
            }
            floors += floor.bytes_per_second();
            if send_rate.is_some_and(|rate| floors > floors_max(rate)) {
                let why = "all floors together are more than nine tenths of send_rate";
                return wrong("floor", why.to_owned());
            }
        }
        Ok(())
    }
}
