//! The cost of a flood of Initials: its effect on a running transfer, and the memory it takes.
//!
//! A transfer runs over a capped link. Windows with a flood of 50,000 Initials a second at the
//! listening side alternate with windows without. The flood is sent by a separate process, so that
//! the memory measured is that of the tunnels. A full run fails if it misses a goal, or if the
//! flood was weaker than intended. `--smoke` floods for two seconds, once, at a tenth of the rate.

use std::net::SocketAddr;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use serde::Serialize;
use tokio::time::{Instant, sleep};
use towpath_bench::flood::{Flooded, flood};
use towpath_bench::goals::Goals;
use towpath_bench::load::{Loaded, resident_bytes};
use towpath_bench::program::{finish, print};
use towpath_bench::sites::Failure;

/// The cap of the transfer: a typical site's line, far below what the processors can handle.
const RATE: &str = "200Mbit";

/// Ports that the flood comes from, each on an address of its own.
const PORT_COUNT: u8 = 200;

/// Seconds per window, windows of each kind, Initials per second.
const FULL: (u64, usize, u64) = (30, 1, 50_000);
const SMOKE: (u64, usize, u64) = (2, 1, 5_000);

/// The share of the intended Initials that must actually be sent.
const SENT_SHARE: f64 = 0.9;

/// Time for the transfer to fill its link before anything is measured.
const WARM: Duration = Duration::from_secs(2);

#[derive(Debug, Serialize)]
struct Report {
    schema: &'static str,
    goal_per_second: u64,
    goal_goodput_ratio_min: f64,
    goal_grown_bytes_max: u64,
    window_seconds: u64,
    /// The transfer's bytes per second in each window without a flood, and with one.
    calm_bytes_per_second: Vec<u64>,
    flooded_bytes_per_second: Vec<u64>,
    /// The median with the flood divided by the median without.
    goodput_ratio: f64,
    floods: Vec<Flooded>,
    resident_before_bytes: u64,
    /// The most memory during the floods, above the memory before.
    grown_bytes: u64,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("generate") => generate(&arguments[1..]),
        Some("--smoke") => run(SMOKE),
        None => run(FULL),
        Some(other) => Err(format!("unknown option {other}").into()),
    };
    finish(done)
}

/// The process that sends the flood. Arguments: target, rate, seconds.
fn generate(arguments: &[String]) -> Result<(), Failure> {
    let [target, rate, seconds] = arguments else {
        return Err("generate wants a target, a rate and seconds".into());
    };
    let lasting = Duration::from_secs(seconds.parse()?);
    print(&flood(target.parse()?, rate.parse()?, lasting, PORT_COUNT)?)
}

fn run(scale: (u64, usize, u64)) -> Result<(), Failure> {
    let runtime = tokio::runtime::Runtime::new()?;
    let report = runtime.block_on(measure(scale))?;
    Goals::judge(&report, (scale == FULL).then(|| report.goals()))
}

impl Report {
    fn goals(&self) -> Goals {
        let mut goals = Goals::default();
        let (kept, least) = (self.goodput_ratio, self.goal_goodput_ratio_min);
        goals.at_least("what the transfer keeps", kept, least);
        let (grown, most) = (self.grown_bytes, self.goal_grown_bytes_max);
        goals.at_most("memory that the flood costs", grown as f64, most as f64);
        for flood in &self.floods {
            let least = (self.goal_per_second * self.window_seconds) as f64 * SENT_SHARE;
            goals.at_least("Initials sent", flood.count as f64, least);
        }
        goals
    }
}

async fn measure((seconds, windows, rate): (u64, usize, u64)) -> Result<Report, Failure> {
    let loaded = Loaded::start(Some(RATE), |_, _| Ok(())).await?;
    sleep(WARM).await;
    let mut report = Report {
        schema: "towpath.v1.bench.flood",
        goal_per_second: 50_000,
        goal_goodput_ratio_min: 0.9,
        goal_grown_bytes_max: 32 << 20,
        window_seconds: seconds,
        calm_bytes_per_second: Vec::new(),
        flooded_bytes_per_second: Vec::new(),
        goodput_ratio: 0.0,
        floods: Vec::new(),
        resident_before_bytes: resident_bytes()?,
        grown_bytes: 0,
    };
    let target = loaded.region.listen_address().ok_or("the region listens")?;
    for _ in 0..windows {
        let window = Duration::from_secs(seconds);
        let calm = loaded.goodput(window).await?;
        report.calm_bytes_per_second.push(calm);
        let child = generator(target, rate, seconds)?;
        let mut grown = 0;
        let began = Instant::now();
        let (before, until) = (loaded.received(), began + window);
        while Instant::now() < until {
            sleep(Duration::from_millis(100)).await;
            grown = grown.max(resident_bytes()?.saturating_sub(report.resident_before_bytes));
        }
        let carried = loaded.rate_since(before, began)?;
        report.flooded_bytes_per_second.push(carried);
        report.grown_bytes = report.grown_bytes.max(grown);
        let output = tokio::task::spawn_blocking(move || child.wait_with_output()).await??;
        report.floods.push(serde_json::from_slice(&output.stdout)?);
    }
    let median = |rates: &[u64]| {
        let mut rates = rates.to_vec();
        rates.sort_unstable();
        rates[rates.len() / 2] as f64
    };
    let calm = median(&report.calm_bytes_per_second);
    report.goodput_ratio = median(&report.flooded_bytes_per_second) / calm.max(1.0);
    loaded.stop().await?;
    Ok(report)
}

fn generator(target: SocketAddr, rate: u64, seconds: u64) -> Result<Child, Failure> {
    let child = Command::new(std::env::current_exe()?)
        .arg("generate")
        .args([target.to_string(), rate.to_string(), seconds.to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    Ok(child)
}
