//! A panic anywhere ends the whole daemon.

use std::backtrace::Backtrace;
use std::panic;

/// Logs a panic of any thread and aborts the process.
///
/// A daemon that lost a thread is worse than a dead one: a migrator without its journal thread
/// could go on telling its peer that all is well. The service manager restarts the daemon, which
/// recovers from its journal as after a power loss.
pub fn abort_on_panic() {
    panic::set_hook(Box::new(|info| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        let backtrace = Backtrace::force_capture();
        tracing::error!(thread = name, %backtrace, "{info}");
        std::process::abort();
    }));
}
