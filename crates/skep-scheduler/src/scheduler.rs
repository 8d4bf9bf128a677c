//! The state machine.

use std::time::Duration;

use skep_types::Time;
use smallvec::SmallVec;

use crate::{InstanceId, instances::Instances, queue::Queue};

/// Identifies a request within one scheduler: each request's is above those of all enqueued before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request as the scheduler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request<P> {
    /// Its identity.
    pub id: RequestId,
    /// The inferences it counts for (its batch size; 1 for models without a batch dimension).
    pub batch_size: usize,
    /// What the instance gets.
    pub payload: P,
}

/// Something that happened.
#[derive(Debug)]
pub enum Input<P> {
    /// A request arrived.
    Enqueue(Request<P>),
    /// Nobody waits for a request's answer any more. Drops it if it still waits; one that runs goes on.
    Cancel(RequestId),
    /// An instance joined and is free.
    InstanceReady(InstanceId),
    /// An instance finished its batch, after this long, and is free.
    Finished {
        /// Which one.
        instance: InstanceId,
        /// How long the execution took; policies that learn a latency model use it.
        duration: Duration,
    },
    /// An instance died or was taken away; a batch it had is its owner's to answer.
    InstanceGone(InstanceId),
    /// Take no new requests; what waits is still served while there are instances.
    Drain,
}

/// Requests to execute together.
#[derive(Debug, PartialEq, Eq)]
pub struct Batch<P> {
    /// In the order of their arrival; never empty.
    pub requests: SmallVec<[Request<P>; 1]>,
}

impl<P> Batch<P> {
    /// The inferences in the batch.
    #[must_use]
    pub fn size(&self) -> usize {
        self.requests.iter().map(|r| r.batch_size).sum()
    }
}

/// Something to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Output<P> {
    /// Execute a batch on an instance, which is busy from now on.
    Dispatch {
        /// Where.
        instance: InstanceId,
        /// What.
        batch: Batch<P>,
    },
    /// Answer a request with an error.
    Reject {
        /// Which one.
        request: Request<P>,
        /// Why.
        reason: RejectReason,
    },
}

/// Why a request is not executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RejectReason {
    /// As many requests wait as may.
    QueueFull,
    /// The scheduler drains.
    Draining,
    /// Nobody waits for the answer any more.
    Cancelled,
}

/// What one call decided; a call rarely decides more than one thing, so the list stays off the heap.
pub type Outputs<P> = SmallVec<[Output<P>; 2]>;

/// What a scheduler is made with.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerOptions {
    /// How many requests may wait, at least 1.
    pub max_queue_size: usize,
}

/// The scheduler of one model version. See the crate's page.
#[derive(Debug)]
pub struct Scheduler<P> {
    options: SchedulerOptions,
    queue: Queue<P>,
    instances: Instances,
    draining: bool,
}

impl<P> Scheduler<P> {
    /// A scheduler without instances: requests wait until one joins.
    #[must_use]
    pub fn new(options: SchedulerOptions) -> Self {
        Self {
            options,
            queue: Queue::new(),
            instances: Instances::default(),
            draining: false,
        }
    }

    /// Applies one input and appends what follows from it.
    ///
    /// `now` is unused by the default policy; policies with delays and time-outs decide by it.
    pub fn handle(&mut self, _now: Time, input: Input<P>, outputs: &mut Outputs<P>) {
        match input {
            Input::Enqueue(request) => self.enqueue(request, outputs),
            Input::Cancel(id) => self.cancel(id, outputs),
            Input::InstanceReady(instance) | Input::Finished { instance, .. } => {
                self.instances.set_free(instance)
            }
            Input::InstanceGone(instance) => self.instances.remove(instance),
            Input::Drain => self.draining = true,
        }
        self.dispatch(outputs);
        self.reject_unservable(outputs);
    }

    /// How many requests wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// Whether an instance executes a batch; `None` for one that is not (or no longer) there.
    #[must_use]
    pub fn is_busy(&self, instance: InstanceId) -> Option<bool> {
        self.instances.is_busy(instance)
    }

    fn enqueue(&mut self, request: Request<P>, outputs: &mut Outputs<P>) {
        if self.draining {
            outputs.push(Output::Reject {
                request,
                reason: RejectReason::Draining,
            });
        } else if self.queue.len() >= self.options.max_queue_size {
            outputs.push(Output::Reject {
                request,
                reason: RejectReason::QueueFull,
            });
        } else {
            self.queue.push(request);
        }
    }

    fn cancel(&mut self, id: RequestId, outputs: &mut Outputs<P>) {
        if let Some(request) = self.queue.remove(id) {
            outputs.push(Output::Reject {
                request,
                reason: RejectReason::Cancelled,
            });
        }
    }

    fn dispatch(&mut self, outputs: &mut Outputs<P>) {
        while self.queue.len() > 0 {
            let Some(instance) = self.instances.take_free() else {
                return;
            };
            let request = self.queue.pop().expect("the queue is not empty");
            outputs.push(Output::Dispatch {
                instance,
                batch: Batch {
                    requests: SmallVec::from_buf([request]),
                },
            });
        }
    }

    /// A draining scheduler whose last instance is gone can serve nothing any more: what waits is answered now.
    fn reject_unservable(&mut self, outputs: &mut Outputs<P>) {
        if self.draining && self.instances.is_empty() {
            while let Some(request) = self.queue.pop() {
                outputs.push(Output::Reject {
                    request,
                    reason: RejectReason::Draining,
                });
            }
        }
    }
}
