//! Benchmarks of whole servers, a binary each in `src/bin`: `cargo xtask bench NAME` builds one, runs it and writes its
//! results.
//!
//! Each prints a line of JSON a row. They measure with `skep-perf` and run on the models of `skep-models`; here is what
//! several of them share. Benchmarks of pure functions lie beside those, in `benches/` and `examples/` of their crates.

mod bare_model;
pub mod batched;

use anyhow::Result;
use bytes::Bytes;
use skep_models::{Inputs, Kind};
use skep_tensor::Tensor;

pub use bare_model::BareModel;

/// Inputs of a generated model, by name.
///
/// # Errors
/// When an input's bytes do not fill its shape.
pub fn named_inputs(kind: &Kind, wanted: Inputs) -> Result<Vec<(String, Tensor)>> {
    let mut named = Vec::new();
    for input in skep_models::inputs(kind, wanted) {
        let tensor = Tensor::new(input.datatype, input.shape, Bytes::from(input.data))?;
        named.push((input.name, tensor));
    }
    Ok(named)
}
