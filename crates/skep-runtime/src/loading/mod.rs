//! From a model in the repository to versions that are ready for requests.
//!
//! ```text
//! Source -> Draft      configuration read, versions chosen
//!        -> ModelPlan  configuration validated: LoadPlan, with a backend and completed from the model's file, or EnsemblePlan
//!        -> LoadedVersion, one for each version: file opened, weights loaded, instances started and warmed up
//! ```
//!
//! `skep check` ([`check`]) and `skep bake` ([`bake`]) take the same steps and stop earlier.
//!
//! `model_file.rs` finds a version's file, `file_interface.rs` inspects it, `backends.rs` chooses the backend,
//! `request.rs` makes its load request, `copies.rs` loads its model, `live.rs` finds its profile, `options.rs` has the
//! options for all loads, `ensemble.rs` plans and loads ensembles, `bake_ahead.rs` is `skep bake`, `check.rs` `skep check`.

mod backends;
mod bake_ahead;
mod check;
mod copies;
mod draft;
mod ensemble;
mod file_interface;
mod live;
mod model_file;
mod options;
mod plan;
mod request;

pub use backends::{BackendEntry, Backends};
pub use bake_ahead::{BakeOutcome, Bakeable, bake, bakeable};
pub use check::{CheckFinding, ModelCheck, check};
pub(crate) use draft::{Draft, ModelPlan};
pub(crate) use ensemble::{EnsemblePlan, RepositoryParts};
pub(crate) use live::run_terms;
pub use live::{ModelProfiles, ProfiledModel};
pub use options::LoadOptions;
pub(crate) use plan::LoadPlan;
