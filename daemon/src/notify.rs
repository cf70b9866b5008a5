//! Tells the service manager the daemon's state (systemd's `sd_notify` protocol).
//!
//! Without a service manager nothing happens. A message that cannot be sent is logged and has no
//! other consequence: the manager notices by itself what matters.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Longest status text, in bytes. It is shown as one line of `systemctl status`.
pub const STATUS_BYTES_MAX: usize = 400;

/// Whether the last message could not be sent to the service manager.
static IS_DEAF: AtomicBool = AtomicBool::new(false);

/// The service manager of this process.
#[derive(Debug, Clone)]
pub struct Manager {
    socket: OsString,
    watchdog: Option<Duration>,
}

impl Manager {
    /// The service manager that started this process, if there is one and it wants notifications.
    #[must_use]
    pub fn from_env() -> Option<Self> {
        let word = |name| env::var(name).ok();
        let (wait, process) = (word("WATCHDOG_USEC"), word("WATCHDOG_PID"));
        Some(Self {
            socket: env::var_os("NOTIFY_SOCKET")?,
            watchdog: watchdog(wait.as_deref(), process.as_deref(), std::process::id()),
        })
    }

    /// A service manager at a socket, with the timeout of its watchdog if it has one.
    #[must_use]
    pub const fn at(socket: OsString, watchdog: Option<Duration>) -> Self {
        Self { socket, watchdog }
    }

    /// How long the manager waits for a sign of life before it kills the daemon.
    #[must_use]
    pub const fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// Tells the watchdog that the daemon is alive.
    pub fn alive(&self) {
        self.say("WATCHDOG=1\n");
    }

    /// Reports the daemon's state in one line.
    pub fn status(&self, text: &str) {
        self.say(&format!("STATUS={}\n", one_line(text)));
    }

    fn say(&self, state: &str) {
        let (socket, word) = (&self.socket, state.trim());
        match send(socket, state) {
            Ok(()) => IS_DEAF.store(false, Ordering::Relaxed),
            // A manager may go away, as a demo's does once all are ready. Only the first failure is
            // a warning.
            Err(error) if IS_DEAF.swap(true, Ordering::Relaxed) => {
                tracing::debug!(?socket, %error, "the service manager cannot be told {word}");
            }
            Err(error) => {
                tracing::warn!(?socket, %error, "the service manager cannot be told {word}");
            }
        }
    }
}

/// Reports that the daemon is ready.
pub fn ready() {
    crate::activation::warn_of_unused();
    say("READY=1\n");
}

/// Reports that the daemon reloads its configuration. Ended by [`ready`].
pub fn reloading() {
    let now = clock_gettime(ClockId::Monotonic);
    // Seconds and nanoseconds since boot are never negative.
    let micros = now.tv_sec.unsigned_abs() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1000;
    say(&format!("RELOADING=1\nMONOTONIC_USEC={micros}\n"));
}

/// Reports that the daemon is stopping as requested.
pub fn stopping() {
    say("STOPPING=1\n");
}

fn say(state: &str) {
    if let Some(manager) = Manager::from_env() {
        manager.say(state);
    }
}

/// The watchdog's timeout, if it is set and meant for this process.
fn watchdog(wait: Option<&str>, process: Option<&str>, own: u32) -> Option<Duration> {
    let is_ours = process.is_none_or(|process| process.parse() == Ok(own));
    let micros: u64 = wait?.parse().ok()?;
    (is_ours && micros > 0).then(|| Duration::from_micros(micros))
}

/// Replaces control characters, which could begin another assignment, and cuts to the longest
/// status text.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len().min(STATUS_BYTES_MAX));
    for c in text.chars() {
        let c = if c.is_control() { ' ' } else { c };
        if line.len() + c.len_utf8() > STATUS_BYTES_MAX {
            break;
        }
        line.push(c);
    }
    line
}

/// Sends to a path, or to an abstract name written with a leading `@`.
fn send(socket: &OsStr, state: &str) -> std::io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        path => SocketAddr::from_pathname(OsStr::from_bytes(path))?,
    };
    UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_hears_the_state_at_a_path_and_at_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let abstract_name = format!("towpath-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        for (socket, name) in [
            (
                UnixDatagram::bind(&path).unwrap(),
                path.clone().into_os_string(),
            ),
            (
                UnixDatagram::bind_addr(&abstract_address).unwrap(),
                format!("@{abstract_name}").into(),
            ),
        ] {
            send(&name, "READY=1\n").unwrap();
            let mut heard = [0; 64];
            let count = socket.recv(&mut heard).unwrap();
            assert_eq!(&heard[..count], b"READY=1\n");
        }
        assert!(send(OsStr::new("/nowhere/at/all"), "READY=1").is_err());
    }

    #[test]
    fn a_watchdog_meant_for_another_process_is_not_ours() {
        let ten = Some(Duration::from_secs(10));
        assert_eq!(watchdog(Some("10000000"), None, 7), ten);
        assert_eq!(watchdog(Some("10000000"), Some("7"), 7), ten);
        for (wait, process) in [
            (Some("10000000"), Some("8")),
            (Some("10000000"), Some("x")),
            (Some("0"), None),
            (Some("soon"), None),
            (None, Some("7")),
        ] {
            assert_eq!(watchdog(wait, process, 7), None, "{wait:?} {process:?}");
        }
    }

    #[test]
    fn a_status_cannot_smuggle_in_another_word() {
        assert_eq!(one_line("up\nREADY=1\r\u{1b}x"), "up READY=1  x");
        let long = "\u{e4}".repeat(STATUS_BYTES_MAX);
        assert_eq!(one_line(&long).len(), STATUS_BYTES_MAX);
    }
}
