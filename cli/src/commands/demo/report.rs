//! The report of the demo, as a table and as a document.

use serde::Serialize;
use towpath_migrator::api::{GuestKind, GuestView, MigrationView, VerifyView};
use towpath_protocol::identity::{MigrationId, Name};
use towpath_protocol::rate::Rate;

use super::heartbeat::Record;
use crate::show::{Table, bytes, escape, milliseconds};

/// Label of the row that is shown only if the link was cut.
const CUT_LABEL: &str = "  of which the link was cut";

/// The document `towpath.v1.demo`.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) guest: GuestReport,
    /// The emulated link; none if the sites talked over loopback.
    pub(super) link: Option<LinkReport>,
    pub(super) moves: Vec<MoveReport>,
    pub(super) heartbeats: Record,
    pub(super) daemons: Vec<DaemonReport>,
    /// Whether every page was right after every move, and no heartbeat is missing or doubled.
    pub(super) verified: bool,
}

/// The guest that moved.
#[derive(Debug, Serialize)]
pub(super) struct GuestReport {
    pub(super) name: Name,
    pub(super) kind: GuestKind,
    /// Why the guest is not a virtual machine, if it is not.
    pub(super) kvm_missing_reason: Option<String>,
    pub(super) memory_bytes: u64,
    pub(super) dirty_pages_per_second: u64,
    pub(super) incompressible_percent: u8,
}

/// What a daemon used.
#[derive(Debug, Serialize)]
pub(super) struct DaemonReport {
    pub(super) name: String,
    pub(super) peak_memory_bytes: u64,
    pub(super) processor_ms: u64,
}

/// The link between the sites.
#[derive(Debug, Serialize)]
pub(super) struct LinkReport {
    pub(super) rate_bits_per_second: u64,
    pub(super) rtt_ms: u64,
    /// Share of packets lost in each direction, in per cent.
    pub(super) loss_percent: f64,
}

/// One move.
#[derive(Debug, Serialize)]
pub(super) struct MoveReport {
    pub(super) id: MigrationId,
    pub(super) from: Name,
    pub(super) to: Name,
    pub(super) total_ms: u64,
    /// How long the link was cut during the move, if it was.
    pub(super) outage_ms: Option<u64>,
    /// Time between the last heartbeat before the switch and the first after it.
    pub(super) pause_heartbeat_ms: Option<f64>,
    /// The pause as the two migrators computed it.
    pub(super) pause_reported_ms: Option<u64>,
    pub(super) rounds: u32,
    pub(super) raw_bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) demand_fetches: u64,
    pub(super) demand_p50_ms: Option<u64>,
    pub(super) demand_p99_ms: Option<u64>,
    pub(super) switch_reason: Option<String>,
    pub(super) verified: bool,
    pub(super) verified_pages: u64,
    pub(super) verified_detail: String,
}

impl GuestReport {
    pub(super) fn new(guest: &GuestView, kvm_missing_reason: Option<String>) -> Self {
        let is_process = guest.kind == GuestKind::Process;
        Self {
            name: guest.name.clone(),
            kind: guest.kind,
            kvm_missing_reason: kvm_missing_reason.filter(|_| is_process),
            memory_bytes: guest.memory_bytes,
            dirty_pages_per_second: guest.dirty_pages_per_second,
            incompressible_percent: guest.incompressible_percent,
        }
    }
}

impl MoveReport {
    /// The report of a move from its source's view. Only the target knows how long the guest
    /// waited for blocks.
    pub(super) fn new(
        view: &MigrationView,
        at_target: &MigrationView,
        pause_heartbeat_ms: Option<f64>,
        verify: VerifyView,
    ) -> Self {
        Self {
            id: view.id,
            from: view.from.clone(),
            to: view.to.clone(),
            total_ms: view.total_ms,
            outage_ms: None,
            pause_heartbeat_ms,
            pause_reported_ms: view.pause_reported_ms,
            rounds: view.rounds.unwrap_or_default(),
            raw_bytes: view.raw_bytes,
            wire_bytes: view.wire_bytes.unwrap_or_default(),
            demand_fetches: at_target.demand_fetches.max(view.demand_fetches),
            demand_p50_ms: at_target.demand_p50_ms.or(view.demand_p50_ms),
            demand_p99_ms: at_target.demand_p99_ms.or(view.demand_p99_ms),
            switch_reason: view.switch_reason.clone(),
            verified: verify.verified,
            verified_pages: verify.pages,
            verified_detail: verify.detail,
        }
    }

    fn verdict(&self) -> String {
        if self.verified {
            format!("every page ({})", self.verified_pages)
        } else {
            "NO".to_owned()
        }
    }
}

impl Report {
    /// Describes the first check that failed.
    pub(super) fn first_wrong(&self) -> String {
        let wrong = self.moves.iter().find(|one| !one.verified);
        if let Some(one) = wrong {
            let (from, to) = (&one.from, &one.to);
            return format!("after {from} -> {to}: {}", one.verified_detail);
        }
        match (self.heartbeats.twice, self.heartbeats.missing) {
            (Some(number), _) => format!("heartbeat {number} was printed twice"),
            (_, Some(number)) => format!("heartbeat {number} was never printed"),
            _ => "the guest printed no heartbeats".to_owned(),
        }
    }

    /// The report for people.
    pub(super) fn table(&self) -> String {
        let mut text = self.headline();
        let mut rows = vec![vec![String::new()]];
        let labels = [
            "total time",
            CUT_LABEL,
            "pause, by the guest's heartbeat",
            "pause, as computed",
            "rounds",
            "guest bytes sent",
            "bytes on the link",
            "demand fetches",
            "  half within, 99 % within",
            "switched because",
            "verified",
        ];
        rows.extend(labels.map(|label| vec![label.to_owned()]));
        for one in &self.moves {
            let dash = || "-".to_owned();
            let waits = match (one.demand_p50_ms, one.demand_p99_ms) {
                (Some(p50), Some(p99)) => format!("{p50} ms, {p99} ms"),
                _ => dash(),
            };
            let cells = [
                format!("{} -> {}", one.from, one.to),
                milliseconds(one.total_ms),
                one.outage_ms.map_or_else(dash, milliseconds),
                one.pause_heartbeat_ms
                    .map_or_else(dash, |ms| format!("{ms:.0} ms")),
                one.pause_reported_ms.map_or_else(dash, milliseconds),
                one.rounds.to_string(),
                bytes(one.raw_bytes),
                bytes(one.wire_bytes),
                one.demand_fetches.to_string(),
                waits,
                one.switch_reason.as_deref().map_or_else(dash, escape),
                one.verdict(),
            ];
            for (row, cell) in rows.iter_mut().zip(cells) {
                row.push(cell);
            }
        }
        if self.moves.iter().all(|one| one.outage_ms.is_none()) {
            rows.retain(|row| row[0] != CUT_LABEL);
        }
        text.push_str(&Table::of_rows(rows).render(""));
        text.push_str(&self.heartbeat_line());
        text
    }

    fn headline(&self) -> String {
        let guest = &self.guest;
        let dirty = bytes(guest.dirty_pages_per_second.saturating_mul(4096));
        let kind = match guest.kind {
            GuestKind::Kvm => "a KVM machine".to_owned(),
            GuestKind::Process | GuestKind::Auto => format!("a {} guest", guest.kind.as_str()),
        };
        let mut text = format!(
            "guest  {kind} of {}, rewriting {dirty}/s, {} % incompressible\n",
            bytes(guest.memory_bytes),
            guest.incompressible_percent
        );
        if let Some(reason) = &guest.kvm_missing_reason {
            text.push_str(&format!("       no KVM here: {}\n", escape(reason)));
        }
        let link = self.link.as_ref().map_or_else(
            || "loopback".to_owned(),
            |link| {
                let rate = Rate::clamped(link.rate_bits_per_second / 8);
                let mut text = format!("{rate}, {} round trip", milliseconds(link.rtt_ms));
                if link.loss_percent > 0.0 {
                    text.push_str(&format!(", {} % lost", link.loss_percent));
                }
                text
            },
        );
        text.push_str(&format!("link   {link}\n\n"));
        text
    }

    fn heartbeat_line(&self) -> String {
        let beats = &self.heartbeats;
        if beats.is_whole() {
            return format!("\n{} heartbeats, none missing, none twice\n", beats.count);
        }
        format!("\nheartbeats: WRONG, {}\n", self.first_wrong())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::Value;

    pub(in crate::commands::demo) fn report(verified: bool) -> Report {
        let one = |from: &str, to: &str| MoveReport {
            id: MigrationId(1),
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            total_ms: 24_100,
            outage_ms: Some(5000),
            pause_heartbeat_ms: Some(81.4),
            pause_reported_ms: Some(79),
            rounds: 4,
            raw_bytes: 300 << 20,
            wire_bytes: 90 << 20,
            demand_fetches: 0,
            demand_p50_ms: None,
            demand_p99_ms: None,
            switch_reason: Some("converged".into()),
            verified,
            verified_pages: 65_536,
            verified_detail: "page 7 is wrong".into(),
        };
        Report {
            guest: GuestReport {
                name: "demo".parse().unwrap(),
                kind: GuestKind::Process,
                kvm_missing_reason: Some("no /dev/kvm".into()),
                memory_bytes: 256 << 20,
                dirty_pages_per_second: 500,
                incompressible_percent: 25,
            },
            link: Some(LinkReport {
                rate_bits_per_second: 100_000_000,
                rtt_ms: 40,
                loss_percent: 0.5,
            }),
            moves: vec![one("edge", "region"), one("region", "edge")],
            heartbeats: Record::default(),
            daemons: Vec::new(),
            verified,
        }
    }

    #[test]
    fn the_document_has_what_the_readme_promises() {
        let value = serde_json::to_value(report(true)).unwrap();
        assert!(value["guest"].is_object() && value["verified"] == Value::Bool(true));
        for key in [
            "from",
            "to",
            "total_ms",
            "pause_heartbeat_ms",
            "pause_reported_ms",
            "rounds",
            "raw_bytes",
            "wire_bytes",
            "demand_fetches",
            "demand_p99_ms",
            "switch_reason",
            "verified",
        ] {
            assert!(value["moves"][1].get(key).is_some(), "{key}");
        }
    }

    #[test]
    fn the_table_is_aligned_and_says_what_is_wrong() {
        let text = report(true).table();
        let line = |begin: &str| text.lines().find(|line| line.starts_with(begin)).unwrap();
        assert!(
            line("link").contains("100Mbit, 40 ms round trip, 0.5 % lost"),
            "{text}"
        );
        let (total, pause) = (line("total time"), line("pause, as"));
        assert_eq!(total.rfind("24.1 s"), total.len().checked_sub(6));
        assert_eq!(total.find("24.1 s"), pause.find("79 ms"));
        assert!(line("  of which").contains("5.0 s"), "{text}");
        assert!(line("verified").contains("every page (65536)"), "{text}");
        assert!(text.contains("no KVM here: no /dev/kvm"));
        let wrong = report(false);
        assert!(wrong.first_wrong().contains("page 7 is wrong"));
        assert!(wrong.table().contains("NO"));
    }
}
