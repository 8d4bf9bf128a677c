//! Runs `skep_fuzz::simulation::table`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz::simulation::table(data));
