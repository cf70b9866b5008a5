//! What a path carries, and how much may be under way on it. Pure: time comes in as an argument.
//!
//! | module | what it holds |
//! |---|---|
//! | [`estimate`] | the estimate of a path's rate and round trip |
//! | `cruise` | when bulk stays below that rate, and when it looks whether there is more |
//! | [`loss_gaps`] | how much may be under way where packets are lost |
//! | `windows` | flow-control windows, and the memory they may take |

pub(crate) mod cruise;
pub mod estimate;
pub mod loss_gaps;
pub(crate) mod windows;
