//! `cargo +nightly fuzz run preamble --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::preamble(bytes);
});
