//! Every event that a guest's worker receives.

use std::sync::mpsc::Sender;
use std::sync::{Arc, OnceLock};

use towpath_protocol::fault::Fault;
use towpath_protocol::identity::{AttemptId, HostIdentity, MigrationId};
use towpath_protocol::message::{ChunkHeader, Hello, Lane, Message};
use towpath_protocol::space::{BlockRun, SpaceId};

use super::lanes::{OpenLane, Unpacked};
use super::order::Order;
use super::shared::Beginning;
use crate::api::VerifyView;
use crate::guest::GuestProcess;

/// An event for a worker.
#[derive(Debug)]
pub(super) enum Input {
    /// An operator's command. It is carried out only if the claim can still be taken.
    Command(Command, Claim),
    /// A source opened a lane.
    Lane {
        /// The peer, as proved by the tunnel.
        from: HostIdentity,
        hello: Hello,
        lane: OpenLane,
    },
    /// The lanes this worker asked for were opened, or could not be.
    Opened {
        link: u64,
        result: Result<Vec<OpenLane>, Fault>,
    },
    /// A message arrived.
    Heard {
        link: u64,
        lane: Lane,
        message: Message,
    },
    /// A lane ended.
    LaneLost { link: u64, lane: Lane, fault: Fault },
    /// A chunk was packed and is about to be written.
    Packed {
        header: ChunkHeader,
        wire_bytes: u64,
    },
    /// Blocks for the bulk lane could not be read; no chunk has them.
    Unread {
        space: SpaceId,
        runs: Vec<BlockRun>,
        fault: Fault,
    },
    /// A chunk arrived and was unpacked.
    Chunk {
        link: u64,
        lane: Lane,
        header: ChunkHeader,
        unpacked: Unpacked,
    },
    /// A vCPU waits for a block.
    Fault { block: u64 },
    /// Page faults are no longer reported although the guest runs.
    FaultsLost(Fault),
    /// The guest's process ended.
    GuestGone { process_id: i32 },
    /// A process that was too busy to answer now does, or has ended.
    Found(Box<Result<GuestProcess, Fault>>),
    /// The target of an ended attempt was told of its end, or could not be.
    FarewellSaid {
        attempt: AttemptId,
        result: Result<(), Fault>,
    },
    /// The migrator shuts down. The sender is dropped once nothing is left to do.
    Stop(Sender<()>),
}

/// Decides whether a command is carried out: either the worker takes it or the asker gives it up,
/// whichever comes first.
#[derive(Debug, Clone, Default)]
pub(super) struct Claim(Arc<OnceLock<Claimant>>);

#[derive(Debug)]
enum Claimant {
    Worker,
    Asker,
}

impl Claim {
    /// Takes the command for the worker. `false` if the asker has already been told that it is not
    /// carried out.
    pub(super) fn take(&self) -> bool {
        self.0.set(Claimant::Worker).is_ok()
    }

    /// Gives the command up for the asker. `false` if the worker has already begun.
    pub(super) fn give_up(&self) -> bool {
        self.0.set(Claimant::Asker).is_ok()
    }
}

/// Which guest a boot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Booting {
    /// A guest that has ended.
    Ended,
    /// A guest that waits for blocks its source will never send.
    GivenUp,
}

/// A command of an operator.
#[derive(Debug)]
pub(super) enum Command {
    Migrate(Box<Order>, Sender<Result<(), Fault>>),
    Cancel(MigrationId, Sender<Result<(), Fault>>),
    Boot {
        /// Held until the guest is on the board.
        room: Beginning,
        how: Booting,
        reply: Sender<Result<(), Fault>>,
    },
    Stop(Sender<Result<(), Fault>>),
    Verify(Sender<Result<VerifyView, Fault>>),
}
