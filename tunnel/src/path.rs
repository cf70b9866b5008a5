//! What a path carries, and how many bytes may be in flight on it. Pure: time comes in as an
//! argument.
//!
//! | module | what it holds |
//! |---|---|
//! | [`estimate`] | the estimate of a path's rate and round trip |
//! | `cruise` | when bulk stays below that rate, and when it measures again |
//! | [`loss_gaps`] | the limit on bytes in flight where packets are lost |
//! | `windows` | flow-control windows, and the memory they may take |

pub(crate) mod cruise;
pub mod estimate;
pub mod loss_gaps;
pub(crate) mod windows;
