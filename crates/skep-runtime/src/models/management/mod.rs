//! Loads, unloads and the index: queued, and run on their own threads.
//!
//! These calls read files, wait for libraries, and may take any time. They run on their own threads: `load_threads` for
//! loads, one for unloads and one for indexes, so that they never take a place that an inference needs. [`CallQueue`]
//! says which call is next, and bounds how many wait.
//!
//! A stop answers all callers and does not wait: a load that still runs is abandoned (`Runtime::commit`).

mod call;
mod queue;
mod requests;
mod threads;

use std::{
    fmt,
    sync::{Arc, Mutex, MutexGuard, mpsc},
};

use skep_host::lock;
use tokio::sync::oneshot;

pub(super) use call::{CallTarget, ManagementCall};

use crate::{
    error::{ErrorKind, RuntimeError},
    models::{
        management::queue::{CallQueue, QueueLimits},
        records::IndexEntry,
    },
    repository::ModelId,
};

/// Clients that may wait for outcomes of management calls, including joined ones: a few hundred bytes each. The bound
/// on connections is higher.
const MAX_CALLERS: usize = 16_384;

/// What a call has done.
#[derive(Debug, Clone)]
pub(in crate::models) enum CallDone {
    /// A load, an unload, a change of instances.
    Changed,
    /// The rows of an index.
    Index(Arc<[IndexEntry]>),
    /// Nothing: an ensemble lacks these parts.
    LacksParts(Arc<[ModelId]>),
}

/// The outcome of a call.
pub(in crate::models) type CallOutcome = Result<CallDone, RuntimeError>;

/// Where an outcome goes.
enum CallReply {
    /// A client's call, on the reactor.
    Task(oneshot::Sender<CallOutcome>),
    /// A thread that blocks.
    Thread(mpsc::SyncSender<CallOutcome>),
}

impl CallReply {
    fn send(self, outcome: CallOutcome) {
        // The caller may have gone.
        match self {
            Self::Task(reply) => drop(reply.send(outcome)),
            Self::Thread(reply) => drop(reply.send(outcome)),
        }
    }
}

/// The management calls of a runtime.
pub(crate) struct Management(Mutex<CallQueue<CallReply>>);

impl Management {
    /// `load_threads` loads run at once, and at most `max_waiting` calls of clients wait.
    pub(crate) fn new(load_threads: usize, max_waiting: usize) -> Self {
        Self(Mutex::new(CallQueue::new(QueueLimits {
            loads: load_threads,
            waiting: max_waiting,
            callers: MAX_CALLERS,
        })))
    }

    fn queue(&self) -> MutexGuard<'_, CallQueue<CallReply>> {
        lock(&self.0)
    }

    /// Takes no further calls, and answers all that wait.
    pub(crate) fn close(&self) {
        let waiting = self.queue().close();
        for reply in waiting {
            reply.send(Err(stopping()));
        }
    }

    /// How many calls run now.
    pub(crate) fn running(&self) -> usize {
        self.queue().running()
    }
}

impl fmt::Debug for Management {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Management").finish_non_exhaustive()
    }
}

/// The answer to calls while the server stops.
fn stopping() -> RuntimeError {
    let text = "the server is stopping, the call is cancelled";
    RuntimeError::new(ErrorKind::Unavailable, text)
}
