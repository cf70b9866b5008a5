//! Forecasts of what a link will carry, and timetables of what it may carry. Without I/O or clocks.
//!
//! | module | what it holds |
//! |---|---|
//! | [`forecaster`] | one direction of a link: samples in, forecasts out |
//! | [`history`] | the measurements that are kept for years |
//! | [`recent`] | the short view: seconds and minutes |
//! | [`season`] | the long view: hours and days |
//! | [`window`] | the last values, and quantiles of them |
//! | [`band`], [`score`] | a forecast's quantiles, and how good they were |
//! | [`count`] | conversions between counts and floating point numbers |
//! | [`timetable`] | the weekly timetable of a cap |
//! | [`zone`] | the time zone of times of day |
//! | [`moment`] | the time of day, which is an argument everywhere |
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
