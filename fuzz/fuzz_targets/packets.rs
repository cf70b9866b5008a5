//! `cargo +nightly fuzz run packets --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::packets(bytes);
});
