//! Runs `skep_fuzz::tensor::npy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz::tensor::npy(data));
