//! Decisions about where models are: which ones have instances now.
//!
//! Everything here is pure: time is an argument, sizes and uses are inputs, loads and unloads are outputs. The runtime
//! carries them out, the simulator drives the same code over recorded requests.
//!
//! ```text
//! residency/   which models are in memory, under a budget that counts shared tensors once
//! ```

pub mod residency;
