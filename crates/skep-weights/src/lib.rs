//! Where a model's weights come from: its baked form in the cache, its tensors in the store.
//!
//! ```text
//! baking   model -> form: looked up, made (now, or in another process), published, checked, loaded
//! tensors  the tensors of a form that runs use: in the store, or at first in the cache's files
//! moves    brings those from the files to the store while the model runs, one model after the other
//! ```
//!
//! A backend says what its forms hold ([`baking::Bakes`]) and how a session uses weights that move
//! ([`moves::MoveTarget`]); everything else about forms is the same for all backends and is here.

pub mod baking;
mod form_graph;
pub mod moves;
pub mod tensors;

use std::time::Duration;

pub use form_graph::check_graph;
use skep_cache::Cache;
use skep_store::{LoadOrder, Store, Tenant};

/// Where the weights of models are kept between loads, and shared by all that have the same.
#[derive(Debug, Clone)]
pub struct WeightSource {
    /// On disk, in the form that the backend's runtime loads fastest.
    pub cache: Cache,
    /// In memory.
    pub store: Store,
    /// Whose part of the store: tenants neither see nor share each other's tensors.
    pub tenant: Tenant,
    /// In which order weights that are not in the store yet are brought there.
    pub order: LoadOrder,
    /// Whether a model may run on the cache's files until its weights are in the store. Otherwise a load brings them there
    /// first, as it always does for a backend that cannot exchange them while it runs.
    pub runs_from_cache: bool,
    /// When a model without a form gets one.
    pub baking: BakingPolicy,
    /// For how long a backend may keep what it made of an unloaded model, weights included, in case the model is loaded
    /// again.
    pub keep_unloaded: Duration,
}

/// When a model without a form gets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BakingPolicy {
    /// The load makes it before it goes on.
    First,
    /// The model is loaded from its own files and serves while its form is made in the background.
    Behind,
    /// Loads make none; they use the forms that are there.
    #[default]
    Never,
}

/// What came of baking a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Baked {
    /// Its form was made, and is in the cache now.
    Made {
        /// Of its graph and tensors.
        bytes: u64,
    },
    /// Its form was in the cache.
    Known {
        /// Of its graph and tensors.
        bytes: u64,
    },
    /// It is loaded from its own files; why.
    WithoutForm(String),
}
