//! The wire forms that server and client share, each read and written in one place.
//!
//! [`json`] holds tensor data as JSON arrays, with the bare `NaN` and `Infinity` that are no JSON but that Triton
//! reads and writes. [`typed`] holds it as `InferTensorContents`, gRPC's element-by-element form. [`config`] gives a
//! model configuration the JSON form that Triton answers with. [`documents`] are metadata, statistics and the index, in
//! JSON and in messages. [`error_body`] is what an HTTP error says. [`npy`] is the form of tensors in NumPy's files.
//! Inference requests and answers themselves are the edges' own.
//!
//! Elements are read into and written from a tensor's bytes: row-major, little-endian, `BYTES` as the protocol encodes
//! it. FP16 and BF16 have neither form. What is read here was sent by somebody else: nothing in it panics, and the
//! memory it takes is bounded by its own length.

pub mod config;
pub mod documents;
mod error;
pub mod error_body;
pub mod json;
pub mod npy;
pub mod typed;

pub use error::WireError;
