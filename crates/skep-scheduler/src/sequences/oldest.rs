//! Candidates: sequences whose oldest requests form batches, as those of a model without sequences do.

use super::{
    OldestPolicy, SequenceOptions, SequencePayload,
    table::{SequenceNumber, SequenceTable, Stage},
};
use crate::{
    Input, InstanceId, Output, Outputs, Policy, Request, RequestId, Scheduler, SchedulerOptions,
};

/// More requests than can be offered: candidates have one each.
const UNBOUNDED: usize = u32::MAX as usize;

/// The candidates, and the scheduler that forms batches of one request of each.
#[derive(Debug)]
pub(super) struct Candidates<P: SequencePayload> {
    scheduler: Scheduler<P>,
    max_each: usize,
    /// Instances that take batches.
    instances: Vec<InstanceId>,
    /// The sequences of the batch that each instance executes.
    running: Vec<(InstanceId, Vec<SequenceNumber>)>,
    /// Sequences that are candidates.
    seated: usize,
    /// The number of the next request that is offered.
    next_turn: u64,
    /// What the scheduler is told next.
    inputs: Vec<Input<P>>,
}

impl<P: SequencePayload> Candidates<P> {
    pub(super) fn new(policy: &OldestPolicy, options: &SequenceOptions) -> Self {
        let scheduler = Scheduler::new(SchedulerOptions {
            max_batch_size: options.max_batch_size,
            policy: Policy::Triton(policy.batching.clone()),
            slots: options.slots,
            ..SchedulerOptions::one_by_one(UNBOUNDED)
        });
        Self {
            scheduler,
            max_each: policy.max_candidates,
            instances: Vec::new(),
            running: Vec::new(),
            seated: 0,
            next_turn: 0,
            inputs: Vec::new(),
        }
    }

    pub(super) fn scheduler(&self) -> &Scheduler<P> {
        &self.scheduler
    }

    pub(super) fn scheduler_mut(&mut self) -> &mut Scheduler<P> {
        &mut self.scheduler
    }

    /// Sequences that could become candidates.
    pub(super) fn free(&self) -> usize {
        let total = self.max_each.saturating_mul(self.instances.len());
        // There may be more of them after an instance has left.
        total.saturating_sub(self.seated)
    }

    pub(super) fn has_instances(&self) -> bool {
        !self.instances.is_empty()
    }

    pub(super) fn take(&mut self) -> bool {
        let is_free = self.free() > 0;
        self.seated += usize::from(is_free);
        is_free
    }

    pub(super) fn release(&mut self) {
        self.seated -= 1;
    }

    pub(super) fn join(&mut self, id: InstanceId) {
        if !self.instances.contains(&id) {
            self.instances.push(id);
        }
    }

    pub(super) fn retire(&mut self, id: InstanceId) {
        self.instances.retain(|known| *known != id);
    }

    /// An instance has finished its batch. Returns the sequences that had a request in it.
    pub(super) fn finished(&mut self, id: InstanceId) -> Vec<SequenceNumber> {
        let index = self.running.iter().position(|(running, _)| *running == id);
        index.map_or_else(Vec::new, |index| self.running.swap_remove(index).1)
    }

    /// Tells the scheduler something when [`Candidates::decide`] is called next.
    pub(super) fn tell(&mut self, input: Input<P>) {
        self.inputs.push(input);
    }

    /// Offers a sequence's oldest request to the scheduler.
    pub(super) fn offer(&mut self, mut request: Request<P>) {
        request.payload.enters(RequestId(self.next_turn));
        self.next_turn += 1;
        self.inputs.push(Input::Enqueue(request));
    }

    /// Lets the scheduler decide.
    pub(super) fn decide(
        &mut self,
        now: skep_types::Time,
        table: &mut SequenceTable<P>,
        outputs: &mut Outputs<P>,
    ) {
        let mut decided = Outputs::new();
        self.scheduler
            .handle_all(now, self.inputs.drain(..), &mut decided);
        for output in decided {
            match &output {
                Output::Dispatch { instance, batch } => {
                    let requests = batch.requests.iter();
                    let numbers = requests.filter_map(|request| {
                        let number = table.owner(request.id)?;
                        table.get_mut(number).stage = Stage::Running(request.id);
                        Some(number)
                    });
                    let numbers = numbers.collect();
                    self.running.push((*instance, numbers));
                }
                Output::Reject { request, .. } => {
                    if let Some(number) = table.owner(request.id) {
                        table.get_mut(number).stage = Stage::Pending;
                        table.forget(request.id);
                    }
                }
                Output::WantSlot | Output::ReturnSlot => {}
            }
            outputs.push(output);
        }
    }
}
