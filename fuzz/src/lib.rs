//! What the fuzz targets run of parsers that are public: one function a parser, bytes in, nothing out. Those of
//! `skep-server`'s private parsers are `skep_server::fuzzing`.
//!
//! A function fails by panicking. Each checks more than that nothing panics; what, is in its own words. The tests of
//! `skep-testkit` include this file and feed the committed corpora to it, so nothing here may need libFuzzer.

pub mod certificate;
pub mod config;
pub mod onnx;
pub mod records;
pub mod simulation;
pub mod tensor;
pub mod trace;
