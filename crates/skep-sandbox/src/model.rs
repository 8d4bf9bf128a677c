//! The server's side of a model whose instances are worker processes.

use std::{
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use skep_backend::{
    BackendError, ErrorKind, Instance, Interrupt, Model, OutputSlot, RunMemory, check_cpu,
};
use skep_host::lock;
use skep_store::Digest;
use skep_tensor::TensorView;
use skep_types::{DeviceId, ModelSignature, Shape};

use crate::{
    conversation::RunFailure,
    message::WorkerModel,
    process::Killer,
    starter::{Starter, Worker},
};

/// A model that each of its worker processes has loaded.
pub(crate) struct SandboxedModel {
    starter: Starter,
    loaded: WorkerModel,
    /// The tensors of the store that all its processes use.
    tensors: Vec<(Digest, u64)>,
    /// The process that reported the signature, until an instance takes it.
    first: Mutex<Option<Worker>>,
}

impl SandboxedModel {
    pub(crate) fn new(starter: Starter, worker: Worker, loaded: WorkerModel) -> Self {
        let tensors = match loaded.is_baked {
            true => starter.tensors(),
            false => Vec::new(),
        };
        Self {
            starter,
            loaded,
            tensors,
            first: Mutex::new(Some(worker)),
        }
    }

    fn worker(&self) -> Result<Worker, BackendError> {
        let first = lock(&self.first).take();
        if let Some(worker) = first {
            return Ok(worker);
        }
        let (worker, mut loaded) = self.starter.start()?;
        // The model may have been baked since, which changes nothing visible.
        loaded.is_baked = self.loaded.is_baked;
        if loaded == self.loaded {
            return Ok(worker);
        }
        Err(BackendError::new(
            ErrorKind::Internal,
            format!(
                "another worker process of model `{}` loaded a different model",
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
        // The worker prepares shared memory; it cannot reach memory of this process.
        None
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        let threads = usize::try_from(self.loaded.cpu_threads?).unwrap_or(usize::MAX);
        NonZeroUsize::new(threads)
    }

    fn is_bound_by_load(&self) -> bool {
        true
    }

    fn is_baked(&self) -> bool {
        self.loaded.is_baked
    }

    fn stored_tensors(&self) -> Vec<(Digest, u64)> {
        self.tensors.clone()
    }

    fn echoes_parameters(&self) -> bool {
        self.loaded.echoes_parameters
    }

    fn instance(self: Arc<Self>, device: DeviceId) -> Result<Box<dyn Instance>, BackendError> {
        // Worker processes are started for the CPU.
        check_cpu("sandbox", device)?;
        let worker = self.worker()?;
        let stop = Arc::new(RunInterrupt::default());
        stop.over(&worker)?;
        Ok(Box::new(SandboxedInstance {
            worker: Some(worker),
            model: self,
            memory: None,
            cpu_time: None,
            stop,
        }))
    }
}

/// An instance, with its worker process while that lives.
struct SandboxedInstance {
    model: Arc<SandboxedModel>,
    worker: Option<Worker>,
    memory: Option<RunMemory>,
    stop: Arc<RunInterrupt>,
    /// Of the last run.
    cpu_time: Option<Duration>,
}

/// Ends a run by killing its worker process.
#[derive(Debug, Default)]
struct RunInterrupt(Mutex<InterruptState>);

#[derive(Debug, Default)]
struct InterruptState {
    killer: Option<Killer>,
    /// Whether the run was told to end. A worker that is started for it later is killed as well.
    is_told: bool,
}

impl RunInterrupt {
    fn lock(&self) -> MutexGuard<'_, InterruptState> {
        lock(&self.0)
    }

    /// Kills this worker on an interrupt from now on.
    fn over(&self, worker: &Worker) -> Result<(), BackendError> {
        let killer = worker.process.killer().map_err(|error| {
            let text = format!("cannot watch over a worker process: {error}");
            BackendError::new(ErrorKind::Internal, text)
        })?;
        let mut stopping = self.lock();
        if stopping.is_told {
            killer.kill();
        }
        stopping.killer = Some(killer);
        Ok(())
    }

    /// Whether the last run was told to end, and its worker with it.
    fn is_told(&self) -> bool {
        self.lock().is_told
    }
}

impl Interrupt for RunInterrupt {
    fn begin(&self) {
        self.lock().is_told = false;
    }

    fn interrupt(&self) {
        let mut stopping = self.lock();
        stopping.is_told = true;
        if let Some(killer) = &stopping.killer {
            killer.kill();
        }
    }
}

impl Instance for SandboxedInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let mut worker = match self.worker.take() {
            Some(worker) => worker,
            None => self.another()?,
        };
        let before = worker.process.cpu_time();
        let mut outcome = worker.conversation.run(inputs, outputs);
        let after = worker.process.cpu_time();
        self.cpu_time = after
            .zip(before)
            .map(|(after, before)| after.saturating_sub(before));
        if matches!(outcome, Err(RunFailure::Idle)) {
            // It ended before it had the batch, so another worker can run it.
            worker.process.bury();
            worker = self.another()?;
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
            Err(RunFailure::Idle | RunFailure::Ended) => Err(ended(&mut worker)),
            Err(RunFailure::Wrong(what)) => {
                let model = self.model.starter.model();
                let text = format!("the worker process of model `{model}` was ended: {what}");
                tracing::error!("{text}");
                Err(BackendError::new(ErrorKind::Internal, text))
            }
            Err(RunFailure::Run {
                error,
                memory,
                ends,
            }) => {
                self.memory = memory.or(self.memory);
                self.worker = (!ends).then_some(worker);
                Err(error)
            }
            Err(RunFailure::Unsent(error)) => {
                self.worker = Some(worker);
                let text = format!("cannot hand the batch to a worker process: {error}");
                Err(BackendError::new(ErrorKind::Internal, text))
            }
        }
    }

    fn is_lost(&self) -> bool {
        let worker = self.worker.as_ref();
        // A killed worker may not be known to have ended yet.
        self.stop.is_told() || worker.is_none_or(|worker| worker.process.has_ended())
    }

    fn interrupt(&self) -> Option<Arc<dyn Interrupt>> {
        Some(Arc::clone(&self.stop) as Arc<dyn Interrupt>)
    }

    fn cpu_time(&self) -> Option<Duration> {
        self.cpu_time
    }

    fn memory(&self) -> Option<RunMemory> {
        self.memory
    }
}

impl SandboxedInstance {
    /// Starts a worker process in place of one that has ended.
    fn another(&self) -> Result<Worker, BackendError> {
        let worker = self.model.worker()?;
        self.stop.over(&worker)?;
        Ok(worker)
    }
}
