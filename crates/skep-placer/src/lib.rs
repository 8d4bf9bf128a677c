//! Decisions about where models are: which ones have instances, how many, in which configuration, and where.
//!
//! Everything here is pure: time is an argument, sizes and uses are inputs, loads and unloads are outputs. The runtime
//! carries them out, the simulator drives the same code over recorded requests.
//!
//! ```text
//! residency/      which models are in memory, under a budget that counts shared tensors once
//! keep_alive.rs   how long something idle stays
//! recent.rs       what was observed lately
//! scaling.rs      how many instances a model in memory needs
//! configuration/  how a model runs now: instances, threads and batch, from its profile and its rate
//! selection/      which measured configurations serve a rate within an objective, with the least memory and cores
//! packing/        instances onto as few devices as possible, by memory and cores
//! placement.rs    the node for an instance: where its tensors are; which instances are released first
//! ```

pub mod configuration;
pub mod keep_alive;
pub mod packing;
pub mod placement;
pub mod recent;
pub mod residency;
pub mod scaling;
pub mod selection;
