//! `towpath tunnel probe`: measures what the path to a peer carries, within a budget of bytes.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use clap::Args;
use towpath_daemon::units::Span;
use towpath_protocol::class::Class;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::size::Size;
use towpath_tunnel::probe::{
    ANSWER_WAIT, BYTES_DEFAULT, ProbeLimit, ProbeRequest, ProbeView, TIME_DEFAULT, TIME_MAX,
};
use towpath_tunnel::status::{LinkState, StatusView};

use crate::args::{OutputOption, span_within};
use crate::connection::{TunnelSocket, block_on};
use crate::failure::Failure;
use crate::follow::LiveLine;
use crate::show::{self, bits_per_second, bytes, escape, fields, milliseconds};

const EXAMPLES: &str = "\
Examples:
  towpath tunnel probe region                    send up to 4 MiB, giving way to other traffic
  towpath tunnel probe region --bytes 64MiB      send enough to fill a fast path
  towpath tunnel probe region --time 2s -o json

The peer must allow probes in the configuration of its tunnel:
  [[services]]
  name = \"bench\"
  socket = \"builtin:bench\"
  allow = [\"edge\"]";

/// Time between two updates of the progress line.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// The arguments of `towpath tunnel probe`.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// Site of the peer
    peer: Name,
    /// Budget of bytes to send, 64KiB to 1GiB
    #[arg(long, value_name = "SIZE", default_value_t = BYTES_DEFAULT)]
    bytes: Size,
    /// Longest time to send, up to 30s
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    time: Duration,
    #[command(flatten)]
    tunnel_socket: TunnelSocket,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

fn time(text: &str) -> Result<Duration, Fault> {
    span_within(text, Duration::from_millis(1)..=TIME_MAX).map(Span::duration)
}

/// Probes the path to a peer.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    block_on(probe(options))?
}

async fn probe(options: &Options) -> Result<(), Failure> {
    let budget = ProbeRequest {
        bytes: options.bytes.bytes(),
        time_ms: u64::try_from(options.time.as_millis())
            .map_err(|_| Fault::new(Code::Usage, "the time is too long"))?,
    };
    // The tunnel answers when the measurement is over.
    let wait = options.time + 2 * ANSWER_WAIT + TIME_DEFAULT;
    let client = options.tunnel_socket.client().timeout(wait);
    let path = format!("/v1/probe/{}", options.peer);
    let probed = tokio::select! {
        probed = client.post(&path, &budget) => probed,
        never = show_meanwhile(options) => match never {},
    };
    let view: ProbeView = match probed {
        Ok(view) => view,
        Err(problem) => return Err(explained(problem, &options.tunnel_socket, &options.peer).await),
    };
    show::show(options.output.format, "tunnel-probe", &view, || {
        table(&view)
    })
}

/// Shows on a terminal how long the probe lasts at most, and its rate. Never returns.
async fn show_meanwhile(options: &Options) -> Infallible {
    let line = LiveLine::new();
    if !line.is_watched() {
        return std::future::pending().await;
    }
    let client = options.tunnel_socket.client();
    let begun = Instant::now();
    let what = format!("probe to {}", options.peer);
    loop {
        // If the tunnel does not answer, this update has no rate.
        let status = client.get::<StatusView>("/status").await.ok();
        let rate = status
            .as_ref()
            .and_then(|status| rate_now(status, &options.peer));
        let rate = rate.map_or_else(|| "-".to_owned(), |bits| bits_per_second(bits / 8));
        let left = options.time.saturating_sub(begun.elapsed());
        line.say(&what, &progress(left, &rate));
        tokio::time::sleep(LOOK_PAUSE).await;
    }
}

/// The rate sent to a peer in the class of probes (scavenger), in bits per second.
fn rate_now(status: &StatusView, peer: &Name) -> Option<u64> {
    let link = status
        .links
        .iter()
        .find(|link| link.peer == peer.as_str())?;
    let class = link
        .classes
        .iter()
        .find(|view| view.class == Class::Scavenger.as_str())?;
    Some(class.out_bits_per_second)
}

/// Formats the progress of a measurement: how long it lasts at most, and its rate so far.
pub(crate) fn progress(left: Duration, rate: &str) -> String {
    match left.as_millis().div_ceil(1000) {
        0 => format!("waiting for the peer's word, {rate} so far"),
        seconds => format!("{seconds} s left, {rate} so far"),
    }
}

/// Blocking form of [`explained`].
pub(crate) fn of_service(why: impl Into<Failure>, socket: &TunnelSocket, peer: &Name) -> Failure {
    let why = why.into();
    block_on(explained(why, socket, peer)).unwrap_or_else(|failure| failure)
}

/// Adds a remedy to the failure of a command that uses the peer's service `bench`.
///
/// If the peer is unknown, the remedy lists the known peers. Without a link, it is the tunnel's
/// remedy for the link. With a link, either the service does not let this site in, or nothing came
/// from it in time; then the cause also tells the state of the link.
async fn explained(why: impl Into<Failure>, socket: &TunnelSocket, peer: &Name) -> Failure {
    let failure = why.into();
    let Some(code @ (Code::Denied | Code::Unreachable | Code::NotFound | Code::Stalled)) =
        failure.code()
    else {
        return failure;
    };
    let status = socket.client().get::<StatusView>("/status").await;
    let links = status.map(|status| status.links).unwrap_or_default();
    if code == Code::NotFound {
        let peers: Vec<_> = links.iter().map(|link| escape(&link.peer)).collect();
        return match peers.is_empty() {
            true => failure,
            false => {
                failure.remedy_of(code, format!("name one of its peers: {}", peers.join(", ")))
            }
        };
    }
    let link = links.into_iter().find(|link| link.peer == peer.as_str());
    match link {
        Some(link) if code == Code::Stalled => {
            let why = (link.state, &*link.reason, link.remedy.as_deref());
            stalled(failure, peer, why)
        }
        Some(link) if link.state == LinkState::Down => match link.remedy {
            Some(remedy) => failure.remedy_of(code, remedy),
            None => failure,
        },
        Some(_) => failure.remedy_of(Code::Denied, offer_it(peer)),
        None => failure,
    }
}

/// Adds the state of the link to the failure, and a remedy, if nothing came from the peer in time.
fn stalled(
    failure: Failure,
    peer: &Name,
    (state, reason, remedy): (LinkState, &str, Option<&str>),
) -> Failure {
    let failure = match state {
        LinkState::Healthy => failure.because(&format!("the link to {peer} is healthy now")),
        LinkState::Degraded | LinkState::Down => {
            let state = state.as_str();
            failure.because(&format!("the link to {peer} is {state}: {reason}"))
        }
    };
    let again = "ask again; the tunnel's log says when the link was lost and why";
    failure.remedy_of(Code::Stalled, remedy.unwrap_or(again))
}

/// The remedy for a peer that does not offer the service `bench` to this site.
fn offer_it(peer: &Name) -> String {
    format!(
        "have the tunnel of {peer} offer it: a [[services]] named bench with socket = \"builtin:bench\" and this \
         site in `allow`"
    )
}

fn table(view: &ProbeView) -> String {
    let ms = |us: u64| format!("{:.2} ms", us as f64 / 1000.0);
    let rate = bits_per_second(view.bits_per_second / 8);
    let cap = view.cap_bits_per_second;
    let why = match view.limited_by {
        Some(ProbeLimit::Budget) => "the budget was too small to fill the path",
        Some(ProbeLimit::Time) => "the time was up before the path was full",
        Some(ProbeLimit::Cap) => "the cap was the limit",
        Some(ProbeLimit::Traffic) => "other traffic went first",
        None => "the path was not full",
    };
    let carries = match view.is_capacity {
        true => rate,
        false => format!("at least {rate}; {why}"),
    };
    fields(&[
        ("peer", Some(escape(&view.peer))),
        ("carries", Some(carries)),
        ("cap", cap.map(|cap| bits_per_second(cap / 8))),
        (
            "sent",
            Some(format!(
                "{} of {}",
                bytes(view.bytes),
                bytes(view.budget_bytes)
            )),
        ),
        ("in", Some(milliseconds(view.time_ms))),
        ("round trip", Some(ms(view.base_rtt_us))),
        (
            "meanwhile",
            Some(format!(
                "p50 {}  max {}",
                ms(view.rtt_p50_us),
                ms(view.rtt_max_us)
            )),
        ),
        (
            "loss",
            Some(format!("{:.3} %", view.lost_per_million as f64 / 10_000.0)),
        ),
        ("samples", Some(view.samples.len().to_string())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_from_which_nothing_came_is_told_with_what_its_link_says() {
        let peer = "region".parse().unwrap();
        let told = |why| {
            let late = Failure::from(Fault::new(Code::Stalled, "nothing came for 30 s"));
            match stalled(late, &peer, why) {
                Failure::Problem { problem, .. } => (problem.code, problem.cause, problem.remedy),
                other => panic!("{other:?}"),
            }
        };
        let (code, cause, remedy) = told((
            LinkState::Down,
            "the peer does not answer",
            Some("check that its tunnel runs"),
        ));
        assert_eq!(code, "E_STALLED");
        assert_eq!(
            cause,
            "nothing came for 30 s: the link to region is down: the peer does not answer"
        );
        assert_eq!(remedy, "check that its tunnel runs");
        let (_, cause, remedy) = told((LinkState::Healthy, "up", None));
        assert!(cause.ends_with("is healthy now"), "{cause}");
        assert!(remedy.starts_with("ask again"), "{remedy}");
    }

    #[test]
    fn a_budget_that_was_too_small_is_said_to_be() {
        let mut view = ProbeView {
            peer: "region".to_owned(),
            budget_bytes: 65_536,
            bytes: 65_536,
            time_ms: 90,
            bits_per_second: 5_825_422,
            is_capacity: false,
            limited_by: Some(ProbeLimit::Budget),
            cap_bits_per_second: None,
            base_rtt_us: 40_100,
            rtt_p50_us: 40_300,
            rtt_max_us: 41_000,
            lost_per_million: 0,
            samples: Vec::new(),
        };
        assert!(table(&view).contains("at least"), "{}", table(&view));
        assert!(table(&view).contains("the budget was too small"));
        view.limited_by = Some(ProbeLimit::Time);
        assert!(table(&view).contains("the time was up"));
        view.limited_by = Some(ProbeLimit::Traffic);
        assert!(table(&view).contains("other traffic went first"));
        view.cap_bits_per_second = Some(6_000_000);
        view.limited_by = Some(ProbeLimit::Cap);
        assert!(table(&view).contains("the cap was the limit"));
        view.is_capacity = true;
        assert!(!table(&view).contains("at least"));
    }

    #[test]
    fn progress_says_how_long_it_lasts_and_what_came_so_far() {
        let at = |ms| progress(Duration::from_millis(ms), "8 Mbit/s");
        assert_eq!(at(1500), "2 s left, 8 Mbit/s so far");
        assert_eq!(at(0), "waiting for the peer's word, 8 Mbit/s so far");
    }

    #[test]
    fn times_that_cannot_be_meant_are_refused() {
        assert!(time("2s").is_ok() && time("30s").is_ok());
        assert!(time("31s").is_err() && time("0s").is_err() && time("soon").is_err());
    }
}
