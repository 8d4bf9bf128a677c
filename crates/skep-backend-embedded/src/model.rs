//! A loaded model, and its instances.

use std::{num::NonZeroUsize, sync::Arc};

use rten::{NodeId, RunErrorKind, RunOptions, ThreadPool, ValueOrView};
use skep_backend::{BackendError, ErrorKind, Instance, Model, OutputSlot, check_run};
use skep_tensor::TensorView;
use skep_types::{ModelSignature, Shape};

use crate::{
    convert::{self, Scratch},
    weights::LoadedModel,
};

/// One model of the engine, which all instances share.
pub(crate) struct EmbeddedModel {
    pub(crate) loaded: LoadedModel,
    pub(crate) signature: ModelSignature,
    pub(crate) inputs: Vec<NodeId>,
    pub(crate) outputs: Vec<NodeId>,
    /// Threads of a run.
    pub(crate) threads: usize,
    /// Whether its weights are those of its baked form.
    pub(crate) is_baked: bool,
}

impl Model for EmbeddedModel {
    fn signature(&self) -> &ModelSignature {
        &self.signature
    }

    /// The engine does not write into memory of others.
    fn output_shapes(&self, _inputs: &[&Shape]) -> Option<Vec<Shape>> {
        None
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        NonZeroUsize::new(self.threads)
    }

    fn is_baked(&self) -> bool {
        self.is_baked
    }

    fn instance(self: Arc<Self>) -> Result<Box<dyn Instance>, BackendError> {
        let pool = ThreadPool::with_num_threads(self.threads);
        let scratch = self.inputs.iter().map(|_| Scratch::default()).collect();
        Ok(Box::new(EmbeddedInstance {
            options: RunOptions::default().with_thread_pool(Some(Arc::new(pool))),
            wanted: Vec::new(),
            scratch,
            model: self,
        }))
    }
}

/// An executable copy: its own threads, and memory for inputs that must be converted.
struct EmbeddedInstance {
    model: Arc<EmbeddedModel>,
    options: RunOptions,
    wanted: Vec<NodeId>,
    scratch: Vec<Scratch>,
}

impl Instance for EmbeddedInstance {
    fn execute(
        &mut self,
        inputs: &[TensorView<'_>],
        outputs: &mut [OutputSlot],
    ) -> Result<(), BackendError> {
        let model = &*self.model;
        check_run(&model.signature, inputs, outputs)?;
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
        let results = model
            .loaded
            .engine()
            .run(values, &self.wanted, Some(self.options.clone()))
            .map_err(|error| {
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
}
