//! The scheduler of one model version: from requests to batches on instances.
//!
//! A sans-IO state machine: whoever has an input (a request, a finished instance, a timer that is due) applies it with
//! [`Scheduler::handle`] and carries out the outputs itself. There is no clock, thread, lock or I/O here, and no
//! tensor: a request carries a payload `P` that the scheduler never looks at. So the server, the simulator and the
//! property tests run the same decisions.
//!
//! ```text
//!            Enqueue  Cancel  InstanceReady  Finished  InstanceGone  Drain
//!                |       |          |            |           |         |
//!                v       v          v            v           v         v
//!             +-----------------------------------------------------------+
//!             |  queue (FIFO, bounded) -> policy -> free instance         |
//!             +-----------------------------------------------------------+
//!                |                                    |
//!                v                                    v
//!             Dispatch { instance, batch }         Reject { request, reason }
//! ```
//!
//! The policy today is Triton's *default scheduler*: no merging, the oldest request to any free instance. Every
//! request that is enqueued leaves exactly once, by a dispatch or by a reject.
//!
//! Source: Triton Inference Server, user guide, "Schedulers" (default scheduler).

mod instances;
mod queue;
mod scheduler;

pub use instances::InstanceId;
pub use scheduler::{
    Batch, Input, Output, Outputs, RejectReason, Request, RequestId, Scheduler, SchedulerOptions,
};
