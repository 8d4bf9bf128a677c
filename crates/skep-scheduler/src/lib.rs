//! The scheduler of one model version: from requests to batches on instances.
//!
//! A sans-IO state machine: the caller that has an input (a request, a finished instance, an expired timer) applies it
//! with [`Scheduler::handle`] and carries out the outputs. The crate has no clock, thread, lock or I/O, and knows no
//! tensors: of a request's payload `P` it knows only whether it [`joins`](Payload::joins) another. So the server, the
//! simulator and the property tests run the same decisions.
//!
//! ```text
//!     Enqueue  Cancel  InstanceReady  Finished  InstanceGone  SlotGranted  Hurry, Drain   next_timeout
//!         |       |          |            |           |            |         |           ^
//!         v       v          v            v           v            v         v           |
//!      +------------------------------------------------------------------------------------+
//!      |  waiting requests   ->   prefix    ->    policy    ->   free instance, slot        |
//!      |  (levels, expiry)        (could run      (how many,                                |
//!      |                           as one)         or until when to wait)                   |
//!      +------------------------------------------------------------------------------------+
//!         |                              |                         |
//!         v                              v                         v
//!      Dispatch { instance, batch }   Reject { request, reason }   WantSlot, ReturnSlot
//! ```
//!
//! Every request that is enqueued leaves exactly once, by a dispatch or by a reject. A request's wait ends when it is
//! due, whether or not an instance is free.
//!
//! # Time
//!
//! `now` is an argument, and [`Scheduler::next_timeout`] says when to come back. Inputs of one moment can be applied
//! together ([`Scheduler::handle_all`]), so that a batch is formed of all of them.
//!
//! # Devices
//!
//! Models that run on one device share its compute slots: [`DeviceShare`] decides which is next, and the schedulers,
//! each made with `slots: true`, ask it before they dispatch. A batch is formed when its slot is granted.
//!
//! Instances that declare resources share those the same way: [`ResourceShare`] decides which instance is next, and the
//! slot is granted for that instance ([`Input::SlotGrantedFor`]).
//!
//! # Cost
//!
//! The requests that could run as one batch are scanned once and remembered; an arrival behind them costs one step.
//! Everything else is a few bisections, however many requests wait.

mod device;
mod instances;
mod latency;
mod message;
mod options;
mod ordering;
mod policy;
mod prefix;
mod resources;
mod scheduler;
mod sequences;
mod snapshot;
mod sorted;
mod variation;
mod waiting;

pub use device::{DeviceShare, Grants, MAX_PASSES, MIN_TURN, ModelShareId};
pub use instances::InstanceId;
pub use message::{
    Batch, BatchEnd, BatchRows, Input, Output, Outputs, Payload, RejectReason, Request, RequestId,
};
pub use options::{Objective, Policy, SchedulerOptions, TritonPolicy};
pub use ordering::Ordering;
pub use resources::{
    ResourceDemand, ResourceError, ResourceGrants, ResourceSeatId, ResourceShare, ResourceSupply,
};
pub use scheduler::Scheduler;
pub use sequences::{
    DirectPolicy, OldestPolicy, SequenceOptions, SequencePayload, SequenceScheduler,
    SequenceStrategy,
};
pub use skep_types::{
    CorrelationId, ObjectivePolicy, Percentile, QueuePolicy, SequenceStep, TimeoutAction,
};
pub use snapshot::{PolicySnapshot, SequenceCounts, profile_sizes};
