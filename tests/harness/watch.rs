//! Polls both sites' APIs all the time, and checks that they never both claim to run the same
//! guest.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Builder;
use towpath_daemon::client::Client;
use towpath_migrator::api::{GuestList, GuestState};

use crate::lab::Lab;
use crate::site::Place;
use crate::verdict::wait_until;

/// Interval between polls.
const LOOK_INTERVAL: Duration = Duration::from_millis(40);

/// Longest wait for an answer: a killed migrator gives none.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// How long the next poll may take when both sites have a migrator.
const LOOKED_WAIT: Duration = Duration::from_secs(10);

/// The polling thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_stopping: AtomicBool,
    /// Polls that both sites answered.
    look_count: AtomicU64,
    found: Mutex<Option<String>>,
}

impl Watch {
    /// Starts to watch a lab.
    ///
    /// # Panics
    ///
    /// If no thread can be started.
    #[must_use]
    pub fn start(lab: &Lab) -> Self {
        let shared = Arc::new(Shared::default());
        let clients = Place::ALL.map(|place| lab.site(place).client().timeout(ANSWER_WAIT));
        let watching = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || watch(&watching, &clients))
            .expect("a thread");
        Self {
            shared,
            thread: Some(thread),
        }
    }

    /// Checks what has been found so far.
    ///
    /// # Errors
    ///
    /// The guest that both sites claimed to run.
    ///
    /// # Panics
    ///
    /// If the polling thread has panicked.
    pub fn check(&self) -> Result<(), String> {
        let found = self.shared.found.lock().expect("the watch does not panic");
        found.clone().map_or(Ok(()), Err)
    }

    /// The number of polls so far that both sites answered.
    #[must_use]
    pub fn look_count(&self) -> u64 {
        self.shared.look_count.load(Ordering::Acquire)
    }

    /// Like [`Watch::check`], after at least one more poll than `look_count`, so that a watch that
    /// never polled does not pass.
    ///
    /// # Errors
    ///
    /// The guest that both sites claimed to run, or that there was no poll.
    pub fn check_beyond(&self, look_count: u64) -> Result<(), String> {
        let has_looked = || (self.look_count() > look_count).then_some(());
        wait_until(LOOKED_WAIT, has_looked)
            .ok_or_else(|| format!("nobody has looked for {LOOKED_WAIT:?}"))?;
        self.check()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has already been reported.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared, clients: &[Client; 2]) {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let look = |client: &Client| runtime.block_on(running(client));
    while !shared.is_stopping.load(Ordering::Acquire) {
        // The middle answer was given between the outer two, so a guest that is running in all
        // three was running at two sites at once, however long the answers took.
        if let (Some(before), Some(other)) = (look(&clients[0]), look(&clients[1])) {
            let mut suspects = before.intersection(&other).peekable();
            if suspects.peek().is_some()
                && let Some(after) = look(&clients[0])
                && let Some(guest) = suspects.find(|guest| after.contains(*guest))
            {
                let mut found = shared.found.lock().expect("nobody panics with it");
                found.get_or_insert(format!("both sites say that guest {guest} runs there"));
            }
            shared.look_count.fetch_add(1, Ordering::AcqRel);
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// The guests that a site claims to run, if it answers.
async fn running(client: &Client) -> Option<BTreeSet<String>> {
    let list: GuestList = client.get("/v1/guests").await.ok()?;
    let running = list
        .guests
        .into_iter()
        .filter(|guest| guest.state == GuestState::Running);
    Some(running.map(|guest| guest.name.to_string()).collect())
}
