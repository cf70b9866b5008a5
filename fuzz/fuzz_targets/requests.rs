//! `cargo +nightly fuzz run requests --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::requests(bytes);
});
