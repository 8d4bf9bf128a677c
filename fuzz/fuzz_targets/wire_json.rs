//! Runs `skep_fuzz::tensor::json`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz::tensor::json(data));
