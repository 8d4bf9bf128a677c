//! Threads for what changes the models of a node: loads, unloads, and the index, which reads the repository.
//!
//! These calls read files, wait for libraries, and take as long as a model likes. They run on threads of their own, as many
//! as `load_threads` for loads and one each for unloads and indexes, so that they never take the place of anything that an
//! inference needs. [`CallQueue`] says which is next, and bounds what waits. A thread ends when nothing is left for it.
//!
//! A stop answers everybody who waits, and waits for nobody: a load that still runs comes to nothing
//! (`Runtime::commit`).

mod calls;
mod queue;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, MutexGuard, mpsc},
    thread,
};

use tokio::sync::oneshot;

pub(crate) use queue::{CallTarget, ManagementCall, QueueLimits};
use skep_host::lock;

use crate::{ErrorKind, IndexEntry, Runtime, RuntimeError};
use queue::{CallPosition, CallQueue, CallRefusal, CallTicket};

/// Clients that wait for outcomes of management calls, joined ones included: a few hundred bytes each, and a bound where
/// connections have none that is as low.
const MAX_CALLERS: usize = 16_384;

/// What a call came to: nothing to say, or the rows of an index.
pub(crate) type CallOutcome = Result<Arc<[IndexEntry]>, RuntimeError>;

/// How an outcome gets to whoever waits.
enum CallReply {
    /// A client's call, on the reactor.
    Task(oneshot::Sender<CallOutcome>),
    /// A thread that blocks.
    Thread(mpsc::SyncSender<CallOutcome>),
}

impl CallReply {
    fn send(self, outcome: CallOutcome) {
        // Whoever went away wants no outcome.
        match self {
            Self::Task(reply) => drop(reply.send(outcome)),
            Self::Thread(reply) => drop(reply.send(outcome)),
        }
    }
}

/// The calls of a runtime.
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

    /// Takes nothing more, and answers everybody who waits.
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

impl std::fmt::Debug for Management {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Management").finish_non_exhaustive()
    }
}

impl Runtime {
    /// Runs a client's call on a thread of management. Dropping the future takes it back while it waits.
    pub(crate) async fn manage(self: &Arc<Self>, work: ManagementCall) -> CallOutcome {
        let (reply, outcome) = oneshot::channel();
        let place = self.submit(work, true, CallReply::Task(reply))?;
        let _waiter = CallWaiter {
            runtime: self,
            place,
        };
        outcome.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Runs calls and blocks until each has its outcome. `is_clients` are counted towards the bound.
    pub(crate) fn manage_now(
        self: &Arc<Self>,
        works: impl IntoIterator<Item = ManagementCall>,
        is_clients: bool,
    ) -> Vec<CallOutcome> {
        let submit = |work| {
            let (reply, outcome) = mpsc::sync_channel(1);
            self.submit(work, is_clients, CallReply::Thread(reply))
                .map(|_| outcome)
        };
        let submitted: Vec<_> = works.into_iter().map(submit).collect();
        let outcomes = submitted.into_iter();
        let received =
            |outcome: mpsc::Receiver<CallOutcome>| outcome.recv().unwrap_or_else(|_| Err(lost()));
        outcomes.map(|outcome| outcome.and_then(received)).collect()
    }

    fn submit(
        self: &Arc<Self>,
        work: ManagementCall,
        is_clients: bool,
        reply: CallReply,
    ) -> Result<CallPosition, RuntimeError> {
        let (place, next) = {
            let mut queue = self.management.queue();
            let place = queue
                .submit(work, is_clients, reply)
                .map_err(|(refusal, _)| refused(refusal))?;
            (place, queue.start_next())
        };
        if let Some(next) = next {
            self.start_thread(next);
        }
        Ok(place)
    }

    /// A thread that runs this call, and then what there is for it.
    fn start_thread(self: &Arc<Self>, first: (CallTicket, ManagementCall)) {
        let mut next = Some(first);
        while let Some(call) = next.take() {
            let ticket = call.0;
            let runtime = Arc::clone(self);
            let thread = thread::Builder::new().name("management".to_owned());
            let Err(error) = thread.spawn(move || runtime.run_calls(call)) else {
                return;
            };
            let replies = {
                let mut queue = self.management.queue();
                let replies = queue.finish(ticket);
                // Nobody else may be left to begin what waited for this call.
                next = queue.start_next();
                replies
            };
            let text = format!("cannot start a thread for the call: {error}");
            tracing::error!("{text}");
            for reply in replies {
                reply.send(Err(RuntimeError::new(ErrorKind::Unavailable, &*text)));
            }
        }
    }

    fn run_calls(self: Arc<Self>, first: (CallTicket, ManagementCall)) {
        let mut next = Some(first);
        while let Some((ticket, work)) = next.take() {
            // A panic costs its call and no thread.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.carry_out(work)));
            let outcome = outcome.unwrap_or_else(|_| {
                Err(RuntimeError::internal(
                    "the call panicked, the server's log says where",
                ))
            });
            let (replies, others) = {
                let mut queue = self.management.queue();
                let replies = queue.finish(ticket);
                next = queue.start_next();
                // The end of one call may let two begin: its place is free, and its model's next one may be another lane's.
                let others: Vec<_> = std::iter::from_fn(|| queue.start_next()).collect();
                (replies, others)
            };
            for reply in replies {
                reply.send(outcome.clone());
            }
            for other in others {
                self.start_thread(other);
            }
        }
    }
}

/// Takes a call back when nobody waits for it any more.
struct CallWaiter<'a> {
    runtime: &'a Arc<Runtime>,
    place: CallPosition,
}

impl Drop for CallWaiter<'_> {
    fn drop(&mut self) {
        let (work, next) = {
            let mut queue = self.runtime.management.queue();
            (queue.leave(self.place), queue.start_next())
        };
        // Outside of the lock: files that a client sent take time to free.
        drop(work);
        if let Some(next) = next {
            self.runtime.start_thread(next);
        }
    }
}

fn refused(refusal: CallRefusal) -> RuntimeError {
    let text = match refusal {
        CallRefusal::Closed => return stopping(),
        CallRefusal::Full(waiting) => format!(
            "{waiting} loads and unloads wait already, as many as may\n  `--max-waiting-loads` says how many"
        ),
        CallRefusal::Callers(callers) => {
            format!("{callers} clients wait for loads and unloads already, as many as may")
        }
    };
    RuntimeError::new(ErrorKind::Unavailable, text)
}

/// Why a call comes to nothing while the server stops.
fn stopping() -> RuntimeError {
    let text = "the server is stopping, the call is given up";
    RuntimeError::new(ErrorKind::Unavailable, text)
}

fn lost() -> RuntimeError {
    RuntimeError::internal("the call ended without an outcome")
}
