//! The shaping of the traffic with a peer: rules, timetables, and the rates of a moment.

use towpath_forecast::moment::Moment;
use towpath_forecast::timetable::{Timetable, Week};
use towpath_forecast::zone::Zone;
use towpath_protocol::rate::Rate;

use crate::shaping::shares::Shaping;

/// The shaping rules for the traffic with a peer, and the rates that follow from them.
#[derive(Debug)]
pub(crate) struct Shaped {
    pub rules: Shaping,
    /// The cap on what we send, if it depends on the time of the week.
    pub timetable: Option<Timetable>,
    /// The cap on what we want to receive, if it depends on the time of the week.
    receive_timetable: Option<Timetable>,
}

impl Shaped {
    pub(super) fn new(rules: Shaping, zone: &Zone) -> Self {
        let timed = |week: &Option<Week>| {
            let week = week.clone();
            week.map(|week| Timetable::new(week, zone.clone()))
        };
        Self {
            timetable: timed(&rules.send_timetable),
            receive_timetable: timed(&rules.receive_timetable),
            rules,
        }
    }

    /// The cap on what we send at the given moment.
    pub(super) fn rate_at(&self, at: Moment) -> Option<Rate> {
        let timed = self.timetable.as_ref().map(|table| table.rate_at(at));
        timed.unwrap_or(self.rules.send_rate)
    }

    /// The cap on what we want to receive at the given moment.
    pub(super) fn receive_rate_at(&self, at: Moment) -> Option<Rate> {
        let timed = self.receive_timetable.as_ref();
        let timed = timed.map(|table| table.rate_at(at));
        timed.unwrap_or(self.rules.receive_rate)
    }
}
