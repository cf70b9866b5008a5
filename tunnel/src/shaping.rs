//! Whose bytes are sent next, and how fast.
//!
//! | module | what it holds |
//! |---|---|
//! | [`shaper`] | the cap on the wire, and the order in which classes are served; pure |
//! | [`shares`] | the configured caps, floors and weights; pure |
//! | `pace` | makes streams and datagrams wait as the shaper decides |
//! | `quota` | the cap of one channel or service |
//! | `turns` | which waiting stream of a connection writes next |
//! | `timetable` | caps that change with the time of the week |

pub(crate) mod pace;
pub(crate) mod quota;
pub mod shaper;
pub mod shares;
pub(crate) mod timetable;
pub(crate) mod turns;
