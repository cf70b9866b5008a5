//! `towpath relay`: the emulated link of the demo, in a process of its own.
//!
//! It prints the address of its door, to which the near side sends, as one line of JSON on standard
//! output. It obeys commands on standard input, one per line: `cut`, `cut a`, `cut b`, `heal`. It
//! ends when standard input is closed.

use std::io::BufRead;
use std::net::{Ipv4Addr, SocketAddr};

use clap::Args;
use serde::{Deserialize, Serialize};
use towpath_bench::relay::{Control, Door, Options as LinkOptions, Relay, Side};
use towpath_daemon::units::Span;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::rate::Rate;

use crate::failure::Failure;
use crate::show;

/// The arguments of `towpath relay`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Address on which the far side listens
    #[arg(long, value_name = "ADDRESS")]
    to: SocketAddr,
    /// Rate of each direction, headers included
    #[arg(long, value_name = "RATE")]
    rate: Rate,
    /// Round-trip time without a queue
    #[arg(long, value_name = "TIME")]
    rtt: Span,
    /// Share of packets lost in each direction, 0 to 50
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0, value_parser = loss_percent)]
    loss: f64,
}

/// Parses a loss in per cent, 0 to 50. A link that loses more than half of the packets carries
/// nothing worth showing.
pub(crate) fn loss_percent(text: &str) -> Result<f64, String> {
    let percent = text.trim_end_matches('%').trim().parse();
    let percent = percent
        .ok()
        .filter(|percent| (0.0..=50.0).contains(percent));
    percent.ok_or_else(|| "a loss is 0 to 50 per cent, such as 0.5".to_owned())
}

/// The document `towpath.v1.relay`, which a relay prints when it is ready.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Ready {
    /// Address to which the near side sends.
    pub(crate) door: SocketAddr,
}

/// Relays until standard input is closed.
pub(crate) fn run(options: &Options) -> Result<(), Failure> {
    let door = Door {
        from: Side::A,
        listen: (Ipv4Addr::LOCALHOST, 0).into(),
        to: options.to,
    };
    let (rate, rtt) = (options.rate.bits_per_second(), options.rtt.duration());
    let mut link = LinkOptions::symmetric(vec![door], rate, rtt);
    link.from_a.loss = options.loss / 100.0;
    link.from_b.loss = options.loss / 100.0;
    let io = |error| Fault::new(Code::Io, format!("the relay: {error}"));
    let relay = Relay::start(&link).map_err(io)?;
    show::show_line(
        "relay",
        &Ready {
            door: relay.doors()[0],
        },
    )?;
    let control = relay.control();
    for line in std::io::stdin().lock().lines() {
        match line {
            Ok(word) => obey(&control, word.trim()),
            Err(_) => break,
        }
    }
    Ok(())
}

fn obey(control: &Control, word: &str) {
    match word {
        "cut" => control.cut_both(),
        "cut a" => control.cut(Side::A),
        "cut b" => control.cut(Side::B),
        "heal" => control.heal(),
        _ => show::note("the relay knows: cut, cut a, cut b, heal"),
    }
}
