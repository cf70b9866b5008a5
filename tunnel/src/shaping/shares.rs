//! The limits of what is sent to a peer: its cap, and the weight, floor and cap of each class.
//! Pure.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use towpath_daemon::config::InvalidValue;
pub use towpath_forecast::timetable::Week;
use towpath_protocol::class::Class;
use towpath_protocol::rate::Rate;
use utoipa::ToSchema;

use crate::shaping::shaper::floors_max;

/// Largest weight. A thousandth of a link is the smallest share that means anything.
pub const WEIGHT_MAX: u32 = 1000;

/// Limits of one class that differ from the defaults.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Share {
    /// Share of the remaining rate, relative to the weights of the other classes, 0 to 1000. A
    /// class of weight 0 takes only what no other class uses. The default depends on the class.
    #[serde(default)]
    pub weight: Option<u32>,
    /// Least rate of the class while it has data to send, counted on the wire; none if absent.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "5Mbit")]
    pub floor: Option<Rate>,
    /// Most rate of the class, counted on the wire; none if absent.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "80Mbit")]
    pub cap: Option<Rate>,
}

/// Caps and shares for one peer. All of them can be changed while the tunnel runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Shaping {
    /// Cap on the rate sent to the peer, counted on the wire; none if absent.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "100Mbit")]
    pub send_rate: Option<Rate>,
    /// Caps on the rate sent by the time of the week, in place of `send_rate`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise")]
    pub send_timetable: Option<Week>,
    /// Cap on the rate received, which the peer is asked to keep to, counted on the wire; none if
    /// absent.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "100Mbit")]
    pub receive_rate: Option<Rate>,
    /// Caps on the rate received by the time of the week, in place of `receive_rate`.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise")]
    pub receive_timetable: Option<Week>,
    /// Shares of the classes in the rate sent, by class.
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
    pub fn check(&self) -> Result<(), InvalidValue> {
        for (rate, week, key) in [
            (self.send_rate, &self.send_timetable, "send"),
            (self.receive_rate, &self.receive_timetable, "receive"),
        ] {
            if rate.is_some() && week.is_some() {
                let why = format!(
                    "stands beside {key}_rate; say it with `otherwise`, and leave that out"
                );
                return Err(InvalidValue::new(format!("peers.{key}_timetable"), why));
            }
        }
        let is_capped = self.send_rate.is_some() || self.send_timetable.is_some();
        if !is_capped && let Some(class) = self.shares.first_with_floor() {
            let why = "is a part of a cap, and there is none; give send_rate or send_timetable, or leave the floor out";
            return Err(InvalidValue::new(
                format!("peers.shares.{class}.floor"),
                why,
            ));
        }
        self.shares.check(self.send_rate)
    }
}

/// The new cap of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ServiceCap {
    /// Cap on the rate the service sends to all peers together, counted on the wire; none if
    /// absent.
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

    /// The configured limits of a class.
    #[must_use]
    pub fn of(&self, class: Class) -> Share {
        self.0.get(&class).copied().unwrap_or_default()
    }

    /// The first class with a floor.
    fn first_with_floor(&self) -> Option<Class> {
        let mut floors = self.0.iter().filter(|(_, share)| share.floor.is_some());
        floors.next().map(|(class, _)| *class)
    }

    /// Checks all shares together, against the cap of the link.
    ///
    /// # Errors
    ///
    /// The first key with an invalid value.
    pub(crate) fn check(&self, send_rate: Option<Rate>) -> Result<(), InvalidValue> {
        let mut floors: u64 = 0;
        for (class, share) in &self.0 {
            let wrong = |what: &str, why: String| {
                Err(InvalidValue::new(
                    format!("peers.shares.{class}.{what}"),
                    why,
                ))
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
