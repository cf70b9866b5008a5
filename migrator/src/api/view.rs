//! The types that the API shows and takes. The unit is the last part of each name.

use serde::{Deserialize, Serialize};
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{
    DIRTY_PAGES_PER_SECOND_MAX, HEARTBEAT_INTERVAL_US, HEARTBEAT_INTERVAL_US_MAX,
    HEARTBEAT_INTERVAL_US_MIN, MEMORY_BYTES_MAX, MEMORY_BYTES_MIN, MEMORY_STEP_BYTES,
    WORKING_SET_START_BYTES,
};
use towpath_protocol::identity::{Epoch, GuestId, HostIdentity, MigrationId, Name};
use towpath_protocol::plan::Mode;
use towpath_protocol::size::Size;
use utoipa::ToSchema;

/// Bytes of a page of guest memory.
const PAGE_BYTES: u64 = 4096;

/// Longest pause that can be requested, in milliseconds. For a longer one, stop and start the
/// guest.
pub const PAUSE_MS_MAX: u32 = 60_000;

/// What kind of machine a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GuestKind {
    /// KVM where it can be used, else a process.
    #[default]
    Auto,
    /// A virtual machine.
    Kvm,
    /// A process whose memory is tracked by userfaultfd.
    Process,
}

impl GuestKind {
    /// The kind as documents, tables and metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Process => "process",
        }
    }
}

/// The guest to make and run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GuestRequest {
    /// Its name on every host.
    #[schema(value_type = String, example = "till-7")]
    pub name: Name,
    /// What kind of machine it is.
    #[serde(default)]
    pub kind: GuestKind,
    /// Its memory: steps of 2 MiB.
    pub memory_bytes: u64,
    /// Pages its payload rewrites each second.
    #[serde(default)]
    pub dirty_pages_per_second: u64,
    /// The part of its memory that is rewritten; all of it if absent.
    #[serde(default)]
    pub working_set_bytes: Option<u64>,
    /// Share of its pages that do not compress.
    #[serde(default)]
    pub incompressible_percent: u8,
    /// Time between two heartbeats on its console.
    #[serde(default = "heartbeat_interval_us_default")]
    pub heartbeat_interval_us: u32,
}

const fn heartbeat_interval_us_default() -> u32 {
    HEARTBEAT_INTERVAL_US
}

impl GuestRequest {
    /// Checks the values that do not depend on the host.
    ///
    /// # Errors
    ///
    /// `E_USAGE` naming the field.
    pub fn check(&self) -> Result<(), Fault> {
        let memory = self.memory_bytes;
        if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&memory)
            || !memory.is_multiple_of(MEMORY_STEP_BYTES)
        {
            let [least, most, step] =
                [MEMORY_BYTES_MIN, MEMORY_BYTES_MAX, MEMORY_STEP_BYTES].map(Size::from_bytes);
            return usage(format!(
                "memory_bytes is {memory} and must be {least} to {most} in steps of {step}"
            ));
        }
        let usable = memory - WORKING_SET_START_BYTES;
        if let Some(set) = self.working_set_bytes
            && (set == 0 || set > usable || !set.is_multiple_of(PAGE_BYTES))
        {
            let [page, most] = [PAGE_BYTES, usable].map(Size::from_bytes);
            return usage(format!(
                "the working set is {} and must be whole pages of {page}, at most {most}: all but the first {} of the memory",
                Size::from_bytes(set),
                Size::from_bytes(WORKING_SET_START_BYTES),
            ));
        }
        if self.incompressible_percent > 100 {
            let percent = self.incompressible_percent;
            return usage(format!(
                "incompressible_percent is {percent} and at most 100"
            ));
        }
        let heartbeat = HEARTBEAT_INTERVAL_US_MIN..=HEARTBEAT_INTERVAL_US_MAX;
        if !heartbeat.contains(&self.heartbeat_interval_us) {
            let (interval, least, most) = (
                self.heartbeat_interval_us,
                heartbeat.start(),
                heartbeat.end(),
            );
            return usage(format!(
                "heartbeat_interval_us is {interval} and must be {least} to {most}"
            ));
        }
        if self.dirty_pages_per_second > DIRTY_PAGES_PER_SECOND_MAX.into() {
            let pages = self.dirty_pages_per_second;
            return usage(format!(
                "dirty_pages_per_second is {pages} and at most {DIRTY_PAGES_PER_SECOND_MAX}"
            ));
        }
        Ok(())
    }
}

fn usage(detail: String) -> Result<(), Fault> {
    Err(Fault::new(Code::Usage, detail))
}

/// State of a guest on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum GuestState {
    /// Created, not yet run.
    Created,
    /// It runs here.
    Running,
    /// It is being received; it does not run here yet.
    Incoming,
    /// It is held for the switch of a move.
    Frozen,
    /// It has left for another host.
    Moved,
    /// Its process failed; it can be booted again.
    Crashed,
    /// It was ended.
    Stopped,
    /// It was being received but did not arrive; it lives on another host.
    Absent,
    /// Its journal cannot be trusted: nothing runs it.
    Quarantined,
}

impl GuestState {
    /// The state as documents, tables and metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Incoming => "incoming",
            Self::Frozen => "frozen",
            Self::Moved => "moved",
            Self::Crashed => "crashed",
            Self::Stopped => "stopped",
            Self::Absent => "absent",
            Self::Quarantined => "quarantined",
        }
    }
}

/// Ownership of a guest according to this host's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Ownership {
    /// It does not live here.
    Vacant,
    /// It lives here.
    Owned,
    /// It lives here and is offered to another host.
    Offering,
    /// It was handed over; the other host's answer is awaited.
    Relinquished,
    /// It has left for good.
    Released,
    /// It is being received.
    Prepared,
    /// Its last offer was refused.
    Refused,
}

impl Ownership {
    /// The ownership as documents and tables spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Vacant => "vacant",
            Self::Owned => "owned",
            Self::Offering => "offering",
            Self::Relinquished => "relinquished",
            Self::Released => "released",
            Self::Prepared => "prepared",
            Self::Refused => "refused",
        }
    }
}

/// A guest as its host sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
    /// Its identity, the same on every host.
    #[schema(value_type = String)]
    pub id: GuestId,
    /// What kind of machine it is.
    pub kind: GuestKind,
    /// Its state.
    pub state: GuestState,
    /// Its ownership according to the journal.
    pub ownership: Ownership,
    /// The epoch of its newest ownership known here.
    #[schema(value_type = u64)]
    pub epoch: Epoch,
    /// Its memory.
    pub memory_bytes: u64,
    /// Pages its payload rewrites each second.
    pub dirty_pages_per_second: u64,
    /// The part of its memory that is rewritten.
    pub working_set_bytes: u64,
    /// Share of its pages that do not compress.
    pub incompressible_percent: u8,
    /// Time between two heartbeats on its console.
    pub heartbeat_interval_us: u32,
    /// Number of the last heartbeat seen here.
    pub heartbeat_sequence: Option<u64>,
    /// Its process, while there is one.
    pub process_id: Option<u32>,
    /// The host it went to, as `site/host`.
    pub moved_to: Option<String>,
    /// The move it is part of now.
    #[schema(value_type = Option<String>)]
    pub migration: Option<MigrationId>,
    /// The file its console is written to.
    pub console: Option<String>,
    /// Why it crashed or is quarantined.
    pub error: Option<ErrorView>,
}

/// All guests of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestList {
    /// The guests, by name.
    pub guests: Vec<GuestView>,
}

/// A guest that was ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoppedView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Name,
}

/// The result of checking every page of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VerifyView {
    /// Pages checked.
    pub pages: u64,
    /// Whether every byte was right.
    pub verified: bool,
    /// The first page that was wrong, or what was found.
    pub detail: String,
}

/// What went wrong, with its stable code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorView {
    /// The stable code, `E_...`.
    pub code: String,
    /// What failed, with its values.
    pub message: String,
    /// The host that reported the fault, as `site/host`, if not this one.
    #[serde(default)]
    pub host: Option<String>,
}

impl ErrorView {
    /// A fault that another host reported.
    #[must_use]
    pub fn said_by(host: &HostIdentity, fault: &Fault) -> Self {
        Self {
            host: Some(host.to_string()),
            ..Self::from(fault)
        }
    }
}

impl From<&Fault> for ErrorView {
    fn from(fault: &Fault) -> Self {
        Self {
            code: fault.code.as_str().to_owned(),
            message: fault.detail.clone(),
            host: None,
        }
    }
}

/// The host itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HostView {
    /// The release of the migrator.
    pub version: String,
    /// Its site.
    #[schema(value_type = String)]
    pub site: Name,
    /// Its name within the site.
    #[schema(value_type = String)]
    pub host: Name,
    /// Whether it can take part in moves.
    pub ready: bool,
    /// Why not.
    pub not_ready_reason: Option<String>,
    /// Whether the tunnel's socket answers.
    pub tunnel: LinkState,
    /// Why KVM cannot be used, if it cannot.
    pub kvm_missing_reason: Option<String>,
    /// Guests that live here.
    pub guest_count: u32,
    /// Largest number of guests allowed.
    pub guest_count_max: u32,
    /// Memory of the guests that live here or are being received.
    pub memory_used_bytes: u64,
    /// Largest amount of memory allowed for guests.
    pub memory_quota_bytes: u64,
    /// Moves under way.
    pub migration_count: u32,
    /// When the migrator started, in milliseconds since 1970.
    pub started_unix_ms: u64,
}

/// Whether two ends can talk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkState {
    /// They can.
    Up,
    /// They cannot now.
    Down,
}

impl LinkState {
    /// The state as documents and tables spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Which stages a move may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum MigrationMode {
    /// Rounds while they help, then post-copy if the rest does not fit the pause.
    #[default]
    Auto,
    /// Rounds only.
    Pre,
    /// Switch at once and fetch the memory afterwards.
    Post,
}

impl MigrationMode {
    /// The mode as the planner knows it.
    #[must_use]
    pub const fn stages(self) -> Mode {
        match self {
            Self::Auto => Mode::Auto,
            Self::Pre => Mode::Pre,
            Self::Post => Mode::Post,
        }
    }

    /// The mode as documents, options and tables spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        self.stages().as_str()
    }
}

/// The move to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MigrationRequest {
    /// The guest, which must live on this host.
    #[schema(value_type = String, example = "till-7")]
    pub guest: Name,
    /// The site it is to move to.
    #[schema(value_type = String, example = "region")]
    pub site: Name,
    /// Which stages may be used.
    #[serde(default)]
    pub mode: MigrationMode,
    /// Longest pause that is accepted.
    #[serde(default = "max_pause_ms_default")]
    pub max_pause_ms: u32,
    /// Cap on the bytes per second of this move. If absent, only the link limits it.
    // The alias is the field's older name, found in the files of moves that were under way before
    // an upgrade.
    #[serde(default, alias = "rate")]
    pub rate_bits_per_second: Option<u64>,
}

const fn max_pause_ms_default() -> u32 {
    200
}

impl MigrationRequest {
    /// A request with the default options.
    #[must_use]
    pub fn plain(guest: Name, site: Name) -> Self {
        Self {
            guest,
            site,
            mode: MigrationMode::default(),
            max_pause_ms: max_pause_ms_default(),
            rate_bits_per_second: None,
        }
    }

    /// Checks the values.
    ///
    /// # Errors
    ///
    /// `E_USAGE` naming the field.
    pub fn check(&self) -> Result<(), Fault> {
        if !(1..=PAUSE_MS_MAX).contains(&self.max_pause_ms) {
            let pause = self.max_pause_ms;
            return usage(format!(
                "max_pause_ms is {pause} and must be 1 to {PAUSE_MS_MAX}"
            ));
        }
        if let Some(rate) = self.rate_bits_per_second {
            towpath_protocol::rate::Rate::from_bytes_per_second(rate / 8)
                .map_err(|fault| Fault::new(Code::Usage, fault.detail))?;
        }
        Ok(())
    }
}

/// Which side of a move a host is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The guest lives or lived here.
    Source,
    /// The guest comes here.
    Target,
}

impl Role {
    /// The side as documents, tables and metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

/// Phase of a move.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// The two sides agree on the guest and the attempt.
    Preparing,
    /// Source: rounds go out while the guest runs.
    Copying,
    /// Source: the guest is held; the rest of the image goes out and the target checks it.
    Switching,
    /// Source: the guest belongs to the target, whose answer is awaited.
    Committed,
    /// Source: the guest runs at the target and fetches what is missing.
    Serving,
    /// Target: the image comes in.
    Receiving,
    /// Target: the image is complete; the source's commit is awaited.
    Ready,
    /// Target: the guest runs here and fetches what is missing.
    Fetching,
    /// The guest runs at the target and nothing is missing.
    Done,
    /// The move failed; the guest is still at the source.
    Failed,
    /// An operator cancelled the move; the guest is still at the source.
    Cancelled,
}

impl Phase {
    /// Every phase, for metrics and documents.
    pub const ALL: [Self; 11] = [
        Self::Preparing,
        Self::Copying,
        Self::Switching,
        Self::Committed,
        Self::Serving,
        Self::Receiving,
        Self::Ready,
        Self::Fetching,
        Self::Done,
        Self::Failed,
        Self::Cancelled,
    ];

    /// The phase as documents, tables and metrics spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::Copying => "copying",
            Self::Switching => "switching",
            Self::Committed => "committed",
            Self::Serving => "serving",
            Self::Receiving => "receiving",
            Self::Ready => "ready",
            Self::Fetching => "fetching",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// Whether the move can no longer change.
    #[must_use]
    pub const fn is_finished(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A decision of the plan, with its inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecisionView {
    /// When, since the move began.
    pub at_ms: u64,
    /// The decision: another round, switch, give up.
    pub decision: String,
    /// The reason.
    pub reason: String,
    /// The pause that was predicted for it.
    pub predicted_pause_ms: u64,
    /// The measurements it rests on.
    pub inputs: DecisionInputs,
}

/// The measurements behind a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DecisionInputs {
    /// Rounds finished.
    pub rounds: u32,
    /// Bytes dirtied since the last round began.
    pub residual_bytes: u64,
    /// Bytes the last round carried.
    pub round_bytes: u64,
    /// Guest bytes carried each second.
    pub goodput_bytes_per_second: u64,
    /// Guest bytes dirtied each second.
    pub dirty_bytes_per_second: u64,
    /// Round trip of the control lane.
    pub round_trip_us: u64,
}

/// A move as one of its hosts sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationView {
    /// Its id, the same on both hosts.
    #[schema(value_type = String)]
    pub id: MigrationId,
    /// The guest.
    #[schema(value_type = String)]
    pub guest: Name,
    /// Which side this host is.
    pub role: Role,
    /// The site it comes from.
    #[schema(value_type = String)]
    pub from: Name,
    /// The site it goes to.
    #[schema(value_type = String)]
    pub to: Name,
    /// Which stages may be used; known only at the source.
    pub mode: Option<MigrationMode>,
    /// Longest pause that is accepted; known only at the source.
    pub max_pause_ms: Option<u32>,
    /// Cap on its bytes per second.
    pub rate_bits_per_second: Option<u64>,
    /// Where it stands.
    pub phase: Phase,
    /// Whether the two hosts can talk now.
    pub link: LinkState,
    /// How long the source has heard nothing over open lanes, if that is longer than the path
    /// explains. Goodput and ETA are absent meanwhile.
    pub silent_ms: Option<u64>,
    /// How long the guest has been held without an answer from the target, if it is.
    pub blocked_ms: Option<u64>,
    /// Handover attempts begun; known only at the source.
    pub attempts: Option<u32>,
    /// The round that is going out, from 1; known only at the source.
    pub round: Option<u32>,
    /// Rounds finished; known only at the source.
    pub rounds: Option<u32>,
    /// Blocks of the guest.
    pub blocks_total: u64,
    /// Blocks still to go in this round, or still missing after the switch.
    pub blocks_left: u64,
    /// Guest bytes carried, including repetitions.
    pub raw_bytes: u64,
    /// Packed bytes on the lanes for them; known only at the source.
    pub wire_bytes: Option<u64>,
    /// Guest bytes carried each second; known only at the source, once measured.
    pub goodput_bytes_per_second: Option<u64>,
    /// Guest bytes dirtied each second; known only at the source, after the first round.
    pub dirty_bytes_per_second: Option<u64>,
    /// Time until the move is done at the current rate.
    pub eta_ms: Option<u64>,
    /// The pause if the guest were switched now.
    pub predicted_pause_ms: Option<u64>,
    /// The pause that was measured from the last instruction at the source to the first at the target.
    pub pause_reported_ms: Option<u64>,
    /// From the request until nothing was missing, or until now.
    pub total_ms: u64,
    /// Blocks that a running guest waited for.
    pub demand_fetches: u64,
    /// Half of these blocks arrived within this time.
    pub demand_p50_ms: Option<u64>,
    /// 99 of 100 of these blocks arrived within this time.
    pub demand_p99_ms: Option<u64>,
    /// Why the guest was switched at that moment.
    pub switch_reason: Option<String>,
    /// Decisions of the plan, oldest first.
    pub decisions: Vec<DecisionView>,
    /// Why it failed.
    pub error: Option<ErrorView>,
    /// When it began, in milliseconds since 1970.
    pub started_unix_ms: u64,
    /// When it ended.
    pub finished_unix_ms: Option<u64>,
}

impl MigrationView {
    /// A move with only the given facts known.
    #[must_use]
    pub fn begun(
        (id, guest): (MigrationId, Name),
        role: Role,
        (from, to): (Name, Name),
        phase: Phase,
    ) -> Self {
        Self {
            id,
            guest,
            role,
            from,
            to,
            mode: None,
            max_pause_ms: None,
            rate_bits_per_second: None,
            phase,
            link: LinkState::Down,
            silent_ms: None,
            blocked_ms: None,
            attempts: None,
            round: None,
            rounds: None,
            blocks_total: 0,
            blocks_left: 0,
            raw_bytes: 0,
            wire_bytes: None,
            goodput_bytes_per_second: None,
            dirty_bytes_per_second: None,
            eta_ms: None,
            predicted_pause_ms: None,
            pause_reported_ms: None,
            total_ms: 0,
            demand_fetches: 0,
            demand_p50_ms: None,
            demand_p99_ms: None,
            switch_reason: None,
            decisions: Vec::new(),
            error: None,
            started_unix_ms: 0,
            finished_unix_ms: None,
        }
    }
}

/// Moves of a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MigrationList {
    /// The moves, newest first.
    pub migrations: Vec<MigrationView>,
}

/// A problem as the API answers it; the same four fields as `towpath_daemon::problem::Problem`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ProblemView {
    /// The stable code, `E_...`.
    pub code: String,
    /// One sentence.
    pub message: String,
    /// What failed, with its values.
    pub cause: String,
    /// What the operator can do.
    pub remedy: String,
}
