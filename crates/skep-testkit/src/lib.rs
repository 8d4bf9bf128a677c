//! Generated ONNX models, input data and broken fixtures: what tests and benchmarks run on, with nothing to download.
//!
//! A [`Kind`] says which network (`"resnet50".parse()?`), [`Options`] how it is made, [`generate`] makes it:
//!
//! ```
//! use skep_testkit::{Kind, Options, generate};
//!
//! let kind: Kind = "mlp:layers=16x8x4".parse()?;
//! let model = generate(&kind, &Options::default())?;
//! assert_eq!(model.parameter_count(), 16 * 8 + 8 + 8 * 4 + 4);
//! # Ok::<(), skep_testkit::TestkitError>(())
//! ```
//!
//! Everything is decided by a seed, to the byte and on every machine. A [`GeneratedModel`] holds its graph, not its
//! weights: each weight is computed when it is written, so that a model of any size costs one buffer of memory.
//!
//! The weights are random, yet scaled so that random inputs give finite outputs that differ from row to row: mixing up
//! the rows of a batch, or two models, is visible in the answers. [`inputs`] makes such inputs; `python/skep_inputs.py`
//! computes the same ones in numpy.
//!
//! For graphs that no kind covers there is [`GraphBuilder`]; [`broken`] holds files that must be refused. With the feature
//! `baking` there is `node`, what tests of baked models begin with.

pub mod broken;
mod encode;
mod error;
#[cfg(feature = "baking")]
pub mod forge;
mod graph;
mod inputs;
mod kind;
mod layers;
mod model;
mod models;
#[cfg(feature = "baking")]
pub mod node;
mod options;
mod variant;
mod weights;

use std::{
    fs,
    path::{Path, PathBuf},
};

pub use error::{ErrorKind, TestkitError};
pub use graph::{Attribute, Dim, GraphBuilder, Value};
pub use inputs::{InputTensor, Inputs, inputs};
pub use kind::{BertSize, Kind};
pub use layers::{Conv, Window};
pub use model::GeneratedModel;
pub use options::{Batch, Options};
pub use variant::{Sharing, Variant};
pub use weights::Fill;

/// The model of `kind`.
///
/// # Errors
/// [`TestkitError::InvalidParameter`] for sizes that make no network, and for a variant that re-seeds more blocks than
/// the model has.
pub fn generate(kind: &Kind, options: &Options) -> Result<GeneratedModel, TestkitError> {
    kind.check()?;
    let graph = models::build(kind, options);
    graph.finish(options).map_err(|error| match error {
        TestkitError::TooManyBlocks { blocks, most, .. } => kind.too_many_blocks(blocks, most),
        other => other,
    })
}

/// Every file below a directory, in the order of their paths.
///
/// # Panics
/// When a directory cannot be read.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "for tests, which state what they expect"
)]
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("read") {
        let path = entry.expect("read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
