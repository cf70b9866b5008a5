//! `cargo +nightly fuzz run channels --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::channels(bytes);
});
