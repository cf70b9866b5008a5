//! Chooses the level that packs each chunk, by what is scarce now: the link or the processor.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use towpath_protocol::fault::{Code, Fault, shown};
use towpath_protocol::message::CHUNK_RAW_BYTES_MAX;

/// How hard to pack, from not at all to slowly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Level {
    /// Not packed.
    Raw,
    /// LZ4.
    Lz4,
    /// Zstd level 1.
    Zstd1,
    /// Zstd level 3.
    Zstd3,
    /// Zstd level 6.
    Zstd6,
    /// Zstd level 9: above it, chunks of 64 KiB hardly shrink further.
    Zstd9,
}

const LEVEL_COUNT: usize = 6;

impl Level {
    /// Every level, the cheapest first.
    pub const ALL: [Self; LEVEL_COUNT] = [
        Self::Raw,
        Self::Lz4,
        Self::Zstd1,
        Self::Zstd3,
        Self::Zstd6,
        Self::Zstd9,
    ];

    /// The level's name in configurations and reports.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Lz4 => "lz4",
            Self::Zstd1 => "zstd-1",
            Self::Zstd3 => "zstd-3",
            Self::Zstd6 => "zstd-6",
            Self::Zstd9 => "zstd-9",
        }
    }

    /// Zstd's number for the level, if it is a zstd level.
    #[must_use]
    pub const fn zstd_level(self) -> Option<i32> {
        match self {
            Self::Raw | Self::Lz4 => None,
            Self::Zstd1 => Some(1),
            Self::Zstd3 => Some(3),
            Self::Zstd6 => Some(6),
            Self::Zstd9 => Some(9),
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Level {
    type Err = Fault;

    fn from_str(text: &str) -> Result<Self, Fault> {
        let found = Self::ALL.into_iter().find(|level| level.as_str() == text);
        found.ok_or_else(|| {
            let shown = shown(text);
            let known = Self::ALL.map(Self::as_str).join(", ");
            Fault::new(
                Code::Config,
                format!("{shown:?} is not a level: one of {known}"),
            )
        })
    }
}

/// How the level of each chunk is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodecPolicy {
    /// The level that delivers the most raw bytes per second.
    Auto {
        /// The measured rate at which the link carries our bytes, in bytes per second; `u64::MAX`
        /// if it is never the bottleneck.
        link_bytes_per_s: u64,
    },
    /// Always this level. Chunks that do not shrink are still sent raw.
    Fixed(Level),
}

/// Raw bytes of a full chunk.
const CHUNK_BYTES: f64 = CHUNK_RAW_BYTES_MAX as f64;

/// One in this many chunks is packed with a neighbouring level, to learn how that level does now.
const PROBE_EVERY_CHUNKS: u64 = 64;

/// Share of the codec's time that probes may take. On a fast link, where chunks are sent raw,
/// probes would otherwise be a fifth of the codec's work.
const PROBE_TIME_SHARE: f64 = 0.01;

/// A neighbour is probed only if its expected goodput is at least this part of the present one.
const PROBE_WORTH_MIN: f64 = 0.8;

/// Weight of a new sample: half of an estimate comes from the last eleven chunks.
const SAMPLE_WEIGHT: f64 = 1.0 / 16.0;

/// Weight of a new sample for a level that was not used for some time.
const OLD_WEIGHT: f64 = 0.5;

/// A higher level must promise this many times the goodput of the present one.
const GAIN_MIN: f64 = 1.08;

/// Goodputs within this factor count as equal, and the cheapest such level is taken. Less than
/// [`GAIN_MIN`], so that levels do not alternate.
const EVEN_UP_TO: f64 = 1.05;

/// What one level costs and achieves.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Estimate {
    /// Nanoseconds per raw byte on one thread, including reading and hashing.
    nanos_per_byte: f64,
    /// Wire bytes per raw byte.
    fraction: f64,
}

/// Estimates for machine code (`bench codec`). Only their proportions matter, and only until the
/// first chunks are measured.
const PRIORS: [Estimate; LEVEL_COUNT] = [
    prior(0.2, 1.0),
    prior(2.2, 0.58),
    prior(2.4, 0.455),
    prior(3.5, 0.433),
    prior(10.7, 0.407),
    prior(17.0, 0.405),
];

const fn prior(nanos_per_byte: f64, fraction: f64) -> Estimate {
    Estimate {
        nanos_per_byte,
        fraction,
    }
}

/// The latest estimate of a level.
#[derive(Debug, Clone, Copy)]
struct Learnt {
    estimate: Estimate,
    at_chunk: u64,
}

/// Chooses a level for each chunk and learns from the results. Pure: it is given durations and
/// reads no clock.
#[derive(Debug)]
pub struct Chooser {
    threads: f64,
    level: Level,
    /// Estimates are never dropped: probes find what has changed.
    learnt: [Option<Learnt>; LEVEL_COUNT],
    chunk_count: u64,
    /// Probe turns so far; they go up and down alternately.
    probe_turns: u64,
    /// Time budget left for probes, in nanoseconds. While it is negative, no probe is made.
    probe_nanos_left: f64,
}

impl Chooser {
    /// A chooser for an encoder with `thread_count` threads.
    #[must_use]
    pub fn new(thread_count: usize) -> Self {
        Self {
            threads: f64::from(u32::try_from(thread_count).unwrap_or(u32::MAX)),
            level: Level::Raw,
            learnt: [None; LEVEL_COUNT],
            chunk_count: 0,
            probe_turns: 0,
            probe_nanos_left: 0.0,
        }
    }

    /// The level in use.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }

    /// The level for the next chunk.
    pub fn choose(&mut self, policy: CodecPolicy) -> Level {
        self.chunk_count += 1;
        let link_bytes_per_s = match policy {
            CodecPolicy::Fixed(level) => {
                self.level = level;
                return level;
            }
            CodecPolicy::Auto { link_bytes_per_s } => bytes_as_f64(link_bytes_per_s),
        };
        let goodput = |level: Level| self.goodput(self.estimate(level), link_bytes_per_s);
        // For raw, only the speed could be learnt.
        let is_known = |level: &Level| *level == Level::Raw || self.learnt_of(*level).is_some();
        let known = cheapest_of_the_best(Level::ALL.into_iter().filter(is_known), goodput);
        let best = match known {
            Some(known) if known < self.level => known,
            Some(known) if goodput(known) > goodput(self.level) * GAIN_MIN => known,
            _ => self.level,
        };
        // A level that was never tried is tried if it promises more, and is known from then on.
        let unknown = Level::ALL.into_iter().filter(|level| !is_known(level));
        let promising = unknown.filter(|level| goodput(*level) > goodput(best) * GAIN_MIN);
        self.level = cheapest_of_the_best(promising, goodput).unwrap_or(best);
        self.probe(link_bytes_per_s).unwrap_or(self.level)
    }

    /// Records the result of a chunk packed with `level`.
    pub fn learn(&mut self, level: Level, raw_bytes: u64, wire_bytes: u64, spent: Duration) {
        if raw_bytes == 0 {
            return;
        }
        let raw = bytes_as_f64(raw_bytes);
        let sample = Estimate {
            nanos_per_byte: spent.as_secs_f64() * 1e9 / raw,
            fraction: bytes_as_f64(wire_bytes) / raw,
        };
        let estimate = self.learnt[level.index()].map_or(sample, |known| {
            // The older an estimate, the less it says about the guest's memory now.
            let age_chunks = u32::try_from(self.chunk_count - known.at_chunk).unwrap_or(u32::MAX);
            let weight = (SAMPLE_WEIGHT * f64::from(age_chunks)).clamp(SAMPLE_WEIGHT, OLD_WEIGHT);
            mix(known.estimate, sample, weight)
        });
        self.learnt[level.index()] = Some(Learnt {
            estimate,
            at_chunk: self.chunk_count,
        });
    }

    /// At intervals, picks the level above or below the present one, if it may be better and if
    /// probes have not used up their time budget.
    fn probe(&mut self, link_bytes_per_s: f64) -> Option<Level> {
        let present = self.goodput(self.estimate(self.level), link_bytes_per_s);
        let chunk_nanos = CHUNK_BYTES * 1e9 / present;
        let earned = self.probe_nanos_left + chunk_nanos * PROBE_TIME_SHARE;
        // Unused budget is not saved up.
        self.probe_nanos_left = earned.min(0.0);
        if !self.chunk_count.is_multiple_of(PROBE_EVERY_CHUNKS) || self.probe_nanos_left < 0.0 {
            return None;
        }
        self.probe_turns += 1;
        let index = if self.probe_turns.is_multiple_of(2) {
            self.level.index() + 1
        } else {
            self.level.index().checked_sub(1)?
        };
        let level = *Level::ALL.get(index)?;
        // Predicted from the present level's results, so that one bad sample does not rule a level
        // out for ever.
        let expected = self.goodput(self.derived(level, self.level), link_bytes_per_s);
        if expected <= present * PROBE_WORTH_MIN {
            return None;
        }
        self.probe_nanos_left -= self.estimate(level).nanos_per_byte * CHUNK_BYTES;
        Some(level)
    }

    /// Raw bytes per second that get through: limited by packing on the threads or by the link.
    fn goodput(&self, estimate: Estimate, link_bytes_per_s: f64) -> f64 {
        let packed = self.threads * 1e9 / estimate.nanos_per_byte.max(1e-3);
        let carried = link_bytes_per_s / estimate.fraction.max(1e-3);
        packed.min(carried)
    }

    fn learnt_of(&self, level: Level) -> Option<Estimate> {
        self.learnt[level.index()].map(|learnt| learnt.estimate)
    }

    fn estimate(&self, level: Level) -> Estimate {
        let distance = |other: &Level| other.index().abs_diff(level.index());
        let nearest = Level::ALL
            .into_iter()
            .filter(|other| self.learnt[other.index()].is_some())
            .min_by_key(distance);
        self.learnt_of(level)
            .unwrap_or_else(|| self.derived(level, nearest.unwrap_or(level)))
    }

    /// Predicts `level` from the results of `known` and the proportions of the priors.
    fn derived(&self, level: Level, known: Level) -> Estimate {
        let prior = PRIORS[level.index()];
        let Some(learnt) = self.learnt_of(known) else {
            return prior;
        };
        let base = PRIORS[known.index()];
        let slowness = learnt.nanos_per_byte / base.nanos_per_byte;
        let fraction = match (level, known) {
            (Level::Raw, _) => 1.0,
            // Raw results do not show how well the data packs.
            (_, Level::Raw) => prior.fraction,
            _ => (learnt.fraction * prior.fraction / base.fraction).min(1.0),
        };
        Estimate {
            nanos_per_byte: prior.nanos_per_byte * slowness,
            fraction,
        }
    }
}

/// The cheapest level whose goodput counts as equal to the best: if the link is not the bottleneck,
/// cheaper is better even if not faster.
fn cheapest_of_the_best(
    mut levels: impl Iterator<Item = Level> + Clone,
    goodput: impl Fn(Level) -> f64,
) -> Option<Level> {
    let most = levels.clone().map(&goodput).fold(0.0, f64::max);
    levels.find(|level| goodput(*level) * EVEN_UP_TO >= most)
}

fn mix(old: Estimate, new: Estimate, weight: f64) -> Estimate {
    let mix = |old: f64, new: f64| old + (new - old) * weight;
    Estimate {
        nanos_per_byte: mix(old.nanos_per_byte, new.nanos_per_byte),
        fraction: mix(old.fraction, new.fraction),
    }
}

#[allow(
    clippy::cast_precision_loss,
    reason = "rates and sizes: a part in 2^52 does not matter"
)]
const fn bytes_as_f64(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The true behaviour of each level in a test: MB/s per thread, wire bytes per 1000 raw bytes.
    type Truth = [(f64, u64); LEVEL_COUNT];

    const CODE: Truth = [
        (3000.0, 1000),
        (500.0, 550),
        (350.0, 440),
        (200.0, 420),
        (70.0, 400),
        (45.0, 395),
    ];
    const NOISE: Truth = [
        (3000.0, 1000),
        (1500.0, 1000),
        (1000.0, 1000),
        (900.0, 1000),
        (400.0, 1000),
        (300.0, 1000),
    ];

    fn settle(chooser: &mut Chooser, truth: &Truth, link_megabytes_per_s: u64) -> Level {
        let link_bytes_per_s = link_megabytes_per_s.saturating_mul(1_000_000);
        for _ in 0..2000 {
            let level = chooser.choose(CodecPolicy::Auto { link_bytes_per_s });
            let (megabytes_per_s, permille) = truth[level.index()];
            let spent = Duration::from_secs_f64(65536.0 / (megabytes_per_s * 1e6));
            chooser.learn(level, 65536, 65536 * permille / 1000, spent);
        }
        chooser.level()
    }

    #[test]
    fn a_fast_link_gets_raw_bytes_and_a_thin_one_the_highest_level_it_outruns() {
        for (link, expected) in [
            (u64::MAX, Level::Raw),
            (10_000, Level::Raw),
            (1000, Level::Raw),
            (400, Level::Lz4),
            (300, Level::Zstd1),
            (100, Level::Zstd1),
            (1, Level::Zstd6),
        ] {
            assert_eq!(
                settle(&mut Chooser::new(2), &CODE, link),
                expected,
                "{link} MB/s"
            );
        }
    }

    #[test]
    fn levels_that_pay_are_reached_and_levels_that_do_not_are_left() {
        let mut rich = CODE;
        rich[3].1 = 300;
        rich[4].1 = 200;
        rich[5].1 = 150;
        let mut chooser = Chooser::new(2);
        assert_eq!(settle(&mut chooser, &rich, 1), Level::Zstd9);
        assert_eq!(settle(&mut chooser, &rich, 10_000), Level::Raw);
        assert_eq!(settle(&mut chooser, &CODE, 100), Level::Zstd1);
    }

    #[test]
    fn noise_is_not_packed_whatever_the_link() {
        for link in [1, 100, u64::MAX] {
            assert_eq!(
                settle(&mut Chooser::new(2), &NOISE, link),
                Level::Raw,
                "{link} MB/s"
            );
        }
    }

    #[test]
    fn auto_is_never_slower_than_raw() {
        for truth in [&CODE, &NOISE] {
            for threads in [1, 2, 8] {
                for link in [1, 10, 50, 100, 200, 400, 800, 1600, 3200, 6400, u64::MAX] {
                    let mut chooser = Chooser::new(threads);
                    let level = settle(&mut chooser, truth, link);
                    let link = bytes_as_f64(link.saturating_mul(1_000_000));
                    let real = |level: Level| {
                        let (speed, permille) = truth[level.index()];
                        let estimate = prior(1e3 / speed, bytes_as_f64(permille) / 1e3);
                        chooser.goodput(estimate, link)
                    };
                    let (chosen, raw) = (real(level), real(Level::Raw));
                    assert!(
                        chosen >= raw * 0.99,
                        "{level} at {link}: {chosen} below {raw}"
                    );
                }
            }
        }
    }

    #[test]
    fn probes_take_a_hundredth_of_the_time_where_the_link_is_fast_and_find_what_changes() {
        let mut chooser = Chooser::new(2);
        let auto = CodecPolicy::Auto {
            link_bytes_per_s: 450_000_000,
        };
        let mut run = |truth: &Truth, count: u32| {
            let (mut probe_s, mut level) = (0.0, Level::Raw);
            for _ in 0..count {
                level = chooser.choose(auto);
                let (megabytes_per_s, permille) = truth[level.index()];
                let spent = CHUNK_BYTES / (megabytes_per_s * 1e6);
                probe_s += if level == chooser.level() { 0.0 } else { spent };
                let wire_bytes = 65536 * permille / 1000;
                chooser.learn(level, 65536, wire_bytes, Duration::from_secs_f64(spent));
            }
            let total_s = f64::from(count) * CHUNK_BYTES / 450e6;
            (probe_s / total_s, level)
        };
        let mut slow_noise = NOISE;
        slow_noise[Level::Lz4.index()].0 = 200.0;
        let (share, level) = run(&slow_noise, 16_000);
        assert_eq!(level, Level::Raw);
        assert!((0.003..=0.012).contains(&share), "{share}");
        let (_, level) = run(&CODE, 2000);
        assert_eq!(level, Level::Lz4);
    }

    #[test]
    fn levels_that_are_nearly_even_do_not_take_turns() {
        // As measured with a guest full of noise: a little of it packs, and speeds vary.
        let mut nearly = NOISE;
        nearly[Level::Lz4.index()].1 = 980;
        let auto = CodecPolicy::Auto {
            link_bytes_per_s: 470_000_000,
        };
        let mut chooser = Chooser::new(2);
        let mut changes = 0;
        for chunk in 0..16_000_u32 {
            let before = chooser.level();
            let level = chooser.choose(auto);
            changes += u32::from(chooser.level() != before);
            let (megabytes_per_s, permille) = nearly[level.index()];
            let permille = permille + u64::from(chunk * 7 % 30) - 15;
            let wire_bytes = (65536 * permille / 1000).min(65536);
            let spent = CHUNK_BYTES / (megabytes_per_s * 1e6);
            chooser.learn(level, 65536, wire_bytes, Duration::from_secs_f64(spent));
        }
        assert!(changes < 10, "{changes}");
    }

    #[test]
    fn a_fixed_level_stays_and_names_read_back() {
        let mut chooser = Chooser::new(1);
        for level in Level::ALL {
            for _ in 0..200 {
                assert_eq!(chooser.choose(CodecPolicy::Fixed(level)), level);
            }
            assert_eq!(level.as_str().parse(), Ok(level));
        }
        assert_eq!("zstd-99".parse::<Level>().unwrap_err().code, Code::Config);
    }
}
