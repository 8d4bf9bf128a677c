//! Runs `skep_store::fuzzing::store_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_store::fuzzing::store_messages(data));
