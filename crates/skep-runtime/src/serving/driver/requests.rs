//! Requests on their way in: queued, dispatched, refused, taken back.

use std::{sync::atomic::Ordering, time::Duration};

use skep_scheduler::{Input, InstanceId, Output, Outputs, RejectReason, Request, RequestId};
use skep_types::Time;

use super::{Driver, JobBatch};
use crate::{
    clock,
    error::QUEUE_FULL,
    serving::{job::Job, request::InferResponse},
};

/// A run that is shorter is not worth a wake-up of its own: waking a thread and letting it sleep again costs the two
/// threads some 5 us of CPU.
const SHORT_RUN: Duration = Duration::from_micros(100);

/// A batch for an idle instance. Dropping the handover sends the batch, which wakes the instance's thread.
#[must_use]
pub(crate) struct Handover<'a> {
    driver: &'a Driver,
    dispatched: Option<(InstanceId, JobBatch)>,
}

impl Handover<'_> {
    /// Sends the batch. If the model's runs are short, requests that have arrived on this thread meanwhile are taken in
    /// first: they queue behind this batch, and the instance, once awake, finds them all. That joins many wake-ups into
    /// one. An instance whose runs are long gets its batch at once.
    pub(crate) async fn complete(self) {
        let last_run_ns = self.driver.last_run_ns.load(Ordering::Relaxed);
        if self.dispatched.is_some() && Duration::from_nanos(last_run_ns) < SHORT_RUN {
            tokio::task::yield_now().await;
        }
    }
}

impl Drop for Handover<'_> {
    fn drop(&mut self) {
        if let Some((instance, batch)) = self.dispatched.take() {
            self.driver.send(instance, batch);
        }
    }
}

impl Driver {
    /// Takes a request in: it is queued, answered with an error, or dispatched, in which case the caller completes the
    /// handover.
    pub(crate) fn enqueue(
        &self,
        mut job: Box<Job>,
        priority: u64,
        timeout: Option<Duration>,
    ) -> (RequestId, Handover<'_>) {
        let (now, batch_size) = (job.arrived, job.prepared.batch_size);
        let mut state = self.lock();
        let id = state.take_id();
        job.id = state.turn(id);
        let mut handover = Handover {
            driver: self,
            dispatched: None,
        };
        let refused = match self.why_not() {
            None if self.answers.are_too_many() => Some(QUEUE_FULL.to_owned()),
            why_not => why_not,
        };
        if let Some(why) = refused {
            drop(state);
            self.answers.refuse(job, why);
            return (id, handover);
        }
        let request = Request {
            id,
            batch_size,
            priority,
            timeout,
            payload: job,
        };
        let mut outputs = Outputs::new();
        let is_too_many = self.decide(now, &mut state, Input::Enqueue(request), &mut outputs);
        if is_too_many {
            // It would wait, and more requests wait on the node than may. Other outputs of its arrival stand.
            self.decide(now, &mut state, Input::Withdraw(id), &mut outputs);
        }
        let pending = self.settle(&mut state, &mut outputs, None);
        drop(state);
        pending.deliver();
        for output in outputs {
            match output {
                Output::Dispatch { instance, batch } => {
                    // An arrival can close the batch before it, so that two batches leave.
                    if let Some((instance, batch)) = handover.dispatched.replace((instance, batch))
                    {
                        self.send(instance, batch);
                    }
                }
                Output::Reject { request, .. } if is_too_many && request.id == id => {
                    self.answers.refuse(request.payload, self.node_is_full());
                }
                Output::Reject {
                    request,
                    reason: RejectReason::QueueFull,
                } => self.answers.refuse(request.payload, QUEUE_FULL.to_owned()),
                Output::Reject {
                    request,
                    reason: RejectReason::NoStart,
                } => self.answers.refuse_without_start(request.payload),
                Output::Reject { request, reason } => self.reject(request.payload, reason),
                Output::WantSlot | Output::ReturnSlot => unreachable!("slots are settled"),
            }
        }
        (id, handover)
    }

    /// Answers a request whose response was found without an execution, in its turn. The search began at `began`.
    pub(crate) fn answer_at_once(
        &self,
        mut job: Box<Job>,
        mut response: InferResponse,
        began: Time,
    ) {
        if self.answers.keeps_order() {
            job.id = self.lock().take_id();
            if self.answers.are_too_many() {
                return self.answers.refuse(job, QUEUE_FULL.to_owned());
            }
        }
        if let Err(error) = response.charge_to(job.prepared.charge.take()) {
            return self.answers.refuse_with(job, error);
        }
        let arrived = job.arrived;
        self.statistics().found(arrived, began, clock::now());
        self.answer(job.take_waiter(), Ok(response));
    }

    /// Takes a request out of the queue if it is still there.
    pub(crate) fn cancel(&self, id: RequestId) {
        self.apply(clock::now(), self.lock(), Input::Cancel(id), None, None);
    }

    /// Stops waiting for further requests to join a batch; new requests are still taken.
    pub(crate) fn hurry(&self) {
        self.apply(clock::now(), self.lock(), Input::Hurry, None, None);
    }

    /// Takes no new requests; those that wait are still served.
    pub(crate) fn drain(&self) {
        self.apply(clock::now(), self.lock(), Input::Drain, None, None);
    }

    /// Ends the instances once they have finished their batches. Call it only when no request can arrive any more.
    pub(crate) fn close(&self) {
        self.drain();
        self.mailboxes.close_all();
    }

    fn node_is_full(&self) -> String {
        format!(
            "Exceeds maximum queue size of the server: {} requests wait for its models (`--max-waiting-requests`)",
            self.limit.max()
        )
    }
}
