//! Counts handshakes that failed for a reason other than a certificate.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a handshake failed other than over a certificate. Most of them fail before they cost a
/// signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// Too many handshakes were under way.
    TooMany,
    /// One source sent too many per second.
    TooFast,
    /// The source was asked to prove its address first.
    Retried,
    /// The handshake took too long.
    Late,
    /// The packet was not a QUIC packet.
    Malformed,
    /// TLS or QUIC could not go on, and no certificate was the cause.
    Failed,
}

impl DropReason {
    pub(crate) const ALL: [Self; 6] = [
        Self::TooMany,
        Self::TooFast,
        Self::Retried,
        Self::Late,
        Self::Malformed,
        Self::Failed,
    ];

    /// The reason's name in metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::TooMany => "too_many",
            Self::TooFast => "too_fast",
            Self::Retried => "retried",
            Self::Late => "late",
            Self::Malformed => "malformed",
            Self::Failed => "failed",
        }
    }
}

/// How often each reason occurred.
#[derive(Debug, Default)]
pub(crate) struct Dropped([AtomicU64; DropReason::ALL.len()]);

impl Dropped {
    pub(crate) fn count(&self, reason: DropReason) {
        self.0[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn of(&self, reason: DropReason) -> u64 {
        self.0[reason as usize].load(Ordering::Relaxed)
    }
}
