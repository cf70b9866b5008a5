//! `towpath tunnel probe`: what the way to a peer carries, measured at a stated price.

use std::time::Duration;

use clap::Args;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;
use towpath_protocol::size::Size;
use towpath_tunnel::probe::{
    ANSWER_WAIT, BYTES_DEFAULT, ProbeLimit, ProbeRequest, ProbeView, TIME_DEFAULT, TIME_MAX,
};

use crate::args::OutputOption;
use crate::connection::{TunnelSocket, block_on};
use crate::failure::Failure;
use crate::show::{self, bits_per_second, bytes, fields, milliseconds};

const EXAMPLES: &str = "\
Examples:
  towpath tunnel probe region                    send 4 MiB, in the class that gives way to all others
  towpath tunnel probe region --bytes 64MiB      enough to fill a fast path
  towpath tunnel probe region --time 2s -o json

The peer has to allow it, in its tunnel's configuration:
  [[services]]
  name = \"bench\"
  socket = \"builtin:bench\"
  allow = [\"edge\"]";

/// What is to be measured.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Options {
    /// The peer's site
    peer: Name,
    /// Most bytes to send, 64KiB to 1GiB
    #[arg(long, value_name = "SIZE", default_value_t = BYTES_DEFAULT)]
    bytes: Size,
    /// How long to send at most, up to 30s
    #[arg(long, value_name = "TIME", value_parser = time, default_value = "10s")]
    time: Duration,
    #[command(flatten)]
    tunnel_socket: TunnelSocket,
    #[command(flatten)]
    pub(crate) output: OutputOption,
}

fn time(text: &str) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let is_right = !time.is_zero() && time <= TIME_MAX;
    is_right
        .then_some(time)
        .ok_or_else(|| "must be above 0 and at most 30s".to_owned())
}

/// Does what was asked for.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    block_on(probe(options))?
}

async fn probe(options: &Options) -> Result<(), Failure> {
    let budget = ProbeRequest {
        bytes: options.bytes.bytes(),
        time_ms: u64::try_from(options.time.as_millis())
            .map_err(|_| Fault::new(Code::Usage, "the time is too long"))?,
    };
    // The answer comes when all is measured.
    let wait = options.time + 2 * ANSWER_WAIT + TIME_DEFAULT;
    let client = options.tunnel_socket.client().timeout(wait);
    let path = format!("/v1/probe/{}", options.peer);
    let probed = client.post(&path, &budget).await;
    let view: ProbeView = probed.map_err(|problem| not_offered(problem, &options.peer))?;
    show::show(options.output.format, "tunnel-probe", &view, || {
        table(&view)
    })
}

/// A failure of what asks the peer's service `bench`, which has to let this site in.
pub(crate) fn not_offered(why: impl Into<Failure>, peer: &Name) -> Failure {
    let remedy = format!(
        "have the tunnel of {peer} offer it: a [[services]] named bench with socket = \"builtin:bench\" and this \
         site in `allow`"
    );
    match why.into() {
        // That is another matter than a host that is not let in at all.
        Failure::Problem { problem, exit } if problem.cause.contains("bench") => {
            Failure::with(problem, exit).remedy_of(Code::Denied, remedy)
        }
        other => other,
    }
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
        ("peer", Some(show::escape(&view.peer))),
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
    fn times_that_cannot_be_meant_are_refused() {
        assert!(time("2s").is_ok() && time("30s").is_ok());
        assert!(time("31s").is_err() && time("0s").is_err() && time("soon").is_err());
    }
}
