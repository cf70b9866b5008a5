//! Read buffers that are used again, so that bulk costs no allocation and no fresh pages.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

/// Bytes of one buffer: a Unix socket holds about 200 KiB, which one read then takes.
pub(crate) const BUFFER_BYTES: usize = 256 * 1024;

/// Buffers kept for later: two windows of one fast link.
const KEPT_MAX: usize = 128;

/// Reads below this are copied out instead of keeping a whole buffer until they are acknowledged.
const COPIED_BELOW_BYTES: usize = BUFFER_BYTES / 4;

/// Buffers that nobody uses now.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Box<[u8]>>>);

/// A buffer to read into; goes back to its pool when it is dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    pool: Arc<Pool>,
}

impl Pool {
    pub(crate) fn take(self: &Arc<Self>) -> Buffer {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        Buffer {
            bytes: kept.unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice()),
            pool: Arc::clone(self),
        }
    }
}

impl Buffer {
    /// Where to read to.
    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }

    /// Hands on the first `count` bytes; if they are few, the buffer goes back at once.
    pub(crate) fn fill(self, count: usize) -> Bytes {
        if count < COPIED_BELOW_BYTES {
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
        let mut kept = self.pool.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT_MAX {
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
        let kept = || pool.0.lock().unwrap().len();
        let mut buffer = pool.take();
        buffer.as_mut()[..4].copy_from_slice(b"abcd");
        let few = buffer.fill(4);
        assert_eq!(&few[..], b"abcd");
        assert_eq!(kept(), 1);
        let mut many = pool.take().fill(BUFFER_BYTES);
        let half = many.split_to(BUFFER_BYTES / 2);
        assert_eq!(&half[..4], b"abcd");
        drop(many);
        assert_eq!(kept(), 0);
        drop(half);
        assert_eq!(kept(), 1);
        let address = pool.take().bytes.as_ptr();
        assert_eq!(pool.take().bytes.as_ptr(), address);
    }
}
