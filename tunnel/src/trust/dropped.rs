//! Handshakes that came to nothing for which no certificate was at fault, counted.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why a handshake came to nothing for which no certificate was at fault: most before it cost a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// Too many were under way.
    TooMany,
    /// Too many came from one source.
    TooFast,
    /// The source was asked to prove its address first.
    Retried,
    /// It took too long.
    Late,
    /// It was no packet of QUIC.
    Malformed,
    /// It was none that TLS or QUIC could go on with, and no certificate was at fault.
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
