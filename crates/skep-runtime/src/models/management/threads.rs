//! The threads that run management calls. A thread ends when no call is left for it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, mpsc},
    thread,
};

use tokio::sync::oneshot;

use crate::{
    error::{ErrorKind, RuntimeError},
    models::{
        management::{
            CallOutcome, CallReply,
            call::ManagementCall,
            queue::{CallPosition, CallRefusal, CallTicket},
            stopping,
        },
        runtime::Runtime,
    },
};

impl Runtime {
    /// Runs a client's call on a management thread. Dropping the future cancels the call while it waits.
    pub(super) async fn manage(self: &Arc<Self>, call: ManagementCall) -> CallOutcome {
        let (reply, outcome) = oneshot::channel();
        let position = self.submit(call, true, CallReply::Task(reply))?;
        let _waiter = CallWaiter {
            runtime: self,
            position,
        };
        outcome.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Runs calls and blocks until each has its outcome. Calls of clients count towards the bounds.
    pub(in crate::models) fn manage_now(
        self: &Arc<Self>,
        calls: impl IntoIterator<Item = ManagementCall>,
        from_client: bool,
    ) -> Vec<CallOutcome> {
        // All are submitted before the first is waited for.
        let mut submitted = Vec::new();
        for call in calls {
            let (reply, outcome) = mpsc::sync_channel(1);
            let position = self.submit(call, from_client, CallReply::Thread(reply));
            submitted.push(position.map(|_| outcome));
        }
        let outcomes = submitted.into_iter();
        outcomes
            .map(|outcome| outcome?.recv().unwrap_or_else(|_| Err(lost())))
            .collect()
    }

    /// Queues a call whose outcome nobody waits for.
    pub(in crate::models) fn manage_later(
        self: &Arc<Self>,
        call: ManagementCall,
    ) -> Result<(), RuntimeError> {
        let (reply, _) = mpsc::sync_channel(1);
        self.submit(call, false, CallReply::Thread(reply)).map(drop)
    }

    fn submit(
        self: &Arc<Self>,
        call: ManagementCall,
        from_client: bool,
        reply: CallReply,
    ) -> Result<CallPosition, RuntimeError> {
        let (position, next) = {
            let mut queue = self.management.queue();
            let position = queue
                .submit(call, from_client, reply)
                .map_err(|(refusal, _)| refused(refusal))?;
            (position, queue.start_next())
        };
        if let Some(next) = next {
            self.start_thread(next);
        }
        Ok(position)
    }

    /// Starts a thread that runs this call, and then further ones.
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
                // No other thread may be left to begin the calls that waited for this one.
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
        while let Some((ticket, call)) = next.take() {
            // A panic fails its call and does not end the thread.
            let outcome = catch_unwind(AssertUnwindSafe(|| self.carry_out(call)));
            let outcome = outcome.unwrap_or_else(|_| {
                Err(RuntimeError::internal(
                    "the call panicked, see the server's log",
                ))
            });
            let (replies, others) = {
                let mut queue = self.management.queue();
                let replies = queue.finish(ticket);
                next = queue.start_next();
                // The end of one call may let two begin: its place is free, and its model's next call may be in another
                // lane.
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

/// Cancels a waiting call when its caller stops waiting.
struct CallWaiter<'a> {
    runtime: &'a Arc<Runtime>,
    position: CallPosition,
}

impl Drop for CallWaiter<'_> {
    fn drop(&mut self) {
        let (call, next) = {
            let mut queue = self.runtime.management.queue();
            (queue.leave(self.position), queue.start_next())
        };
        // Without the lock: files that a client sent take time to free.
        drop(call);
        if let Some(next) = next {
            self.runtime.start_thread(next);
        }
    }
}

fn refused(refusal: CallRefusal) -> RuntimeError {
    let text = match refusal {
        CallRefusal::Closed => return stopping(),
        CallRefusal::Full(waiting) => format!(
            "{waiting} loads and unloads are waiting, the most allowed\n  `--max-waiting-loads` sets the limit"
        ),
        CallRefusal::Callers(callers) => {
            format!("{callers} clients are waiting for loads and unloads, the most allowed")
        }
    };
    RuntimeError::new(ErrorKind::Unavailable, text)
}

fn lost() -> RuntimeError {
    RuntimeError::internal("the call ended without an outcome")
}
