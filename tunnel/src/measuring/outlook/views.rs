//! Forecasts as shown to operators and programs.

use serde::{Deserialize, Serialize};
use towpath_forecast::count::{to_f64, whole};
use towpath_forecast::forecaster::{Forecaster, HORIZON_SECONDS_MAX, Prediction};
use towpath_forecast::moment::Moment;
use towpath_protocol::fault::{Code, Fault, shown};
use towpath_protocol::rate::Rate;
use utoipa::{IntoParams, ToSchema};

use super::{Direction, Outlook};
use crate::core::Core;
use crate::links::link::least;
use crate::links::peer::Peer;
use crate::operators::page::clock;
use crate::shaping::shaper::WIRE_BYTES_PER_THOUSAND;
use crate::shaping::timetable;

/// The schema's name beside a [`ForecastDocument`].
pub(crate) const SCHEMA: &str = "towpath.v1.forecast";

/// Horizons shown if no moment is asked for, in seconds from now.
pub(crate) const HORIZONS: [(&str, u64); 7] = [
    ("1s", 1),
    ("10s", 10),
    ("1m", 60),
    ("1h", 3600),
    ("6h", 6 * 3600),
    ("24h", 24 * 3600),
    ("7d", HORIZON_SECONDS_MAX),
];

/// What a link is expected to carry at a moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForecastView {
    /// Direction: `send` or `receive`.
    pub direction: String,
    /// How far ahead, as in `24h`.
    pub horizon: String,
    /// The moment, in seconds since 1970.
    pub at_unix_seconds: u64,
    /// The rate, in bits per second; absent while it is known neither what the link's capacity is
    /// nor that the link carries the cap.
    pub quantiles: Option<QuantilesView>,
    /// The cap at that moment, in bits per second; no quantile exceeds it.
    pub cap_bits_per_second: Option<u64>,
}

/// Quantiles of a rate, in bits per second.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct QuantilesView {
    /// 10th percentile: the rate is higher than this with a probability of 90 %.
    pub p10_bits_per_second: u64,
    /// Median: the rate is as likely higher as lower.
    pub p50_bits_per_second: u64,
    /// 90th percentile: the rate is lower than this with a probability of 90 %.
    pub p90_bits_per_second: u64,
    /// How reliable the quantiles are: `low`, `medium` or `high`.
    pub confidence: String,
    /// Seconds since the link's capacity was last measured, or its cap last reached.
    pub age_seconds: u64,
}

/// The forecast for one direction of a link.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ForecastDocument {
    /// The peer's site.
    pub peer: String,
    /// Direction: `send` or `receive`.
    pub direction: String,
    /// When the forecast was made, in seconds since 1970.
    pub now_unix_seconds: u64,
    /// Hours of the past weeks for which the capacity is known.
    pub known_hours: u64,
    /// The highest rate over five seconds of the last day, in bits per second, limited to the
    /// present cap: the link carries at least this. Absent if there are quantiles, which say more.
    pub at_least_bits_per_second: Option<u64>,
    /// The forecasts.
    pub forecasts: Vec<ForecastView>,
    /// The number of bytes asked about.
    pub bytes: Option<u64>,
    /// Whether the completion of the transfer can be forecast: whether it is known what the link
    /// carries under the cap in force when the transfer would begin. Absent if no bytes were asked
    /// about.
    pub through_is_known: Option<bool>,
    /// When the transfer would complete with a probability of 50 %, in seconds since 1970; absent
    /// if that is unknown or more than a week away.
    pub through_p50_unix_seconds: Option<u64>,
    /// When the transfer would complete if every hour were as slow as one in ten is, in seconds
    /// since 1970.
    pub through_p90_unix_seconds: Option<u64>,
}

/// Parameters of a forecast request.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(crate) struct Query {
    /// The peer's site.
    peer: String,
    /// Direction: `send` (the default) or `receive`.
    #[serde(default)]
    direction: Option<String>,
    /// A moment within the next seven days, in seconds since 1970; without it, the answer covers
    /// several horizons.
    #[serde(default)]
    at: Option<u64>,
    /// Size of a transfer in bytes, to forecast when it would complete if it began at the moment
    /// asked for, or now.
    #[serde(default)]
    bytes: Option<u64>,
}

/// Answers a forecast request.
///
/// # Errors
///
/// `E_NOT_FOUND` for a site that is not a peer, `E_USAGE` for an unknown direction or a moment
/// outside the next seven days, `E_STATE` while the history is being read.
pub(crate) fn document(core: &Core, query: &Query, now: Moment) -> Result<ForecastDocument, Fault> {
    let shown = shown(&query.peer);
    let unknown = || {
        Fault::new(
            Code::NotFound,
            format!("{shown:?} is no peer of this tunnel"),
        )
        .remedy(core.known_peers())
    };
    let peers = core.peers.all();
    let mut found = peers
        .values()
        .filter(|peer| peer.site.as_str() == query.peer);
    let peer = found.next().ok_or_else(unknown)?;
    let direction = direction(query.direction.as_deref())?;
    let horizons = match query.at {
        None => HORIZONS
            .map(|(name, ahead)| (name.to_owned(), ahead))
            .to_vec(),
        Some(at) => vec![ahead(at, now)?],
    };
    let made = core.outlook.with(&peer.site, direction, |forecaster| {
        let view = |(name, ahead)| view(forecaster, peer, direction, name, now, ahead);
        let through = query.bytes.map(|bytes| {
            let cap = |at| cap_at(peer, direction, at).map(bytes_per_second);
            let from = query.at.map_or(now, Moment::from_unix_seconds);
            forecaster.through(now, from, on_wire(bytes), cap)
        });
        let through_is_known = through.map(|through| through.is_some());
        let through = through.flatten().unwrap_or_default();
        let forecasts: Vec<_> = horizons.into_iter().map(view).collect();
        let is_known = forecasts.iter().any(|view| view.quantiles.is_some());
        let cap = cap_at(peer, direction, now).map_or(f64::INFINITY, bytes_per_second);
        let at_least = forecaster.lower_bound(now).filter(|_| !is_known);
        ForecastDocument {
            peer: peer.site.to_string(),
            direction: direction.as_str().to_owned(),
            now_unix_seconds: now.unix_seconds(),
            known_hours: forecaster.known_hours(),
            at_least_bits_per_second: at_least.map(|rate| bits(rate.min(cap))),
            forecasts,
            bytes: query.bytes,
            through_is_known,
            through_p50_unix_seconds: through.p50.map(Moment::unix_seconds),
            through_p90_unix_seconds: through.p90.map(Moment::unix_seconds),
        }
    });
    made.ok_or_else(|| Fault::new(Code::State, "the history is still being read"))
}

/// Converts bytes of programs to bytes on the wire, which is what forecasts and caps count.
fn on_wire(bytes: u64) -> u64 {
    let whole = u128::from(bytes) * u128::from(WIRE_BYTES_PER_THOUSAND) / 1000;
    u64::try_from(whole).unwrap_or(u64::MAX)
}

fn direction(asked: Option<&str>) -> Result<Direction, Fault> {
    let asked = asked.unwrap_or(Direction::Send.as_str());
    let found = Direction::ALL
        .into_iter()
        .find(|direction| direction.as_str() == asked);
    found.ok_or_else(|| {
        let shown = shown(asked);
        let detail = format!("{shown:?} is no direction: send or receive");
        Fault::new(Code::Usage, detail)
    })
}

/// Returns how far ahead a moment is, as text and in seconds.
fn ahead(at: u64, now: Moment) -> Result<(String, u64), Fault> {
    let ahead = at.checked_sub(now.unix_seconds());
    match ahead.filter(|ahead| *ahead <= HORIZON_SECONDS_MAX) {
        Some(ahead) => Ok((format!("{ahead}s"), ahead)),
        None => {
            let is_past = at < now.unix_seconds();
            let which = if is_past {
                "has passed"
            } else {
                "is further away"
            };
            let asked = clock(Moment::from_unix_seconds(at));
            let detail = format!("a forecast is made for the coming seven days; {asked} {which}");
            let remedy = "ask --at a moment within them, as in +6h or 2026-12-01T02:00:00Z, by this host's clock";
            Err(Fault::new(Code::Usage, detail).remedy(remedy))
        }
    }
}

fn view(
    forecaster: &Forecaster,
    peer: &Peer,
    direction: Direction,
    horizon: String,
    now: Moment,
    ahead: u64,
) -> ForecastView {
    let at = now.plus_seconds(ahead);
    let cap = cap_at(peer, direction, at);
    let prediction = forecaster.forecast_under(now, at, cap.map(bytes_per_second));
    ForecastView {
        direction: direction.as_str().to_owned(),
        horizon,
        at_unix_seconds: at.unix_seconds(),
        quantiles: prediction.as_ref().map(quantiles),
        cap_bits_per_second: cap.map(Rate::bits_per_second),
    }
}

fn quantiles(prediction: &Prediction) -> QuantilesView {
    QuantilesView {
        p10_bits_per_second: bits(prediction.band.p10),
        p50_bits_per_second: bits(prediction.band.p50),
        p90_bits_per_second: bits(prediction.band.p90),
        confidence: prediction.confidence.as_str().to_owned(),
        age_seconds: prediction.age_seconds,
    }
}

/// Returns the cap of a direction at a moment. A cap that the peer asks for now is assumed to last.
pub(crate) fn cap_at(peer: &Peer, direction: Direction, at: Moment) -> Option<Rate> {
    match direction {
        Direction::Send => {
            let link = peer.state().link;
            least(
                peer.send_rate_at(at),
                link.and_then(|link| link.wanted_rate()),
            )
        }
        Direction::Receive => peer.receive_rate_at(at),
    }
}

/// Converts a cap to bytes per second.
pub(crate) const fn bytes_per_second(cap: Rate) -> f64 {
    to_f64(cap.bytes_per_second())
}

fn bits(bytes_per_second: f64) -> u64 {
    whole(bytes_per_second * 8.0)
}

impl Outlook {
    /// Returns a peer's forecasts, in both directions and at each of [`HORIZONS`].
    pub(crate) fn views(&self, peer: &Peer, now: Moment) -> Vec<ForecastView> {
        let of = |direction: Direction| {
            self.with(&peer.site, direction, |forecaster| {
                HORIZONS.map(|(name, ahead)| {
                    view(forecaster, peer, direction, name.to_owned(), now, ahead)
                })
            })
        };
        let known = Direction::ALL.into_iter().filter_map(of).flatten();
        known.filter(|view| view.quantiles.is_some()).collect()
    }

    /// Returns a peer's predictions under its cap, by horizon, for the metrics.
    pub(crate) fn predictions(
        &self,
        peer: &Peer,
        direction: Direction,
    ) -> Vec<(&'static str, Prediction)> {
        let now = timetable::now();
        let made = self.with(&peer.site, direction, |forecaster| {
            HORIZONS.map(|(name, ahead)| {
                let at = now.plus_seconds(ahead);
                let cap = cap_at(peer, direction, at).map(bytes_per_second);
                let made = forecaster.forecast_under(now, at, cap);
                made.map(|made| (name, made))
            })
        });
        made.into_iter().flatten().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_programs_take_more_on_the_wire() {
        assert_eq!(on_wire(0), 0);
        let more = on_wire(1_000_000_000) - 1_000_000_000;
        assert!((20_000_000..=45_000_000).contains(&more), "{more}");
        assert_eq!(on_wire(u64::MAX), u64::MAX);
    }
}
