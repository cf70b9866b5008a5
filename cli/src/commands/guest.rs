//! `towpath guest`: start, list, show and stop guests.

use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use towpath_daemon::problem::Problem;
use towpath_daemon::units::Span;
use towpath_migrator::api::{
    GuestKind, GuestList, GuestRequest, GuestState, GuestView, Ownership, StoppedView,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::size::Size;

use crate::args::OutputOption;
use crate::connection::{MigratorSocket, block_on};
use crate::failure::Failure;
use crate::show::{self, Format, Table, bytes, escape, fields, or_dash};

/// Bytes of a page of guest memory.
const PAGE_BYTES: u64 = 4096;

/// Longest wait for a guest to start: it fills its memory first, at about 1 GiB a second.
const START_WAIT: Duration = Duration::from_secs(330);

const START_EXAMPLES: &str = "\
Examples:
  towpath guest start till-7                        256 MiB, or an old guest again
  towpath guest start till-8 --memory 1GiB --dirty-rate 2MiB/s
  towpath guest start till-9 --kind process         without KVM";

/// What is to be done with guests.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a guest and run it, or boot one that stopped or crashed.
    #[command(after_help = START_EXAMPLES)]
    Start(StartOptions),
    /// List the guests of this host.
    Ls(ListOptions),
    /// Show one guest.
    Show(OneOptions),
    /// End a guest and forget it.
    Stop(OneOptions),
}

/// The guest to start.
#[derive(Debug, Args)]
pub(crate) struct StartOptions {
    /// Its name
    name: Name,
    /// Its memory [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    #[command(flatten)]
    load: LoadOptions,
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// What kind of machine a guest is, and how it changes its memory.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoadOptions {
    /// What kind of machine it is; auto takes KVM where it can be used
    #[arg(long, value_name = "KIND", default_value = "auto")]
    kind: Kind,
    /// How fast it rewrites its memory: pages a second, or a rate such as 2MiB/s
    #[arg(long, value_name = "RATE", default_value = "500")]
    dirty_rate: DirtyRate,
    /// The part of its memory that it rewrites [default: all]
    #[arg(long, value_name = "SIZE")]
    working_set: Option<Size>,
    /// Share of its pages that do not compress
    #[arg(long, value_name = "PERCENT", default_value_t = 25, value_parser = clap::value_parser!(u8).range(0..=100))]
    incompressible: u8,
    /// Time between two heartbeats on its console
    #[arg(long, value_name = "TIME", default_value = "2ms")]
    heartbeat: Span,
}

/// What kind of machine a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    // KVM where it can be used, else a process.
    Auto,
    // A virtual machine.
    Kvm,
    // A process whose memory is tracked.
    Process,
}

impl From<Kind> for GuestKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Auto => Self::Auto,
            Kind::Kvm => Self::Kvm,
            Kind::Process => Self::Process,
        }
    }
}

/// Pages rewritten each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirtyRate(pub(crate) u64);

impl FromStr for DirtyRate {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        if let Ok(pages) = text.parse() {
            return Ok(Self(pages));
        }
        let size: Option<Size> = text.strip_suffix("/s").and_then(|size| size.parse().ok());
        size.map(|size| Self(size.bytes().div_ceil(PAGE_BYTES)))
            .ok_or_else(|| {
                let shown: String = text.chars().take(40).collect();
                Fault::new(
                    Code::Usage,
                    format!("{shown:?} is neither pages a second nor a rate such as 2MiB/s"),
                )
            })
    }
}

/// How the list is to be written.
#[derive(Debug, Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// One guest.
#[derive(Debug, Args)]
pub(crate) struct OneOptions {
    /// Its name
    name: Name,
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

impl Command {
    pub(crate) const fn format(&self) -> Format {
        match self {
            Self::Start(options) => options.output.format,
            Self::Ls(options) => options.output.format,
            Self::Show(options) | Self::Stop(options) => options.output.format,
        }
    }
}

impl LoadOptions {
    /// The request for a guest of this kind and load.
    pub(crate) fn request(&self, name: Name, memory: Size) -> Result<GuestRequest, Failure> {
        let heartbeat_us = self.heartbeat.duration().as_micros();
        let request = GuestRequest {
            name,
            kind: self.kind.into(),
            memory_bytes: memory.bytes(),
            dirty_pages_per_second: self.dirty_rate.0,
            working_set_bytes: self.working_set.map(Size::bytes),
            incompressible_percent: self.incompressible,
            heartbeat_interval_us: u32::try_from(heartbeat_us).unwrap_or(u32::MAX),
        };
        request.check()?;
        Ok(request)
    }
}

/// Does what was asked for.
pub(crate) fn run(command: Command) -> Result<(), Failure> {
    block_on(async {
        match command {
            Command::Start(options) => start(&options).await,
            Command::Ls(options) => list(&options).await,
            Command::Show(options) => {
                let path = format!("/v1/guests/{}", options.name);
                let guest = options.socket.client().get(&path).await?;
                show_guest(options.output.format, &guest)
            }
            Command::Stop(options) => stop(&options).await,
        }
    })?
}

async fn start(options: &StartOptions) -> Result<(), Failure> {
    let client = options.socket.client().timeout(START_WAIT);
    let what = || format!("guest {} cannot be started", options.name);
    let path = format!("/v1/guests/{}", options.name);
    let guest = match client.get::<GuestView>(&path).await {
        Ok(old) if options.memory.is_none() && can_boot(&old) => {
            client.post(&format!("{path}/start"), &()).await
        }
        Ok(old) if old.ownership == Ownership::Owned => Err(exists(&old)),
        Ok(_) => create(options, &client).await?,
        Err(problem) if problem.known_code() == Some(Code::NotFound) => {
            create(options, &client).await?
        }
        Err(problem) => Err(problem),
    };
    let guest = guest.map_err(|problem| Failure::from(problem).while_trying(what()))?;
    show_guest(options.output.format, &guest)
}

/// Whether a guest of ours lies there and could be booted again.
fn can_boot(guest: &GuestView) -> bool {
    guest.ownership == Ownership::Owned
        && matches!(
            guest.state,
            GuestState::Created | GuestState::Crashed | GuestState::Stopped
        )
}

fn exists(guest: &GuestView) -> Problem {
    let state = word(&guest.state);
    Problem::new(Code::GuestExists, format!("{} is {state} here", guest.name))
        .remedy("choose another name, or stop that guest first with `towpath guest stop`")
}

async fn create(
    options: &StartOptions,
    client: &towpath_daemon::client::Client,
) -> Result<Result<GuestView, Problem>, Failure> {
    let memory = options.memory.unwrap_or(Size::from_bytes(256 << 20));
    let request = options.load.request(options.name.clone(), memory)?;
    Ok(client.post("/v1/guests", &request).await)
}

async fn list(options: &ListOptions) -> Result<(), Failure> {
    let list: GuestList = options.socket.client().get("/v1/guests").await?;
    show::show(options.output.format, "guests", &list, || {
        let mut table = Table::new([
            "NAME",
            "KIND",
            "STATE",
            ">EPOCH",
            ">MEMORY",
            ">HEARTBEAT",
            "MOVED TO",
        ]);
        for guest in &list.guests {
            table.row([
                guest.name.to_string(),
                word(&guest.kind),
                word(&guest.state),
                guest.epoch.to_string(),
                bytes(guest.memory_bytes),
                or_dash(guest.heartbeat_sequence.map(|number| number.to_string())),
                or_dash(guest.moved_to.as_deref().map(escape)),
            ]);
        }
        table.render("no guests; make one with `towpath guest start NAME`")
    })
}

async fn stop(options: &OneOptions) -> Result<(), Failure> {
    let path = format!("/v1/guests/{}", options.name);
    let stopped: StoppedView = options
        .socket
        .client()
        .delete(&path)
        .await
        .map_err(|problem| {
            Failure::from(problem).while_trying(format!("guest {} cannot be stopped", options.name))
        })?;
    show::show(options.output.format, "stopped", &stopped, || {
        format!("stopped {}\n", stopped.name)
    })
}

fn show_guest(format: Format, guest: &GuestView) -> Result<(), Failure> {
    show::show(format, "guest", guest, || {
        let pages = guest.dirty_pages_per_second;
        let dirty = bytes(pages.saturating_mul(PAGE_BYTES));
        fields(&[
            ("name", Some(guest.name.to_string())),
            ("id", Some(guest.id.to_string())),
            ("kind", Some(word(&guest.kind))),
            ("state", Some(word(&guest.state))),
            ("ownership", Some(word(&guest.ownership))),
            ("epoch", Some(guest.epoch.to_string())),
            ("memory", Some(bytes(guest.memory_bytes))),
            ("working set", Some(bytes(guest.working_set_bytes))),
            ("rewrites", Some(format!("{pages} pages/s ({dirty}/s)"))),
            (
                "incompressible",
                Some(format!("{} %", guest.incompressible_percent)),
            ),
            (
                "heartbeat",
                guest.heartbeat_sequence.map(|number| number.to_string()),
            ),
            ("process", guest.process_id.map(|id| id.to_string())),
            ("moved to", guest.moved_to.as_deref().map(escape)),
            ("migration", guest.migration.map(|id| id.to_string())),
            ("console", guest.console.as_deref().map(escape)),
            (
                "error",
                guest
                    .error
                    .as_ref()
                    .map(|error| escape(&format!("{}: {}", error.code, error.message))),
            ),
        ])
    })
}

/// A plain state as its one word in documents.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        other => unreachable!("states are written as one word, not as {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_rates_are_pages_or_bytes_a_second() {
        for (text, pages) in [("500", 500), ("2MiB/s", 512), ("0", 0), ("1B/s", 1)] {
            assert_eq!(text.parse(), Ok(DirtyRate(pages)), "{text}");
        }
        for bad in ["", "fast", "2MiB", "-1", "/s", "1.5"] {
            assert!(bad.parse::<DirtyRate>().is_err(), "{bad}");
        }
    }
}
