//! `towpath guest`: start, list, show and stop guests.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;
use towpath_daemon::problem::Problem;
use towpath_daemon::units::Span;
use towpath_migrator::api::{
    GuestKind, GuestList, GuestRequest, GuestState, GuestView, Ownership, StoppedView, waits,
};
use towpath_protocol::fault::{Code, Fault, shown};
use towpath_protocol::guest_api::{
    DIRTY_PAGES_PER_SECOND_MAX, HEARTBEAT_INTERVAL_US, HEARTBEAT_INTERVAL_US_MAX,
    HEARTBEAT_INTERVAL_US_MIN, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, MEMORY_STEP_BYTES,
};
use towpath_protocol::identity::Name;
use towpath_protocol::size::Size;

use crate::args::{OutputOption, span_within};
use crate::connection::{MigratorSocket, block_on};
use crate::failure::Failure;
use crate::show::{self, Format, Table, bytes, escape, fields, or_dash};

/// Bytes of a page of guest memory.
const PAGE_BYTES: u64 = 4096;

/// Pages that a guest rewrites each second, by default.
const DIRTY_RATE_DEFAULT: u64 = 500;

/// Share of a guest's pages that do not compress, in percent, by default.
const INCOMPRESSIBLE_DEFAULT: u8 = 25;

pub(crate) const EXAMPLES: &str = "\
Examples:
  towpath guest start till-7                        create and run a guest, or boot it again
  towpath guest ls                                  list the guests of this host
  towpath guest stop till-7                         stop it and forget it";

const START_EXAMPLES: &str = "\
Examples:
  towpath guest start till-7                        run a guest with 256 MiB, or boot it again
  towpath guest start till-8 --memory 1GiB --dirty-rate 2MiB/s
  towpath guest start till-9 --kind process         run a guest without KVM
  towpath guest start till-5 --give-up              boot without memory that its source has lost";

const LS_EXAMPLES: &str = "\
Examples:
  towpath guest ls                                  list the guests of this host
  towpath guest ls -o json                          list them as JSON, with every field";

const SHOW_EXAMPLES: &str = "\
Examples:
  towpath guest show till-7                         show its state, load and console file
  towpath guest show till-7 -o json                 show the same as JSON";

const STOP_EXAMPLES: &str = "\
Examples:
  towpath guest stop till-7                         stop a guest; its memory is lost
  towpath guest stop till-5                         forget the record of a guest that has moved";

/// The subcommands of `towpath guest`.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create and run a guest, or boot one that stopped or crashed.
    #[command(after_help = START_EXAMPLES)]
    Start(StartOptions),
    /// List the guests of this host.
    #[command(after_help = LS_EXAMPLES)]
    Ls(ListOptions),
    /// Show one guest.
    #[command(after_help = SHOW_EXAMPLES)]
    Show(OneOptions),
    /// Stop a guest and forget it.
    #[command(after_help = STOP_EXAMPLES)]
    Stop(OneOptions),
}

/// The arguments of `towpath guest start`.
#[derive(Debug, Args)]
pub(crate) struct StartOptions {
    /// Name of the guest
    name: Name,
    /// Memory of the guest, 8MiB to 256GiB in steps of 2MiB [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    memory: Option<Size>,
    #[command(flatten)]
    load: LoadOptions,
    /// Boot a guest that waits for memory its source will never send; the missing memory is lost
    #[arg(long, conflicts_with_all = ["memory", "kind", "dirty_rate", "working_set", "incompressible", "heartbeat"])]
    give_up: bool,
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The kind of a guest, and how it changes its memory.
#[derive(Debug, Clone, Args)]
pub(crate) struct LoadOptions {
    /// Kind of machine; auto uses KVM where it is available [default: auto]
    #[arg(long, value_name = "KIND")]
    kind: Option<Kind>,
    /// Rate at which the guest rewrites its memory: pages per second, up to 10000000, or a rate
    /// such as 2MiB/s [default: 500]
    #[arg(long, value_name = "RATE")]
    dirty_rate: Option<DirtyRate>,
    /// Size of the memory that the guest rewrites, in whole pages of 4KiB [default and maximum: all
    /// but the first 4MiB]
    #[arg(long, value_name = "SIZE")]
    working_set: Option<Size>,
    /// Share of the guest's pages that do not compress, 0 to 100 [default: 25]
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u8).range(0..=100))]
    incompressible: Option<u8>,
    /// Time between two heartbeats on the guest's console, 500us to 1s [default: 2ms]
    #[arg(long, value_name = "TIME", value_parser = heartbeat)]
    heartbeat: Option<Span>,
}

/// Parses the size of a guest's memory.
pub(crate) fn memory(text: &str) -> Result<Size, Fault> {
    let size: Size = text.parse()?;
    let is_step = size.bytes().is_multiple_of(MEMORY_STEP_BYTES);
    if is_step && (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&size.bytes()) {
        return Ok(size);
    }
    let [least, most, step] =
        [MEMORY_BYTES_MIN, MEMORY_BYTES_MAX, MEMORY_STEP_BYTES].map(Size::from_bytes);
    let why = format!("must be {least} to {most} in steps of {step}");
    Err(Fault::new(Code::Usage, why))
}

/// Parses the time between two heartbeats.
fn heartbeat(text: &str) -> Result<Span, Fault> {
    let [least, most] = [HEARTBEAT_INTERVAL_US_MIN, HEARTBEAT_INTERVAL_US_MAX]
        .map(|us| Duration::from_micros(us.into()));
    span_within(text, least..=most)
}

/// A span in whole microseconds, `u32::MAX` at most.
fn micros(span: Span) -> u32 {
    u32::try_from(span.duration().as_micros()).unwrap_or(u32::MAX)
}

/// The kind of machine of a guest.
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

/// Pages that a guest rewrites each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirtyRate(pub(crate) u64);

impl FromStr for DirtyRate {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let pages = text.parse().ok().or_else(|| {
            let size: Option<Size> = text.strip_suffix("/s").and_then(|size| size.parse().ok());
            size.map(|size| size.bytes().div_ceil(PAGE_BYTES))
        });
        match pages {
            Some(pages) if pages <= DIRTY_PAGES_PER_SECOND_MAX.into() => Ok(Self(pages)),
            Some(_) => {
                let why = format!("must be at most {DIRTY_PAGES_PER_SECOND_MAX} pages a second");
                Err(Fault::new(Code::Usage, why))
            }
            None => {
                let shown = shown(text);
                let why = "is neither pages a second nor a rate such as 2MiB/s";
                Err(Fault::new(Code::Usage, format!("{shown:?} {why}")))
            }
        }
    }
}

/// The arguments of `towpath guest ls`.
#[derive(Debug, Args)]
pub(crate) struct ListOptions {
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    output: OutputOption,
}

/// The arguments of commands for one guest.
#[derive(Debug, Args)]
pub(crate) struct OneOptions {
    /// Name of the guest
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
    /// Builds the request for a guest of this kind and load.
    pub(crate) fn request(&self, name: Name, memory: Size) -> Result<GuestRequest, Failure> {
        let request = GuestRequest {
            name,
            kind: self.kind.unwrap_or(Kind::Auto).into(),
            memory_bytes: memory.bytes(),
            dirty_pages_per_second: self.dirty_rate.map_or(DIRTY_RATE_DEFAULT, |rate| rate.0),
            working_set_bytes: self.working_set.map(Size::bytes),
            incompressible_percent: self.incompressible.unwrap_or(INCOMPRESSIBLE_DEFAULT),
            heartbeat_interval_us: self.heartbeat.map_or(HEARTBEAT_INTERVAL_US, micros),
        };
        request.check()?;
        Ok(request)
    }

    /// The first option that differs from what the guest was made with.
    fn differs_from(&self, guest: &GuestView) -> Option<&'static str> {
        let is_other_kind = |kind: Kind| kind != Kind::Auto && GuestKind::from(kind) != guest.kind;
        let set = guest.working_set_bytes;
        let options = [
            ("--kind", self.kind.is_some_and(is_other_kind)),
            (
                "--dirty-rate",
                self.dirty_rate
                    .is_some_and(|rate| rate.0 != guest.dirty_pages_per_second),
            ),
            (
                "--working-set",
                self.working_set.is_some_and(|size| size.bytes() != set),
            ),
            (
                "--incompressible",
                self.incompressible
                    .is_some_and(|share| share != guest.incompressible_percent),
            ),
            (
                "--heartbeat",
                self.heartbeat
                    .is_some_and(|span| micros(span) != guest.heartbeat_interval_us),
            ),
        ];
        let found = options.into_iter().find(|(_, is_other)| *is_other);
        found.map(|(option, _)| option)
    }
}

/// Runs a subcommand.
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
    let client = options.socket.client().timeout(waits::START_ANSWER);
    let what = || format!("guest {} cannot be started", options.name);
    let path = format!("/v1/guests/{}", options.name);
    let known = client.get::<GuestView>(&path).await;
    let made = known.is_err();
    let guest = match known {
        Ok(_) if options.give_up => client.post(&format!("{path}/give-up"), &()).await,
        Ok(old) if can_boot(&old) => match options.differs_from(&old) {
            None => client.post(&format!("{path}/start"), &()).await,
            Some(option) => Err(is_another(&old, option)),
        },
        Ok(old) => Err(exists(&old)),
        Err(problem) if problem.known_code() == Some(Code::NotFound) && !options.give_up => {
            create(options, &client).await?
        }
        Err(problem) => Err(problem),
    };
    let guest = guest.map_err(|problem| {
        let quota = "raise `quota` in this host's migrator configuration, or stop another guest";
        let kvm = "check the rights on /dev/kvm and the processor's virtualization setting, or leave `--kind kvm` out";
        let failure = Failure::from(problem).remedy_of(Code::Quota, quota);
        failure.remedy_of(Code::Kvm, kvm).while_trying(what())
    })?;
    let started = Started { made, guest };
    show::show(options.output.format, "guest", &started, || {
        let (name, guest) = (&started.guest.name, &started.guest);
        let what = if made {
            format!("made {name}, a new guest\n")
        } else {
            format!("booted {name} again, with its memory anew\n")
        };
        what + &guest_fields(guest) + &last_words(guest).unwrap_or_default()
    })
}

/// The document `towpath.v1.guest` of a guest that was started.
#[derive(Debug, Serialize)]
struct Started {
    /// Whether the guest is new. Otherwise it existed and was booted again.
    made: bool,
    #[serde(flatten)]
    guest: GuestView,
}

/// Whether this host owns the guest and can boot it.
fn can_boot(guest: &GuestView) -> bool {
    guest.ownership == Ownership::Owned
        && matches!(
            guest.state,
            GuestState::Created | GuestState::Crashed | GuestState::Stopped
        )
}

impl StartOptions {
    /// The first option that differs from what the guest was made with.
    fn differs_from(&self, guest: &GuestView) -> Option<&'static str> {
        let is_other = self
            .memory
            .is_some_and(|size| size.bytes() != guest.memory_bytes);
        let memory = is_other.then_some("--memory");
        memory.or_else(|| self.load.differs_from(guest))
    }
}

/// The refusal to boot a guest with an option it was not made with.
fn is_another(guest: &GuestView, option: &str) -> Problem {
    let (name, state) = (&guest.name, guest.state.as_str());
    let cause = format!("{name} is {state} here, and {option} is not what it was made with");
    Problem::new(Code::GuestExists, cause).remedy(format!(
        "leave {option} out to boot it as it is, or forget it first with `towpath guest stop {name}`"
    ))
}

fn exists(guest: &GuestView) -> Problem {
    let (name, state) = (&guest.name, guest.state.as_str());
    let forget = format!("forget the record with `towpath guest stop {name}`");
    match (guest.state, &guest.moved_to) {
        (GuestState::Moved, Some(host)) => {
            let cause = format!("{name} has moved to {host}; what is left here is its record");
            Problem::new(Code::GuestExists, cause)
                .remedy(format!("look there, choose another name, or {forget}"))
        }
        (GuestState::Absent, _) => {
            let cause =
                format!("{name} lives on another host: it was on its way here and did not come");
            Problem::new(Code::GuestExists, cause).remedy(format!(
                "look at its source, choose another name, or {forget}"
            ))
        }
        (GuestState::Incoming, _) => {
            Problem::new(Code::GuestExists, format!("{name} is incoming here")).remedy(format!(
                "choose another name; `towpath migration show {name}` says where its move stands, and `towpath \
                 migration cancel {name}` at its source ends that"
            ))
        }
        // The usual remedy of the code stays: an operator has to look at the guest first.
        (GuestState::Quarantined, _) => {
            Problem::new(Code::GuestExists, format!("{name} is quarantined here"))
        }
        _ => Problem::new(Code::GuestExists, format!("{name} is {state} here"))
            .remedy("choose another name, or stop that guest first with `towpath guest stop`"),
    }
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
        ])
        .least(["EPOCH", "HEARTBEAT", "KIND"]);
        for guest in &list.guests {
            table.row([
                guest.name.to_string(),
                guest.kind.as_str().to_owned(),
                guest.state.as_str().to_owned(),
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
    let client = options.socket.client().timeout(waits::STOP_ANSWER);
    let name = &options.name;
    let remedy = format!(
        "if it is in a move, `towpath migration cancel {name}` at its source ends that until the guest is handed over; \
         `towpath migration show {name}` says where it stands"
    );
    let failed = |problem| {
        Failure::from(problem)
            .while_trying(format!("guest {name} cannot be stopped"))
            .remedy_of(Code::State, remedy.as_str())
    };
    let guest: GuestView = client.get(&path).await.map_err(failed)?;
    let stopped: StoppedView = client.delete(&path).await.map_err(failed)?;
    show::show(options.output.format, "stopped", &stopped, || {
        let name = &stopped.name;
        let what = match (guest.state, &guest.moved_to) {
            (GuestState::Moved, Some(host)) => {
                format!("forgot {name}, which moved to {}", escape(host))
            }
            (GuestState::Absent, _) => format!("forgot {name}, which lives on another host"),
            _ => format!("stopped {name}, and nothing is left of it"),
        };
        format!("{what}; `towpath guest start {name}` makes another guest of that name\n")
    })
}

/// How many last lines of a crashed guest's console are shown, and how many last bytes are read to
/// find them.
const TAIL_LINE_COUNT: usize = 8;
const TAIL_BYTES: u64 = 4096;

/// The last lines on the console of a crashed guest, if this user may read the file.
fn last_words(guest: &GuestView) -> Option<String> {
    let path = guest.console.as_ref()?;
    if guest.state != GuestState::Crashed {
        return None;
    }
    let mut file = File::open(path).ok()?;
    let end = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(end.saturating_sub(TAIL_BYTES)))
        .ok()?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(TAIL_LINE_COUNT)..];
    let last: String = last
        .iter()
        .map(|line| format!("  {}\n", escape(line)))
        .collect();
    (!last.is_empty()).then(|| format!("\nlast on its console:\n{last}"))
}

fn show_guest(format: Format, guest: &GuestView) -> Result<(), Failure> {
    show::show(format, "guest", guest, || {
        guest_fields(guest) + &last_words(guest).unwrap_or_default()
    })
}

fn guest_fields(guest: &GuestView) -> String {
    let pages = guest.dirty_pages_per_second;
    let dirty = bytes(pages.saturating_mul(PAGE_BYTES));
    let (interval, kind) = (guest.heartbeat_interval_us, &guest.kind);
    let interval = Span::new(Duration::from_micros(interval.into()));
    fields(&[
        ("name", Some(guest.name.to_string())),
        ("id", Some(guest.id.to_string())),
        ("kind", Some(kind.as_str().to_owned())),
        ("state", Some(guest.state.as_str().to_owned())),
        ("ownership", Some(guest.ownership.as_str().to_owned())),
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
        ("heartbeats every", Some(interval.to_string())),
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_the_words_of_the_options() {
        let why = |refused: Result<(), Fault>| refused.unwrap_err().detail;
        for text in ["4097", "6MiB", "9MiB", "2TiB"] {
            let why = why(memory(text).map(drop));
            assert_eq!(why, "must be 8MiB to 256GiB in steps of 2MiB", "{text}");
        }
        for text in ["499us", "2s"] {
            let why = why(heartbeat(text).map(drop));
            assert_eq!(why, "must be 500us to 1s", "{text}");
        }
        assert!(memory("8MiB").is_ok() && heartbeat("500us").is_ok());
    }

    #[test]
    fn dirty_rates_are_pages_or_bytes_a_second() {
        for (text, pages) in [("500", 500), ("2MiB/s", 512), ("0", 0), ("1B/s", 1)] {
            assert_eq!(text.parse(), Ok(DirtyRate(pages)), "{text}");
        }
        for bad in ["", "fast", "2MiB", "-1", "/s", "1.5", "10000001"] {
            assert!(bad.parse::<DirtyRate>().is_err(), "{bad}");
        }
    }
}
