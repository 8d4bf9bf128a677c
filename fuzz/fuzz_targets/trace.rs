//! Runs `skep_fuzz::trace::trace`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz::trace::trace(data));
