//! The time zone that times of day are meant in.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::tz::{self, TimeZone, TimeZoneDatabase};
use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};

use crate::moment::Moment;

/// Longest name of a zone, in bytes: the longest there is has 32.
const NAME_BYTES_MAX: usize = 64;

/// A time zone by its name, such as `Europe/Berlin`; its rules are read once, when it is made.
///
/// The rules are the system's where it has the name, for governments change them; else those that were known when this
/// program was built. Systems move older names to packages of their own, and an upgrade of one must stop no tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Zone {
    name: String,
    rules: TimeZone,
}

impl Zone {
    /// Coordinated universal time.
    #[must_use]
    pub fn utc() -> Self {
        Self {
            name: "UTC".to_owned(),
            rules: TimeZone::UTC,
        }
    }

    /// The zone's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How far the zone's clocks are ahead of UTC at a moment.
    #[must_use]
    pub fn offset_seconds(&self, at: Moment) -> i64 {
        self.rules.to_offset(timestamp(at)).seconds().into()
    }

    pub(crate) const fn rules(&self) -> &TimeZone {
        &self.rules
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self::utc()
    }
}

impl FromStr for Zone {
    type Err = Fault;

    fn from_str(name: &str) -> Result<Self, Fault> {
        let shown: String = name.chars().take(NAME_BYTES_MAX).collect();
        let wrong = |why: &str| {
            let detail = format!("{shown:?} is no time zone such as Europe/Berlin or UTC{why}");
            Fault::new(Code::Config, detail)
        };
        // Names become paths below the system's folder of zones.
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "/_+-".contains(c);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.chars().all(is_plain) {
            return Err(wrong(""));
        }
        let rules = rules_of(name, tz::db()).ok_or_else(|| wrong(": it is not known here"))?;
        let name = name.to_owned();
        Ok(Self { name, rules })
    }
}

/// The rules of a name: the system's, or else those of this program.
fn rules_of(name: &str, system: &TimeZoneDatabase) -> Option<TimeZone> {
    let own = || TimeZoneDatabase::bundled().get(name);
    system.get(name).or_else(|_| own()).ok()
}

impl TryFrom<String> for Zone {
    type Error = Fault;

    fn try_from(name: String) -> Result<Self, Fault> {
        name.parse()
    }
}

impl From<Zone> for String {
    fn from(zone: Zone) -> Self {
        zone.name
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.name)
    }
}

/// A moment as the calendar's library has it.
pub(crate) fn timestamp(at: Moment) -> Timestamp {
    let seconds = i64::try_from(at.unix_seconds()).expect("moments end with the year 9999");
    Timestamp::from_second(seconds).expect("moments end with the year 9999")
}

/// The moment of a time; the beginning of 1970 for those before.
pub(crate) fn moment(at: Timestamp) -> Moment {
    Moment::from_unix_seconds(u64::try_from(at.as_second()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_by_their_names_alone() {
        let berlin: Zone = "Europe/Berlin".parse().unwrap();
        let summer = Moment::from_unix_seconds(1_784_000_000);
        assert_eq!(berlin.offset_seconds(summer), 7200);
        assert_eq!(Zone::utc().offset_seconds(summer), 0);
        assert_eq!("UTC".parse::<Zone>().unwrap().name(), "UTC");
        for bad in [
            "",
            "Europe/Berlim",
            "../../etc/passwd",
            "/etc/passwd",
            "a b",
            "\u{e9}",
        ] {
            let fault = bad.parse::<Zone>().unwrap_err();
            assert_eq!(fault.code, Code::Config, "{bad}");
        }
    }

    #[test]
    fn a_name_that_the_system_lacks_is_still_known() {
        let system = TimeZoneDatabase::none();
        assert!(system.get("US/Pacific").is_err());
        let rules = rules_of("US/Pacific", &system).unwrap();
        let summer = timestamp(Moment::from_unix_seconds(1_784_000_000));
        assert_eq!(rules.to_offset(summer).seconds(), -7 * 3600);
        assert_eq!(rules_of("US/Pacifik", &system), None);
    }

    #[test]
    fn every_moment_has_a_time_in_every_zone() {
        let zone: Zone = "Pacific/Kiritimati".parse().unwrap();
        for at in [Moment::default(), Moment::from_unix_seconds(u64::MAX)] {
            assert_eq!(moment(timestamp(at)), at);
            let _ = zone.rules().to_datetime(timestamp(at));
        }
    }
}
