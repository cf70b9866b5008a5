//! Starts guest processes, finds them again, and drives them.

use std::ffi::OsString;
use std::fs::{DirBuilder, OpenOptions};
use std::io::Write;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::FlockOperation;
use rustix::process::Signal;
use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::guest_api::{
    Description, GuestConfig, HARVEST_BLOCKS_MAX, Request, Response, STATE_PART_BYTES_MAX,
};
use towpath_protocol::identity::Epoch;
use towpath_protocol::message::{STATE_BYTES_MAX, SpaceInfo};
use towpath_protocol::space::{BlockSet, MEMORY};
use towpath_protocol::time::Instant as MonotonicInstant;

use super::memory::GuestMemory;
use super::missing::MissingMemory;
use super::plain;
use super::transport::{self, HELLO_WAIT, Transport, own, unexpected};

/// Longest wait for an answer that needs no work.
const CALL_WAIT: Duration = Duration::from_secs(5);
/// Longest wait for work on all of a guest's memory or state, except filling it: walking the page
/// tables of hundreds of GiB takes a second or two.
pub(crate) const WORK_WAIT: Duration = Duration::from_secs(30);
/// Longest wait for a check of every page: a terabyte at a gigabyte per second.
pub(crate) const VERIFY_WAIT: Duration = Duration::from_secs(1000);

/// Longest wait for a guest to run: a first start fills its working set, at most 256 GiB, at about
/// 0.4 GiB a second.
pub(crate) const RUN_WAIT: Duration = Duration::from_secs(900);
/// Longest wait for a new process to be ready: it makes an empty machine.
pub(crate) const READY_WAIT: Duration = Duration::from_secs(20);
/// Longest wait for a process to end that was told to or killed. It frees its memory first: at most
/// 256 GiB, at about 5 GiB a second.
pub(crate) const END_WAIT: Duration = Duration::from_secs(100);
/// Most bytes a new process may print before it is ready.
const READY_BYTES_MAX: u64 = 4096;

/// The file that a guest process keeps locked while it lives.
const PID_FILE: &str = "guest.pid";

/// How guest processes are started: the program and its leading arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestCommand {
    /// The program.
    pub program: PathBuf,
    /// Its first arguments. `--dir DIR` and, for an incoming guest, `--incoming` follow them.
    pub arguments: Vec<OsString>,
}

/// A guest process and the connection that drives it. Dropping it leaves the guest as it is.
#[derive(Debug)]
pub struct GuestProcess {
    folder: PathBuf,
    config: GuestConfig,
    transport: Transport,
}

impl GuestProcess {
    /// Starts the process of a new guest. The guest does not run before [`Self::run`].
    ///
    /// # Errors
    ///
    /// `E_PATH` for a folder that is not ours alone, `E_IO`, or the fault that the process reports.
    pub fn spawn(
        command: &GuestCommand,
        folder: &Path,
        config: &GuestConfig,
    ) -> Result<Self, Fault> {
        spawn_process(command, folder, config, false)?;
        Self::adopt(folder)
    }

    /// Starts the process of a guest that comes from another host. Its memory is empty, and it
    /// refuses to run before state has been loaded into it.
    ///
    /// # Errors
    ///
    /// As [`Self::spawn`].
    pub fn spawn_incoming(
        command: &GuestCommand,
        folder: &Path,
        config: &GuestConfig,
    ) -> Result<Self, Fault> {
        spawn_process(command, folder, config, true)?;
        Self::adopt(folder)
    }

    /// Connects to the guest process of a folder. Cuts off any earlier connection; the guest
    /// continues unchanged.
    ///
    /// # Errors
    ///
    /// `E_GUEST` if no process answers there, `E_DENIED` if it is another user's.
    pub fn adopt(folder: &Path) -> Result<Self, Fault> {
        Self::adopt_within(folder, HELLO_WAIT)
    }

    /// As [`Self::adopt`], waiting up to `wait` for a busy process.
    ///
    /// # Errors
    ///
    /// As [`Self::adopt`].
    pub fn adopt_within(folder: &Path, wait: Duration) -> Result<Self, Fault> {
        let mut transport = Transport::connect(folder, wait)?;
        let description = describe(&mut transport, CALL_WAIT)?;
        Ok(Self {
            folder: folder.to_owned(),
            config: description.config,
            transport,
        })
    }

    /// Whether a guest process lives in a folder, connected or not.
    #[must_use]
    pub fn lives(folder: &Path) -> bool {
        refuse_if_running(&folder.join(PID_FILE)).is_err()
    }

    /// Kills the process that lives in a folder, if there is one, without a request: nobody drives
    /// it, or it does not answer. Waits until it is gone.
    ///
    /// # Errors
    ///
    /// `E_ALREADY_RUNNING` if the process cannot be identified, `E_IO` if it is unknown whether
    /// there is one, `E_GUEST` if it does not end in time.
    pub fn end_unadopted(folder: &Path) -> Result<(), Fault> {
        let pid_file = folder.join(PID_FILE);
        let Err(lives) = refuse_if_running(&pid_file) else {
            return Ok(());
        };
        let Ok(process) = transport::owner(folder) else {
            return Err(lives);
        };
        // Check the lock again: if it is still held, the listener found above is alive and is the
        // process that this handle refers to.
        if refuse_if_running(&pid_file).is_ok() {
            return Ok(());
        }
        match rustix::process::pidfd_send_signal(&process, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => {
                let shown = folder.display();
                let detail = format!("the guest process of {shown}: {error}");
                return Err(Fault::new(Code::Guest, detail));
            }
        }
        if transport::wait_for_end(&process, END_WAIT) {
            return Ok(());
        }
        let detail = format!("the guest process of {} does not end", folder.display());
        Err(Fault::new(Code::Guest, detail))
    }

    /// The guest's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of the guest's console.
    #[must_use]
    pub fn console_path(&self) -> PathBuf {
        Self::console_in(&self.folder)
    }

    /// The path of the console of the guest with this folder, even after its process is gone.
    #[must_use]
    pub fn console_in(folder: &Path) -> PathBuf {
        folder.join("console.log")
    }

    /// The guest's configuration.
    #[must_use]
    pub const fn config(&self) -> &GuestConfig {
        &self.config
    }

    /// The guest's spaces, as announced to a peer.
    #[must_use]
    pub fn spaces(&self) -> Vec<SpaceInfo> {
        vec![SpaceInfo {
            id: MEMORY,
            block_bytes: towpath_protocol::space::MEMORY_BLOCK_BYTES,
            block_count: self.config.block_count(),
        }]
    }

    /// The guest process's id.
    #[must_use]
    pub const fn process_id(&self) -> i32 {
        self.transport.process_id().as_raw_nonzero().get()
    }

    /// A descriptor that becomes readable when the guest process ends, for polling.
    #[must_use]
    pub fn end_signal(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(self.transport.process())
    }

    /// Whether the guest process lives.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.transport.is_alive()
    }

    /// Waits for the guest process to end. Returns `false` if it outlives the wait.
    #[must_use]
    pub fn wait_for_end(&self, wait: Duration) -> bool {
        self.transport.wait_for_end(wait)
    }

    /// Asks for the guest's state.
    ///
    /// # Errors
    ///
    /// `E_GUEST` if the process does not answer; the same holds for every call below.
    pub fn describe(&mut self) -> Result<Description, Fault> {
        describe(&mut self.transport, CALL_WAIT)
    }

    /// As [`Self::describe`], with a shorter wait.
    ///
    /// # Errors
    ///
    /// As [`Self::describe`].
    pub fn describe_within(&mut self, wait: Duration) -> Result<Description, Fault> {
        describe(&mut self.transport, wait)
    }

    /// How many packets the process has sent, including answers that came too late. A growing count
    /// means that it is slow, not silent.
    #[must_use]
    pub const fn heard_count(&self) -> u64 {
        self.transport.heard_count()
    }

    /// The guest's memory.
    ///
    /// # Errors
    ///
    /// `E_LAYOUT` if the file handed over is not exactly the guest's memory.
    pub fn memory(&mut self) -> Result<GuestMemory, Fault> {
        match self.transport.call(&Request::TakeMemory, CALL_WAIT)? {
            (Response::Memory { .. }, Some(file)) => {
                GuestMemory::new(file, self.config.memory_bytes)
            }
            (response, _) => Err(unexpected(&response)),
        }
    }

    /// Starts tracking writes. The caller must treat every block as dirty at this point.
    ///
    /// # Errors
    ///
    /// `E_STATE` while pages are missing, `E_GUEST` or `E_KVM` if this host cannot track writes.
    pub fn start_tracking(&mut self) -> Result<(), Fault> {
        self.expect_done(&Request::StartTracking, WORK_WAIT)
    }

    /// Stops tracking writes.
    ///
    /// # Errors
    ///
    /// As [`Self::describe`].
    pub fn stop_tracking(&mut self) -> Result<(), Fault> {
        self.expect_done(&Request::StopTracking, WORK_WAIT)
    }

    /// Adds every block written since the last harvest to `dirty` and resets the tracking. Memory
    /// read after this call contains at least those writes. Returns how many blocks were new to
    /// `dirty`.
    ///
    /// After a fault, an unknown part was reset without being reported: treat every block as dirty.
    ///
    /// # Errors
    ///
    /// `E_STATE` without [`Self::start_tracking`] on this connection, `E_USAGE` for a set of
    /// another size, `E_GUEST` if the process names blocks that were not asked for.
    pub fn harvest(&mut self, dirty: &mut BlockSet) -> Result<u64, Fault> {
        let block_count = self.config.block_count();
        if dirty.block_count() != block_count {
            return Err(Fault::new(
                Code::Usage,
                format!("{dirty:?} is no set over {block_count} blocks"),
            ));
        }
        let before = dirty.len();
        let mut first_block = 0;
        while first_block < block_count {
            let left = block_count - first_block;
            let count = u32::try_from(left)
                .unwrap_or(u32::MAX)
                .min(HARVEST_BLOCKS_MAX);
            self.harvest_range(first_block, count, dirty)?;
            first_block += u64::from(count);
        }
        Ok(dirty.len() - before)
    }

    fn harvest_range(
        &mut self,
        first_block: u64,
        block_count: u32,
        dirty: &mut BlockSet,
    ) -> Result<(), Fault> {
        let request = Request::Harvest {
            first_block,
            block_count,
        };
        let (response, _) = self.transport.call(&request, WORK_WAIT)?;
        let Response::Harvested {
            first_block: found_first,
            words,
        } = response
        else {
            return Err(unexpected(&response));
        };
        if found_first != first_block || words.len() != block_count.div_ceil(64) as usize {
            let count = words.len();
            return Err(Fault::new(
                Code::Guest,
                format!("{count} words from block {found_first} for {first_block}+{block_count}"),
            ));
        }
        for (word, bits) in (first_block / 64..).zip(words) {
            dirty.insert_word(word, bits).map_err(own)?;
        }
        Ok(())
    }

    /// Pauses the guest and returns since when it is paused.
    ///
    /// # Errors
    ///
    /// `E_STATE` if it never ran, `E_GUEST` if it waits for a missing page and so cannot be paused:
    /// it then continues as before.
    pub fn pause(&mut self) -> Result<MonotonicInstant, Fault> {
        match self.transport.call(&Request::Pause, CALL_WAIT)? {
            (Response::Paused { stopped_at_ns }, _) => {
                Ok(MonotonicInstant::from_nanos(stopped_at_ns))
            }
            (response, _) => Err(unexpected(&response)),
        }
    }

    /// Resumes a paused guest under its epoch and returns since when it runs. No effect if it runs.
    ///
    /// # Errors
    ///
    /// `E_STATE` if it never ran.
    pub fn resume(&mut self) -> Result<MonotonicInstant, Fault> {
        self.start(&Request::Resume, CALL_WAIT)
    }

    /// Makes sure that the guest runs under this epoch, which its owner must hold durably, and
    /// returns since when it runs. Repeating the same epoch changes nothing.
    ///
    /// # Errors
    ///
    /// `E_STATE` if it runs under another epoch or is incoming and has no state, `E_STALE_EPOCH` if
    /// it has run under a higher one.
    pub fn run(&mut self, epoch: Epoch) -> Result<MonotonicInstant, Fault> {
        self.start(&Request::Run { epoch }, RUN_WAIT)
    }

    /// As [`Self::run`], for a guest whose memory and state were loaded, which takes no time. A
    /// process that stands still must not keep its worker for as long as a first start may take.
    ///
    /// # Errors
    ///
    /// As [`Self::run`].
    pub(crate) fn run_loaded(&mut self, epoch: Epoch) -> Result<MonotonicInstant, Fault> {
        self.start(&Request::Run { epoch }, WORK_WAIT)
    }

    fn start(&mut self, request: &Request, wait: Duration) -> Result<MonotonicInstant, Fault> {
        match self.transport.call(request, wait)? {
            (
                Response::Running {
                    running_since_ns, ..
                },
                _,
            ) => Ok(MonotonicInstant::from_nanos(running_since_ns)),
            (response, _) => Err(unexpected(&response)),
        }
    }

    /// Saves the vCPU and machine state of a paused guest.
    ///
    /// # Errors
    ///
    /// `E_STATE` if it is not paused, `E_CPU_STATE` if its state cannot be saved.
    pub fn save_state(&mut self) -> Result<Vec<u8>, Fault> {
        let (response, _) = self.transport.call(&Request::SaveState, WORK_WAIT)?;
        let Response::StateSaved { bytes: length } = response else {
            return Err(unexpected(&response));
        };
        let length = length as usize;
        let mut state = Vec::with_capacity(length.min(STATE_BYTES_MAX));
        // Each part has at least one byte, and the total is capped.
        while state.len() < length {
            let offset = u32::try_from(state.len()).expect("a state is at most 1 MiB");
            let request = Request::ReadState { offset };
            let (response, _) = self.transport.call(&request, CALL_WAIT)?;
            match response {
                Response::StatePart {
                    offset: found,
                    bytes,
                } if found == offset && state.len() + bytes.len() <= length => {
                    state.extend_from_slice(&bytes);
                }
                response => return Err(unexpected(&response)),
            }
        }
        Ok(state)
    }

    /// Loads saved state into an incoming guest, which may run afterwards.
    ///
    /// # Errors
    ///
    /// `E_CPU_STATE` if this host cannot take the state, naming everything that is missing;
    /// `E_STATE` if the guest is not incoming; `E_RANGE` if the state is empty or above its cap.
    pub fn load_state(&mut self, state: &[u8]) -> Result<(), Fault> {
        if state.is_empty() || state.len() > STATE_BYTES_MAX {
            let length = state.len();
            return Err(Fault::new(
                Code::Range,
                format!("a state of {length} bytes"),
            ));
        }
        let mut offset = 0;
        for bytes in state.chunks(STATE_PART_BYTES_MAX) {
            let request = Request::WriteState {
                offset,
                bytes: bytes.to_vec(),
            };
            self.expect_done(&request, CALL_WAIT)?;
            offset += u32::try_from(bytes.len()).expect("a part is below 64 KiB");
        }
        self.expect_done(&Request::LoadState, WORK_WAIT)
    }

    /// Makes the guest wait at missing pages and returns the handle that answers it. A repeated
    /// call returns the same userfaultfd again; then call [`MissingMemory::wake_all`] first.
    ///
    /// # Errors
    ///
    /// `E_STATE` if the guest runs or its writes are tracked, `E_LAYOUT` if the map handed over is
    /// not exactly the guest's memory, `E_GUEST` if this host does not support it.
    pub fn arm_missing(&mut self) -> Result<MissingMemory, Fault> {
        match self.transport.call(&Request::ArmMissing, CALL_WAIT)? {
            (Response::Armed { regions }, Some(file)) => {
                MissingMemory::new(file, regions, self.config.memory_bytes)
            }
            (response, _) => Err(unexpected(&response)),
        }
    }

    /// Stops waiting at missing pages. Call this only when nothing is missing: absent pages read as
    /// zeros from then on.
    ///
    /// # Errors
    ///
    /// As [`Self::describe`].
    pub fn disarm_missing(&mut self) -> Result<(), Fault> {
        self.expect_done(&Request::DisarmMissing, WORK_WAIT)
    }

    /// Checks every byte of the guest's working set. Returns how many pages were right, or what is
    /// wrong with the first bad one. The guest's own process pauses a running guest meanwhile, so
    /// that it resumes whatever happens to the migrator.
    ///
    /// # Errors
    ///
    /// `E_UNEXPECTED` unless the guest runs or is paused, `E_GUEST` if its process does not answer
    /// or cannot pause it.
    pub fn verify(&mut self) -> Result<Result<u64, String>, Fault> {
        match self.transport.call(&Request::Verify, VERIFY_WAIT)? {
            (
                Response::Verified {
                    page_count,
                    mismatch,
                },
                _,
            ) => Ok(mismatch.map_or(Ok(page_count), Err)),
            (response, _) => Err(unexpected(&response)),
        }
    }

    /// Ends the guest and its process.
    ///
    /// # Errors
    ///
    /// `E_GUEST` if it does not end in time.
    pub fn quit(&mut self) -> Result<(), Fault> {
        self.begin_end()?;
        self.expect_end()
    }

    /// Asks the process to end, and kills it if it does not answer. From here on it does nothing
    /// but free its memory.
    ///
    /// # Errors
    ///
    /// `E_GUEST` if it can neither be asked nor killed.
    pub fn begin_end(&mut self) -> Result<(), Fault> {
        if self.expect_done(&Request::Quit, CALL_WAIT).is_ok() {
            return Ok(());
        }
        match rustix::process::pidfd_send_signal(self.transport.process(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(Fault::new(
                Code::Guest,
                format!("guest process {}: {error}", self.process_id()),
            )),
        }
    }

    /// Waits until the process is gone and its memory is freed.
    ///
    /// # Errors
    ///
    /// `E_GUEST` if it does not end in time.
    pub fn expect_end(&self) -> Result<(), Fault> {
        if self.transport.wait_for_end(END_WAIT) {
            return Ok(());
        }
        Err(Fault::new(
            Code::Guest,
            format!("guest process {} does not end", self.process_id()),
        ))
    }

    fn expect_done(&mut self, request: &Request, wait: Duration) -> Result<(), Fault> {
        match self.transport.call(request, wait)? {
            (Response::Done, _) => Ok(()),
            (response, _) => Err(unexpected(&response)),
        }
    }
}

fn describe(transport: &mut Transport, wait: Duration) -> Result<Description, Fault> {
    match transport.call(&Request::Describe, wait)? {
        (Response::Described(description), _) => Ok(*description),
        (response, _) => Err(unexpected(&response)),
    }
}

fn spawn_process(
    command: &GuestCommand,
    folder: &Path,
    config: &GuestConfig,
    is_incoming: bool,
) -> Result<(), Fault> {
    prepare_folder(folder)?;
    refuse_if_running(&folder.join(PID_FILE))?;
    write_config(&folder.join("config.json"), config)?;
    let program = command.program.display();
    let failed = |error: std::io::Error| Fault::new(Code::Io, format!("start {program}: {error}"));
    let mut process = Command::new(&command.program);
    process.args(&command.arguments).arg("--dir").arg(folder);
    if is_incoming {
        process.arg("--incoming");
    }
    process
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = process.spawn().map_err(failed)?;
    wait_until_ready(&mut child).inspect_err(|_| {
        // It will never be ready, so no half-made guest may stay behind.
        let _ = child.kill();
        let _ = child.wait();
    })
}

/// Creates the guest's folder, or accepts one that is ours alone.
fn prepare_folder(folder: &Path) -> Result<(), Fault> {
    let shown = folder.display();
    match DirBuilder::new().mode(0o700).create(folder) {
        Ok(()) => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(Fault::new(Code::Io, format!("{shown}: {error}"))),
    }
    let metadata = std::fs::symlink_metadata(folder)
        .map_err(|error| Fault::new(Code::Io, format!("{shown}: {error}")))?;
    let is_ours = metadata.uid() == rustix::process::geteuid().as_raw();
    if !metadata.is_dir() || !is_ours || metadata.mode() & 0o077 != 0 {
        return Err(Fault::new(
            Code::Path,
            format!("{shown} is not a folder of ours alone: it must be mode 0700"),
        ));
    }
    Ok(())
}

/// Fails if a guest process lives or if that cannot be determined. A new process would find out by
/// itself, but only after its configuration had been overwritten.
fn refuse_if_running(path: &Path) -> Result<(), Fault> {
    let file = match plain::open(OpenOptions::new().read(true), path) {
        Ok(file) => file,
        Err(fault) if fault.code == Code::NotFound => return Ok(()),
        // A lack of descriptors, for example, does not tell; nor does something else in the file's
        // place.
        Err(fault) => {
            let detail = format!("whether a guest process lives: {}", fault.detail);
            return Err(Fault::new(fault.code, detail));
        }
    };
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Fault::new(
            Code::AlreadyRunning,
            format!("{} is locked by a guest process that lives", path.display()),
        )),
        _ => Ok(()),
    }
}

fn write_config(path: &Path, config: &GuestConfig) -> Result<(), Fault> {
    let failed = |error: std::io::Error| {
        let shown = path.display();
        Fault::new(Code::Io, format!("{shown}: {error}"))
    };
    let text = serde_json::to_string_pretty(config).expect("plain structs always serialise");
    let mut options = OpenOptions::new();
    options.create(true).write(true).truncate(false);
    let mut file = plain::open(&mut options, path)?;
    file.set_len(0)
        .and_then(|()| file.write_all(text.as_bytes()))
        .map_err(failed)
}

/// Reads the one line that a new process prints: that it is ready, or why not.
fn wait_until_ready(child: &mut Child) -> Result<(), Fault> {
    let output = OwnedFd::from(child.stdout.take().expect("the output is a pipe"));
    let deadline = Instant::now() + READY_WAIT;
    let mut said = Vec::new();
    // Each iteration reads at least one byte of a bounded number, or ends the loop.
    while !said.ends_with(b"\n") && (said.len() as u64) < READY_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut polled = [PollFd::new(&output, PollFlags::IN)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => {
                return Err(Fault::new(
                    Code::Guest,
                    format!("the guest process is not ready after {READY_WAIT:?}"),
                ));
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Fault::new(Code::Io, format!("poll: {error}"))),
        }
        let mut byte = [0];
        match rustix::io::read(&output, &mut byte) {
            Ok(1) => said.push(byte[0]),
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Fault::new(Code::Io, format!("guest process: {error}"))),
        }
    }
    parse_ready(&String::from_utf8_lossy(&said))
}

/// Parses `ready`, or `fault CODE detail`.
pub(super) fn parse_ready(line: &str) -> Result<(), Fault> {
    let line = line.trim_end();
    if line == "ready" {
        return Ok(());
    }
    let fault = line
        .strip_prefix("fault ")
        .and_then(|rest| rest.split_once(' '))
        .and_then(|(code, detail)| Some(Fault::new(Code::parse(code)?, detail)));
    Err(fault.unwrap_or_else(|| {
        Fault::new(
            Code::Guest,
            format!("the guest process ended without being ready: {line:?}"),
        )
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_process_says_is_understood() {
        assert_eq!(parse_ready("ready\n"), Ok(()));
        let fault = parse_ready("fault E_KVM /dev/kvm: no such device\n").unwrap_err();
        assert_eq!(fault, Fault::new(Code::Kvm, "/dev/kvm: no such device"));
        for line in ["", "fault E_NONSENSE x", "rea"] {
            assert_eq!(parse_ready(line).unwrap_err().code, Code::Guest);
        }
    }

    #[test]
    fn d02_a_folder_others_can_reach_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("guest");
        prepare_folder(&folder).unwrap();
        prepare_folder(&folder).unwrap();
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&folder, open).unwrap();
        assert_eq!(prepare_folder(&folder).unwrap_err().code, Code::Path);
        let link = parent.path().join("link");
        std::os::unix::fs::symlink(parent.path(), &link).unwrap();
        assert_eq!(prepare_folder(&link).unwrap_err().code, Code::Path);
    }
}
