//! `towpath status`: shows the host, its links and the moves under way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use towpath_certs::check::EXPIRY_WARNING;
use towpath_daemon::problem::Problem;
use towpath_daemon::units::Span;
use towpath_migrator::api::{HostView, MigrationList, MigrationView};
use towpath_protocol::fault::Code;
use towpath_protocol::identity::Name;
use towpath_tunnel::status::{
    CertificateStatusView, ChannelState, ChannelView, LinkState, LinkView, StatusView,
};

use super::channel::{closed_by_hand, is_explained, now_unix_ms};
use crate::args::OutputOption;
use crate::connection::{MigratorSocket, TunnelSocket, block_on};
use crate::failure::{Exit, Failure};
use crate::follow::describe;
use crate::show::{
    self, Table, bits_per_second, bytes, dim, escape, fields, milliseconds, or_dash, time_of_day,
};

const EXAMPLES: &str = "\
Examples:
  towpath status                    show this host, its links and the moves under way
  towpath status -o json            print everything that both daemons report
  towpath status --check            exit with 6 if a link or channel is not well, for scripts
  towpath status --check --peer region --wait 30s
                                    wait until the link to region and its channels are well";

/// The arguments of `towpath status`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    #[command(flatten)]
    socket: MigratorSocket,
    #[command(flatten)]
    tunnel_socket: TunnelSocket,
    /// Exit with status 6 if a link is down, or a channel is down or failing
    #[arg(long)]
    check: bool,
    /// Check only the link to this site and the channels that lead there
    #[arg(long, value_name = "SITE", requires = "check")]
    peer: Option<Name>,
    /// Wait up to this time until everything checked is well
    #[arg(long, value_name = "TIME", requires = "check")]
    wait: Option<Span>,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

/// The answers of both daemons.
#[derive(Debug, Serialize)]
struct Status {
    migrator: Answer<HostView>,
    tunnel: Answer<StatusView>,
    /// Moves under way.
    migrations: Vec<MigrationView>,
    /// Path of the migrator's socket, if it does not exist: many hosts have only a tunnel.
    #[serde(skip)]
    absent_migrator: Option<PathBuf>,
}

/// A daemon's status, or why it could not be had.
#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum Answer<T> {
    Status(T),
    Problem(Problem),
}

impl<T> From<Result<T, Problem>> for Answer<T> {
    fn from(result: Result<T, Problem>) -> Self {
        match result {
            Ok(status) => Self::Status(status),
            Err(problem) => Self::Problem(problem),
        }
    }
}

/// Shown in place of the revocation lists if there are none.
const NO_LISTS: &str = "none: revoked hosts are let in";

/// Longest time for a daemon to answer. One that needs longer hangs.
const STATUS_WAIT: Duration = Duration::from_secs(10);

/// Time between two checks while waiting.
const CHECK_INTERVAL: Duration = Duration::from_millis(500);

/// Runs the command.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    block_on(async {
        let wait = options.wait.map_or(Duration::ZERO, |span| span.duration());
        let began = Instant::now();
        loop {
            let status = status(options).await;
            let checked = match &status {
                Ok(status) if options.check => check(status, options.peer.as_ref()),
                Ok(_) => Ok(()),
                Err(problem) => Err(problem.clone().into()),
            };
            let left = wait.saturating_sub(began.elapsed());
            if !left.is_zero() && checked.as_ref().is_err_and(may_pass) {
                tokio::time::sleep(left.min(CHECK_INTERVAL)).await;
                continue;
            }
            let status = status?;
            // The schema name `status` belongs to the tunnel's own document.
            show::show(options.output.format, "overview", &status, || {
                table(&status)
            })?;
            return checked;
        }
    })?
}

async fn status(options: &Options) -> Result<Status, Problem> {
    let migrator = options.socket.client().timeout(STATUS_WAIT);
    let tunnel = options.tunnel_socket.client().timeout(STATUS_WAIT);
    let (host, links, moves) = tokio::join!(
        migrator.get::<HostView>("/v1/status"),
        tunnel.get::<StatusView>("/status"),
        migrator.get::<MigrationList>("/v1/migrations"),
    );
    if let (Err(migrator), Err(tunnel)) = (&host, &links) {
        return Err(neither(migrator, tunnel));
    }
    let under_way = |list: MigrationList| {
        let is_under_way = |view: &MigrationView| !view.phase.is_finished();
        list.migrations.into_iter().filter(is_under_way).collect()
    };
    let (host, migrations) = match moves.map(under_way) {
        Ok(migrations) => (host, migrations),
        // Without its moves, the host's status is incomplete, so the failure takes its place.
        Err(problem) => (host.and(Err(problem)), Vec::new()),
    };
    let socket = &options.socket.socket;
    Ok(Status {
        migrator: host.into(),
        tunnel: links.into(),
        migrations,
        absent_migrator: (!socket.exists()).then(|| socket.clone()),
    })
}

/// Checks that all links and channels are well, or those of one peer.
fn check(status: &Status, peer: Option<&Name>) -> Result<(), Failure> {
    let tunnel = match &status.tunnel {
        Answer::Status(tunnel) => tunnel,
        Answer::Problem(problem) => return Err(problem.clone().into()),
    };
    let is_meant = |site: &str| peer.is_none_or(|peer| peer.as_str() == site);
    let links: Vec<_> = tunnel
        .links
        .iter()
        .filter(|link| is_meant(&link.peer))
        .collect();
    if let (Some(peer), true) = (peer, links.is_empty()) {
        let cause = format!("no peer is called {peer}");
        return Err(Problem::new(Code::NotFound, cause).into());
    }
    let down = links.iter().filter(|link| link.state == LinkState::Down);
    let down = down.map(|link| format!("the link to {} is down", link.peer));
    let channels = tunnel.channels.iter();
    let channels = channels.filter(|view| is_meant(&view.peer) && !view.state.is_up());
    let channels = channels.map(|view| format!("channel {} is {}", view.name, view.state.as_str()));
    let ill: Vec<_> = down.chain(channels).collect();
    if ill.is_empty() {
        return Ok(());
    }
    let problem = Problem::new(Code::Unreachable, ill.join(", "))
        .message("a link or a channel is not well")
        .remedy("`towpath status` says why, and what mends it");
    Err(Failure::with(problem, Exit::NotWell))
}

/// Whether waiting may help. It does not if the site is not a peer.
fn may_pass(failure: &Failure) -> bool {
    failure.code() != Some(Code::NotFound)
}

/// Whether a daemon accepted the request and did not answer in time.
fn hangs(problem: &Problem) -> bool {
    problem.known_code() == Some(Code::Stalled)
}

/// The problem to report if neither daemon answers.
fn neither(migrator: &Problem, tunnel: &Problem) -> Problem {
    let cause = format!("{}; {}", migrator.cause, tunnel.cause);
    let is_denied = |problem: &&Problem| problem.known_code() == Some(Code::Denied);
    // A daemon that denies access runs, so the remedy is not to start it.
    match [migrator, tunnel].into_iter().find(is_denied) {
        Some(denied) => Problem {
            cause,
            ..denied.clone()
        },
        // Daemons that hang must be restarted, not started, and may answer again later.
        None => Problem::new(Code::Unreachable, cause)
            .message("neither daemon answers")
            .remedy(if [migrator, tunnel].into_iter().all(hangs) {
                "they run and hang: look at their logs and at the load of this host, then restart them"
            } else {
                "start them, or name their sockets with --socket and --tunnel-socket"
            }),
    }
}

fn table(status: &Status) -> String {
    let mut text = match &status.migrator {
        Answer::Status(host) => host_table(host) + "\n",
        Answer::Problem(_) if status.absent_migrator.is_some() => String::new(),
        Answer::Problem(problem) => silent("migrator", problem) + "\n",
    };
    text.push_str(&match &status.tunnel {
        Answer::Status(status) => tunnel_table(status),
        Answer::Problem(problem) => silent("tunnel", problem),
    });
    for view in &status.migrations {
        let (guest, from, to) = (&view.guest, &view.from, &view.to);
        text.push_str(&format!("\n{guest} {from} -> {to}  {}\n", describe(view)));
    }
    if let Some(socket) = &status.absent_migrator {
        let socket = escape(&socket.display().to_string());
        let line = format!("migrator: not running here (no {socket})");
        text.push_str(&format!("\n{}\n", dim(&line)));
    }
    text
}

/// The text for a daemon that does not answer: the cause and the remedy.
fn silent(daemon: &str, problem: &Problem) -> String {
    let (why, remedy) = (escape(&problem.to_string()), escape(&problem.remedy));
    format!("{daemon}  {why}\n  remedy: {remedy}\n")
}

fn host_table(host: &HostView) -> String {
    let ready = match &host.not_ready_reason {
        None => "yes".to_owned(),
        Some(reason) => format!("no: {}", escape(reason)),
    };
    let kvm = host.kvm_missing_reason.as_deref().map_or_else(
        || "usable".to_owned(),
        |reason| format!("not usable: {}", escape(reason)),
    );
    let (used, quota) = (
        bytes(host.memory_used_bytes),
        bytes(host.memory_quota_bytes),
    );
    fields(&[
        ("site", Some(host.site.to_string())),
        ("host", Some(host.host.to_string())),
        ("migrator", Some(escape(&host.version))),
        ("ready", Some(ready)),
        ("tunnel", Some(host.tunnel.as_str().to_owned())),
        ("kvm", Some(kvm)),
        (
            "guests",
            Some(format!("{} of {}", host.guest_count, host.guest_count_max)),
        ),
        ("guest memory", Some(format!("{used} of {quota}"))),
        ("moves under way", Some(host.migration_count.to_string())),
        ("running since", Some(time_of_day(host.started_unix_ms))),
    ])
}

fn tunnel_table(status: &StatusView) -> String {
    let now = now_unix_ms() / 1000;
    let (site, host) = (escape(&status.site), escape(&status.host));
    let (version, up) = (escape(&status.version), span_of(status.uptime_seconds));
    let mut text = format!("site {site}, host {host}: tunnel {version}, up for {up}\n\n");
    text.push_str(&links_table(&status.links, now));
    text.push_str(&troubles(status));
    let peers = status
        .links
        .iter()
        .filter_map(|link| Some((&*link.peer, link.peer_certificate_not_after_unix_seconds?)));
    text.push_str(&endings(
        status.certificate.not_after_unix_seconds,
        peers,
        now,
    ));
    let exchanges: BTreeSet<_> = status.links.iter().filter_map(key_exchange).collect();
    let exchanges: Vec<_> = exchanges.into_iter().collect();
    let exchanges = (!exchanges.is_empty()).then(|| exchanges.join("; "));
    format!(
        "{text}\n{}",
        trust_fields(exchanges, &status.certificate, now)
    )
}

/// A table of the links. Each is named by the peer's site, which commands take, with its host
/// beside it.
fn links_table(links: &[LinkView], now: u64) -> String {
    let mut table = Table::new([
        "PEER", "HOST", "STATE", ">FOR", ">RTT", ">BASE", ">QUEUE", ">LOSS", ">OUT", ">IN", ">CAP",
        ">STREAMS", "WHY",
    ])
    .least([
        "BASE", "QUEUE", "STREAMS", "LOSS", "CAP", "HOST", "RTT", "FOR",
    ]);
    for link in links {
        // Without a link there are no measurements to show.
        let of_link = |text: String| or_dash(link.host.is_some().then_some(text));
        let cap = link
            .cap_bits_per_second
            .map(|bits| bits_per_second(bits / 8));
        table.row([
            escape(&link.peer),
            or_dash(link.host.as_deref().map(escape)),
            link.state.as_str().to_owned(),
            span_of(now.saturating_sub(link.since_unix_seconds)),
            of_link(millis(link.rtt_us)),
            of_link(or_dash(
                (link.base_rtt_us > 0).then(|| millis(link.base_rtt_us)),
            )),
            of_link(millis(link.queue_us)),
            of_link(percent(link.lost_per_million)),
            of_link(bits_per_second(link.goodput_out_bits_per_second / 8)),
            of_link(bits_per_second(link.goodput_in_bits_per_second / 8)),
            or_dash(cap),
            link.streams.to_string(),
            escape(&link.reason),
        ]);
    }
    table.render("no links: the tunnel's configuration names no peers")
}

/// The problems found, each with its remedy if there is one.
fn troubles(status: &StatusView) -> String {
    let mut text = String::new();
    for link in &status.links {
        if let Some(remedy) = &link.remedy {
            let (peer, remedy) = (escape(&link.peer), escape(remedy));
            text.push_str(&format!("{peer}: {remedy}\n"));
        }
    }
    for name in &status.channels_closed_by_hand {
        text.push_str("channel ");
        text.push_str(&closed_by_hand(name));
    }
    let mut waiting: BTreeMap<&str, usize> = BTreeMap::new();
    for view in status.channels.iter().filter(|view| is_explained(view)) {
        if is_waiting(view, &status.links) {
            *waiting.entry(&view.peer).or_default() += 1;
            continue;
        }
        let (name, reason) = (escape(&view.name), escape(&view.reason));
        let state = view.state.as_str();
        text.push_str(&format!("channel {name}: {state}: {reason}\n"));
    }
    for (peer, count) in waiting {
        let peer = escape(peer);
        text.push_str(&match count {
            1 => format!("1 channel waits for {peer}\n"),
            _ => format!("{count} channels wait for {peer}\n"),
        });
    }
    if let Some(problem) = &status.configuration.problem {
        let problem = escape(problem);
        text.push_str(&format!(
            "configuration: the file as it is now is not in use: {problem}\n"
        ));
    }
    if !status.configuration.waiting_keys.is_empty() {
        let keys = escape(&status.configuration.waiting_keys.join(", "));
        text.push_str(&format!(
            "configuration: changed in the file, and used from the next start on: {keys}\n"
        ));
    }
    if let Some(problem) = &status.state_problem {
        let problem = escape(problem);
        text.push_str(&format!("state folder: the last write failed: {problem}\n"));
    }
    if let Some(refused) = &status.refused {
        let (reason, from) = (escape(&refused.reason), escape(&refused.from));
        let (detail, remedy) = (escape(&refused.detail), escape(&refused.remedy));
        let at = time_of_day(refused.at_unix_seconds.saturating_mul(1000));
        text.push_str(&format!(
            "handshakes were refused: {reason}, last from {from} at {at}: {detail}\n  if a peer is there: {remedy}\n"
        ));
    }
    text
}

/// Whether a channel is down only because its link is down.
fn is_waiting(view: &ChannelView, links: &[LinkView]) -> bool {
    let mut links = links.iter();
    let link = links.find(|link| link.peer == view.peer);
    view.state == ChannelState::Down && link.is_some_and(|link| link.reason == view.reason)
}

/// Warnings about certificates that expire soon or have expired: this host's, and those of peers by
/// site.
fn endings<'a>(own: u64, peers: impl Iterator<Item = (&'a str, u64)>, now: u64) -> String {
    let mut text = String::new();
    if let Some(when) = ending(own, now) {
        text.push_str(&format!(
            "certificate: {when}: renew it with `towpath certs renew`, and carry the files here\n"
        ));
    }
    for (peer, end) in peers {
        if let Some(when) = ending(end, now) {
            let peer = escape(peer);
            text.push_str(&format!(
                "{peer}: its certificate {when}: renew it with `towpath certs renew`, and carry the files there\n"
            ));
        }
    }
    text
}

/// When a certificate ends, as text, if that is within [`EXPIRY_WARNING`]. The status page warns at
/// the same time.
fn ending(end_unix_seconds: u64, now_unix_seconds: u64) -> Option<String> {
    let left = end_unix_seconds.saturating_sub(now_unix_seconds);
    match left {
        0 => Some("has ended".to_owned()),
        1..7200 => Some(format!("ends in {} min", left / 60)),
        7200..172_800 => Some(format!("ends in {} h", left / 3600)),
        _ if left < EXPIRY_WARNING.as_secs() => Some(format!("ends in {} days", left / 86_400)),
        _ => None,
    }
}

/// A link's key exchange, and whether it is hybrid, and so safe from quantum computers.
fn key_exchange(link: &LinkView) -> Option<String> {
    let name = escape(link.key_exchange.as_deref()?);
    let kind = match link.key_exchange_is_hybrid {
        Some(true) => "hybrid",
        _ => "not hybrid",
    };
    Some(format!("{name}, {kind}"))
}

fn trust_fields(
    exchanges: Option<String>,
    certificate: &CertificateStatusView,
    now: u64,
) -> String {
    let lists = certificate.revocation_lists.iter().map(|list| {
        let (number, until) = (list.number, escape(&list.next_update));
        let state = match list.state.as_str() {
            "" | "fresh" => String::new(),
            other => format!(" ({})", escape(other)),
        };
        format!("list {number} until {until}{state}")
    });
    let lists: Vec<_> = lists.collect();
    let revocations = match lists.as_slice() {
        [] => NO_LISTS.to_owned(),
        lists => lists.join(", "),
    };
    let mut until = format!("until {}", escape(&certificate.not_after));
    if let Some(when) = ending(certificate.not_after_unix_seconds, now) {
        until.push_str(&format!(" ({when})"));
    }
    fields(&[
        ("key exchange", exchanges),
        ("certificate", Some(until)),
        ("revocations", Some(revocations)),
        ("problem", certificate.problem.as_deref().map(escape)),
    ])
}

/// A time in seconds as text.
fn span_of(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        _ => milliseconds(seconds.saturating_mul(1000)),
    }
}

fn percent(per_million: u64) -> String {
    format!("{}.{} %", per_million / 10_000, per_million % 10_000 / 1000)
}

/// A time as milliseconds: with three decimals below one millisecond, where one decimal would hide
/// it, and with one decimal from there on.
fn millis(microseconds: u64) -> String {
    match microseconds {
        1..1000 => format!("0.{microseconds:03} ms"),
        _ => format!("{}.{} ms", microseconds / 1000, microseconds % 1000 / 100),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_times_are_not_shown_as_none() {
        let shown = [0, 40, 999, 1000, 40_250].map(millis);
        assert_eq!(
            shown,
            ["0.0 ms", "0.040 ms", "0.999 ms", "1.0 ms", "40.2 ms"]
        );
    }

    #[test]
    fn certificates_that_end_soon_are_among_the_troubles() {
        let (now, day) = (1_800_000_000, 86_400);
        let told = |end| ending(end, now);
        assert_eq!(told(now + 14 * day), None);
        assert_eq!(told(now + 14 * day - 1).as_deref(), Some("ends in 13 days"));
        assert_eq!(told(now + 2 * day - 1).as_deref(), Some("ends in 47 h"));
        assert_eq!(told(now + 119).as_deref(), Some("ends in 1 min"));
        for end in [now, now - 1, 0] {
            assert_eq!(told(end).as_deref(), Some("has ended"));
        }
        let peers = [
            ("region", now - 1),
            ("depot", now + 90 * day),
            ("shop", now + 3 * day),
        ];
        let troubles = endings(now + 90 * day, peers.into_iter(), now);
        let lines: Vec<_> = troubles.lines().collect();
        let [region, shop] = lines[..] else {
            panic!("{troubles}");
        };
        assert!(region.starts_with("region: its certificate has ended: renew"));
        assert!(shop.starts_with("shop: its certificate ends in 3 days: renew"));
        let own = endings(now + day, std::iter::empty(), now);
        assert!(
            own.starts_with("certificate: ends in 24 h: renew it"),
            "{own}"
        );
        let certificate = CertificateStatusView {
            uri: String::new(),
            not_after: "2027-01-16T08:00:00Z".to_owned(),
            not_after_unix_seconds: now + 3 * day,
            serial: String::new(),
            authorities: Vec::new(),
            since_unix_seconds: 0,
            problem: None,
            revocation_lists: Vec::new(),
        };
        let shown = trust_fields(None, &certificate, now);
        assert!(
            shown.contains("until 2027-01-16T08:00:00Z (ends in 3 days)"),
            "{shown}"
        );
    }

    #[test]
    fn a_daemon_that_shuts_us_out_is_not_to_be_started() {
        let gone = Problem::new(Code::Unreachable, "m.sock: No such file");
        let shut = Problem::new(Code::Denied, "t.sock: Permission denied").remedy("as root");
        let both = neither(&gone, &shut);
        assert_eq!((&*both.code, &*both.remedy), ("E_DENIED", "as root"));
        assert!(both.cause.contains("m.sock") && both.cause.contains("t.sock"));
        let none = neither(&gone, &gone);
        assert!(none.remedy.contains("start them"), "{none}");
        let hung = Problem::new(Code::Stalled, "m.sock gave no answer");
        let both = neither(&hung, &hung);
        assert_eq!(both.code, "E_UNREACHABLE", "it may answer later: {both}");
        assert!(both.remedy.contains("restart them"), "{}", both.remedy);
        let one = neither(&hung, &gone);
        assert!(one.remedy.contains("start them"), "{}", one.remedy);
    }
}
