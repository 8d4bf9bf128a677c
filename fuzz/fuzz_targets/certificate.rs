//! Runs `skep_fuzz::certificate::parse`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz::certificate::parse(data));
