//! Cuts the emulated link once during a move, and restores it.

use tokio::io::AsyncWriteExt;
use tokio::process::ChildStdin;
use tokio::sync::oneshot;
use tokio::time::sleep;
use towpath_daemon::units::Span;
use towpath_migrator::api::MigrationView;
use towpath_protocol::fault::{Code, Fault};

use crate::failure::Failure;
use crate::follow::{LiveLine, Observer};

/// Cuts the link through the relay's standard input, which also keeps the relay alive.
#[derive(Debug)]
pub(super) struct Scissors {
    relay: ChildStdin,
    outage: Span,
}

impl Scissors {
    pub(super) const fn new(relay: ChildStdin, outage: Span) -> Self {
        Self { relay, outage }
    }

    /// Cuts the link once the move is half way, restores it after the outage, and returns how long
    /// it was cut; `None` if the move ended first.
    pub(super) async fn cut_once(
        &mut self,
        half_way: oneshot::Receiver<()>,
    ) -> Result<Option<Span>, Failure> {
        if half_way.await.is_err() {
            // The move ended before it was half way.
            return Ok(None);
        }
        self.say("cut\n").await?;
        sleep(self.outage.duration()).await;
        self.say("heal\n").await?;
        Ok(Some(self.outage))
    }

    async fn say(&mut self, words: &str) -> Result<(), Fault> {
        let said = self.relay.write_all(words.as_bytes()).await;
        said.map_err(|error| Fault::new(Code::Io, format!("the relay: {error}")))
    }
}

/// Shows the progress of a move, and signals when it is half way.
#[derive(Debug)]
pub(super) struct HalfWay<'a> {
    line: &'a mut LiveLine,
    bytes: u64,
    reached: Option<oneshot::Sender<()>>,
}

impl<'a> HalfWay<'a> {
    /// The receiver is told once `bytes` bytes of guest memory have been sent.
    pub(super) fn new(line: &'a mut LiveLine, bytes: u64) -> (Self, oneshot::Receiver<()>) {
        let (reached, told) = oneshot::channel();
        let half_way = Self {
            line,
            bytes,
            reached: Some(reached),
        };
        (half_way, told)
    }
}

impl Observer for HalfWay<'_> {
    fn changed(&mut self, view: &MigrationView) -> Result<(), Failure> {
        if view.raw_bytes >= self.bytes
            && let Some(reached) = self.reached.take()
        {
            // There is no receiver if nothing is to be cut.
            let _ = reached.send(());
        }
        self.line.changed(view)
    }

    fn away(&self) {
        self.line.away();
    }
}
