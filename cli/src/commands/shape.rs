//! `towpath tunnel shape` and `towpath tunnel service`: show and change caps and shares while the
//! tunnel runs.

use std::collections::BTreeMap;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use serde::Serialize;
use towpath_protocol::class::Class;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;
use towpath_tunnel::shares::{ServiceCap, Shaping, Share, WEIGHT_MAX, Week};
use towpath_tunnel::status::{ServiceView, StatusView};

use crate::args::{Limit, OutputOption, class};
use crate::connection::{TunnelSocket, block_on};
use crate::failure::Failure;
use crate::show::{self, Table, bits_per_second, bytes, escape, fields, or_dash, time_of_day};

const SHAPE_EXAMPLES: &str = "\
Examples:
  towpath tunnel shape region                                     show what is in force
  towpath tunnel shape region --send-rate 50Mbit                  change the cap
  towpath tunnel shape region --send-rate none                    remove the cap
  towpath tunnel shape region --receive-rate 20Mbit               ask the peer to keep to a cap
  towpath tunnel shape region --timetable '50Mbit 09:00-17:00 mon-fri, 200Mbit otherwise'
  towpath tunnel shape region --class bulk --weight 3 --cap 20Mbit
  towpath tunnel shape region --class app --floor 10Mbit

Changes take effect at once and last until the tunnel restarts or reloads its configuration
(SIGHUP). To keep them, write them to the configuration file.";

const SERVICE_EXAMPLES: &str = "\
Examples:
  towpath tunnel service                        list the services of this host
  towpath tunnel service backup                 show the service
  towpath tunnel service backup --cap 20Mbit    change its cap
  towpath tunnel service backup --cap none      remove its cap

Changes take effect at once and last until the tunnel restarts or reloads its configuration
(SIGHUP). To keep them, write them to the configuration file.";

/// The arguments of `towpath tunnel shape`.
#[derive(Debug, Args)]
#[command(after_help = SHAPE_EXAMPLES)]
pub(crate) struct Options {
    /// Site of the peer
    peer: Name,
    /// Cap on the rate sent to the peer, counted on the wire: 100Mbit, or none
    #[arg(long, value_name = "RATE")]
    send_rate: Option<Limit>,
    /// Caps on the rate sent to the peer by the time of the week, in place of --send-rate
    #[arg(long, value_name = "WEEK", conflicts_with = "send_rate")]
    timetable: Option<Week>,
    /// Cap on the rate received, which the peer is asked to keep to: 100Mbit, or none
    #[arg(long, value_name = "RATE")]
    receive_rate: Option<Limit>,
    /// Caps on the rate received by the time of the week, in place of --receive-rate
    #[arg(long, value_name = "WEEK", conflicts_with = "receive_rate")]
    receive_timetable: Option<Week>,
    /// Class to which --weight, --floor and --cap apply
    #[arg(long, value_name = "CLASS", value_parser = class)]
    class: Option<Class>,
    /// Weight of the class against other classes in sharing spare bandwidth: 0 to 1000
    #[arg(long, value_name = "NUMBER", requires = "class", value_parser = weight())]
    weight: Option<u32>,
    /// Rate guaranteed to the class: 5Mbit, or none
    #[arg(long, value_name = "RATE", requires = "class")]
    floor: Option<Limit>,
    /// Cap on the rate of the class: 80Mbit, or none
    #[arg(long, value_name = "RATE", requires = "class")]
    cap: Option<Limit>,
    #[command(flatten)]
    socket: TunnelSocket,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

/// The arguments of `towpath tunnel service`.
#[derive(Debug, Args)]
#[command(after_help = SERVICE_EXAMPLES)]
pub(crate) struct ServiceOptions {
    /// Name of the service [default: list all of them]
    #[arg(value_name = "NAME")]
    name: Option<Name>,
    /// Cap on the rate the service sends to all peers together: 20Mbit, or none
    #[arg(long, value_name = "RATE", requires = "name")]
    cap: Option<Limit>,
    #[command(flatten)]
    socket: TunnelSocket,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

/// Shows or changes the caps and shares of a peer.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    block_on(shape(options))?
}

async fn shape(options: &Options) -> Result<(), Failure> {
    let client = options.socket.client();
    let path = format!("/v1/shaping/{}", options.peer);
    let mut shaping: Shaping = client.get(&path).await?;
    if options.change(&mut shaping)? {
        let shaped = client.post(&path, &shaping).await;
        // Only the tunnel can check the change: it knows the other settings.
        let remedy = "change that value, or say it together with what it depends on: see `towpath tunnel shape --help`";
        shaping =
            shaped.map_err(|problem| Failure::from(problem).remedy_of(Code::Usage, remedy))?;
    }
    let now = match &shaping.send_timetable {
        Some(_) => cap_now(&client.get("/status").await?, &options.peer),
        None => None,
    };
    let shaped = Shaped {
        peer: &options.peer,
        shaping: &shaping,
        now,
        weights: Class::ALL
            .map(|class| (class, shaping.shares.weight(class)))
            .into(),
    };
    show::show(options.output.format, "shaping", &shaped, || {
        table(&options.peer, &shaping, now)
    })
}

/// The cap that the timetable sets now; `None` if the tunnel has no such peer.
fn cap_now(status: &StatusView, peer: &Name) -> Option<CapNow> {
    let mut links = status.links.iter();
    let link = links.find(|link| link.peer == peer.as_str())?;
    Some(CapNow {
        cap_bits_per_second: link.cap_bits_per_second,
        cap_changes_unix_seconds: link.cap_changes_unix_seconds,
    })
}

/// The cap that a timetable sets now, and when the next one starts.
#[derive(Debug, Clone, Copy, Serialize)]
struct CapNow {
    cap_bits_per_second: Option<u64>,
    cap_changes_unix_seconds: Option<u64>,
}

impl std::fmt::Display for CapNow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.cap_bits_per_second {
            Some(bits) => f.write_str(&bits_per_second(bits / 8))?,
            None => f.write_str("none")?,
        }
        match self.cap_changes_unix_seconds {
            Some(at) => write!(f, " until {}", time_of_day(at.saturating_mul(1000))),
            None => Ok(()),
        }
    }
}

/// The document `towpath.v1.shaping`: the caps and shares of a peer.
#[derive(Debug, Serialize)]
struct Shaped<'a> {
    peer: &'a Name,
    #[serde(flatten)]
    shaping: &'a Shaping,
    /// What the timetable sets now, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    now: Option<CapNow>,
    /// The weight of each class, set or default; `None` for classes that always go first.
    weights: BTreeMap<Class, Option<u32>>,
}

/// The parser for the weight of a class.
fn weight() -> RangedU64ValueParser<u32> {
    RangedU64ValueParser::new().range(0..=u64::from(WEIGHT_MAX))
}

impl Options {
    /// Applies the options to `shaping`. Returns whether there was anything to apply.
    fn change(&self, shaping: &mut Shaping) -> Result<bool, Failure> {
        if let Some(rate) = self.send_rate {
            (shaping.send_rate, shaping.send_timetable) = (rate.0, None);
        }
        if let Some(week) = &self.timetable {
            (shaping.send_rate, shaping.send_timetable) = (None, Some(week.clone()));
        }
        if let Some(rate) = self.receive_rate {
            (shaping.receive_rate, shaping.receive_timetable) = (rate.0, None);
        }
        if let Some(week) = &self.receive_timetable {
            (shaping.receive_rate, shaping.receive_timetable) = (None, Some(week.clone()));
        }
        let is_capped = self.send_rate.is_some()
            || self.timetable.is_some()
            || self.receive_rate.is_some()
            || self.receive_timetable.is_some();
        let Some(class) = self.class else {
            return Ok(is_capped);
        };
        let share = shaping.shares.0.entry(class).or_default();
        let before = *share;
        share.weight = self.weight.or(share.weight);
        for (limit, wanted) in [(&mut share.floor, self.floor), (&mut share.cap, self.cap)] {
            if let Some(Limit(rate)) = wanted {
                *limit = rate;
            }
        }
        let is_said = self.weight.is_some() || self.floor.is_some() || self.cap.is_some();
        if !is_said && *share == before {
            let detail = "--class needs --weight, --floor or --cap beside it";
            let remedy = "see `towpath tunnel shape --help`";
            return Err(Fault::new(Code::Usage, detail).remedy(remedy).into());
        }
        shaping
            .shares
            .0
            .retain(|_, share| *share != Share::default());
        Ok(true)
    }
}

fn table(peer: &Name, shaping: &Shaping, now: Option<CapNow>) -> String {
    let rate = |rate: Rate| bits_per_second(rate.bytes_per_second());
    let cap = |week: &Option<Week>, cap: Option<Rate>| match (week, cap) {
        (Some(week), _) => escape(&week.to_string()),
        (None, Some(cap)) => rate(cap),
        (None, None) => "none".to_owned(),
    };
    let sent = cap(&shaping.send_timetable, shaping.send_rate);
    let received = cap(&shaping.receive_timetable, shaping.receive_rate);
    let mut text = fields(&[
        ("peer", Some(peer.to_string())),
        ("cap", Some(sent)),
        ("now", now.map(|now| now.to_string())),
        ("asked of it", Some(received)),
    ]);
    let mut table = Table::new(["CLASS", ">WEIGHT", ">FLOOR", ">CAP"]);
    for class in Class::ALL {
        let share = shaping.shares.of(class);
        let weight = shaping.shares.weight(class);
        table.row([
            class.to_string(),
            weight.map_or_else(|| "first".to_owned(), |weight| weight.to_string()),
            or_dash(share.floor.map(rate)),
            or_dash(share.cap.map(rate)),
        ]);
    }
    text.push('\n');
    text.push_str(&table.render(""));
    text
}

/// Shows a service or changes its cap.
pub(crate) fn run_service(options: &ServiceOptions) -> Result<(), Failure> {
    block_on(service(options))?
}

async fn service(options: &ServiceOptions) -> Result<(), Failure> {
    let (client, format) = (options.socket.client(), options.output.format);
    let Some(name) = &options.name else {
        let status: StatusView = client.get("/status").await?;
        let services = Services {
            services: status.services,
        };
        return show::show(format, "services", &services, || {
            service_table(&services.services)
        });
    };
    let path = format!("/v1/services/{name}");
    let view: ServiceView = match options.cap {
        Some(Limit(cap)) => client.post(&path, &ServiceCap { cap }).await?,
        None => client.get(&path).await?,
    };
    show::show(format, "service", &view, || {
        fields(&[
            ("service", Some(escape(&view.name))),
            ("reached at", Some(escape(&view.socket))),
            ("allowed", Some(escape(&view.allow.join(", ")))),
            ("streams", Some(view.streams.to_string())),
            ("sent", Some(bytes(view.sent_bytes))),
            ("received", Some(bytes(view.received_bytes))),
            ("cap", Some(cap_of(&view))),
        ])
    })
}

/// The document `towpath.v1.services`.
#[derive(Debug, Serialize)]
struct Services {
    /// By name.
    services: Vec<ServiceView>,
}

fn cap_of(view: &ServiceView) -> String {
    let cap = view.cap_bits_per_second;
    cap.map_or_else(|| "none".to_owned(), |cap| bits_per_second(cap / 8))
}

fn service_table(services: &[ServiceView]) -> String {
    let mut table = Table::new([
        "SERVICE",
        "REACHED AT",
        ">STREAMS",
        ">SENT",
        ">RECEIVED",
        ">CAP",
        "ALLOWED",
    ])
    .least(["CAP", "RECEIVED", "SENT", "STREAMS"]);
    for view in services {
        let allowed = match view.allow.as_slice() {
            [] => "nobody".to_owned(),
            sites => escape(&sites.join(", ")),
        };
        table.row([
            escape(&view.name),
            escape(&view.socket),
            view.streams.to_string(),
            bytes(view.sent_bytes),
            bytes(view.received_bytes),
            cap_of(view),
            allowed,
        ]);
    }
    table.render(
        "no services: [[services]] in the tunnel's configuration names what peers may reach",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn changed(words: &[&str], shaping: &Shaping) -> Shaping {
        let line = ["shape", "region"].iter().chain(words);
        let line = Line::try_parse_from(line).unwrap();
        let mut shaping = shaping.clone();
        line.options.change(&mut shaping).unwrap();
        shaping
    }

    #[test]
    fn only_what_is_named_changes() {
        let first = changed(
            &["--class", "bulk", "--weight", "3", "--cap", "8Mbit"],
            &Shaping::default(),
        );
        let second = changed(
            &[
                "--send-rate",
                "9Mbit",
                "--class",
                "bulk",
                "--floor",
                "1Mbit",
            ],
            &first,
        );
        let bulk = second.shares.of(Class::Bulk);
        assert_eq!(bulk.weight, Some(3));
        assert_eq!(bulk.cap, "8Mbit".parse().ok());
        assert_eq!(bulk.floor, "1Mbit".parse().ok());
        assert_eq!(second.send_rate, "9Mbit".parse().ok());
        let third = changed(&["--timetable", "5Mbit otherwise"], &second);
        assert_eq!(third.send_rate, None, "one of the two");
        assert_eq!(third.shares, second.shares);
        let none = ["--class", "bulk", "--floor", "none", "--cap", "none"];
        assert_eq!(changed(&none, &third).shares.of(Class::Bulk).cap, None);
    }

    #[test]
    fn a_timetable_says_what_holds_now() {
        let mut now = CapNow {
            cap_bits_per_second: Some(8_000_000),
            cap_changes_unix_seconds: Some(86_400),
        };
        let text = table(&"region".parse().unwrap(), &Shaping::default(), Some(now));
        let line = "8.0 Mbit/s until 1970-01-02T00:00:00Z";
        assert!(text.contains(line), "{text}");
        (now.cap_bits_per_second, now.cap_changes_unix_seconds) = (None, None);
        assert_eq!(now.to_string(), "none");
    }

    #[test]
    fn a_line_that_says_nothing_or_too_much_is_refused() {
        for words in [
            ["--weight", "3"].as_slice(),
            &["--class", "bolk", "--weight", "3"],
            &["--class", "bulk", "--weight", "1001"],
            &["--send-rate", "fast"],
            &["--send-rate", "1Mbit", "--timetable", "1Mbit otherwise"],
        ] {
            let line = ["shape", "region"].iter().chain(words);
            assert!(Line::try_parse_from(line).is_err(), "{words:?}");
        }
        let line = Line::try_parse_from(["shape", "region", "--class", "bulk"]).unwrap();
        assert!(line.options.change(&mut Shaping::default()).is_err());
    }
}
