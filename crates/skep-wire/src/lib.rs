//! The wire forms that server and client share, each read and written in one place.
//!
//! [`json`] holds tensor data as JSON arrays, with the bare `NaN` and `Infinity` that Triton reads and writes although
//! they are not JSON. [`typed`] holds it as `InferTensorContents`, gRPC's element-by-element form. [`config`] gives a
//! model configuration the JSON form that Triton answers with. [`documents`] are metadata, statistics and the index, in
//! JSON and in messages. [`error_body`] is the body of an HTTP error. [`npy`] is the form of tensors in NumPy's files.
//! The server and the client each encode inference requests and answers themselves.
//!
//! Elements are read into and written from a tensor's bytes: row-major, little-endian, `BYTES` as the protocol encodes
//! it. FP16 and BF16 have neither form. Input is not trusted: no input causes a panic, and the memory for it is bounded
//! by its length.

pub mod config;
pub mod documents;
mod error;
pub mod error_body;
pub mod json;
pub mod npy;
pub mod typed;

pub use error::WireError;
