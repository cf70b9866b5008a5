//! Which blocks go in which stage, and when to switch.
