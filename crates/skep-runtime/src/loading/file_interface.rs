//! Inspects a model's file to complete a configuration: its inputs and outputs, and notices about them.
//!
//! The backend inspects the file. Most files declare everything. If a file does not declare the type of an output, or
//! has a format that only the backend's library reads, the backend asks the library, in a worker process if the model
//! is configured to run in one.

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

/// A file that was inspected for an incomplete configuration.
pub(crate) struct InspectedFile {
    pub(crate) file: ModelFile,
    /// Kept so that the load that follows does not decode the file again.
    pub(crate) inspection: Inspection,
}

impl InspectedFile {
    /// Notices about the file, given the configured `max_batch_size`.
    pub(crate) fn notices(&self, max_batch_size: i32) -> Vec<Notice> {
        let left_out = self.inspection.left_out.iter();
        let left_out = left_out.map(|text| Notice::new("output", text.clone()));
        let not_batched = self.inspection.not_batched.iter();
        let not_batched = not_batched.map(|why| unbatched(why, max_batch_size));
        left_out.chain(not_batched).collect()
    }
}

/// Inspects files for incomplete configurations.
pub(crate) struct FileInspector<'a> {
    pub(crate) backend: &'a dyn Backend,
    pub(crate) model: &'a ModelName,
    /// How long a worker process may take.
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
            tensors: &incomplete_tensors(config),
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
        // A broken file must not end the server.
        catch_unwind(AssertUnwindSafe(|| self.backend.ask(file))).unwrap_or_else(|_| {
            let name = self.backend.name();
            let text = format!("backend `{name}` panicked while reading the model");
            Err(BackendError::new(ErrorKind::Internal, text))
        })
    }
}

/// The inputs and outputs of an incomplete configuration.
fn incomplete_tensors(config: &inference::ModelConfig) -> ConfiguredTensors {
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

/// The inputs and outputs of a complete configuration.
pub(crate) fn complete_tensors(config: &ModelConfig) -> ConfiguredTensors {
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
             the first dimension is a batch dimension nevertheless"
        ),
        size => format!(
            "max_batch_size is {size}, but the first dimension may not be a batch dimension: {why}\nwrite `max_batch_size: 0` if requests fail \
             because an output cannot be split"
        ),
    };
    Notice::new("max_batch_size", text)
}
