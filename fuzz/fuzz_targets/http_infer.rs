//! Runs `skep_server::fuzzing::http_infer`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_server::fuzzing::http_infer(data));
