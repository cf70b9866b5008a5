//! Asks the guest program what this host supports.

use std::io::Read;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use towpath_protocol::fault::{Code, Fault};

use super::GuestCommand;
use super::process::parse_ready;

/// Longest wait for the answer: the program makes a machine and drops it again.
const PROBE_WAIT: Duration = Duration::from_secs(5);

/// Most bytes of the answer, which has a few lines.
const ANSWER_BYTES_MAX: usize = 8192;

/// Asks whether guests of kind `kvm` can be made here. Returns `None` if so, else the reason why
/// not.
///
/// # Errors
///
/// `E_GUEST` if the program gives no answer, `E_IO` if it cannot be started.
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
    // The answer is complete or will never be.
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

/// Reads the program's output until it is closed.
fn read_all(child: &mut Child) -> Result<String, Fault> {
    let io = |error: std::io::Error| Fault::new(Code::Io, format!("guest process: {error}"));
    let mut output = child.stdout.take().expect("the output is a pipe");
    let deadline = Instant::now() + PROBE_WAIT;
    let mut said = Vec::new();
    let mut part = [0; 1024];
    // Each iteration reads at least one byte of a bounded number, or ends the loop.
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
