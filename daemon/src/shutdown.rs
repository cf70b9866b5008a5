//! A request to stop that reaches all tasks of the daemon.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use towpath_protocol::fault::{Code, Fault};

/// Asks every [`Shutdown`] made from it to stop.
#[derive(Debug, Clone)]
pub struct Trigger(Arc<watch::Sender<bool>>);

/// Learns that the daemon is asked to stop.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger with the shutdown that it controls.
#[must_use]
pub fn channel() -> (Trigger, Shutdown) {
    let (wish, heard) = watch::channel(false);
    (Trigger(Arc::new(wish)), Shutdown(heard))
}

impl Trigger {
    /// Asks the daemon to stop; asking twice changes nothing.
    pub fn stop(&self) {
        self.0.send_replace(true);
    }
}

impl Shutdown {
    /// Waits until the daemon is asked to stop. If all triggers are dropped, that counts as a
    /// request.
    pub async fn requested(&mut self) {
        // An error means that every trigger was dropped, so nothing else could ask for a stop.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Whether the daemon has been asked to stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// A shutdown requested by SIGTERM or SIGINT, with its trigger for other reasons to stop. Must be
/// called inside a tokio runtime.
///
/// # Errors
///
/// `E_IO` if the signals cannot be caught.
pub fn on_signals() -> Result<(Trigger, Shutdown), Fault> {
    let io = |error| Fault::new(Code::Io, format!("cannot catch signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(io)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(io)?;
    let (trigger, shutdown) = channel();
    let on_signal = trigger.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!("stopping on {name}");
        crate::notify::stopping();
        on_signal.stop();
    });
    Ok((trigger, shutdown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn one_stop_is_heard_by_all_and_a_lost_trigger_too() {
        let (trigger, shutdown) = channel();
        let mut others = [shutdown.clone(), shutdown.clone()];
        assert!(!shutdown.is_requested());
        trigger.stop();
        trigger.stop();
        for other in &mut others {
            other.requested().await;
        }
        assert!(shutdown.is_requested());
        let (trigger, mut shutdown) = channel();
        drop(trigger);
        assert!(shutdown.is_requested());
        shutdown.requested().await;
    }
}
