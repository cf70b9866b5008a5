//! Watches both sites' APIs the whole time: never do two of them say that they run the same guest.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Builder;
use towpath_daemon::client::Client;
use towpath_migrator::api::{GuestList, GuestState};

use crate::lab::Lab;
use crate::site::Place;

/// Time between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(40);

/// Longest wait for an answer: a killed migrator gives none.
const ANSWER_WAIT: Duration = Duration::from_secs(2);

/// The watching thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    is_stopping: AtomicBool,
    found: Mutex<Option<String>>,
}

impl Watch {
    /// Begins to watch a lab.
    ///
    /// # Panics
    ///
    /// If no thread can be had.
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

    /// What was found so far.
    ///
    /// # Errors
    ///
    /// The guest that two sites said they run.
    ///
    /// # Panics
    ///
    /// If the watching thread has.
    pub fn check(&self) -> Result<(), String> {
        let found = self.shared.found.lock().expect("the watch does not panic");
        found.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been reported where it happened.
            let _ = thread.join();
        }
    }
}

fn watch(shared: &Shared, clients: &[Client; 2]) {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    let look = |client: &Client| runtime.block_on(running(client));
    while !shared.is_stopping.load(Ordering::Acquire) {
        // The middle answer was given between the outer two: a guest that was running in all three was
        // running at two sites at once, however long the answers took.
        let before = look(&clients[0]);
        let other: BTreeSet<String> = look(&clients[1]);
        let suspects: Vec<&String> = before.intersection(&other).collect();
        if !suspects.is_empty() {
            let after = look(&clients[0]);
            if let Some(guest) = suspects.into_iter().find(|guest| after.contains(*guest)) {
                let mut found = shared.found.lock().expect("nobody panics with it");
                found.get_or_insert(format!("both sites say that guest {guest} runs there"));
            }
        }
        std::thread::sleep(LOOK_INTERVAL);
    }
}

/// Guests that a site says run there; none where nobody answers.
async fn running(client: &Client) -> BTreeSet<String> {
    let list: Result<GuestList, _> = client.get("/v1/guests").await;
    let guests = list.map(|list| list.guests).unwrap_or_default();
    let running = guests
        .into_iter()
        .filter(|guest| guest.state == GuestState::Running);
    running.map(|guest| guest.name.to_string()).collect()
}
