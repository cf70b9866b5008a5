//! The host agent: guests in motion.
