//! Asks the program of guests what this host offers them.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use towpath_protocol::fault::{Code, Fault};

use super::GuestCommand;
use super::process::parse_ready;

/// Longest wait for the answer: it makes a machine and drops it again.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// Most bytes of the answer: a few lines.
const ANSWER_BYTES_MAX: usize = 8192;

/// Asks whether guests of kind kvm can be made here: none if so, else why not.
///
/// # Errors
///
/// `E_GUEST` if the program does not say, `E_IO` if it cannot be started.
pub fn probe_kvm(command: &GuestCommand) -> Result<Option<Fault>, Fault> {
    let program = command.program.display();
    let failed = |error: std::io::Error| Fault::new(Code::Io, format!("start {program}: {error}"));
    let mut child = Command::new(&command.program)
        .args(&command.arguments)
        .arg("--probe")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    let said = read_all(&mut child);
    // It has said all that is wanted, or never will.
    let _ = child.kill();
    let _ = child.wait();
    let said = said?;
    let answer = said.lines().find_map(|line| line.strip_prefix("kvm "));
    let answer = answer.ok_or_else(|| {
        let detail = format!("{program} does not say what this host offers: {said:.80?}");
        Fault::new(Code::Guest, detail)
    })?;
    Ok(parse_ready(answer).err())
}

/// What the program says until it closes its output.
fn read_all(child: &mut Child) -> Result<String, Fault> {
    let io = |error: std::io::Error| Fault::new(Code::Io, format!("guest process: {error}"));
    let mut output = child.stdout.take().expect("the output is a pipe");
    let deadline = Instant::now() + PROBE_WAIT;
    let mut said = Vec::new();
    let mut part = [0; 1024];
    // Each turn takes at least one byte of few, or ends.
    while said.len() < ANSWER_BYTES_MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).unwrap_or_default();
        let mut polled = [PollFd::from_borrowed_fd(output.as_fd(), PollFlags::IN)];
        match poll(&mut polled, Some(&timeout)) {
            Ok(0) => {
                let detail = format!("the host is not looked at within {PROBE_WAIT:?}");
                return Err(Fault::new(Code::Guest, detail));
            }
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(io(error.into())),
        }
        match output.read(&mut part).map_err(io)? {
            0 => break,
            count => said.extend_from_slice(&part[..count]),
        }
    }
    Ok(String::from_utf8_lossy(&said).into_owned())
}
