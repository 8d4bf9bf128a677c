//! An ensemble: a version that answers with requests to other versions, its *parts*.
//!
//! ```text
//! EnsembleResponder::submit -> EnsembleGate (bound on requests under way) -> EnsembleRun, in the client's own task
//!   EnsembleRun: asks the Flow which steps can start, makes their requests, gives the Flow what they answer
//!   Flow (pure): which tensors are known, which steps can start, which are skipped
//!   EnsembleGraph (pure): the steps and tensors as numbers; whether the parts fit them
//!   StepModels: finds the parts, handed down from `models/`
//! ```
//!
//! A step is an ordinary request, so that requests of several ensembles and of clients share batches. Its tensors are
//! those that another step gave, without a copy. The steps run in the task that waits for the answer: dropping it, as when
//! the client leaves, cancels every step. What the steps take of the node's memory is charged to the ensemble's request.
//!
//! A part is looked up when a request begins, so that a part that is loaded again is used from the next request on, and
//! one that is unloaded answers the requests that have begun. The ensemble is healthy as long as all its parts are there
//! and fit.

mod check;
mod flow;
mod gate;
mod graph;
mod parts;
mod responder;
mod run;
#[cfg(test)]
mod tests;

pub(crate) use self::{
    check::{check_parts, find_parts},
    parts::{AcquiredVersion, PartConfigs, StepModels, StepTarget},
    responder::EnsembleResponder,
};
