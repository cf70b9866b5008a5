//! The migrator's metrics, with all names and help texts in one place.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus::{
    Counter, Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};
use towpath_protocol::fault::{Code, Fault};

use super::ground::{now, unix_ms};
use super::shared::Board;
use crate::api::{GuestState, MigrationView, Phase, Role};
use crate::config::MetricsOptions;

/// Refusals that no honest peer causes: claims about guests that are not its own, or no longer, and
/// lies about them.
const ALARMING: [Code; 9] = [
    Code::StaleEpoch,
    Code::DoubleOffer,
    Code::GuestExists,
    Code::Denied,
    Code::RootMismatch,
    Code::Conflict,
    Code::Range,
    Code::Meta,
    Code::Unexpected,
];

/// Codes for refused bytes on a lane: corrupted in transit, or sent by a peer that lies. A lane
/// that was cut ends with other codes.
const REJECTED: [Code; 8] = [
    Code::Codec,
    Code::Framing,
    Code::TooLarge,
    Code::UnknownKind,
    Code::Range,
    Code::Conflict,
    Code::Meta,
    Code::Unexpected,
];

/// The time over which the moves of one guest are counted.
const DAY_MS: u64 = 24 * 3600 * 1000;

/// The metrics of one migrator.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    journal_seconds: Histogram,
    journal_errors: IntCounter,
    migrations: IntGaugeVec,
    moves: Moves,
    per_guest_max: IntGauge,
    compression_ratio: Gauge,
    eta_seconds: Gauge,
    fault_latency_seconds: Histogram,
    exposure_seconds: Counter,
    chunks_rejected: IntCounterVec,
    guests_running: IntGauge,
    guest_info: IntGaugeVec,
    each: Option<Each>,
    quarantined: IntGauge,
    data_remaining_bytes: IntGauge,
    dirty_bytes_per_second: IntGauge,
    missing_pages: IntGauge,
    blocked_seconds: IntGauge,
    stalled_seconds: IntGauge,
    skipped_messages: Counted,
    stale_chunks: IntCounter,
    rejected: IntCounterVec,
}

/// Totals over moves, updated as moves are shown.
#[derive(Debug, Clone)]
pub(super) struct Moves {
    raw_bytes: IntCounter,
    demand_fetches: IntCounter,
    ended: IntCounterVec,
    duration_seconds: Histogram,
    downtime_seconds: Histogram,
}

impl Moves {
    fn new(registry: &Registry) -> Result<Self, Fault> {
        let counter = |name: &str, help: &str| register(registry, IntCounter::new(name, help));
        let ended = IntCounterVec::new(
            Opts::new(
                "towpath_migrations_ended_total",
                "Moves that ended, by this host's side and what they came to; at the target every attempt counts.",
            ),
            &["role", "outcome"],
        );
        let ended = register(registry, ended)?;
        for role in [Role::Source, Role::Target] {
            for phase in Phase::ALL.into_iter().filter(|phase| phase.is_finished()) {
                // Create every series at the start, so that its first event is an increase.
                ended.with_label_values(&[role.as_str(), phase.as_str()]);
            }
        }
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            register(registry, Histogram::with_opts(options))
        };
        Ok(Self {
            raw_bytes: counter(
                "towpath_migration_data_processed_bytes_total",
                "Bytes of guests carried by moves, every repetition counted.",
            )?,
            demand_fetches: counter(
                "towpath_postcopy_demand_fetches_total",
                "Pages that running guests waited for.",
            )?,
            ended,
            duration_seconds: histogram(
                "towpath_migration_duration_seconds",
                "From the request until nothing was missing, of moves from this host.",
                &[1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0, 10_000.0],
            )?,
            downtime_seconds: histogram(
                "towpath_migration_downtime_seconds",
                "How long guests that left this host stood still for the switch.",
                &[0.01, 0.03, 0.1, 0.2, 0.3, 1.0, 3.0, 10.0, 60.0],
            )?,
        })
    }

    /// Adds a move's progress since it was last shown. At its target, another attempt starts from
    /// zero.
    pub(super) fn count(&self, before: Option<&MigrationView>, view: &MigrationView) {
        let since = |of: fn(&MigrationView) -> u64| {
            let known = before.map_or(0, of);
            of(view).checked_sub(known).unwrap_or_else(|| of(view))
        };
        self.raw_bytes.inc_by(since(|view| view.raw_bytes));
        self.demand_fetches
            .inc_by(since(|view| view.demand_fetches));
    }

    /// Counts the end of a move, or of a target's attempt.
    pub(super) fn count_end(&self, view: &MigrationView) {
        let labels = [view.role.as_str(), view.phase.as_str()];
        self.ended.with_label_values(&labels).inc();
        if view.role == Role::Source && view.phase == Phase::Done {
            self.duration_seconds.observe(seconds(view.total_ms));
            if let Some(pause_ms) = view.pause_reported_ms {
                self.downtime_seconds.observe(seconds(pause_ms));
            }
        }
    }
}

fn seconds(milliseconds: u64) -> f64 {
    Duration::from_millis(milliseconds).as_secs_f64()
}

/// A counter for code that does not depend on the metrics: it increments `total`.
#[derive(Debug)]
struct Counted {
    total: Arc<AtomicU64>,
    shown: IntCounter,
}

impl Counted {
    fn new(registry: &Registry, name: &str, help: &str) -> Result<Self, Fault> {
        Ok(Self {
            total: Arc::default(),
            shown: register(registry, IntCounter::new(name, help))?,
        })
    }

    fn show(&self) {
        let total = self.total.load(Ordering::Relaxed);
        self.shown.inc_by(total.saturating_sub(self.shown.get()));
    }
}

/// Per-guest series. Optional, because each guest adds a few to every scrape.
#[derive(Debug)]
struct Each {
    running: IntGaugeVec,
    memory_bytes: IntGaugeVec,
    beyond: IntGauge,
    /// Most guests that get series.
    guests_max: usize,
}

impl Each {
    fn new(registry: &Registry, guests_max: u32) -> Result<Self, Fault> {
        let gauges = |name: &str, help: &str| {
            let made = IntGaugeVec::new(Opts::new(name, help), &["guest"]);
            register(registry, made)
        };
        let beyond = IntGauge::new(
            "towpath_guests_beyond_cap",
            "Guests without series of their own, because there are too many.",
        );
        Ok(Self {
            running: gauges(
                "towpath_guest_running",
                "Whether a guest runs on this host.",
            )?,
            memory_bytes: gauges("towpath_guest_memory_bytes", "Memory of a guest.")?,
            beyond: register(registry, beyond)?,
            guests_max: usize::try_from(guests_max).unwrap_or(usize::MAX),
        })
    }

    /// Updates the series of the first `guests_max` guests by id. Moves do not change ids, so the
    /// same guests are shown every time.
    fn show(&self, board: &Board) {
        self.running.reset();
        self.memory_bytes.reset();
        for guest in board.guests.values().take(self.guests_max) {
            let label = &[guest.name.as_str()];
            let is_running = guest.state == GuestState::Running;
            set(&self.running.with_label_values(label), is_running.into());
            set(
                &self.memory_bytes.with_label_values(label),
                guest.memory_bytes,
            );
        }
        let beyond = board.guests.len().saturating_sub(self.guests_max);
        set(&self.beyond, beyond as u64);
    }
}

impl Metrics {
    pub(super) fn new(options: MetricsOptions) -> Result<Self, Fault> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let real = |name: &str, help: &str| register(&registry, Gauge::new(name, help));
        let counter = |name: &str, help: &str| Counted::new(&registry, name, help);
        let rejected = IntCounterVec::new(
            Opts::new(
                "towpath_handover_rejected_total",
                "Words of peers about guests that no honest peer says, by the code of the refusal.",
            ),
            &["code"],
        );
        let rejected = register(&registry, rejected)?;
        let chunks_rejected = IntCounterVec::new(
            Opts::new(
                "towpath_chunk_rejected_total",
                "Chunks and messages of peers that were refused for what they are, by its code.",
            ),
            &["reason"],
        );
        let chunks_rejected = register(&registry, chunks_rejected)?;
        for code in REJECTED {
            chunks_rejected.with_label_values(&[code.as_str()]);
        }
        show_build(&registry)?;
        for code in ALARMING {
            // Create every series at the start, so that its first event is an increase.
            rejected.with_label_values(&[code.as_str()]).inc_by(0);
        }
        let journal = HistogramOpts::new(
            "towpath_journal_fsync_seconds",
            "Time to make one record of a guest's journal durable.",
        )
        .buckets(vec![
            0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0,
        ]);
        Ok(Self {
            journal_seconds: register(&registry, Histogram::with_opts(journal))?,
            journal_errors: register(
                &registry,
                IntCounter::new(
                    "towpath_journal_errors_total",
                    "Records of guests' journals that could not be made durable.",
                ),
            )?,
            moves: Moves::new(&registry)?,
            per_guest_max: gauge(
                "towpath_migrations_per_guest_max",
                "Most moves of one guest to or from this host that were done in the last day.",
            )?,
            compression_ratio: real(
                "towpath_migration_compression_ratio",
                "Bytes of guests in a byte on the link, of the moves that leave this host.",
            )?,
            eta_seconds: real(
                "towpath_migration_eta_seconds",
                "Longest time until a move is done, if it goes on like this.",
            )?,
            fault_latency_seconds: register(
                &registry,
                Histogram::with_opts(
                    HistogramOpts::new(
                        "towpath_postcopy_fault_latency_seconds",
                        "How long guests that run here waited for a page of their source's.",
                    )
                    .buckets(vec![
                        0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 60.0,
                    ]),
                ),
            )?,
            exposure_seconds: register(
                &registry,
                Counter::new(
                    "towpath_postcopy_exposure_seconds_total",
                    "Time in which guests ran here and needed memory that their source had.",
                ),
            )?,
            chunks_rejected,
            migrations: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("towpath_migrations", "Moves of this host by phase."),
                    &["state"],
                ),
            )?,
            guests_running: gauge("towpath_guests_running", "Guests that run on this host.")?,
            guest_info: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new(
                        "towpath_guest_info",
                        "Guests of this host by kind of machine and state.",
                    ),
                    &["kind", "state"],
                ),
            )?,
            each: options
                .per_guest
                .then(|| Each::new(&registry, options.guests_max))
                .transpose()?,
            quarantined: gauge(
                "towpath_quarantined_guests",
                "Guests whose journal cannot be trusted.",
            )?,
            data_remaining_bytes: gauge(
                "towpath_migration_data_remaining_bytes",
                "Bytes of guests still to go in the present stages of all moves.",
            )?,
            dirty_bytes_per_second: gauge(
                "towpath_migration_dirty_bytes_per_second",
                "Bytes that moving guests dirty each second.",
            )?,
            missing_pages: gauge(
                "towpath_postcopy_missing_pages",
                "Pages missing of guests that already run on this host.",
            )?,
            blocked_seconds: gauge(
                "towpath_handover_blocked_seconds",
                "Longest time a guest has been held without the target's answer.",
            )?,
            stalled_seconds: gauge(
                "towpath_migration_stalled_seconds",
                "Longest time in which a move that is under way has carried nothing.",
            )?,
            rejected,
            skipped_messages: counter(
                "towpath_migration_skipped_messages_total",
                "Messages of peers that this version does not know and need not.",
            )?,
            stale_chunks: register(
                &registry,
                IntCounter::new(
                    "towpath_migration_stale_chunks_total",
                    "Chunks that came behind a newer round's and were dropped.",
                ),
            )?,
            registry,
        })
    }

    pub(super) fn journal_write(&self, took: Duration) {
        self.journal_seconds.observe(took.as_secs_f64());
    }

    /// Counts a record that could not be made durable.
    pub(super) fn journal_failed(&self) {
        self.journal_errors.inc();
    }

    /// The counters for moves.
    pub(super) fn moves(&self) -> Moves {
        self.moves.clone()
    }

    /// Counts received lane bytes that were refused.
    pub(super) fn lane_fault(&self, code: Code) {
        if REJECTED.contains(&code) {
            self.chunks_rejected
                .with_label_values(&[code.as_str()])
                .inc();
        }
    }

    /// Records how long a guest that runs here waited for a page.
    pub(super) fn page_waited(&self, waited: Duration) {
        self.fault_latency_seconds.observe(waited.as_secs_f64());
    }

    /// Adds the time that a guest ran here without all of its memory.
    pub(super) fn exposed(&self, span: Duration) {
        self.exposure_seconds.inc_by(span.as_secs_f64());
    }

    /// Counts a refused message if its code is alarming, and returns whether it is.
    pub(super) fn rejected(&self, code: Code) -> bool {
        let is_alarming = ALARMING.contains(&code);
        if is_alarming {
            self.rejected.with_label_values(&[code.as_str()]).inc();
        }
        is_alarming
    }

    /// The counter for skipped messages.
    pub(super) fn skipped_messages(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.skipped_messages.total)
    }

    /// Counts chunks of earlier rounds.
    pub(super) fn stale_chunks(&self, count: u64) {
        self.stale_chunks.inc_by(count);
    }

    /// All metrics in Prometheus' text format.
    pub(super) fn text(&self, board: &Board) -> String {
        self.migrations.reset();
        for phase in Phase::ALL {
            let count = board.moves.values().filter(|view| view.phase == phase);
            set(
                &self.migrations.with_label_values(&[phase.as_str()]),
                count.count() as u64,
            );
        }
        let guests = |state| {
            let is_so = |guest: &&crate::api::GuestView| guest.state == state;
            board.all_guests().filter(is_so).count() as u64
        };
        set(&self.guests_running, guests(GuestState::Running));
        self.guest_info.reset();
        for guest in board.all_guests() {
            let label = [guest.kind.as_str(), guest.state.as_str()];
            self.guest_info.with_label_values(&label).inc();
        }
        if let Some(each) = &self.each {
            each.show(board);
        }
        set(&self.quarantined, guests(GuestState::Quarantined));
        let open = || {
            board
                .moves
                .values()
                .filter(|view| !view.phase.is_finished())
        };
        let left = open().map(|view| view.blocks_left * 4096).sum();
        set(&self.data_remaining_bytes, left);
        let dirtied = open().filter_map(|view| view.dirty_bytes_per_second).sum();
        set(&self.dirty_bytes_per_second, dirtied);
        let fetching = open().filter(|view| view.phase == Phase::Fetching);
        set(
            &self.missing_pages,
            fetching.map(|view| view.blocks_left).sum(),
        );
        let blocked = open().filter_map(|view| view.blocked_ms).max();
        set(&self.blocked_seconds, blocked.unwrap_or(0) / 1000);
        set(&self.stalled_seconds, board.stalled(now()).as_secs());
        set(&self.per_guest_max, moves_per_guest_max(board, unix_ms()));
        let longest = open().filter_map(|view| view.eta_ms).max();
        self.eta_seconds.set(seconds(longest.unwrap_or(0)));
        self.compression_ratio.set(compression_ratio(open()));
        self.skipped_messages.show();
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("# the metrics could not be written: {error}\n"),
        }
    }
}

/// The most moves of any one guest completed within a day, among the moves still shown.
fn moves_per_guest_max(board: &Board, now_ms: u64) -> u64 {
    let mut counts = BTreeMap::new();
    for view in board.moves.values() {
        let ended = view.finished_unix_ms.filter(|_| view.phase == Phase::Done);
        if ended.is_some_and(|at| at.saturating_add(DAY_MS) > now_ms) {
            *counts.entry(&view.guest).or_insert(0) += 1;
        }
    }
    counts.into_values().max().unwrap_or(0)
}

/// Guest bytes per byte on the link; 0 while nothing is sent.
#[allow(clippy::cast_precision_loss, reason = "a ratio of estimates")]
fn compression_ratio<'a>(moves: impl Iterator<Item = &'a MigrationView>) -> f64 {
    let sent = moves.filter_map(|view| view.wire_bytes.map(|wire| (view.raw_bytes, wire)));
    let (raw, wire) = sent.fold((0_u64, 0_u64), |sum, one| (sum.0 + one.0, sum.1 + one.1));
    match wire {
        0 => 0.0,
        _ => raw as f64 / wire as f64,
    }
}

/// Registers the release as a label.
fn show_build(registry: &Registry) -> Result<(), Fault> {
    let build = IntGaugeVec::new(
        Opts::new("towpath_build_info", "Always 1; the release is a label."),
        &["component", "version"],
    );
    let labels = ["migrator", env!("CARGO_PKG_VERSION")];
    register(registry, build)?.with_label_values(&labels).set(1);
    Ok(())
}

fn set(gauge: &IntGauge, value: u64) {
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
}

fn register<T: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<T>,
) -> Result<T, Fault> {
    let failed = |error: prometheus::Error| Fault::new(Code::State, format!("a metric: {error}"));
    let metric = metric.map_err(failed)?;
    registry
        .register(Box::new(metric.clone()))
        .map_err(failed)?;
    Ok(metric)
}

#[cfg(test)]
mod tests {
    use towpath_protocol::identity::{GuestId, MigrationId};
    use towpath_protocol::time::Instant;

    use super::*;
    use crate::engine::shared::quarantined;

    /// The metrics text for a board of `guests` guests, every second one running and moving.
    fn text_of(guests: u128, options: MetricsOptions) -> String {
        let metrics = Metrics::new(options).unwrap();
        let mut board = Board::new(metrics.moves());
        let fault = Fault::new(Code::Io, "a journal");
        for number in 0..guests {
            let name = format!("guest-{number}").parse().unwrap();
            let id = GuestId(number);
            let mut guest = quarantined(&name, id, &fault);
            if number % 2 == 1 {
                guest.state = GuestState::Running;
                guest.error = None;
                board.show_move(MigrationView {
                    guest: name,
                    ..view(number, Phase::Copying)
                });
            }
            board.guests.insert(id, guest);
        }
        metrics.text(&board)
    }

    #[test]
    fn l08_ten_thousand_guests_are_counted_and_are_no_labels() {
        let options = MetricsOptions::default();
        let (few, many) = (text_of(2, options), text_of(10_000, options));
        for line in [
            "towpath_quarantined_guests 5000",
            "towpath_guest_info{kind=\"auto\",state=\"quarantined\"} 5000",
            "towpath_guest_info{kind=\"auto\",state=\"running\"} 5000",
            "towpath_migrations{state=\"copying\"} 5000",
        ] {
            assert!(many.lines().any(|said| said == line), "{line}: {many}");
        }
        assert_eq!(
            few.lines().count(),
            many.lines().count(),
            "series per guest"
        );
        assert!(!many.contains("guest-"), "{many}");
    }

    #[test]
    fn l08_guests_have_series_of_their_own_if_that_is_wanted_and_only_so_many() {
        let options = MetricsOptions {
            per_guest: true,
            guests_max: 3,
        };
        let few = text_of(2, options);
        assert!(
            few.contains("towpath_guest_running{guest=\"guest-1\"} 1"),
            "{few}"
        );
        assert!(few.contains("towpath_guest_memory_bytes{guest=\"guest-0\"} 0"));
        assert!(few.contains("towpath_guests_beyond_cap 0"));
        let many = text_of(10_000, options);
        let shown = many.lines().filter(|line| line.contains("guest=\""));
        assert_eq!(shown.count(), 2 * 3);
        assert!(many.contains("towpath_guests_beyond_cap 9997"), "{many}");
    }

    fn view(id: u128, phase: Phase) -> MigrationView {
        let sites = ("edge".parse().unwrap(), "region".parse().unwrap());
        let ids = (MigrationId(id), "till".parse().unwrap());
        MigrationView::begun(ids, Role::Source, sites, phase)
    }

    fn board_of(metrics: &Metrics, views: impl IntoIterator<Item = MigrationView>) -> Board {
        let mut board = Board::new(metrics.moves());
        views.into_iter().for_each(|view| board.show_move(view));
        board
    }

    #[test]
    fn what_is_carried_is_counted_once_and_not_forgotten_with_its_attempt() {
        let metrics = Metrics::new(MetricsOptions::default()).unwrap();
        let shown = [(100, 1), (250, 3), (250, 3), (0, 0), (40, 0)];
        let views = shown.map(|(raw_bytes, demand_fetches)| MigrationView {
            raw_bytes,
            demand_fetches,
            wire_bytes: Some(raw_bytes / 4),
            eta_ms: Some(2500),
            ..view(1, Phase::Copying)
        });
        let text = metrics.text(&board_of(&metrics, views));
        for line in [
            "towpath_migration_data_processed_bytes_total 290",
            "towpath_postcopy_demand_fetches_total 3",
            "towpath_migration_compression_ratio 4",
            "towpath_migration_eta_seconds 2.5",
        ] {
            assert!(text.lines().any(|said| said == line), "{line}: {text}");
        }
    }

    #[test]
    fn a_move_that_stands_is_seen_beside_one_that_goes_on() {
        let metrics = Metrics::new(MetricsOptions::default()).unwrap();
        let mut board = Board::new(metrics.moves());
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let has_carried = |id, raw_bytes, phase| MigrationView {
            raw_bytes,
            ..view(id, phase)
        };
        assert_eq!(board.stalled(at(9)), Duration::ZERO, "there is no move");
        for seconds in 0..=400 {
            board.note_carried(&has_carried(1, 50, Phase::Copying), at(seconds));
            board.note_carried(&has_carried(2, seconds, Phase::Serving), at(seconds));
        }
        assert_eq!(board.stalled(at(400)).as_secs(), 400);
        assert_eq!(board.stalled(at(430)).as_secs(), 430, "not shown for long");
        // At its target, another attempt starts from zero.
        board.note_carried(&has_carried(1, 0, Phase::Receiving), at(440));
        assert_eq!(board.stalled(at(440)).as_secs(), 40);
        board.note_carried(&has_carried(2, 400, Phase::Done), at(450));
        assert_eq!(board.stalled(at(450)).as_secs(), 10);

        // The metric shows what was noted.
        let told = |board: &Board| {
            let text = metrics.text(board);
            let name = "towpath_migration_stalled_seconds ";
            let said = text.lines().find_map(|line| line.strip_prefix(name));
            said.unwrap().parse::<u64>().unwrap()
        };
        let long_ago = Instant::from_nanos(0);
        let mut board = Board::new(metrics.moves());
        board.note_carried(&has_carried(3, 7, Phase::Copying), long_ago);
        board.show_move(has_carried(3, 7, Phase::Copying));
        // The time since boot, or nearly.
        assert!(told(&board) + 1 >= now().since(long_ago).as_secs());
        board.show_move(has_carried(3, 8, Phase::Copying));
        assert!(told(&board) < 60);
        board.note_carried(&has_carried(4, 0, Phase::Copying), long_ago);
        board.show_move(has_carried(4, 0, Phase::Failed));
        assert!(told(&board) < 60, "it has ended");
    }

    #[test]
    fn a_guest_that_goes_to_and_fro_is_seen() {
        let metrics = Metrics::new(MetricsOptions::default()).unwrap();
        let now = 100 * DAY_MS;
        let moves = [
            (Phase::Done, now - 1),
            (Phase::Done, now - DAY_MS / 2),
            (Phase::Done, now - DAY_MS),
            (Phase::Failed, now),
        ];
        let views = moves
            .into_iter()
            .zip(1..)
            .map(|((phase, at), id)| MigrationView {
                finished_unix_ms: Some(at),
                ..view(id, phase)
            });
        let board = board_of(&metrics, views);
        assert_eq!(moves_per_guest_max(&board, now), 2);
    }

    #[test]
    fn what_a_lane_brings_and_is_refused_is_counted_and_its_end_is_not() {
        let metrics = Metrics::new(MetricsOptions::default()).unwrap();
        for code in [Code::Codec, Code::Codec, Code::Truncated, Code::Stalled] {
            metrics.lane_fault(code);
        }
        let text = metrics.text(&Board::new(metrics.moves()));
        let counted = |code: &str, count| {
            let line = format!("towpath_chunk_rejected_total{{reason=\"{code}\"}} {count}");
            text.lines().any(|said| said == line)
        };
        assert!(counted("E_CODEC", 2) && counted("E_FRAMING", 0), "{text}");
        assert!(!text.contains("E_TRUNCATED"), "{text}");
    }
}
