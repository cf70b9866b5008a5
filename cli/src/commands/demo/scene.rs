//! The course of the demo: start two sites and a guest, move the guest there and back, and report.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use towpath_certs::Authority;
use towpath_daemon::problem::Problem;
use towpath_daemon::units::Span;
use towpath_migrator::api::{
    GuestRequest, GuestView, HostView, MigrationMode, MigrationRequest, MigrationView, StoppedView,
    VerifyView, waits,
};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::HEARTBEAT_INTERVAL_US;
use towpath_protocol::identity::Name;
use towpath_protocol::size::Size;

use super::cut::{HalfWay, Scissors};
use super::heartbeat::Record;
use super::process::Process;
use super::report::{GuestReport, LinkReport, MoveReport, Report};
use super::site::{Plan, Site};
use super::{Folders, Options};
use crate::commands::guest::Kind;
use crate::commands::relay::Ready;
use crate::failure::Failure;
use crate::follow::{LiveLine, outcome, watch};
use crate::show::escape;

/// Heartbeats to wait for before each move and at the end, to show that the guest runs: half a
/// second.
const HEARTBEATS_BEFORE_MOVE: u64 = 250;

/// How long the guest may take to print the heartbeats that are waited for.
const HEARTBEAT_WAIT: Duration = Duration::from_secs(30);

/// Pause between two checks of the consoles.
const HEARTBEAT_PAUSE: Duration = Duration::from_millis(20);

/// How many times the guest's memory a move may send before the demo gives up on it.
const COPIES_MAX: u32 = 20;

/// How long a move may take in addition to sending memory.
const MOVE_WAIT_EXTRA: Duration = Duration::from_secs(120);

/// Plays the whole demo. Its processes are ended whether it succeeds or fails.
pub(super) async fn play(options: &Options, folders: &Folders) -> Result<Report, Failure> {
    let line = LiveLine::new();
    line.say("demo", "making certificates");
    let authority = Authority::init(&folders.files.join("authority"), &"demo.towpath".parse()?)?;
    let far = free_address()?;
    line.say("demo", "starting the link, two tunnels and two migrators");
    let (mut relay, mut scissors, door) = if options.direct {
        (None, None, far)
    } else {
        let (mut relay, door) = start_relay(options, far, folders).await?;
        let scissors = options.cut.and_then(|outage| {
            let leash = relay.take_leash()?;
            Some(Scissors::new(leash, outage))
        });
        (Some(relay), scissors, door)
    };
    let (edge, region): (Name, Name) = ("edge".parse()?, "region".parse()?);
    let quota = Size::from_bytes(options.memory.bytes().saturating_mul(2));
    let plan = |site, peer| Plan {
        site,
        peer,
        listen: None,
        peer_address: None,
        rate: (!options.direct).then_some(options.rate),
        quota,
    };
    let region_plan = Plan {
        listen: Some(far),
        ..plan(&region, &edge)
    };
    let edge_plan = Plan {
        peer_address: Some(door),
        ..plan(&edge, &region)
    };
    let (region, mut region_daemons) = region_plan.start(&authority, folders).await?;
    let (edge, mut edge_daemons) = edge_plan.start(&authority, folders).await?;
    let played = tokio::select! {
        played = act(options, (&edge, &region), &mut scissors, line) => played,
        failure = edge_daemons.ended_early() => Err(failure),
        failure = region_daemons.ended_early() => Err(failure),
        failure = ended_early(&mut relay) => Err(failure),
    };
    let played = played.map(|report| Report {
        daemons: [&edge_daemons, &region_daemons]
            .into_iter()
            .flat_map(|daemons| daemons.taken())
            .collect(),
        ..report
    });
    edge_daemons.end().await;
    region_daemons.end().await;
    drop(scissors);
    if let Some(relay) = relay {
        relay.end().await;
    }
    played
}

/// Waits until the relay ends by itself, which is a failure; for ever if there is none.
async fn ended_early(relay: &mut Option<Process>) -> Failure {
    match relay {
        Some(relay) => relay.ended_early().await,
        None => std::future::pending().await,
    }
}

async fn start_relay(
    options: &Options,
    far: SocketAddr,
    folders: &Folders,
) -> Result<(Process, SocketAddr), Failure> {
    let arguments = [
        "relay".to_owned(),
        format!("--to={far}"),
        format!("--rate={}", options.rate),
        format!("--rtt={}", options.rtt),
        format!("--loss={}", options.loss),
    ];
    let (relay, line) = Process::start_and_hear("relay", &arguments, &folders.files).await?;
    let ready: Ready = serde_json::from_str(&line)
        .map_err(|error| Fault::new(Code::Meta, format!("the relay said {line:?}: {error}")))?;
    Ok((relay, ready.door))
}

/// A loopback UDP address that is free now.
fn free_address() -> Result<SocketAddr, Fault> {
    UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|socket| socket.local_addr())
        .map_err(|error| Fault::new(Code::Io, format!("a free port on loopback: {error}")))
}

/// Starts the guest and moves it there and back, once both sites run.
async fn act(
    options: &Options,
    (edge, region): (&Site, &Site),
    scissors: &mut Option<Scissors>,
    mut line: LiveLine,
) -> Result<Report, Failure> {
    line.say("demo", "waiting for the link");
    edge.wait_for_link().await?;
    let host: HostView = edge.migrator.get("/v1/status").await?;
    if let (Kind::Auto, Some(reason)) = (options.guest, &host.kvm_missing_reason) {
        // Told before the user waits for the guest, and not only in the report.
        let reason = escape(reason);
        line.note(&format!("no KVM here: {reason}; the guest is a process"));
    }
    line.say("demo", "starting the guest");
    let starting = edge.migrator.clone().timeout(waits::START_ANSWER);
    let guest: GuestView = starting.post("/v1/guests", &request(options)?).await?;
    let mut consoles = Consoles::default();
    consoles.add(&guest);
    let mut moves = Vec::new();
    for (number, (from, to)) in [(edge, region), (region, edge)].into_iter().enumerate() {
        line.say("demo", "letting the guest run");
        consoles.wait_for_beats(HEARTBEATS_BEFORE_MOVE).await?;
        let moving = move_guest(options, &guest.name, (from, to), scissors, &mut line);
        let (view, outage) = moving.await?;
        line.say("demo", "looking at every page");
        let path = format!("/v1/guests/{}", guest.name);
        consoles.add(&to.migrator.get(&path).await?);
        let pause = consoles.wait_for_pause(number).await?;
        let verifying = to.migrator.clone().timeout(waits::VERIFY_ANSWER);
        let verify: VerifyView = verifying.post(&format!("{path}/verify"), &()).await?;
        let path = format!("/v1/migrations/{}", view.id);
        let at_target: MigrationView = to.migrator.get(&path).await?;
        moves.push(MoveReport {
            outage_ms: outage.map(Span::milliseconds),
            ..MoveReport::new(&view, &at_target, pause, verify)
        });
    }
    line.say("demo", "letting the guest run");
    consoles.wait_for_beats(HEARTBEATS_BEFORE_MOVE).await?;
    let path = format!("/v1/guests/{}", guest.name);
    let _: StoppedView = edge.migrator.delete(&path).await?;
    let heartbeats = consoles.read()?;
    line.clear();
    let all_pages = moves.iter().all(|one: &MoveReport| one.verified);
    Ok(Report {
        guest: GuestReport::new(&guest, host.kvm_missing_reason),
        link: (!options.direct).then(|| LinkReport {
            rate_bits_per_second: options.rate.bits_per_second(),
            rtt_ms: options.rtt.milliseconds(),
            loss_percent: options.loss,
        }),
        daemons: Vec::new(),
        verified: all_pages && heartbeats.is_whole(),
        moves,
        heartbeats,
    })
}

fn request(options: &Options) -> Result<GuestRequest, Failure> {
    let request = GuestRequest {
        name: "demo".parse()?,
        kind: options.guest.into(),
        memory_bytes: options.memory.bytes(),
        dirty_pages_per_second: options.dirty_rate.0,
        working_set_bytes: None,
        incompressible_percent: options.incompressible,
        heartbeat_interval_us: HEARTBEAT_INTERVAL_US,
    };
    request.check()?;
    Ok(request)
}

/// Moves the guest and waits until nothing of it is missing at the other site. Also returns how
/// long the link was cut during the move, if it was.
async fn move_guest(
    options: &Options,
    guest: &Name,
    (from, to): (&Site, &Site),
    scissors: &mut Option<Scissors>,
    line: &mut LiveLine,
) -> Result<(MigrationView, Option<Span>), Failure> {
    let request = MigrationRequest {
        guest: guest.clone(),
        site: to.name.clone(),
        mode: MigrationMode::Auto,
        max_pause_ms: u32::try_from(options.max_pause.milliseconds()).unwrap_or(u32::MAX),
        rate_bits_per_second: None,
    };
    request.check()?;
    let begun: MigrationView = from.migrator.post("/v1/migrations", &request).await?;
    let wait_max = move_wait_max(options);
    let (mut observer, half_way) = HalfWay::new(line, options.memory.bytes() / 2);
    let watching = async move {
        let mut last = None;
        watch(&from.migrator, begun.id, &mut last, &mut observer).await
    };
    let cutting = async {
        match scissors {
            Some(scissors) => scissors.cut_once(half_way).await,
            None => Ok(None),
        }
    };
    let both = async { tokio::try_join!(watching, cutting) };
    let (view, outage) = timeout(wait_max, both).await.map_err(|_| {
        let cause = format!("move {} has not ended after {wait_max:?}", begun.id);
        Problem::new(Code::Stalled, cause)
    })??;
    outcome(&view)?;
    Ok((view, outage))
}

fn move_wait_max(options: &Options) -> Duration {
    let bytes_per_second = options.rate.bytes_per_second().max(1);
    let copy_seconds = options.memory.bytes() / bytes_per_second;
    let outage = options.cut.map_or(Duration::ZERO, Span::duration);
    Duration::from_secs(copy_seconds) * COPIES_MAX + MOVE_WAIT_EXTRA + outage
}

/// Files of the guest's consoles at both sites.
#[derive(Debug, Default)]
struct Consoles(Vec<PathBuf>);

impl Consoles {
    fn add(&mut self, guest: &GuestView) {
        let path = guest.console.as_ref().map(PathBuf::from);
        self.0.extend(path.filter(|path| !self.0.contains(path)));
    }

    fn read(&self) -> Result<Record, Fault> {
        Record::read(&self.0)
    }

    /// Waits until the guest has printed `more` more heartbeats.
    async fn wait_for_beats(&self, more: u64) -> Result<(), Failure> {
        let begin = self.read()?.last.unwrap_or(0);
        let has_run = |record: &Record| record.last.is_some_and(|last| last >= begin + more);
        self.wait_until(has_run).await.map(|_| ())
    }

    /// Waits for the first heartbeat after move `number`, counted from 0, and returns how many
    /// milliseconds the guest stood still.
    async fn wait_for_pause(&self, number: usize) -> Result<Option<f64>, Failure> {
        let has_pause = |record: &Record| record.pauses_ms.len() > number;
        let record = self.wait_until(has_pause).await?;
        Ok(record.pauses_ms.get(number).copied())
    }

    async fn wait_until(&self, is_there: impl Fn(&Record) -> bool) -> Result<Record, Failure> {
        let deadline = Instant::now() + HEARTBEAT_WAIT;
        loop {
            let record = self.read()?;
            if is_there(&record) {
                return Ok(record);
            }
            if Instant::now() > deadline {
                let last = record.last;
                let cause = format!("its last heartbeat on {:?} is {last:?}", self.0);
                let problem = Problem::new(Code::Guest, cause);
                return Err(problem.message("the guest does not run").into());
            }
            sleep(HEARTBEAT_PAUSE).await;
        }
    }
}
