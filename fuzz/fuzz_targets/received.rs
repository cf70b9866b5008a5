//! `cargo +nightly fuzz run received --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::received(bytes);
});
