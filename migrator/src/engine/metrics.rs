//! The migrator's metrics: names and help in one place.

use std::time::Duration;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder,
};
use towpath_protocol::fault::{Code, Fault};

use super::shared::Board;
use crate::api::{GuestState, Phase};

/// The metrics of one migrator.
#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    journal_seconds: Histogram,
    migrations: IntGaugeVec,
    guests_running: IntGauge,
    quarantined: IntGauge,
    data_remaining_bytes: IntGauge,
    data_processed_bytes: IntGauge,
    dirty_bytes_per_second: IntGauge,
    missing_pages: IntGauge,
    blocked_seconds: IntGauge,
    demand_fetches: IntGauge,
}

impl Metrics {
    pub(super) fn new() -> Result<Self, Fault> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let journal = HistogramOpts::new(
            "towpath_journal_fsync_seconds",
            "Time to make one record of a guest's journal durable.",
        )
        .buckets(vec![
            0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0,
        ]);
        Ok(Self {
            journal_seconds: register(&registry, Histogram::with_opts(journal))?,
            migrations: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("towpath_migrations", "Moves of this host by phase."),
                    &["state"],
                ),
            )?,
            guests_running: gauge("towpath_guests_running", "Guests that run on this host.")?,
            quarantined: gauge(
                "towpath_quarantined_guests",
                "Guests whose journal cannot be trusted.",
            )?,
            data_remaining_bytes: gauge(
                "towpath_migration_data_remaining_bytes",
                "Bytes of guests still to go in the present stages of all moves.",
            )?,
            data_processed_bytes: gauge(
                "towpath_migration_data_processed_bytes",
                "Bytes of guests carried by the moves shown, every repetition counted.",
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
            demand_fetches: gauge(
                "towpath_postcopy_demand_fetches",
                "Pages running guests waited for, in the moves shown.",
            )?,
            registry,
        })
    }

    pub(super) fn journal_write(&self, took: Duration) {
        self.journal_seconds.observe(took.as_secs_f64());
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
            board.guests.values().filter(is_so).count() as u64
        };
        set(&self.guests_running, guests(GuestState::Running));
        set(&self.quarantined, guests(GuestState::Quarantined));
        let open = || {
            board
                .moves
                .values()
                .filter(|view| !view.phase.is_finished())
        };
        let left = open().map(|view| view.blocks_left * 4096).sum();
        set(&self.data_remaining_bytes, left);
        let carried = board.moves.values().map(|view| view.raw_bytes).sum();
        set(&self.data_processed_bytes, carried);
        let dirtied = open().map(|view| view.dirty_bytes_per_second).sum();
        set(&self.dirty_bytes_per_second, dirtied);
        let fetching = open().filter(|view| view.phase == Phase::Fetching);
        set(
            &self.missing_pages,
            fetching.map(|view| view.blocks_left).sum(),
        );
        let blocked = open().filter_map(|view| view.blocked_ms).max();
        set(&self.blocked_seconds, blocked.unwrap_or(0) / 1000);
        let demanded = board.moves.values().map(|view| view.demand_fetches).sum();
        set(&self.demand_fetches, demanded);
        let mut text = Vec::new();
        match TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(error) => format!("# the metrics could not be written: {error}\n"),
        }
    }
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
    use towpath_protocol::identity::GuestId;

    use super::*;
    use crate::engine::shared::quarantined;

    /// What is said of a board with so many guests.
    fn text_of(guests: u128) -> String {
        let mut board = Board::default();
        let fault = Fault::new(Code::Io, "a journal");
        for number in 0..guests {
            let name = format!("guest-{number}").parse().unwrap();
            let id = GuestId(number);
            board.guests.insert(id, quarantined(&name, id, &fault));
        }
        Metrics::new().unwrap().text(&board)
    }

    #[test]
    fn l08_ten_thousand_guests_are_counted_and_are_no_labels() {
        let (one, many) = (text_of(1), text_of(10_000));
        assert!(many.contains("towpath_quarantined_guests 10000"), "{many}");
        assert_eq!(
            one.lines().count(),
            many.lines().count(),
            "series per guest"
        );
        assert!(!many.contains("guest-"), "{many}");
    }
}
