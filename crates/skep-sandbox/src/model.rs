//! A model whose instances are worker processes, as the server sees it.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, PoisonError},
};

use skep_backend::{BackendError, ErrorKind, Instance, Model, OutputSlot, RunMemory};
use skep_tensor::TensorView;
use skep_types::{ModelSignature, Shape};

use crate::{
    conversation::{Conversation, Failure},
    message::Loaded,
    process::Process,
    sandboxes::Starter,
};

/// A model that is loaded in each of its worker processes.
pub(crate) struct SandboxedModel {
    starter: Starter,
    loaded: Loaded,
    /// The process that was started to learn the signature, until an instance takes it.
    first: Mutex<Option<Worker>>,
}

impl SandboxedModel {
    pub(crate) fn new(starter: Starter, worker: Worker, loaded: Loaded) -> Self {
        Self {
            starter,
            loaded,
            first: Mutex::new(Some(worker)),
        }
    }

    fn worker(&self) -> Result<Worker, BackendError> {
        let first = self
            .first
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(worker) = first {
            return Ok(worker);
        }
        let (worker, mut loaded) = self.starter.start()?;
        // It may have been baked since, which changes nothing that anybody sees.
        loaded.is_baked = self.loaded.is_baked;
        if loaded == self.loaded {
            return Ok(worker);
        }
        Err(BackendError::new(
            ErrorKind::Internal,
            format!(
                "another worker process of model `{}` loaded another model",
                self.starter.model()
            ),
        ))
    }
}

impl Model for SandboxedModel {
    fn signature(&self) -> &ModelSignature {
        &self.loaded.signature
    }

    fn output_shapes(&self, _: &[&Shape]) -> Option<Vec<Shape>> {
        // The worker prepares memory that it shares; memory of this process it cannot reach.
        None
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        let threads = usize::try_from(self.loaded.cpu_threads?).unwrap_or(usize::MAX);
        NonZeroUsize::new(threads)
    }

    fn is_baked(&self) -> bool {
        self.loaded.is_baked
    }

    fn echoes_parameters(&self) -> bool {
        self.loaded.echoes_parameters
    }

    fn instance(self: Arc<Self>) -> Result<Box<dyn Instance>, BackendError> {
        Ok(Box::new(SandboxedInstance {
            worker: Some(self.worker()?),
            model: self,
            memory: None,
        }))
    }
}

/// An instance: its worker process, as long as that lives.
struct SandboxedInstance {
    model: Arc<SandboxedModel>,
    worker: Option<Worker>,
    memory: Option<RunMemory>,
}

impl Instance for SandboxedInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => self.model.worker()?,
        };
        let mut outcome = worker.conversation.run(inputs, outputs);
        if matches!(outcome, Err(Failure::Idle)) {
            // It ended before it saw the batch, which another one can run.
            worker.process.bury();
            worker = self.model.worker()?;
            outcome = worker.conversation.run(inputs, outputs);
        }
        let ended = |worker: &mut Worker| {
            let (model, how) = (self.model.starter.model(), worker.process.bury());
            let text = format!(
                "the worker process of model `{model}` ended {how} while it ran this batch"
            );
            BackendError::new(ErrorKind::Internal, text)
        };
        match outcome {
            Ok(memory) => {
                self.memory = memory;
                self.worker = Some(worker);
                Ok(())
            }
            Err(Failure::Idle | Failure::Ended) => Err(ended(&mut worker)),
            Err(Failure::Wrong(what)) => {
                let model = self.model.starter.model();
                let text = format!("the worker process of model `{model}` was ended: {what}");
                tracing::error!("{text}");
                Err(BackendError::new(ErrorKind::Internal, text))
            }
            Err(Failure::Run {
                error,
                memory,
                ends,
            }) => {
                self.memory = memory.or(self.memory);
                self.worker = (!ends).then_some(worker);
                Err(error)
            }
            Err(Failure::Unsent(error)) => {
                self.worker = Some(worker);
                let text = format!("cannot hand the batch to a worker process: {error}");
                Err(BackendError::new(ErrorKind::Internal, text))
            }
        }
    }

    fn is_lost(&self) -> bool {
        let worker = self.worker.as_ref();
        worker.is_none_or(|worker| worker.process.has_ended())
    }

    fn memory(&self) -> Option<RunMemory> {
        self.memory
    }
}

/// A worker process that waits for a batch.
pub(crate) struct Worker {
    /// Declared first, dropped first: told to end before the conversation's end tells it.
    pub(crate) process: Process,
    pub(crate) conversation: Conversation,
}
