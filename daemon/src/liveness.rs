//! Feeds the service manager's watchdog for as long as every part of the daemon answers.
//!
//! A separate thread asks each part in turn and waits for the answers. A part is a runtime, and
//! asking it means running a task on it that takes the locks which serving takes. So the watchdog
//! starves if all threads of a runtime hang or if a lock is never released, and the manager then
//! kills and restarts the daemon. An independent timer that feeds the watchdog would only prove
//! that the timer runs.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use towpath_protocol::fault::{Code, Fault};

use crate::notify::Manager;

/// Signs of life per watchdog timeout: two may be late before the manager acts.
const SIGNS_PER_WAIT: u32 = 4;

/// Time between two rounds without a watchdog, only to update the status text.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// What a part runs to answer. Returns a line of status, if it has one.
type Look = dyn Fn() -> Option<String> + Send + Sync;

/// A part of a daemon that must answer.
#[derive(Clone)]
pub struct Part {
    name: &'static str,
    runtime: Handle,
    look: Arc<Look>,
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("name", &self.name).finish()
    }
}

impl Part {
    /// A part that is asked by running `look` on its runtime. `look` should take the locks that
    /// serving takes, and none that may be held for long. The line it returns, if any, becomes the
    /// daemon's status.
    pub fn new(
        name: &'static str,
        runtime: Handle,
        look: impl Fn() -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        let look = Arc::new(look);
        Self {
            name,
            runtime,
            look,
        }
    }
}

/// Watches over the parts until it is dropped.
#[derive(Debug)]
pub struct WatchdogGuard(Option<Sender<Heard>>);

impl Drop for WatchdogGuard {
    fn drop(&mut self) {
        if let Some(word) = self.0.take() {
            // If the thread has ended there is nothing to stop.
            let _ = word.send(Heard::Enough);
        }
    }
}

/// Watches over the parts of this daemon, if a service manager asked for it.
///
/// # Errors
///
/// `E_IO` if the thread cannot be started.
pub fn watch(parts: Vec<Part>) -> Result<WatchdogGuard, Fault> {
    match Manager::from_env() {
        Some(manager) => watch_on_behalf_of(manager, parts),
        None => Ok(WatchdogGuard(None)),
    }
}

/// Watches over parts on behalf of a manager.
///
/// # Errors
///
/// `E_IO` if the thread cannot be started.
pub fn watch_on_behalf_of(manager: Manager, parts: Vec<Part>) -> Result<WatchdogGuard, Fault> {
    let (word, heard) = channel();
    let answers = word.clone();
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || Watcher::new(manager, parts, answers).work(&heard))
        .map_err(|error| Fault::new(Code::Io, format!("a thread for the watchdog: {error}")))?;
    Ok(WatchdogGuard(Some(word)))
}

#[derive(Debug)]
enum Heard {
    Answer { part: usize, line: Option<String> },
    Enough,
}

#[derive(Debug)]
struct Watcher {
    manager: Manager,
    parts: Vec<Part>,
    /// Per part, the time of the question that it has not answered yet.
    asked: Vec<Option<Instant>>,
    answers: Sender<Heard>,
    status: String,
}

impl Watcher {
    fn new(manager: Manager, parts: Vec<Part>, answers: Sender<Heard>) -> Self {
        Self {
            asked: vec![None; parts.len()],
            manager,
            parts,
            answers,
            status: String::new(),
        }
    }

    fn work(mut self, heard: &Receiver<Heard>) {
        let interval = self.manager.watchdog();
        let interval = interval.map_or(LOOK_INTERVAL, |wait| wait / SIGNS_PER_WAIT);
        loop {
            self.ask();
            let until = Instant::now() + interval;
            loop {
                let left = until.saturating_duration_since(Instant::now());
                match heard.recv_timeout(left) {
                    Ok(Heard::Answer { part, line }) => self.hear(part, line),
                    Ok(Heard::Enough) | Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => break,
                }
            }
            self.judge();
        }
    }

    /// Asks each part that owes no answer. A part that hangs does not collect questions.
    fn ask(&mut self) {
        for (index, part) in self.parts.iter().enumerate() {
            if self.asked[index].is_some() {
                continue;
            }
            self.asked[index] = Some(Instant::now());
            let (look, answers) = (Arc::clone(&part.look), self.answers.clone());
            part.runtime.spawn(async move {
                let line = look();
                // Nobody listens any more once the daemon ends.
                let _ = answers.send(Heard::Answer { part: index, line });
            });
        }
    }

    fn hear(&mut self, part: usize, line: Option<String>) {
        self.asked[part] = None;
        if let Some(line) = line
            && line != self.status
        {
            self.manager.status(&line);
            self.status = line;
        }
    }

    /// Feeds the watchdog if no answer is missing; otherwise logs which parts do not answer.
    fn judge(&self) {
        let mut is_alive = true;
        for (part, asked) in self.parts.iter().zip(&self.asked) {
            let Some(asked) = asked else { continue };
            is_alive = false;
            let (part, silent_ms) = (part.name, asked.elapsed().as_millis());
            tracing::warn!(part, silent_ms, "a part of the daemon does not answer");
        }
        if is_alive && self.manager.watchdog().is_some() {
            self.manager.alive();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixDatagram;
    use std::sync::Mutex;
    use tokio::runtime::Builder;

    const DEADLINE: Duration = Duration::from_secs(20);
    const WAIT: Duration = Duration::from_millis(200);

    struct FakeManager {
        socket: UnixDatagram,
        folder: tempfile::TempDir,
    }

    impl FakeManager {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let socket = UnixDatagram::bind(folder.path().join("notify")).unwrap();
            socket.set_read_timeout(Some(DEADLINE)).unwrap();
            Self { socket, folder }
        }

        fn manager(&self, watchdog: Option<Duration>) -> Manager {
            Manager::at(self.folder.path().join("notify").into(), watchdog)
        }

        fn hear(&self) -> std::io::Result<String> {
            let mut heard = [0; 512];
            let count = self.socket.recv(&mut heard)?;
            Ok(String::from_utf8(heard[..count].to_vec()).unwrap())
        }

        fn hear_until(&self, wanted: &str) {
            while self.hear().expect("in time") != wanted {}
        }

        /// Whether no sign comes for a whole watchdog timeout.
        fn is_silent(&self) -> bool {
            self.socket.set_nonblocking(true).unwrap();
            while self.hear().is_ok() {}
            self.socket.set_nonblocking(false).unwrap();
            // The round that was under way may still succeed.
            self.socket.set_read_timeout(Some(WAIT)).unwrap();
            let _ = self.hear();
            let heard = self.hear();
            self.socket.set_read_timeout(Some(DEADLINE)).unwrap();
            heard.is_err()
        }
    }

    fn one_thread() -> tokio::runtime::Runtime {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    }

    #[test]
    fn the_watchdog_is_fed_while_all_answer_and_starves_when_a_runtime_hangs() {
        let fake = FakeManager::new();
        let (one, other) = (one_thread(), one_thread());
        let parts = [&one, &other].map(|runtime| Part::new("r", runtime.handle().clone(), || None));
        let watching = watch_on_behalf_of(fake.manager(Some(WAIT)), parts.to_vec()).unwrap();
        for _ in 0..6 {
            fake.hear_until("WATCHDOG=1\n");
        }
        let (let_go, held) = channel::<()>();
        other.spawn(async move {
            // Blocks the runtime's only thread, as a bug would.
            let _ = held.recv();
        });
        assert!(fake.is_silent(), "fed although a runtime hangs");
        drop(let_go);
        fake.hear_until("WATCHDOG=1\n");
        drop(watching);
    }

    #[test]
    fn the_watchdog_starves_when_a_lock_is_never_given_back() {
        let fake = FakeManager::new();
        let runtime = one_thread();
        let lock = Arc::new(Mutex::new(()));
        let part = {
            let lock = Arc::clone(&lock);
            Part::new("locked", runtime.handle().clone(), move || {
                drop(lock.lock());
                None
            })
        };
        let _watching = watch_on_behalf_of(fake.manager(Some(WAIT)), vec![part]).unwrap();
        fake.hear_until("WATCHDOG=1\n");
        let held = lock.lock().unwrap();
        assert!(fake.is_silent(), "fed although a lock is held");
        drop(held);
        fake.hear_until("WATCHDOG=1\n");
    }

    #[test]
    fn the_status_is_told_when_it_changes() {
        let fake = FakeManager::new();
        let runtime = one_thread();
        let line = Arc::new(Mutex::new("no link".to_owned()));
        let part = {
            let line = Arc::clone(&line);
            Part::new("links", runtime.handle().clone(), move || {
                Some(line.lock().unwrap().clone())
            })
        };
        let _watching = watch_on_behalf_of(fake.manager(Some(WAIT)), vec![part]).unwrap();
        assert_eq!(fake.hear().unwrap(), "STATUS=no link\n");
        fake.hear_until("WATCHDOG=1\n");
        *line.lock().unwrap() = "1 link".to_owned();
        let mut said = Vec::new();
        while said.last().is_none_or(|word| word != "STATUS=1 link\n") {
            said.push(fake.hear().unwrap());
        }
        let again = said
            .iter()
            .filter(|word| word.starts_with("STATUS"))
            .count();
        assert_eq!(again, 1, "{said:?}");
    }
}
