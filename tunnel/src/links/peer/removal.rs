//! The end of a peer that the configuration no longer names.

use towpath_protocol::fault::{Code, Fault};
use towpath_protocol::identity::Name;

use super::Peer;

impl Peer {
    /// Ends everything with the peer: cuts its streams, closes its links, and lets none begin
    /// again. `ours` is our own site.
    pub(crate) fn remove(&self, ours: &Name) {
        // Set first: from then on no link is adopted, so none is missed below.
        self.state.send_modify(|state| state.is_removed = true);
        // Before the links are closed, so that the streams do not see the end of a link first.
        self.streams.close(&self.removal());
        let told = format!("{} is no peer of {ours} any more", self.site);
        for link in self.links() {
            link.close(Code::Gone, &told);
        }
    }

    /// Why nothing begins with a peer that is removed.
    pub(super) fn removal(&self) -> Fault {
        let detail = format!("{} is no peer of this tunnel any more", self.site);
        Fault::new(Code::Gone, detail)
    }

    /// Waits until the peer is removed.
    pub(crate) async fn removed(&self) {
        let mut changes = self.subscribe();
        // Fails only if the sender is dropped, and `self` owns it.
        let _ = changes.wait_for(|state| state.is_removed).await;
    }
}
