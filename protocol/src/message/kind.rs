//! The kinds of frames between two migrators.

use crate::frame;

/// Kind of a frame between two migrators, as in its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Hello = 1,
    Welcome,
    Prepare,
    Prepared,
    Refused,
    Received,
    StatePart,
    MissingPart,
    MissingEnd,
    FinalEnd,
    Ready,
    Commit,
    Ack,
    Nack,
    Abort,
    Chunk,
    Complete,
    Released,
    Demand,
    Ping,
    Pong,
    FinalBegin,
    Manifest,
    Mark,
}

impl Kind {
    /// Every kind, in the order of their bytes, which begin at 1.
    pub(super) const ALL: [Self; 24] = [
        Self::Hello,
        Self::Welcome,
        Self::Prepare,
        Self::Prepared,
        Self::Refused,
        Self::Received,
        Self::StatePart,
        Self::MissingPart,
        Self::MissingEnd,
        Self::FinalEnd,
        Self::Ready,
        Self::Commit,
        Self::Ack,
        Self::Nack,
        Self::Abort,
        Self::Chunk,
        Self::Complete,
        Self::Released,
        Self::Demand,
        Self::Ping,
        Self::Pong,
        Self::FinalBegin,
        Self::Manifest,
        Self::Mark,
    ];

    /// The kind with this byte.
    pub(super) const fn from_byte(byte: u8) -> Option<Self> {
        if byte == 0 || byte as usize > Self::ALL.len() {
            return None;
        }
        Some(Self::ALL[byte as usize - 1])
    }

    /// Largest body, in bytes.
    pub(super) const fn body_bytes_max(self) -> u32 {
        match self {
            Self::Prepare => 32 * 1024,
            Self::StatePart => 61 * 1024,
            Self::MissingPart => 44 * 1024,
            Self::Chunk => frame::BODY_BYTES_MAX,
            _ => 1024,
        }
    }

    /// Whether a side that does not know the kind must end the lane. A side that does not know a
    /// manifest finds the difference without it, and one that does not know a mark gets the refusal
    /// after it.
    pub(super) const fn is_critical(self) -> bool {
        !matches!(self, Self::Manifest | Self::Mark)
    }
}

const _: () = {
    let mut index = 0;
    while index < Kind::ALL.len() {
        assert!(
            Kind::ALL[index] as usize == index + 1,
            "in order, without a gap"
        );
        index += 1;
    }
};
