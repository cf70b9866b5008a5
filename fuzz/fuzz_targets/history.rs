//! `cargo +nightly fuzz run history --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::history(bytes);
});
