//! The same with virtual machines.
