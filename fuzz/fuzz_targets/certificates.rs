//! `cargo +nightly fuzz run certificates --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::certificates(bytes);
});
