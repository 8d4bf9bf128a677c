//! Runs `skep_server::fuzzing::http_control`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_server::fuzzing::http_control(data));
