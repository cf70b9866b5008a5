//! `towpath channel`: lists, shows, opens, tests, caps, closes and resets channels.

use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use towpath_daemon::units::Span;
use towpath_protocol::amounts;
use towpath_protocol::class::Class;
use towpath_protocol::endpoint::Endpoint;
use towpath_protocol::identity::Name;
use towpath_protocol::rate::Rate;
use towpath_tunnel::channels::ChannelSpec;
use towpath_tunnel::status::{ChannelList, ChannelOrigin, ChannelState, ChannelView, TrialView};

use crate::args::{Limit, OutputOption, class};
use crate::connection::{TunnelSocket, block_on};
use crate::failure::Failure;
use crate::show::{self, Format, Table, bits_per_second, bytes, escape, fields};

pub(crate) const EXAMPLES: &str = "\
Examples:
  towpath channel open till --listen tcp:127.0.0.1:7001 --peer region --service till
  towpath channel ls                                show where each channel leads, and its state
  towpath channel close till";

const OPEN_EXAMPLES: &str = "\
Examples:
  towpath channel open till --listen tcp:127.0.0.1:7001 --peer region --service till
  towpath channel open dns --listen udp:127.0.0.1:53 --peer region --service dns --expires 1h
  towpath channel open till --listen tcp:127.0.0.1:7001 --peer branch --service till
                                                     lead the same channel to another site

The configuration of the peer's tunnel must have the service, and allow this site.";

const LS_EXAMPLES: &str = "\
Examples:
  towpath channel ls                                print a table
  towpath channel ls -o json                        print all that is known of each";

const SHOW_EXAMPLES: &str = "\
Examples:
  towpath channel show till                         show where it leads, bytes, rates, errors
  towpath channel show till -o json                 print the same for programs";

const TEST_EXAMPLES: &str = "\
Examples:
  towpath channel test till                         try to reach the service, and time it
  towpath channel test till -o json

The service sees a connection that begins and ends. A service of datagrams sees nothing: the
test shows that the peer lets this site reach the service, but not that the service answers.";

const CAP_EXAMPLES: &str = "\
Examples:
  towpath channel cap till 10Mbit
  towpath channel cap till none                     remove the cap";

const CLOSE_EXAMPLES: &str = "\
Examples:
  towpath channel close till
  towpath channel close till --generation 7         close it only if no newer one is known";

const RESET_EXAMPLES: &str = "\
Example:
  towpath channel reset till                        undo open, cap and close by hand";

/// Longest time of a test: a wait for a free stream, and one for the peer's answer.
const TEST_WAIT: Duration = Duration::from_secs(30);

/// The subcommands of `towpath channel`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List the channels of this host.
    #[command(after_help = LS_EXAMPLES)]
    Ls(ListOptions),
    /// Show one channel.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(OneOptions),
    /// Open a channel, or change where it leads.
    #[command(after_help = OPEN_EXAMPLES)]
    Open(OpenOptions),
    /// Test whether a channel reaches its service.
    #[command(after_help = TEST_EXAMPLES)]
    Test(OneOptions),
    /// Change the cap of a channel.
    #[command(after_help = CAP_EXAMPLES)]
    Cap(CapOptions),
    /// Close a channel and its connections.
    #[command(after_help = CLOSE_EXAMPLES)]
    Close(CloseOptions),
    /// Reset a channel to its definition in the configuration, undoing all changes by hand.
    #[command(after_help = RESET_EXAMPLES)]
    Reset(OneOptions),
}

/// The arguments of `towpath channel ls`.
#[derive(Debug, Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    socket: TunnelSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of the subcommands that only name a channel.
#[derive(Debug, Args)]
pub(crate) struct OneOptions {
    /// Name of the channel
    name: Name,
    #[command(flatten)]
    socket: TunnelSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of `towpath channel open`.
#[derive(Debug, Args)]
pub(crate) struct OpenOptions {
    /// Name of the channel
    name: Name,
    /// Address for local programs: tcp:ADDRESS:PORT, udp:ADDRESS:PORT or unix:/PATH; `0.0.0.0` and
    /// `[::]` open the channel to everyone who can reach this host
    #[arg(long, value_name = "ENDPOINT")]
    listen: Endpoint,
    /// Site of the service
    #[arg(long, value_name = "SITE")]
    peer: Name,
    /// Name of the service at that site
    #[arg(long, value_name = "NAME")]
    service: Name,
    /// Class of the channel's traffic, which decides its share of the link: control, demand, app,
    /// switch, bulk or scavenger
    #[arg(long, value_name = "CLASS", default_value = "app", value_parser = class)]
    class: Class,
    /// Generation of the definition [default: the present one plus 1; for a new channel, the time
    /// in milliseconds since 1970]
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    /// Time after which the channel closes by itself [default: never]
    #[arg(long, value_name = "TIME")]
    expires: Option<Span>,
    /// Cap on the rate sent through the channel, such as 10Mbit [default: none]
    #[arg(long, value_name = "RATE")]
    cap: Option<Rate>,
    #[command(flatten)]
    socket: TunnelSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of `towpath channel cap`.
#[derive(Debug, Args)]
pub(crate) struct CapOptions {
    /// Name of the channel
    name: Name,
    /// Cap on the rate sent through the channel: 10Mbit, or none
    #[arg(value_name = "RATE")]
    cap: Limit,
    #[command(flatten)]
    socket: TunnelSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of `towpath channel close`.
#[derive(Debug, Args)]
pub(crate) struct CloseOptions {
    /// Name of the channel
    name: Name,
    /// Close the channel only if no newer generation than this is known
    #[arg(long, value_name = "NUMBER")]
    generation: Option<u64>,
    #[command(flatten)]
    socket: TunnelSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// A closed channel.
#[derive(Debug, Serialize)]
struct Closed<'a> {
    name: &'a Name,
    /// Whether the configuration names it. If so, it stays closed even after a restart.
    is_configured: bool,
}

impl Command {
    /// The format of the result or failure.
    pub(crate) const fn format(&self) -> Format {
        match self {
            Self::Ls(options) => options.output.format,
            Self::Show(options) => options.output.format,
            Self::Open(options) => options.output.format,
            Self::Test(options) => options.output.format,
            Self::Cap(options) => options.output.format,
            Self::Close(options) => options.output.format,
            Self::Reset(options) => options.output.format,
        }
    }
}

/// Runs a subcommand.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    block_on(async move {
        match command {
            Command::Ls(options) => list(&options).await,
            Command::Show(options) => show(&options).await,
            Command::Open(options) => open(options).await,
            Command::Test(options) => test(&options).await,
            Command::Cap(options) => cap(&options).await,
            Command::Close(options) => close(&options).await,
            Command::Reset(options) => reset(&options).await,
        }
    })?
}

async fn list(options: &ListOptions) -> Result<(), Failure> {
    let list: ChannelList = options.socket.client().get("/v1/channels").await?;
    show::show(options.output.format, "channels", &list, || {
        list_table(&list)
    })
}

async fn show(options: &OneOptions) -> Result<(), Failure> {
    let view = options.socket.client().get(&path_of(&options.name)).await?;
    show_one(options.output.format, &view)
}

async fn close(options: &CloseOptions) -> Result<(), Failure> {
    let name = &options.name;
    let mut path = path_of(name);
    if let Some(generation) = options.generation {
        path.push_str(&format!("?generation={generation}"));
    }
    // The answer lists the remaining channels.
    let list: ChannelList = options.socket.client().delete(&path).await?;
    let is_configured = list.closed_by_hand.iter().any(|one| one == name.as_str());
    if is_configured {
        show::note(&format!(
            "note: the configuration names {name}, and it stays closed even so; `towpath channel reset {name}` opens \
             it again"
        ));
    }
    let closed = Closed {
        name,
        is_configured,
    };
    show::show(options.output.format, "closed", &closed, || {
        format!("closed {name}\n")
    })
}

async fn reset(options: &OneOptions) -> Result<(), Failure> {
    let path = format!("{}/reset", path_of(&options.name));
    let nothing = serde_json::json!({});
    let view: ChannelView = options.socket.client().post(&path, &nothing).await?;
    show_one(options.output.format, &view)
}

async fn open(options: OpenOptions) -> Result<(), Failure> {
    let client = options.socket.client();
    let generation = match options.generation {
        Some(generation) => generation,
        None => {
            let list: ChannelList = client.get("/v1/channels").await?;
            let present = list
                .channels
                .iter()
                .find(|view| view.name == options.name.as_str());
            // The generation of a closed channel is not listed, and the new one must be higher. The
            // time in milliseconds is: changes count up by one, and each takes longer than a
            // millisecond.
            present.map_or_else(now_unix_ms, |view| view.generation.saturating_add(1))
        }
    };
    let spec = ChannelSpec {
        name: options.name,
        listen: options.listen,
        peer: options.peer,
        service: options.service,
        class: options.class,
        generation,
        expires_unix_seconds: options
            .expires
            .map(|span| (now_unix_ms() / 1000).saturating_add(span.duration().as_secs())),
        cap: options.cap,
    };
    let view: ChannelView = client.post("/v1/channels", &spec).await?;
    note_override(&view);
    if spec.listen.is_everywhere() {
        let listen = escape(&view.listen);
        show::note(&format!(
            "note: {listen} is every interface of this host: whoever reaches the host reaches the service"
        ));
    }
    show_one(options.output.format, &view)
}

/// Notes that a channel now differs from its definition in the configuration.
fn note_override(view: &ChannelView) {
    if view.origin == ChannelOrigin::Overriding {
        let name = escape(&view.name);
        show::note(&format!(
            "note: this takes the place of what the configuration says of {name}, after a restart too; `towpath \
             channel reset {name}` goes back to that"
        ));
    }
}

async fn test(options: &OneOptions) -> Result<(), Failure> {
    let path = format!("{}/test", path_of(&options.name));
    let client = options.socket.client().timeout(TEST_WAIT);
    let view: TrialView = client.post(&path, &serde_json::json!({})).await?;
    let (service, peer) = (escape(&view.service), escape(&view.peer));
    if let Some(problem) = view.problem.clone() {
        let message = format!("service {service} at {peer} is not reached");
        return Err(problem.message(message).into());
    }
    show::show(options.output.format, "channel-test", &view, || {
        let took = micros(view.took_us);
        match view.is_datagrams {
            false => format!("{service} at {peer} is reached, in {took}\n"),
            true => format!(
                "{peer} lets this site reach {service}, in {took}; whether it answers a trial does not show\n"
            ),
        }
    })
}

/// Changes the cap: opens the next generation of the channel, which differs only in its cap.
async fn cap(options: &CapOptions) -> Result<(), Failure> {
    let client = options.socket.client();
    let view: ChannelView = client.get(&path_of(&options.name)).await?;
    let spec = ChannelSpec {
        name: options.name.clone(),
        listen: view.listen.parse()?,
        peer: view.peer.parse()?,
        service: view.service.parse()?,
        class: class(&view.class)?,
        generation: view.generation.saturating_add(1),
        expires_unix_seconds: view.expires_unix_seconds,
        cap: options.cap.0,
    };
    let view: ChannelView = client.post("/v1/channels", &spec).await?;
    note_override(&view);
    show_one(options.output.format, &view)
}

fn path_of(name: &Name) -> String {
    format!("/v1/channels/{name}")
}

pub(super) fn now_unix_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, amounts::millis)
}

fn list_table(list: &ChannelList) -> String {
    let mut table = Table::new([
        "CHANNEL", "LISTEN", "LEADS TO", "ORIGIN", "STATE", ">NOW", ">OUT", ">IN", ">ERRORS",
    ])
    .least(["NOW", "ORIGIN", "IN", "OUT", "ERRORS"]);
    for view in &list.channels {
        table.row([
            escape(&view.name),
            escape(&view.listen),
            leads_to(view),
            view.origin.as_str().to_owned(),
            view.state.as_str().to_owned(),
            view.connections.to_string(),
            bits_per_second(view.out_bits_per_second / 8),
            bits_per_second(view.in_bits_per_second / 8),
            view.errors.to_string(),
        ]);
    }
    let mut text = table.render("no channels: towpath channel open NAME makes one");
    for view in list.channels.iter().filter(|view| is_explained(view)) {
        let (name, reason) = (escape(&view.name), escape(&view.reason));
        text.push_str(&format!("{name}: {reason}\n"));
    }
    for name in &list.closed_by_hand {
        text.push_str(&closed_by_hand(name));
    }
    text
}

/// The line about a configured channel that was closed by hand.
pub(crate) fn closed_by_hand(name: &str) -> String {
    let name = escape(name);
    format!("{name}: configured, and closed by hand: towpath channel reset {name} opens it again\n")
}

/// Whether a channel is failing or down and has a reason to show.
pub(crate) fn is_explained(view: &ChannelView) -> bool {
    matches!(view.state, ChannelState::Failing | ChannelState::Down) && !view.reason.is_empty()
}

/// The service that a channel leads to, and its site.
fn leads_to(view: &ChannelView) -> String {
    escape(&format!("{} at {}", view.service, view.peer))
}

/// The origin of a channel's definition, in words.
const fn origin(origin: ChannelOrigin) -> &'static str {
    match origin {
        ChannelOrigin::Configured => "configured",
        ChannelOrigin::Pushed => "pushed",
        ChannelOrigin::Overriding => "pushed, in place of what is configured",
    }
}

fn show_one(format: Format, view: &ChannelView) -> Result<(), Failure> {
    show::show(format, "channel", view, || {
        let mut rows = what_it_is(view);
        rows.extend(how_it_is(view));
        fields(&rows)
    })
}

type Field = (&'static str, Option<String>);

/// The rows of a channel's definition.
fn what_it_is(view: &ChannelView) -> Vec<Field> {
    let end = view.expires_unix_seconds;
    vec![
        ("channel", Some(escape(&view.name))),
        ("listens at", Some(escape(&view.listen))),
        ("leads to", Some(leads_to(view))),
        ("class", Some(escape(&view.class))),
        ("generation", Some(view.generation.to_string())),
        ("origin", Some(origin(view.origin).to_owned())),
        (
            "expires",
            end.map(|end| show::time_of_day(end.saturating_mul(1000))),
        ),
    ]
}

fn micros(us: u64) -> String {
    format!("{}.{} ms", us / 1000, us % 1000 / 100)
}

/// The rows of a channel's state and traffic.
fn how_it_is(view: &ChannelView) -> Vec<Field> {
    let rate = |bits: u64| bits_per_second(bits / 8);
    let carried = |count, bits| Some(format!("{}, {}", bytes(count), rate(bits)));
    let state = format!("{}: {}", view.state.as_str(), escape(&view.reason));
    let (now, total) = (view.connections, view.connections_total);
    let (opening, lost) = (view.open_us, view.datagrams_dropped);
    vec![
        ("state", Some(state)),
        ("round trip", Some(micros(view.rtt_us))),
        ("last opening", (opening > 0).then(|| micros(opening))),
        ("connections", Some(format!("{now} now, {total} in all"))),
        ("out", carried(view.sent_bytes, view.out_bits_per_second)),
        ("in", carried(view.received_bytes, view.in_bits_per_second)),
        ("cap", view.cap_bits_per_second.map(rate)),
        (
            "datagrams lost",
            (lost > 0).then(|| format!("{lost} that were too many")),
        ),
        ("errors", Some(view.errors.to_string())),
        ("last error", view.last_error.as_deref().map(escape)),
    ]
}
