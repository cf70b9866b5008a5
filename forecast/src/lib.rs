//! What a link will carry, and what it may: forecasts and timetables, pure.
//!
//! | module | what it holds |
//! |---|---|
//! | [`forecaster`] | one direction of a link: samples in, forecasts out |
//! | [`history`] | what is kept for years |
//! | [`recent`] | the short view: seconds and minutes |
//! | [`season`] | the long view: hours and days |
//! | [`window`] | the last values, and quantiles of them |
//! | [`band`], [`score`] | a forecast's quantiles, and how good they were |
//! | [`count`] | counts as numbers with a fraction, and back |
//! | [`timetable`] | the weekly timetable of a cap |
//! | [`zone`] | the time zone that times of day are meant in |
//! | [`moment`] | the time of day, an argument everywhere |
#![forbid(unsafe_code)]

pub mod band;
pub mod count;
pub mod forecaster;
pub mod history;
pub mod moment;
pub mod recent;
pub mod score;
pub mod season;
pub mod timetable;
pub mod window;
pub mod zone;
