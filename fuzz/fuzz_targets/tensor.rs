//! Runs `skep_fuzz::tensor::tensor`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz::tensor::tensor(data));
