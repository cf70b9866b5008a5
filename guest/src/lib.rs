//! One guest, one process: a small KVM machine or a tracked process.
