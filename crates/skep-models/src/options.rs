//! How a model is made, whatever its kind.

use std::num::NonZeroU32;

use crate::{graph::Dim, variant::Variant};

/// How a model is made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// Decides every weight.
    pub seed: u64,
    /// Whether the batch dimension is variable.
    pub batch: BatchDim,
    /// Weights of 1 KiB and more go into a side file, `<file>.data`.
    pub external_data: bool,
    /// Another seed for the end of the network.
    pub variant: Option<Variant>,
}

/// The first dimension of inputs and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BatchDim {
    /// Any batch size: a dimension called `batch`.
    #[default]
    Variable,
    /// This batch size and no other.
    Fixed(NonZeroU32),
}

impl BatchDim {
    pub(crate) fn dim(self) -> Dim {
        match self {
            Self::Variable => Dim::Variable("batch"),
            Self::Fixed(size) => Dim::Fixed(i64::from(size.get())),
        }
    }
}
