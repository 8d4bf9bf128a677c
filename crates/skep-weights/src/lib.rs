//! Where a model's weights come from: its baked form in the cache, its tensors in the store.
//!
//! ```text
//! baking.rs      from a model to its form: look it up, make it (here or in another process), publish, check, load
//! form_graph.rs  checks that a form's graph refers to the form's own tensors only
//! tensors.rs     the tensors of a form that runs use: in the store, or at first in the cache's files
//! moves.rs       brings tensors from the files to the store while the model runs, one model after the other
//! ```
//!
//! A backend says what its forms hold ([`baking::Bakes`]) and how a session uses weights that move
//! ([`moves::MoveTarget`]). Everything else about forms is the same for all backends and lives here.

pub mod baking;
mod form_graph;
pub mod moves;
pub mod tensors;

use std::time::Duration;

pub use form_graph::check_graph;
use skep_cache::Cache;
use skep_store::{LoadOrder, Store, Tenant};

/// Where weights are kept between loads, and shared by all models that have the same weights.
#[derive(Debug, Clone)]
pub struct WeightSource {
    /// The cache on disk: models in the form that the backend's runtime loads fastest.
    pub cache: Cache,
    /// The tensors in memory.
    pub store: Store,
    /// The owner of the part of the store that is used: tenants neither see nor share each other's tensors.
    pub tenant: Tenant,
    /// The order in which loads bring missing weights to the store.
    pub order: LoadOrder,
    /// Whether a model may run on the cache's files until its weights are in the store. Otherwise a load brings them
    /// to the store first, as it always does for a backend that cannot exchange weights while a model runs.
    pub runs_from_cache: bool,
    /// When a model without a form gets one.
    pub baking: BakingPolicy,
    /// How long a backend may keep an unloaded model's session and weights, in case the model is loaded again.
    pub keep_unloaded: Duration,
}

/// When a model without a form gets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BakingPolicy {
    /// The load makes it first.
    BeforeLoad,
    /// The model is loaded from its own files and serves while its form is made in the background.
    Background,
    /// Loads use existing forms and make none.
    #[default]
    Never,
}

/// The result of baking a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Baked {
    /// Its form was made and is now in the cache.
    Made {
        /// The size of its graph and tensors.
        bytes: u64,
    },
    /// Its form was in the cache already.
    Known {
        /// The size of its graph and tensors.
        bytes: u64,
    },
    /// It is loaded from its own files, for this reason.
    WithoutForm(String),
}
