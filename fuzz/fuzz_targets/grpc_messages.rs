//! Runs `skep_server::fuzzing::grpc_messages`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_server::fuzzing::grpc_messages(data));
