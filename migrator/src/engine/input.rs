//! Everything a guest's worker can hear of.

use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

use towpath_protocol::fault::Fault;
use towpath_protocol::identity::{AttemptId, HostIdentity, MigrationId};
use towpath_protocol::message::{ChunkHeader, Hello, Lane, Message};

use super::lanes::{OpenLane, Unpacked};
use super::order::Order;
use super::shared::Beginning;
use crate::api::VerifyView;
use crate::guest::GuestProcess;

/// What a worker is told.
#[derive(Debug)]
pub(super) enum Input {
    /// An operator wants something of the guest, if it is not too late for that.
    Command(Command, Claim),
    /// A source opened a lane.
    Lane {
        /// Who: proved by the tunnel.
        from: HostIdentity,
        hello: Hello,
        lane: OpenLane,
    },
    /// The lanes this worker asked for.
    Opened {
        link: u64,
        result: Result<Vec<OpenLane>, Fault>,
    },
    /// A message came.
    Heard {
        link: u64,
        lane: Lane,
        message: Message,
    },
    /// A lane ended.
    LaneLost { link: u64, lane: Lane, fault: Fault },
    /// A chunk was packed, and is about to be written.
    Packed {
        header: ChunkHeader,
        wire_bytes: u64,
    },
    /// A chunk came and was unpacked.
    Chunk {
        link: u64,
        lane: Lane,
        header: ChunkHeader,
        unpacked: Unpacked,
    },
    /// A vCPU waits for a block.
    Fault { block: u64 },
    /// Touches are not reported any more although the guest runs.
    FaultsLost(Fault),
    /// The guest's process ended.
    GuestGone { process_id: i32 },
    /// A process that was too busy answers, or has ended.
    Found(Box<Result<GuestProcess, Fault>>),
    /// The target of an attempt that is over was told so, or was not.
    FarewellSaid {
        attempt: AttemptId,
        result: Result<(), Fault>,
    },
    /// The migrator ends; to be dropped once nothing is left to do.
    Stop(Sender<()>),
}

/// Whether a command is carried out: its worker takes it, or whoever asked gives it up. The first of the two holds.
#[derive(Debug, Clone, Default)]
pub(super) struct Claim(Arc<OnceLock<Claimant>>);

#[derive(Debug)]
enum Claimant {
    Worker,
    Asker,
}

impl Claim {
    /// Whether the worker may carry the command out: nobody has been told that it is not.
    pub(super) fn take(&self) -> bool {
        self.0.set(Claimant::Worker).is_ok()
    }

    /// Whether whoever asked may say that the command is not carried out: its worker has not begun.
    pub(super) fn give_up(&self) -> bool {
        self.0.set(Claimant::Asker).is_ok()
    }
}

/// Which guests are booted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Booting {
    /// One that has ended.
    Ended,
    /// One that waits for what its source will never send.
    GivenUp,
}

/// What an operator wants.
#[derive(Debug)]
pub(super) enum Command {
    Migrate(Box<Order>, Sender<Result<(), Fault>>),
    Cancel(MigrationId, Sender<Result<(), Fault>>),
    Boot {
        /// Kept for the guest.
        room: Beginning,
        how: Booting,
        reply: Sender<Result<(), Fault>>,
    },
    Stop(Sender<Result<(), Fault>>),
    Verify(Sender<Result<VerifyView, Fault>>),
}
