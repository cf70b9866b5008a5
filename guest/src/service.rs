//! Decides how a guest process answers: which request is valid in which state.

use std::os::fd::BorrowedFd;

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{
    Description, GuestConfig, GuestKind, GuestState, Request, Response, STATE_PART_BYTES_MAX,
    VERSIONS,
};
use towpath_protocol::identity::Epoch;
use towpath_protocol::message::{Reason, STATE_BYTES_MAX};
use towpath_protocol::version::Speaker;

use crate::engine::Engine;
use crate::memory::Memory;
use crate::runner::Outcome;
use crate::sections::Sections;
use crate::userfault::{Registration, TouchedBy};

/// The file that is attached to an answer.
#[derive(Debug)]
pub(crate) enum Attachment {
    Memory,
    Missing,
}

/// An answer and its attachment.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) response: Response,
    pub(crate) attachment: Option<Attachment>,
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self {
            response,
            attachment: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Created,
    Incoming,
    Loaded,
    Running,
    Paused,
}

/// The guest and the state of its process.
pub(crate) struct Service {
    config: GuestConfig,
    engine: Box<dyn Engine>,
    memory: Memory,
    phase: Phase,
    epoch: Option<Epoch>,
    is_booted: bool,
    is_greeted: bool,
    is_tracking: bool,
    missing: Option<Registration>,
    state_saved: Vec<u8>,
    state_written: Vec<u8>,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "guest {} {:?}", self.config.name, self.phase)
    }
}

impl Service {
    pub(crate) fn new(
        config: GuestConfig,
        engine: Box<dyn Engine>,
        memory: Memory,
        is_incoming: bool,
    ) -> Self {
        Self {
            config,
            engine,
            memory,
            phase: if is_incoming {
                Phase::Incoming
            } else {
                Phase::Created
            },
            epoch: None,
            is_booted: false,
            is_greeted: false,
            is_tracking: false,
            missing: None,
            state_saved: Vec::new(),
            state_written: Vec::new(),
        }
    }

    /// Starts a new connection: unfinished requests of the previous one are dropped. The guest
    /// continues unchanged.
    pub(crate) fn begin_session(&mut self) {
        self.is_greeted = false;
        self.state_written.clear();
        if std::mem::take(&mut self.is_tracking)
            && let Err(fault) = self.engine.stop_tracking()
        {
            tracing::warn!(%fault, "tracking goes on without anybody to ask");
        }
    }

    /// The file for an answer's attachment.
    pub(crate) fn attached(&self, attachment: &Attachment) -> Option<BorrowedFd<'_>> {
        match attachment {
            Attachment::Memory => Some(self.memory.file()),
            Attachment::Missing => self.missing.as_ref().map(Registration::fd),
        }
    }

    /// Ends the guest.
    pub(crate) fn end(&mut self) {
        self.engine.end();
    }

    /// Answers one request. A request that is invalid in the guest's state changes nothing.
    pub(crate) fn answer(&mut self, request: Request) -> Answer {
        self.dispatch(request).unwrap_or_else(|fault| {
            tracing::warn!(%fault, "refused");
            Response::Failed(Reason::from(&fault)).into()
        })
    }

    fn dispatch(&mut self, request: Request) -> Result<Answer, Fault> {
        if let Request::Hello { versions } = request {
            let speaker = |name, versions| Speaker { name, versions };
            let ours = speaker("the guest's process", VERSIONS);
            let version = ours.negotiate(&speaker("the migrator", versions))?;
            self.is_greeted = true;
            let process_id = std::process::id();
            let welcome = Response::Welcome {
                version,
                process_id,
            };
            return Ok(welcome.into());
        }
        if !self.is_greeted {
            return Err(unexpected("the first request must be a hello"));
        }
        let response = match request {
            Request::Hello { .. } => unreachable!("answered above"),
            Request::Describe => Response::Described(Box::new(self.describe())),
            Request::TakeMemory => return Ok(self.hand_over_memory()),
            Request::StartTracking => self.start_tracking()?,
            Request::Harvest {
                first_block,
                block_count,
            } => self.harvest(first_block, block_count)?,
            Request::StopTracking => self.stop_tracking()?,
            Request::Pause => self.pause()?,
            Request::Resume => self.resume()?,
            Request::SaveState => self.save_state()?,
            Request::ReadState { offset } => self.read_state(offset)?,
            Request::WriteState { offset, bytes } => self.write_state(offset, &bytes)?,
            Request::LoadState => self.load_state()?,
            Request::ArmMissing => return self.arm_missing(),
            Request::DisarmMissing => {
                self.missing = None;
                Response::Done
            }
            Request::Run { epoch } => self.run(epoch)?,
            // The server ends the process once the answer has been sent.
            Request::Quit => Response::Done,
            Request::Verify => self.verify()?,
        };
        Ok(response.into())
    }

    /// Checks the guest's memory, pausing it if it runs. It is resumed even if the client goes away
    /// meanwhile.
    fn verify(&mut self) -> Result<Response, Fault> {
        match self.phase {
            Phase::Paused => self.verify_paused(),
            Phase::Running => {
                let held = self.pause();
                let verified = held.and_then(|_| self.verify_paused());
                // Even after a failure: a guest that did not stop in time would stop later.
                self.resume()?;
                verified
            }
            _ => Err(unexpected("only a guest that has begun can be checked")),
        }
    }

    fn verify_paused(&self) -> Result<Response, Fault> {
        match crate::verify::verify(self.memory.file(), &self.describe()) {
            Ok(verified) => Ok(Response::Verified {
                page_count: verified.page_count,
                mismatch: None,
            }),
            Err(fault) if fault.code == Code::RootMismatch => Ok(Response::Verified {
                page_count: 0,
                mismatch: Some(Reason::from(&fault).detail),
            }),
            Err(fault) => Err(fault),
        }
    }

    fn describe(&self) -> Description {
        let progress = self.engine.progress();
        let state = match self.engine.outcome() {
            Some(Outcome::Stopped) => GuestState::Stopped,
            Some(Outcome::Crashed(reason)) => GuestState::Crashed {
                reason: Reason::from(&Fault::new(Code::Guest, reason)).detail,
            },
            None => match self.phase {
                Phase::Created => GuestState::Created,
                Phase::Incoming => GuestState::Incoming,
                Phase::Loaded => GuestState::Loaded,
                Phase::Running => GuestState::Running,
                Phase::Paused => GuestState::Paused,
            },
        };
        Description {
            config: self.config.clone(),
            state,
            epoch: self.epoch,
            heartbeat_sequence: progress.heartbeat_sequence,
            write_count: progress.write_count,
            page_in_progress: progress.page_in_progress,
            tracking_method: self.engine.tracking_method(),
            is_tracking: self.is_tracking,
            is_armed: self.missing.is_some(),
        }
    }

    fn hand_over_memory(&self) -> Answer {
        Answer {
            response: Response::Memory {
                bytes: self.memory.bytes(),
            },
            attachment: Some(Attachment::Memory),
        }
    }

    fn start_tracking(&mut self) -> Result<Response, Fault> {
        if self.missing.is_some() {
            return Err(unexpected(
                "writes cannot be tracked while pages are missing",
            ));
        }
        self.engine.start_tracking()?;
        self.is_tracking = true;
        Ok(Response::Done)
    }

    fn harvest(&mut self, first_block: u64, block_count: u32) -> Result<Response, Fault> {
        if !self.is_tracking {
            return Err(unexpected(
                "this connection has not asked for writes to be tracked",
            ));
        }
        let end = first_block + u64::from(block_count);
        if end > self.memory.block_count() {
            let count = self.memory.block_count();
            return Err(Fault::new(
                Code::Range,
                format!("a harvest of blocks {first_block}+{block_count} of {count}"),
            ));
        }
        let words = self.engine.harvest(first_block, block_count)?;
        Ok(Response::Harvested { first_block, words })
    }

    fn stop_tracking(&mut self) -> Result<Response, Fault> {
        self.engine.stop_tracking()?;
        self.is_tracking = false;
        Ok(Response::Done)
    }

    fn pause(&mut self) -> Result<Response, Fault> {
        self.expect(&[Phase::Running, Phase::Paused], "pause")?;
        let stopped_at_ns = self.engine.stop()?;
        self.phase = Phase::Paused;
        Ok(Response::Paused { stopped_at_ns })
    }

    fn resume(&mut self) -> Result<Response, Fault> {
        self.expect(&[Phase::Running, Phase::Paused], "resume")?;
        let epoch = self.epoch.unwrap_or_default();
        self.start(epoch)
    }

    fn run(&mut self, epoch: Epoch) -> Result<Response, Fault> {
        match (self.phase, self.epoch) {
            (Phase::Incoming, _) => {
                return Err(unexpected(
                    "an incoming guest cannot run before its state is loaded",
                ));
            }
            (Phase::Running, Some(now)) if now != epoch => {
                return Err(unexpected(format!(
                    "the guest runs under epoch {now}, not under {epoch}"
                )));
            }
            (Phase::Paused, Some(now)) if now > epoch => {
                return Err(Fault::new(
                    Code::StaleEpoch,
                    format!("the guest was run under epoch {now}, {epoch} is older"),
                ));
            }
            // Boot only once: a retry after a failed start must not boot over a guest that has
            // begun.
            (Phase::Created, _) if !self.is_booted => {
                self.engine.boot()?;
                self.is_booted = true;
            }
            _ => {}
        }
        self.start(epoch)
    }

    /// Runs the guest under an epoch that was checked. Repeating the same epoch changes nothing.
    fn start(&mut self, epoch: Epoch) -> Result<Response, Fault> {
        if self.phase != Phase::Running {
            tracing::info!(%epoch, "guest runs");
        }
        // Set before the attempt: whatever it returns, the guest may have run under this epoch.
        self.epoch = Some(epoch);
        self.phase = Phase::Running;
        self.state_saved.clear();
        let running_since_ns = self.engine.start(epoch.0)?;
        Ok(Response::Running {
            epoch,
            running_since_ns,
        })
    }

    fn save_state(&mut self) -> Result<Response, Fault> {
        self.expect(&[Phase::Paused], "save the state of")?;
        self.state_saved = self.engine.save()?.to_bytes()?;
        let bytes = u32::try_from(self.state_saved.len()).expect("capped at 1 MiB");
        Ok(Response::StateSaved { bytes })
    }

    fn read_state(&self, offset: u32) -> Result<Response, Fault> {
        let rest = self.state_saved.get(offset as usize..).unwrap_or_default();
        if rest.is_empty() {
            let length = self.state_saved.len();
            return Err(Fault::new(
                Code::Range,
                format!("no state at {offset}: {length} bytes are saved"),
            ));
        }
        let bytes = rest[..rest.len().min(STATE_PART_BYTES_MAX)].to_vec();
        Ok(Response::StatePart { offset, bytes })
    }

    fn write_state(&mut self, offset: u32, bytes: &[u8]) -> Result<Response, Fault> {
        self.expect(&[Phase::Incoming, Phase::Loaded], "write the state of")?;
        if offset == 0 {
            self.state_written.clear();
        }
        let have = self.state_written.len();
        if offset as usize != have || have + bytes.len() > STATE_BYTES_MAX {
            let length = bytes.len();
            return Err(Fault::new(
                Code::Range,
                format!("{length} bytes of state at {offset}, after {have}"),
            ));
        }
        self.state_written.extend_from_slice(bytes);
        Ok(Response::Done)
    }

    fn load_state(&mut self) -> Result<Response, Fault> {
        self.expect(&[Phase::Incoming, Phase::Loaded], "load the state of")?;
        // Until loading succeeds the guest has no complete state.
        self.phase = Phase::Incoming;
        self.engine
            .load(Sections::from_bytes(&self.state_written)?)?;
        self.phase = Phase::Loaded;
        Ok(Response::Done)
    }

    fn arm_missing(&mut self) -> Result<Answer, Fault> {
        if self.is_tracking {
            return Err(unexpected(
                "pages cannot be missing while writes are tracked",
            ));
        }
        if self.missing.is_none() {
            // Not before a first start, because that fills memory from this very thread, which
            // would also have to answer; and not while running, when the guest may be in the middle
            // of a page that is about to be missing.
            let phases = [Phase::Incoming, Phase::Loaded, Phase::Paused];
            self.expect(&phases, "take pages from")?;
            let touched_by = match self.config.kind {
                GuestKind::Kvm => TouchedBy::Kernel,
                GuestKind::Process => TouchedBy::UserCode,
            };
            let registration = Registration::for_missing(self.memory.range(), touched_by)?;
            self.missing = Some(registration);
        }
        Ok(Answer {
            response: Response::Armed {
                regions: self.memory.regions(),
            },
            attachment: Some(Attachment::Missing),
        })
    }

    fn expect(&self, phases: &[Phase], what: &str) -> Result<(), Fault> {
        if let Some(outcome) = self.engine.outcome() {
            return Err(crate::runner::ended(&outcome));
        }
        if phases.contains(&self.phase) {
            return Ok(());
        }
        let phase = self.phase;
        Err(unexpected(format!(
            "cannot {what} a guest that is {phase:?}"
        )))
    }
}

fn unexpected(detail: impl Into<String>) -> Fault {
    Fault::new(Code::State, detail)
}
