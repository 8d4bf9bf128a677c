//! Runs `skep_server::fuzzing::certificate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_server::fuzzing::certificate(data));
