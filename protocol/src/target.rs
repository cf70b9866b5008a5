//! The side of a move that gets the guest.
