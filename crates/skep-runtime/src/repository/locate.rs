//! The place in a configuration file that an error or a warning is about.

use std::fs;

use skep_config::{ConfigError, FieldPositions, ModelConfig, Notice, Position, TensorConfig};

use crate::{
    error::RuntimeError,
    repository::source::{ConfigChoice, ModelSource},
};

/// The text of a model's configuration file; empty if the model has no such file.
pub(crate) struct ConfigText {
    file: String,
    text: Vec<u8>,
}

impl ConfigText {
    /// Reads the file that a load of `source` reads. A configuration that a client gave has no file.
    pub(crate) fn of(source: &ModelSource, choice: ConfigChoice<'_>) -> Self {
        let path = source.config_path(choice);
        let text = if source.has_clients_config() {
            Vec::new()
        } else {
            fs::read(&path).unwrap_or_default()
        };
        Self {
            file: path.display().to_string(),
            text,
        }
    }

    pub(crate) fn places(&self) -> FieldPositions<'_> {
        FieldPositions::read(&self.text, &self.file)
    }

    /// Adds the error's place, if it has one.
    pub(crate) fn locate(&self, error: RuntimeError, config: Option<&ModelConfig>) -> RuntimeError {
        let places = self.places();
        let place = place(&error, Some(&places), config);
        error.at(place)
    }
}

/// A notice for the log, with its place.
pub(crate) fn notice(places: &FieldPositions<'_>, notice: &Notice) -> String {
    let place = places.find(&notice.field);
    place.map_or_else(|| notice.to_string(), |place| format!("{place}: {notice}"))
}

/// An error's place: its own, or that of the field that it is about.
pub(crate) fn place(
    error: &RuntimeError,
    places: Option<&FieldPositions<'_>>,
    config: Option<&ModelConfig>,
) -> Option<Position> {
    let fault = error.config_error()?;
    let position = fault.position().cloned();
    position.or_else(|| places?.find(&field(fault, config)))
}

/// The path of the field that a fault is about. A tensor is found by its name.
pub(crate) fn field(fault: &ConfigError, config: Option<&ModelConfig>) -> String {
    if let ConfigError::Parameter { key, .. } = fault {
        return format!("parameters.{key}");
    }
    let name = fault.field();
    let (ConfigError::Signature { .. }, Some(config)) = (fault, config) else {
        return name.to_owned();
    };
    match (
        index_of(name, config.inputs()),
        index_of(name, config.outputs()),
    ) {
        (Some(index), _) => format!("input[{index}]"),
        (None, Some(index)) => format!("output[{index}]"),
        (None, None) => String::new(),
    }
}

fn index_of(name: &str, tensors: &[TensorConfig]) -> Option<usize> {
    tensors.iter().position(|tensor| tensor.name == name)
}
