//! The kernel's counters of the wire, and how well a cap was kept by them.

use std::io::{Read, Seek, Write};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;
use towpath_bench::lab::CABLE;
use towpath_bench::sites::Failure;
use towpath_protocol::amounts::nanos;
use towpath_protocol::rate::Rate;

/// Interval between readings of the counters.
const LOOK: Duration = Duration::from_millis(1);

/// Windows over which the rate is compared with the cap, and the step from one to the next.
const WINDOW: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);

/// Windows for the largest burst.
const BURST_WINDOW: Duration = Duration::from_millis(20);

/// Bytes of an Ethernet header.
const FRAME_HEADER_BYTES: u64 = 14;

/// The counters at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    nanos: u64,
    bytes: u64,
    packets: u64,
}

/// How well a cap was kept.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Kept {
    /// Deviation from the cap over a second, as a share of it: median and p95.
    wire_off_p50: f64,
    pub(crate) wire_off_p95: f64,
    /// Share of the cap that was used overall.
    pub(crate) used: f64,
    /// Most bytes in any 20 ms, as a share of what the cap allows.
    most_in_20_ms: f64,
    /// The largest excess over the cap, as milliseconds of the cap's rate.
    pub(crate) burst_ms: f64,
}

/// Reads the counters for this many milliseconds, and prints them.
pub(crate) fn watch(millis: &str) -> Result<(), Failure> {
    let time = Duration::from_millis(millis.parse()?);
    let mut counters = std::fs::File::open("/proc/self/net/dev")?;
    let mut samples = Vec::new();
    let mut text = String::new();
    let began = Instant::now();
    while began.elapsed() < time {
        text.clear();
        counters.rewind()?;
        counters.read_to_string(&mut text)?;
        let nanos = u64::try_from(began.elapsed().as_nanos())?;
        let line = text.lines().find_map(|line| {
            let (name, rest) = line.split_once(':')?;
            (name.trim() == CABLE).then_some(rest)
        });
        let mut fields = line.ok_or("no such cable")?.split_ascii_whitespace();
        let mut field = || -> Result<u64, Failure> { Ok(fields.next().ok_or("short")?.parse()?) };
        samples.push(Sample {
            nanos,
            bytes: field()?,
            packets: field()?,
        });
        thread::sleep(LOOK);
    }
    let mut out = std::io::stdout().lock();
    for sample in samples {
        let Sample {
            nanos,
            bytes,
            packets,
        } = sample;
        writeln!(out, "{nanos} {bytes} {packets}")?;
    }
    Ok(())
}

impl Sample {
    /// Parses the output of [`watch`].
    pub(crate) fn parse(text: &str) -> Result<Vec<Self>, Failure> {
        text.lines()
            .map(|line| {
                let fields: Result<Vec<u64>, _> = line.split(' ').map(str::parse).collect();
                match *fields? {
                    [nanos, bytes, packets] => Ok(Self {
                        nanos,
                        bytes,
                        packets,
                    }),
                    _ => Err(format!("no sample: {line}").into()),
                }
            })
            .collect()
    }

    /// Bytes of IP packets.
    pub(crate) const fn ip_bytes(&self) -> u64 {
        self.bytes - FRAME_HEADER_BYTES * self.packets
    }

    /// Bytes of Ethernet frames.
    pub(crate) const fn frame_bytes(&self) -> u64 {
        self.bytes
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "a few GiB, and seconds in nanoseconds, are exact in 53 bits"
)]
impl Kept {
    /// Evaluates the samples against a cap on these bytes.
    pub(crate) fn of(
        samples: &[Sample],
        cap: Rate,
        bytes: fn(&Sample) -> u64,
    ) -> Result<Self, Failure> {
        let (first, last) = samples.first().zip(samples.last()).ok_or("no samples")?;
        let per_nano = cap.bytes_per_second() as f64 / 1e9;
        let part = |from: &Sample, to: &Sample| {
            (bytes(to) - bytes(from)) as f64 / ((to.nanos - from.nanos).max(1) as f64 * per_nano)
        };
        let mut offs: Vec<f64> = windows(samples, WINDOW, STEP)
            .map(|(from, to)| (part(from, to) - 1.0).abs())
            .collect();
        offs.sort_by(f64::total_cmp);
        let quantile = |share: usize| {
            let place = offs.len().saturating_sub(1) * share / 100;
            offs.get(place).copied().ok_or("too short for a window")
        };
        let short = windows(samples, BURST_WINDOW, LOOK);
        let (mut depth, mut deepest) = (0.0, 0.0_f64);
        for pair in samples.windows(2) {
            let come = (bytes(&pair[1]) - bytes(&pair[0])) as f64;
            let allowed = (pair[1].nanos - pair[0].nanos) as f64 * per_nano;
            depth = f64::max(depth + come - allowed, 0.0);
            deepest = deepest.max(depth);
        }
        Ok(Self {
            wire_off_p50: quantile(50)?,
            wire_off_p95: quantile(95)?,
            used: part(first, last),
            most_in_20_ms: short.map(|(from, to)| part(from, to)).fold(0.0, f64::max),
            burst_ms: deepest / per_nano / 1e6,
        })
    }
}

/// Pairs of samples that are one window apart.
fn windows(
    samples: &[Sample],
    window: Duration,
    step: Duration,
) -> impl Iterator<Item = (&Sample, &Sample)> {
    let (window, step) = (nanos(window), nanos(step));
    let mut next = 0;
    let mut end = 0;
    samples.iter().filter_map(move |from| {
        if from.nanos < next {
            return None;
        }
        next = from.nanos + step;
        while samples.get(end)?.nanos < from.nanos + window {
            end += 1;
        }
        Some((from, samples.get(end)?))
    })
}
