//! A log that is kept in memory.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, OnceLock};

use towpath_daemon::log;

/// The log of all tunnels of a test program. A program has a single log, shared by all of its
/// tests.
#[derive(Clone)]
pub struct Kept(Arc<Mutex<Vec<u8>>>);

impl Kept {
    /// The log from the first call on.
    pub fn log() -> Self {
        static LOG: OnceLock<Kept> = OnceLock::new();
        let begin = || {
            let kept = Self(Arc::default());
            let writer = kept.clone();
            let lines = log::lines(&log::Options::default(), true, move || writer.clone());
            tracing::dispatcher::set_global_default(lines.unwrap()).unwrap();
            kept
        };
        LOG.get_or_init(begin).clone()
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Kept {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
