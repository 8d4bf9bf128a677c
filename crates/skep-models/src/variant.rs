//! Variants: models that share all but the end of a network, as fine-tuning makes them, and what sharing can save.
//!
//! ```text
//! a model      stem | block 1 | ... | block n-1 | block n | head      weights by the seed
//! last-block   ---- the same bytes -------------| weights by the variant's seed
//! ```
//!
//! What a block is, and what the end of each network weighs (bytes of FP32, statistics of normalisations counted in):
//!
//! | network | block | head | last block | last 3 |
//! |---|---|---|---|---|
//! | ResNet-50 | bottleneck (16) | `fc`, 8.2 MB | 26.1 MB | 68.1 MB: stage conv5_x and `fc` |
//! | BERT-base | encoder layer (12) | pooler, 2.4 MB | 30.7 MB | 87.4 MB |
//! | text recogniser | residual block with the convolution after its stage (11) | `prediction`, 0.1 MB | 27.4 MB | 65.2 MB |

use crate::{error::GenerateError, kind::Kind};

/// The same body with another end: all weights before are those of [`crate::Options::seed`], byte for byte, under the
/// same names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Variant {
    /// Decides the weights of the end.
    pub seed: u64,
    /// How many of the last blocks (residual blocks, encoder layers) belong to the end; with 0 it is the head alone.
    pub blocks: usize,
}

impl Variant {
    /// A variant by its name: `head`, `last-block`, `last-3-blocks`; of BERT and MLPs `last-layer`, `last-2-layers`.
    ///
    /// # Errors
    /// [`GenerateError::InvalidParameter`] for a name that `kind` does not have. Whether the model has so many blocks
    /// is [`crate::generate`]'s to say.
    pub fn named(kind: &Kind, name: &str, seed: u64) -> Result<Self, GenerateError> {
        let Some(word) = kind.block_word() else {
            return Err(kind.invalid(
                "variant",
                name,
                "none, since it has no blocks of weights".to_owned(),
            ));
        };
        let blocks = match name.strip_prefix("last-") {
            None if name == "head" => Some(0),
            Some(last) if last == word => Some(1),
            Some(last) => last
                .strip_suffix('s')
                .and_then(|last| last.strip_suffix(word)?.strip_suffix('-'))
                .and_then(|count| count.parse().ok()),
            None => None,
        };
        let expected = || format!("head, last-{word} or last-N-{word}s");
        blocks
            .map(|blocks| Self { seed, blocks })
            .ok_or_else(|| kind.invalid("variant", name, expected()))
    }
}

/// How much of a variant is in the model that it is a variant of, too: bytes of tensors, without names and nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sharing {
    /// Of all tensors.
    pub bytes: u64,
    /// Of those that the other model does not have.
    pub own_bytes: u64,
}

impl Sharing {
    /// The share of identical tensors, by bytes; 1 for a model without tensors.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
    pub fn fraction(self) -> f64 {
        1.0 - self.own_bytes as f64 / self.bytes.max(1) as f64
    }

    /// Bytes of all different tensors of `models` such variants, or of a model and `models - 1` variants of it: the
    /// same number, since each has an end of its own.
    #[must_use]
    pub fn distinct_bytes(self, models: u64) -> u64 {
        self.bytes - self.own_bytes + models * self.own_bytes
    }

    /// The share of the memory of `models` models apart that one copy of each tensor saves, and no way of sharing
    /// whole tensors can exceed: `1 - distinct bytes / (models * bytes)`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "bytes far below 2^52")]
    pub fn saving(self, models: u64) -> f64 {
        1.0 - self.distinct_bytes(models) as f64 / (models * self.bytes).max(1) as f64
    }
}
