//! Every message between a migrator and a guest process.
