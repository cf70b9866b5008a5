//! The link emulator, the scenarios and their reports.
