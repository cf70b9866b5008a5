//! Trials of channels: a stream to the service that carries nothing and shows whether programs
//! would reach it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use towpath_protocol::amounts::micros;
use towpath_protocol::fault::Fault;
use towpath_protocol::identity::Name;
use towpath_protocol::preamble::Open;

use super::Channels;
use crate::core::Core;
use crate::operators::status::TrialView;
use crate::streams::local::{self, StreamOrigin};

/// How long a trial's stream may take to end; a service that does not end its side by then is cut
/// off.
const END_WAIT: Duration = Duration::from_secs(1);

impl Channels {
    /// Opens a stream to a channel's service as for a program, and ends it.
    ///
    /// # Errors
    ///
    /// `E_NOT_FOUND` if there is no such channel.
    pub(crate) async fn try_out(&self, core: &Arc<Core>, name: &Name) -> Result<TrialView, Fault> {
        let channel = self.channel(name)?;
        let spec = channel.spec();
        let open = Open {
            peer: spec.peer.clone(),
            service: spec.service.clone(),
            class: spec.class,
        };
        let kind = StreamOrigin {
            is_datagrams: spec.listen.is_datagrams(),
            channel: Some(spec.name.clone()),
            meter: Arc::default(),
        };
        let began = Instant::now();
        let begun = local::begin(core, &open, kind).await;
        let took = began.elapsed();
        // A missing link is reported for the link, not for the channel.
        if begun.is_ok() || core.peer(&spec.peer)?.link().is_ok() {
            channel.figures.note_opening(begun.as_ref().err());
        }
        let problem = match begun {
            Ok(begun) => {
                let nothing = (tokio::io::empty(), tokio::io::sink());
                // How the service reacts to an empty connection does not matter.
                let _ = timeout(END_WAIT, begun.live(core, nothing)).await;
                None
            }
            Err(fault) => Some(fault.into()),
        };
        Ok(TrialView {
            channel: spec.name.to_string(),
            peer: spec.peer.to_string(),
            service: spec.service.to_string(),
            is_datagrams: spec.listen.is_datagrams(),
            is_reached: problem.is_none(),
            took_us: micros(took),
            problem,
        })
    }
}
