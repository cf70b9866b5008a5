//! Read buffers that are used again, so that bulk costs no allocation and no fresh pages.
//!
//! A read stays in its buffer until all of it is acknowledged, but limits count its bytes, not the
//! buffer's. So there are small buffers too, for a tail with little room, and a read that fills
//! less than half of its buffer is copied out.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};

use crate::shaping::turns::PIECE_BYTES;

/// Size of a large buffer: a Unix socket holds about 200 KiB, which one read then takes.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// Size of a small buffer: what is written at once.
const SMALL_BYTES: usize = PIECE_BYTES;

/// Bytes of unused buffers kept per size: two windows of one fast link.
const KEPT_BYTES_MAX: usize = 32 << 20;

/// A read keeps its buffer if it fills at least one part in so many; else it is copied out.
const FILLED_PART: usize = 2;

/// Unused buffers, small and large.
#[derive(Debug, Default)]
pub(crate) struct Pool([Mutex<Vec<Box<[u8]>>>; 2]);

/// A buffer to read into; returns to its pool when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    room_bytes: usize,
    pool: Arc<Pool>,
}

impl Pool {
    /// A buffer for a read of at most `room_bytes`: a large one if they fill it, else a small one.
    pub(crate) fn take(self: &Arc<Self>, room_bytes: usize) -> Buffer {
        let size_bytes = match room_bytes < BUFFER_BYTES {
            true => SMALL_BYTES,
            false => BUFFER_BYTES,
        };
        let kept = self.kept(size_bytes).pop();
        Buffer {
            bytes: kept.unwrap_or_else(|| vec![0; size_bytes].into_boxed_slice()),
            room_bytes: room_bytes.min(size_bytes),
            pool: Arc::clone(self),
        }
    }

    fn kept(&self, size_bytes: usize) -> MutexGuard<'_, Vec<Box<[u8]>>> {
        let kept = &self.0[usize::from(size_bytes == BUFFER_BYTES)];
        kept.lock()
    }
}

impl Buffer {
    /// The part to read into.
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.room_bytes]
    }

    /// Hands on the first `count` bytes; if they are few, they are copied and the buffer returns at
    /// once.
    pub(crate) fn fill(self, count: usize) -> Bytes {
        if count < self.bytes.len() / FILLED_PART {
            return Bytes::copy_from_slice(&self.bytes[..count]);
        }
        let filled = Filled {
            buffer: self,
            count,
        };
        Bytes::from_owner(filled)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = std::mem::take(&mut self.bytes);
        let size_bytes = bytes.len();
        let mut kept = self.pool.kept(size_bytes);
        if kept.len() < KEPT_BYTES_MAX / size_bytes {
            kept.push(bytes);
        }
    }
}

struct Filled {
    buffer: Buffer,
    count: usize,
}

impl AsRef<[u8]> for Filled {
    fn as_ref(&self) -> &[u8] {
        &self.buffer.bytes[..self.count]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_come_back_once_their_last_byte_is_let_go() {
        let pool = Arc::new(Pool::default());
        let kept = || pool.kept(BUFFER_BYTES).len();
        let mut buffer = pool.take(BUFFER_BYTES);
        buffer.as_mut()[..4].copy_from_slice(b"abcd");
        let few = buffer.fill(4);
        assert_eq!(&few[..], b"abcd");
        assert_eq!(kept(), 1);
        let mut many = pool.take(BUFFER_BYTES).fill(BUFFER_BYTES);
        let half = many.split_to(BUFFER_BYTES / 2);
        assert_eq!(&half[..4], b"abcd");
        drop(many);
        assert_eq!(kept(), 0);
        drop(half);
        assert_eq!(kept(), 1);
        let address = pool.take(BUFFER_BYTES).bytes.as_ptr();
        assert_eq!(pool.take(BUFFER_BYTES).bytes.as_ptr(), address);
    }

    #[test]
    fn what_is_kept_takes_at_most_twice_what_it_is_and_full_reads_are_not_copied() {
        const KIB: usize = 1024;
        for room in [32, 48, 64, 65, 100, 128, 200, 255, 256].map(|kib| kib * KIB) {
            for part in 1..=8 {
                let pool = Arc::new(Pool::default());
                let mut buffer = pool.take(room);
                let (size, most) = (buffer.bytes.len(), buffer.as_mut().len());
                assert!(most <= room && 2 * most >= room.min(SMALL_BYTES));
                let address = buffer.bytes.as_ptr();
                let filled = buffer.fill(most * part / 8);
                let is_copied = filled.as_ptr() != address;
                let taken = if is_copied { filled.len() } else { size };
                assert!(taken <= 2 * filled.len(), "{taken} for {}", filled.len());
                assert!(!is_copied || part < 8, "{room} full bytes were copied");
            }
        }
    }
}
