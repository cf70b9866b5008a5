//! `cargo +nightly fuzz run journal --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::journal(bytes);
});
