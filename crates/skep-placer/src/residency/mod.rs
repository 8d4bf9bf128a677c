//! Residency: which of the known models have instances, under a memory budget.
//!
//! ```text
//!             request, explicit load          room is there
//!   KNOWN -----------------------> WANTED -------------------> LOADING
//!     ^  ^                           |                        |      |
//!     |  +--- too large, abandoned --+            load failed |      | loaded, with its measured size
//!     |  +----------------------------------------------------+      v
//!     +---------------------------- LEAVING <------------------- RESIDENT
//!          its memory is free                 room for another, idle, explicit unload
//! ```
//!
//! *Memory.* A model has private bytes, and tensors that others may share. The [`Residency`] counts each tensor once,
//! however many models hold it. What a model needs is known before it loads: first an estimate, then the size that was
//! measured the last time. Memory of a model that leaves counts as used until the caller says that it is free.
//!
//! *Room.* Models load in the order in which they were wanted. If the budget has no room for the next one, idle models
//! leave, in the order of the [`EvictionPolicy`], and only as many as are needed: memory that other departures are about
//! to free counts. A tensor that the next model shares with a resident one is claimed before anything leaves, so that
//! its own tensors do not count as room. A model that has just been loaded stays for as long as its load took, so that
//! no more than half of the time goes into loading it again and again.
//!
//! *Failures.* A model that failed to load is not tried again before a delay, which doubles with each failure; requests
//! that arrive meanwhile are refused at once.
//!
//! ```text
//! machine/      the state machine, and its figures
//! message.rs    its inputs and outputs
//! options.rs    budget and policy
//! room.rs       bytes: held, claimed, leaving, each shared tensor once
//! usage.rs      when a model was used: counts, rate, a histogram of its idle times
//! eviction.rs   which model leaves first
//! ```

mod beyond;
mod eviction;
mod machine;
mod message;
mod options;
#[cfg(test)]
mod properties;
mod room;
#[cfg(test)]
mod tests;
mod usage;

pub use eviction::{EvictionPolicy, UnknownEvictionPolicy};
pub use machine::{ModelFigures, Residency, ResidencyFigures};
pub use message::{
    DepartureReason, LoadRefusal, ModelKey, ModelSize, ModelTerms, ResidencyInput, ResidencyOutput,
    ResidencyState, TensorKey,
};
pub use options::ResidencyOptions;
