//! Decisions about where models are: which ones have instances now, and how many.
//!
//! Everything here is pure: time is an argument, sizes and uses are inputs, loads and unloads are outputs. The runtime
//! carries them out, the simulator drives the same code over recorded requests.
//!
//! ```text
//! residency/   which models are in memory, under a budget that counts shared tensors once
//! scaling.rs   how many instances a model in memory needs
//! ```

pub mod residency;
pub mod scaling;
