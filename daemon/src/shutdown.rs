//! One wish to stop, heard everywhere.

use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use towpath_protocol::fault::{Code, Fault};

/// Says "stop" to every [`Shutdown`] made from it.
#[derive(Debug, Clone)]
pub struct Trigger(Arc<watch::Sender<bool>>);

/// Hears that the daemon is to stop.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Receiver<bool>);

/// A trigger and what hears it.
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
    /// Waits until the daemon is to stop; a lost trigger counts as a wish to stop.
    pub async fn requested(&mut self) {
        // An error means that every trigger is gone, and with it whoever could keep us running.
        let _ = self.0.wait_for(|stop| *stop).await;
    }

    /// Whether the daemon is to stop.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        *self.0.borrow() || self.0.has_changed().is_err()
    }
}

/// A shutdown that SIGTERM and SIGINT ask for, with its trigger for other reasons to stop.
///
/// # Errors
///
/// `E_IO` if the signals cannot be caught. Must be called inside a tokio runtime.
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
