//! How a link ends: by a word of either side's, with one of its connections, or by leaving them to another link.

use std::sync::atomic::Ordering;

use quinn::{Connection, ConnectionError, VarInt};
use towpath_protocol::fault::Code;

use super::Link;
use crate::congestion::Delay;
use crate::wire;

impl Link {
    /// Whether a link is made of the same two connections.
    pub(crate) fn has_connections_of(&self, other: &Self) -> bool {
        self.urgent.stable_id() == other.urgent.stable_id()
    }

    /// Ends the link and leaves its connections to the one that has taken them over.
    pub(crate) fn let_go(&self) {
        self.let_go.send_replace(true);
    }

    fn is_let_go(&self) -> bool {
        *self.let_go.borrow()
    }

    /// Waits until another link has taken the connections over.
    pub(super) async fn until_let_go(&self) {
        // The sender is the link's own.
        let _ = self
            .let_go
            .subscribe()
            .wait_for(|is_let_go| *is_let_go)
            .await;
    }

    /// Whether one of the connections is over, or another link's, and with it this link.
    pub(crate) fn is_over(&self) -> bool {
        self.is_let_go()
            || self.urgent.close_reason().is_some()
            || self.bulk.close_reason().is_some()
    }

    /// Waits until one of the connections is over. One that another link has taken over has carried nothing that waits.
    pub(crate) async fn over(&self) {
        tokio::select! {
            _ = self.urgent.closed() => {}
            _ = self.bulk.closed() => {}
        }
    }

    /// Whether one side has ended the link, and its streams with it.
    pub(crate) fn is_farewell(&self) -> bool {
        self.is_given_up.load(Ordering::Relaxed) || self.is_closed_with(Code::Gone)
    }

    /// Whether the peer has ended it because our certificate is revoked: it ends a link that is up with that code for
    /// nothing else.
    pub(crate) fn is_denied(&self) -> bool {
        self.is_joined() && self.is_closed_with(Code::Denied)
    }

    /// Whether the peer has closed one of the connections with a code.
    fn is_closed_with(&self, code: Code) -> bool {
        let code: VarInt = wire::code(code);
        [&self.urgent, &self.bulk].into_iter().any(|connection| {
            let reason = connection.close_reason();
            matches!(reason, Some(ConnectionError::ApplicationClosed(close)) if close.error_code == code)
        })
    }

    /// Ends the link; the peer is told why.
    pub(crate) fn close(&self, why: Code, words: &str) {
        if self.is_let_go() {
            return;
        }
        let is_passing = matches!(why, Code::State | Code::Unreachable | Code::Stalled);
        // What the peer said is forgotten by its connection as soon as we close that.
        let is_final = !is_passing || self.is_farewell();
        self.is_given_up.fetch_or(is_final, Ordering::Relaxed);
        for connection in [&self.urgent, &self.bulk] {
            close(connection, why, words);
        }
    }
}

/// Closes a connection; the peer is told why, however full the path is.
pub(crate) fn close(connection: &Connection, why: Code, words: &str) {
    let code: VarInt = wire::code(why);
    if let Some(delay) = Delay::of(connection) {
        delay.part();
    }
    connection.close(code, words.as_bytes());
}
