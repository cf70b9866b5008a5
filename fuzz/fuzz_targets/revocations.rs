//! `cargo +nightly fuzz run revocations --features libfuzzer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    towpath_fuzz::revocations(bytes);
});
