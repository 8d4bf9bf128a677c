//! Generated ONNX models and their inputs: `skep generate`, tests and benchmarks run on them, with nothing to download.
//!
//! A [`Kind`] names the network (`"resnet50".parse()?`), [`Options`] say how it is made, [`generate`] makes it:
//!
//! ```
//! use skep_models::{Kind, Options, generate};
//!
//! let kind: Kind = "mlp:layers=16x8x4".parse()?;
//! let model = generate(&kind, &Options::default())?;
//! assert_eq!(model.parameter_count(), 16 * 8 + 8 + 8 * 4 + 4);
//! # Ok::<(), skep_models::GenerateError>(())
//! ```
//!
//! A seed decides every byte, on every machine. A [`GeneratedModel`] holds its graph, not its weights: each weight is
//! computed when it is written, so that a model of any size costs one buffer of memory.
//!
//! The weights are random, and scaled so that random inputs give finite outputs that differ from row to row: a server
//! that mixes up the rows of a batch, or two models, gives visibly wrong outputs. [`inputs`] makes such inputs;
//! `crates/skep-testkit/python/skep_inputs.py` computes the same ones in numpy.
//!
//! [`GraphBuilder`] builds graphs that no kind covers.

mod encode;
mod error;
mod graph;
mod inputs;
mod kind;
mod layers;
mod model;
mod models;
mod options;
mod variant;
mod weights;

pub use error::{GenerateError, GenerateErrorKind};
pub use graph::{Dim, GraphBuilder, GraphValue, NodeAttribute};
pub use inputs::{InputTensor, Inputs, inputs};
pub use kind::{BertSize, Kind};
pub use layers::{Conv, KernelWindow};
pub use model::GeneratedModel;
pub use options::{BatchDim, Options};
pub use variant::{Sharing, Variant};
pub use weights::WeightFill;

/// The model of `kind`.
///
/// # Errors
/// [`GenerateError::InvalidParameter`] for sizes that make no network, and for a variant that re-seeds more blocks than
/// the model has.
pub fn generate(kind: &Kind, options: &Options) -> Result<GeneratedModel, GenerateError> {
    kind.check()?;
    let graph = models::build(kind, options);
    graph.finish(options).map_err(|error| match error {
        GenerateError::TooManyBlocks { blocks, most, .. } => kind.too_many_blocks(blocks, most),
        other => other,
    })
}
