//! What completion learns of a model's file: inputs and outputs, and what is odd about them.
//!
//! The backend inspects the file. Most files declare everything. Where one does not declare the type of an output, or is in
//! a format that only its runtime reads, the backend asks the runtime: in a process of its own where the model is to run in
//! one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use skep_backend::{
    Backend, BackendError, ConfiguredOutput, ConfiguredTensors, ErrorKind, FileInterface,
    InspectRequest, Inspection, ModelFile,
};
use skep_config::{Isolation, ModelConfig, Notice, configured_isolation};
use skep_proto::inference;
use skep_types::{DataType, ModelName};

use crate::RuntimeError;

/// What a file tells, for a configuration that leaves something open.
pub(crate) struct InspectedFile {
    pub(crate) file: ModelFile,
    /// Kept for the load that follows, which does not decode the file again.
    pub(crate) inspection: Inspection,
}

impl InspectedFile {
    /// What to tell the user about the file, given the `max_batch_size` that the configuration says.
    pub(crate) fn notices(&self, max_batch_size: i32) -> Vec<Notice> {
        let left_out = self.inspection.left_out.iter();
        let left_out = left_out.map(|text| Notice::new("output", text.clone()));
        let not_batched = self.inspection.not_batched.iter();
        let not_batched = not_batched.map(|why| unbatched(why, max_batch_size));
        left_out.chain(not_batched).collect()
    }
}

/// Inspects files for configurations that leave something open.
pub(crate) struct FileInspector<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) model: &'a ModelName,
    /// What a process of its own may take.
    pub(crate) limit: Option<Duration>,
}

impl FileInspector<'_> {
    /// Inspects a model's file for this configuration.
    pub(crate) fn inspect(
        &self,
        file: ModelFile,
        config: &inference::ModelConfig,
    ) -> Result<InspectedFile, RuntimeError> {
        let ask = || self.ask(&file, config);
        let inspection = self.backend.inspect(&InspectRequest {
            file: &file,
            tensors: &unfinished(config),
            ask: Some(&ask),
        })?;
        Ok(InspectedFile { file, inspection })
    }

    fn ask(
        &self,
        file: &ModelFile,
        config: &inference::ModelConfig,
    ) -> Result<FileInterface, BackendError> {
        if configured_isolation(config) == Isolation::Process {
            return skep_sandbox::ask(self.backend, self.model.as_str(), file, self.limit);
        }
        // A broken file must not take the server down with it.
        catch_unwind(AssertUnwindSafe(|| self.backend.ask(file))).unwrap_or_else(|_| {
            let name = self.backend.name();
            let text = format!("backend `{name}` panicked while reading the model");
            Err(BackendError::new(ErrorKind::Internal, text))
        })
    }
}

/// What a configuration that is not complete says of inputs and outputs.
fn unfinished(config: &inference::ModelConfig) -> ConfiguredTensors {
    let outputs = config.output.iter().map(|output| ConfiguredOutput {
        name: output.name.clone(),
        datatype: configured_datatype(output),
    });
    ConfiguredTensors {
        inputs: config
            .input
            .iter()
            .map(|input| input.name.clone())
            .collect(),
        optional_inputs: Vec::new(),
        outputs: outputs.collect(),
    }
}

/// What a complete configuration says of them.
pub(crate) fn finished(config: &ModelConfig) -> ConfiguredTensors {
    let optional = config.inputs().iter().filter(|input| input.optional);
    let outputs = config.outputs().iter().map(|output| ConfiguredOutput {
        name: output.name.clone(),
        datatype: Some(output.datatype),
    });
    ConfiguredTensors {
        inputs: config.fed_inputs().map(str::to_owned).collect(),
        optional_inputs: optional.map(|input| input.name.clone()).collect(),
        outputs: outputs.collect(),
    }
}

/// The datatype of an output whose datatype and dims are configured.
fn configured_datatype(output: &inference::ModelOutput) -> Option<DataType> {
    if output.dims.is_empty() {
        return None;
    }
    let configured = inference::DataType::try_from(output.data_type).ok()?;
    DataType::ALL
        .into_iter()
        .find(|known| known.config_name() == configured.as_str_name())
}

fn unbatched(why: &str, max_batch_size: i32) -> Notice {
    let text = match max_batch_size {
        0 => format!(
            "the model is served without batching: {why}\nwrite `max_batch_size` into the configuration if \
             the first dimension is the batch all the same"
        ),
        size => format!(
            "max_batch_size is {size}, and the first dimension may be no batch: {why}\nwrite `max_batch_size: 0` if requests fail \
             because an output cannot be split"
        ),
    };
    Notice::new("max_batch_size", text)
}
