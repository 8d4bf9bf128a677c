//! Runs `skep_fuzz::config::json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz::config::json(data));
