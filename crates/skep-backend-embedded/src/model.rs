//! A loaded model, and its instances.

use std::{num::NonZeroUsize, sync::Arc, time::Duration};

use rten::{NodeId, RunErrorKind, RunOptions, ThreadPool, ValueOrView};
use rustix::time::{ClockId, clock_gettime};
use skep_backend::{BackendError, ErrorKind, Instance, Model, OutputSlot, check_cpu, check_run};
use skep_store::Digest;
use skep_tensor::{RunBound, TensorView};
use skep_types::{DeviceId, ModelSignature, Shape};
use smallvec::SmallVec;

use crate::{
    convert::{self, InputScratch},
    sizes::RunSizes,
    weights::EngineModel,
};

/// One model of the engine, which all instances share.
pub(crate) struct EmbeddedModel {
    pub(crate) loaded: EngineModel,
    pub(crate) signature: ModelSignature,
    pub(crate) inputs: Vec<NodeId>,
    pub(crate) outputs: Vec<NodeId>,
    /// Threads of a run.
    pub(crate) threads: usize,
    /// What runs allocate, as far as it is known before a run.
    pub(crate) sizes: RunSizes,
    /// The bound on a run's memory.
    pub(crate) bound: RunBound,
    /// Whether it runs on its baked form.
    pub(crate) is_baked: bool,
    /// The tensors of the store that it uses.
    pub(crate) tensors: Vec<(Digest, u64)>,
}

impl Model for EmbeddedModel {
    fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    /// The engine does not write into the caller's memory.
    fn output_shapes(&self, _inputs: &[&Shape]) -> Option<Vec<Shape>> {
        None
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.threads)
    }

    fn is_baked(&self) -> bool {
        self.is_baked
    }

    fn stored_tensors(&self) -> Vec<(Digest, u64)> {
        self.tensors.clone()
    }

    fn instance(self: Arc<Self>, device: DeviceId) -> Result<Box<dyn Instance>, BackendError> {
        check_cpu(crate::NAME, device)?;
        let pool = Arc::new(ThreadPool::with_num_threads(self.threads));
        let scratch = self
            .inputs
            .iter()
            .map(|_| InputScratch::default())
            .collect();
        Ok(Box::new(EmbeddedInstance {
            options: RunOptions::default().with_thread_pool(Some(Arc::clone(&pool))),
            wanted: Vec::new(),
            scratch,
            pool: (self.threads > 1).then_some(pool),
            runs: 0,
            cpu_time: None,
            model: self,
        }))
    }
}

/// An executable copy: its own threads, and memory for inputs that must be converted.
struct EmbeddedInstance {
    model: Arc<EmbeddedModel>,
    options: RunOptions,
    wanted: Vec<NodeId>,
    scratch: Vec<InputScratch>,
    /// The engine's threads, for measurements; `None` for a single thread.
    pool: Option<Arc<ThreadPool>>,
    runs: u32,
    /// CPU time of the last run, if it was measured.
    cpu_time: Option<Duration>,
}

/// The first runs of an instance are measured, then one in [`EVERY_RUNS`]: a measurement wakes every thread.
const FIRST_RUNS: u32 = 8;
const EVERY_RUNS: u32 = 64;

/// CPU time of all threads of a pool since they began.
fn cpu_time(pool: &ThreadPool) -> Duration {
    let times = pool.run(|| rayon::broadcast(|_| clock_gettime(ClockId::ThreadCPUTime)));
    let times = times
        .into_iter()
        .filter_map(|time| Duration::try_from(time).ok());
    times.sum()
}

impl Instance for EmbeddedInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let model = &*self.model;
        check_run(&model.signature, inputs, outputs)?;
        let shapes: SmallVec<[&Shape; 8]> = inputs.iter().map(TensorView::shape).collect();
        // The engine ends the process if it runs out of memory.
        let peak = model.sizes.peak(&model.signature, &shapes)?;
        let _charge = model.bound.admit(peak)?;
        let specs = model.signature.inputs.iter().zip(&model.inputs);
        let values =
            specs
                .zip(inputs)
                .zip(&mut self.scratch)
                .map(|(((spec, &id), view), scratch)| {
                    Ok((id, convert::input(&spec.name, *view, scratch)?))
                });
        let values: Vec<(NodeId, ValueOrView<'_>)> = values.collect::<Result<_, BackendError>>()?;
        self.wanted.clear();
        self.wanted
            .extend(outputs.iter().map(|slot| model.outputs[slot.index()]));
        let is_due = self.runs < FIRST_RUNS || self.runs.is_multiple_of(EVERY_RUNS);
        self.runs = self.runs.wrapping_add(1);
        let measured = self.pool.as_deref().filter(|_| is_due);
        let before = measured.map(cpu_time);
        let results = model
            .loaded
            .engine()
            .run(values, &self.wanted, Some(self.options.clone()));
        let took = measured.zip(before);
        self.cpu_time = took.map(|(pool, before)| cpu_time(pool).saturating_sub(before));
        let results = results.map_err(|error| {
            let kind = match error.kind() {
                RunErrorKind::InvalidInput => ErrorKind::InvalidArgument,
                _ => ErrorKind::Internal,
            };
            BackendError::new(kind, format!("embedded engine: {error}"))
        })?;
        for (slot, value) in outputs.iter_mut().zip(results) {
            let spec = &model.signature.outputs[slot.index()];
            slot.fill(convert::output(&spec.name, spec.datatype, value)?);
        }
        Ok(())
    }

    fn cpu_time(&self) -> Option<Duration> {
        self.cpu_time
    }
}
