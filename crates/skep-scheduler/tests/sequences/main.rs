//! The scheduler of sequences: scenarios, and what holds under any of them.

mod properties;
mod scenarios;

use std::{sync::Arc, time::Duration};

use skep_scheduler::{
    CorrelationId, DirectPolicy, OldestPolicy, Payload, RequestId, SequenceOptions,
    SequencePayload, SequenceStep, SequenceStrategy, TritonPolicy,
};

/// A request's place in its sequence, its shape, and what it was handed.
#[derive(Debug, Clone)]
pub(crate) struct Step {
    pub(crate) step: SequenceStep,
    pub(crate) shape: bool,
    /// The same for the requests from one start on, and for no others.
    pub(crate) memory: Option<Arc<u8>>,
    pub(crate) turn: Option<RequestId>,
}

impl Step {
    pub(crate) fn new(id: u64, start: bool, end: bool) -> Self {
        let id = CorrelationId::number(id).expect("not 0");
        Self {
            step: SequenceStep { id, start, end },
            shape: false,
            memory: None,
            turn: None,
        }
    }
}

impl Payload for Step {
    fn joins(&self, other: &Self) -> bool {
        self.shape == other.shape
    }
}

impl SequencePayload for Step {
    type Memory = Arc<u8>;

    fn step(&self) -> &SequenceStep {
        &self.step
    }

    fn remember(&mut self, memory: &Self::Memory) {
        self.memory = Some(Arc::clone(memory));
    }

    fn enters(&mut self, turn: RequestId) {
        self.turn = Some(turn);
    }
}

/// Options with batches of 4, an idle time-out of 100 ms, and nothing that delays or bounds.
pub(crate) fn options(strategy: SequenceStrategy) -> SequenceOptions {
    SequenceOptions {
        strategy,
        max_idle: Duration::from_millis(100),
        max_waiting: 1000,
        max_waiting_sequences: None,
        max_wait: None,
        max_batch_size: 4,
        slots: false,
        hold_until: 0,
    }
}

pub(crate) fn direct() -> SequenceStrategy {
    SequenceStrategy::Direct(DirectPolicy::default())
}

pub(crate) fn oldest(max_candidates: usize) -> SequenceStrategy {
    SequenceStrategy::Oldest(OldestPolicy {
        max_candidates,
        batching: TritonPolicy::default(),
    })
}
