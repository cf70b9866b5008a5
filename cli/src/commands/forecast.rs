//! `towpath forecast`: what a link will carry, and when a transfer of a given size would finish.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Args, ValueEnum};
use towpath_protocol::fault::{Code, Fault, shown};
use towpath_protocol::identity::Name;
use towpath_protocol::size::Size;
use towpath_tunnel::status::{ForecastDocument, ForecastView};

use crate::args::OutputOption;
use crate::connection::{TunnelSocket, block_on};
use crate::failure::Failure;
use crate::show::{
    self, Table, bits_per_second, escape, fields, milliseconds, or_dash, time_of_day,
};

const EXAMPLES: &str = "\
Examples:
  towpath forecast region                       show the coming seconds, hours and days
  towpath forecast region --bytes 40GiB         show when 40 GiB would have been sent
  towpath forecast region --at 2026-12-01T02:00:00Z
  towpath forecast region --at +6h --bytes 40GiB
  towpath forecast region --direction receive   show what the peer will be able to send to us";

/// The arguments of `towpath forecast`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Site of the peer
    peer: Name,
    /// Moment to forecast, within seven days: 2026-12-01T02:00:00Z (RFC 3339), or +6h from now
    #[arg(long, value_name = "TIME")]
    at: Option<At>,
    /// Size of a transfer that begins now or at --at, such as 40GiB: show when it would finish
    #[arg(long, value_name = "SIZE")]
    bytes: Option<Size>,
    /// Direction of the traffic
    #[arg(long, value_enum, value_name = "WAY", default_value_t = Direction::Send)]
    direction: Direction,
    #[command(flatten)]
    tunnel_socket: TunnelSocket,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

/// Direction of the traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Direction {
    /// From here to the peer
    Send,
    /// From the peer to here, as the peer reports it
    Receive,
}

impl Direction {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Send => "send",
            Self::Receive => "receive",
        }
    }
}

/// A moment, absolute or from now.
#[derive(Debug, Clone, Copy)]
enum At {
    Moment(SystemTime),
    After(Duration),
}

impl std::str::FromStr for At {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let read = match text.strip_prefix('+') {
            Some(after) => humantime::parse_duration(after).ok().map(Self::After),
            None => humantime::parse_rfc3339(text).ok().map(Self::Moment),
        };
        read.ok_or_else(|| {
            let shown = shown(text);
            let detail = format!("{shown:?} is no time such as 2026-12-01T02:00:00Z or +6h");
            Fault::new(Code::Usage, detail)
        })
    }
}

impl At {
    fn unix_seconds(self) -> u64 {
        let moment = match self {
            Self::Moment(moment) => Some(moment),
            Self::After(after) => SystemTime::now().checked_add(after),
        };
        let since = moment.and_then(|moment| moment.duration_since(UNIX_EPOCH).ok());
        since.map_or(u64::MAX, |since| since.as_secs())
    }
}

/// Shows a forecast.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    block_on(forecast(options))?
}

async fn forecast(options: &Options) -> Result<(), Failure> {
    let (peer, direction) = (&options.peer, options.direction.as_str());
    let mut path = format!("/v1/forecast?peer={peer}&direction={direction}");
    if let Some(at) = options.at {
        path.push_str(&format!("&at={}", at.unix_seconds()));
    }
    if let Some(bytes) = options.bytes {
        path.push_str(&format!("&bytes={}", bytes.bytes()));
    }
    let client = options.tunnel_socket.client();
    let document: ForecastDocument = client.get(&path).await?;
    show::show(options.output.format, "forecast", &document, || {
        table(&document)
    })
}

fn table(document: &ForecastDocument) -> String {
    let mut table = Table::new([
        "IN",
        "AT",
        ">P10",
        ">P50",
        ">P90",
        ">CAP",
        "CONFIDENCE",
        "AGE",
    ])
    .least(["AGE", "AT", "CONFIDENCE"]);
    for view in &document.forecasts {
        table.row(row(view));
    }
    let mut text = table.render("no forecasts");
    let through = |seconds: Option<u64>| {
        document.through_is_known.map(|is_known| match seconds {
            Some(seconds) => time_of_day(seconds.saturating_mul(1000)),
            None if is_known => "not within seven days".to_owned(),
            None => "not known yet: this link has not been full, or at its cap, for long enough"
                .to_owned(),
        })
    };
    let at_least = document.at_least_bits_per_second;
    let more = fields(&[
        ("through, p50", through(document.through_p50_unix_seconds)),
        ("through, p90", through(document.through_p90_unix_seconds)),
        (
            "carries at least",
            at_least.map(|bits| or_dash((bits >= 8).then(|| bits_per_second(bits / 8)))),
        ),
        ("hours known", Some(document.known_hours.to_string())),
    ]);
    text.push('\n');
    text.push_str(&more);
    text
}

fn row(view: &ForecastView) -> [String; 8] {
    let known = view.quantiles.as_ref();
    let rate = |bits: Option<u64>| or_dash(bits.map(|bits| bits_per_second(bits / 8)));
    [
        horizon(&view.horizon),
        time_of_day(view.at_unix_seconds.saturating_mul(1000)),
        rate(known.map(|known| known.p10_bits_per_second)),
        rate(known.map(|known| known.p50_bits_per_second)),
        rate(known.map(|known| known.p90_bits_per_second)),
        rate(view.cap_bits_per_second),
        known.map_or_else(|| "unknown".to_owned(), |known| escape(&known.confidence)),
        or_dash(known.map(|known| milliseconds(known.age_seconds.saturating_mul(1000)))),
    ]
}

/// Formats a horizon for people. The horizon of `--at` is a number of seconds, such as `35279s`.
fn horizon(text: &str) -> String {
    let seconds = text.strip_suffix('s').and_then(|count| count.parse().ok());
    match seconds {
        Some(seconds @ 60_u64..) => milliseconds(seconds.saturating_mul(1000)),
        _ => escape(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_tunnel::status::QuantilesView;

    #[test]
    fn times_are_moments_or_lie_ahead() {
        let at = |text: &str| text.parse::<At>();
        assert_eq!(
            at("2026-12-01T02:00:00Z").unwrap().unix_seconds(),
            1_796_090_400
        );
        assert!(matches!(at("+6h"), Ok(At::After(after)) if after.as_secs() == 21_600));
        for bad in ["", "+", "6h", "tomorrow", "+-1h", "2026-12-01"] {
            assert_eq!(at(bad).expect_err(bad).code, Code::Usage);
        }
    }

    #[test]
    fn moments_ahead_are_told_in_hours() {
        assert_eq!(
            ["1s", "24h", "35279s"].map(horizon),
            ["1s", "24h", "9 h 47 min"]
        );
    }

    #[test]
    fn what_is_not_known_is_a_dash_and_never_a_number() {
        let mut document = ForecastDocument {
            peer: "region".to_owned(),
            direction: "send".to_owned(),
            now_unix_seconds: 0,
            known_hours: 0,
            at_least_bits_per_second: Some(8_000_000),
            forecasts: vec![ForecastView {
                direction: "send".to_owned(),
                horizon: "24h".to_owned(),
                at_unix_seconds: 86_400,
                quantiles: None,
                cap_bits_per_second: None,
            }],
            bytes: Some(5),
            through_is_known: Some(false),
            through_p50_unix_seconds: None,
            through_p90_unix_seconds: None,
        };
        let text = table(&document);
        assert!(
            text.contains("24h  1970-01-02T00:00:00Z    -    -    -    -  unknown"),
            "{text}"
        );
        assert!(text.contains("carries at least  8.0 Mbit/s"), "{text}");
        document.at_least_bits_per_second = Some(0);
        let idle = table(&document);
        assert!(idle.contains("carries at least  -"), "{idle}");
        assert!(text.contains("not known yet"), "{text}");
        document.forecasts[0].quantiles = Some(QuantilesView {
            p10_bits_per_second: 8,
            p50_bits_per_second: 8,
            p90_bits_per_second: 8,
            confidence: "low".to_owned(),
            age_seconds: 1,
        });
        // What was learnt under another cap does not apply to the current cap.
        let text = table(&document);
        assert!(text.contains("not known yet"), "{text}");
        document.through_is_known = Some(true);
        let text = table(&document);
        assert!(text.contains("not within seven days"), "{text}");
        assert!(!text.contains("not known"), "{text}");
        document.through_is_known = None;
        assert!(!table(&document).contains("through"));
    }
}
