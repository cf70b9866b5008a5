//! `cargo +nightly fuzz run guest_state --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::guest_state(bytes);
});
