//! Runs `skep_fuzz::records::records`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz::records::records(data));
