//! The side of a move that has the guest.
