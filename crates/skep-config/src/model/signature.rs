//! The configuration compared with the model's file: names, datatypes, ranks, dims.

use std::collections::BTreeSet;

use skep_types::{DataType, Dims, ModelSignature, TensorSpec};

use super::ModelConfig;
use crate::{
    error::ConfigError,
    fields::{
        ragged::BatchInput, scheduling::sequence_batching::SequenceBatching, tensors::TensorConfig,
    },
};

impl ModelConfig {
    /// Compares the configuration with the model's file, and learns which tensors are scalars in the file. Clients see
    /// scalars with dims `[1]`, and the model with an empty `reshape`. The message keeps Triton's form, which has no
    /// `reshape` without batching.
    ///
    /// # Errors
    /// [`ConfigError::Signature`] for a missing input, an unknown input or output, or another datatype, rank or fixed
    /// dimension. Its text says what each side has.
    pub fn with_signature(mut self, signature: &ModelSignature) -> Result<Self, ConfigError> {
        check_signature(&self, signature)?;
        for (tensors, specs) in [
            (&mut self.inputs, &signature.inputs),
            (&mut self.outputs, &signature.outputs),
        ] {
            for tensor in tensors {
                let spec = specs.iter().find(|spec| spec.name == tensor.name);
                let is_open = tensor.dims.as_slice().contains(&-1);
                if tensor.reshape.is_none() && !is_open && spec.is_some_and(is_scalar) {
                    tensor.reshape = Some(Dims::default());
                }
            }
        }
        Ok(self)
    }

    /// Refuses an optional input that the model requires. `has_default` says whether the model has a default for an
    /// input.
    ///
    /// # Errors
    /// [`ConfigError::Signature`] with the first such input.
    pub fn check_optional(&self, has_default: impl Fn(&str) -> bool) -> Result<(), ConfigError> {
        let required = self
            .inputs
            .iter()
            .find(|tensor| tensor.optional && !has_default(&tensor.name));
        match required {
            None => Ok(()),
            Some(tensor) => Err(ConfigError::Signature {
                model: self.name.to_string(),
                tensor: tensor.name.clone(),
                reason: format!(
                    "unable to load model '{}', configuration says that input '{}' is optional, but the model requires \
                     it: its file has no default for it",
                    self.name, tensor.name
                ),
                hint: Some(
                    "write `optional: false`, or give the graph an initializer with the input's name".to_owned(),
                ),
            }),
        }
    }

    /// The configuration's name and datatype for an output that the model's file does not declare; the dims stay
    /// unknown.
    #[must_use]
    pub fn undeclared_output(&self, name: &str) -> Option<TensorSpec> {
        let output = self.output(name)?;
        Some(TensorSpec {
            name: name.to_owned(),
            datatype: output.datatype,
            dims: None,
        })
    }

    /// Compares an output that the runtime reports with the configured one, if there is one.
    ///
    /// # Errors
    /// A text with both datatypes, if they differ.
    pub fn check_reported_output(&self, reported: &TensorSpec) -> Result<(), String> {
        match self.output(&reported.name) {
            Some(output) if output.datatype != reported.datatype => Err(other_datatype(
                self.name().as_str(),
                "output",
                output.datatype,
                reported,
            )),
            _ => Ok(()),
        }
    }
}

/// Refuses a configuration that contradicts the model's file. Where a tensor has a `reshape`, that is compared.
fn check_signature(config: &ModelConfig, signature: &ModelSignature) -> Result<(), ConfigError> {
    let model = config.name().as_str();
    check_input_count(config, signature)?;
    for tensor in config.inputs() {
        TensorCheck {
            model,
            side: "input",
            tensor,
            scattered: false,
        }
        .run(&signature.inputs)?;
    }
    for input in config.batch_inputs() {
        check_batch_input(model, input, &signature.inputs)?;
    }
    if let Some(batching) = config.sequences() {
        check_sequences(config, batching, signature)?;
    }
    for tensor in config.outputs() {
        let scattered = config
            .batch_outputs()
            .iter()
            .any(|output| output.name == tensor.name);
        TensorCheck {
            model,
            side: "output",
            tensor,
            scattered,
        }
        .run(&signature.outputs)?;
    }
    Ok(())
}

/// The text for a tensor whose datatype differs between configuration and model.
fn other_datatype(model: &str, side: &str, expected: DataType, spec: &TensorSpec) -> String {
    let (name, expected) = (&spec.name, expected.config_name());
    let provided = spec.datatype.config_name();
    format!(
        "unable to load model '{model}', configuration expects datatype {expected} for {side} '{name}', model provides {provided}"
    )
}

/// Whether the model's file says that a tensor has rank 0.
fn is_scalar(spec: &TensorSpec) -> bool {
    spec.dims.as_ref().is_some_and(|dims| dims.rank() == 0)
}

/// Checks that the configuration lists every input: a run needs all of them.
fn check_input_count(config: &ModelConfig, signature: &ModelSignature) -> Result<(), ConfigError> {
    let (expected, provided) = (config.fed_inputs().count(), signature.inputs.len());
    if expected == provided {
        return Ok(());
    }
    let model = config.name().as_str();
    let missing = signature
        .inputs
        .iter()
        .find(|spec| config.fed_inputs().all(|name| name != spec.name));
    let mut fed = config.fed_inputs();
    let unknown = fed.find(|name| signature.input(name).is_none());
    let hint = match (missing, unknown) {
        (Some(missing), _) if expected < provided => {
            format!("the configuration lacks input `{}`", missing.name)
        }
        (_, Some(unknown)) => format!("the model has no input `{unknown}`"),
        _ => "the model lists an input twice".to_owned(),
    };
    Err(ConfigError::Signature {
        model: model.to_owned(),
        tensor: String::new(),
        reason: format!(
            "unable to load model '{model}', configuration expects {expected} inputs, model provides {provided}"
        ),
        hint: Some(hint),
    })
}

/// Checks that the model has the inputs and outputs of sequences.
fn check_sequences(
    config: &ModelConfig,
    batching: &SequenceBatching,
    signature: &ModelSignature,
) -> Result<(), ConfigError> {
    let check = |side, tensor: &TensorConfig, specs| {
        TensorCheck {
            model: config.name().as_str(),
            side,
            tensor,
            scattered: false,
        }
        .run(specs)
    };
    for control in &batching.controls {
        let input = control.input(config.is_batched());
        check("input", &input, &signature.inputs)?;
    }
    for state in &batching.states {
        check("input", &state.input, &signature.inputs)?;
        check("output", &state.output, &signature.outputs)?;
    }
    Ok(())
}

/// Checks that the model has a computed input, with its datatype and rank.
fn check_batch_input(
    model: &str,
    input: &BatchInput,
    specs: &[TensorSpec],
) -> Result<(), ConfigError> {
    let name = &input.name;
    let Some(spec) = specs.iter().find(|spec| spec.name == *name) else {
        let text = format!("unable to load model '{model}', it has no batch input '{name}'");
        return Err(contradiction(model, name, text));
    };
    if spec.datatype != input.datatype {
        let text = other_datatype(model, "batch input", input.datatype, spec);
        return Err(contradiction(model, name, text));
    }
    let given = input.kind.dims();
    match &spec.dims {
        Some(dims) if dims.rank() != given.rank() => {
            let text = format!(
                "model '{model}', batch input '{name}': the model expects shape {dims}, its kind has {given}"
            );
            Err(contradiction(model, name, text))
        }
        _ => Ok(()),
    }
}

/// One tensor of the configuration.
struct TensorCheck<'a> {
    model: &'a str,
    side: &'static str,
    tensor: &'a TensorConfig,
    /// Whether it is an output of `batch_output`, which has the elements of all requests in its own shape.
    scattered: bool,
}

impl TensorCheck<'_> {
    fn run(&self, specs: &[TensorSpec]) -> Result<(), ConfigError> {
        let name = &self.tensor.name;
        let Some(spec) = specs.iter().find(|spec| spec.name == *name) else {
            let allowed: BTreeSet<&str> = specs.iter().map(|spec| spec.name.as_str()).collect();
            let allowed: Vec<&str> = allowed.into_iter().collect();
            let side = self.side;
            let text = format!(
                "unexpected inference {side} '{name}', allowed {side}s are: {}",
                allowed.join(", ")
            );
            return Err(self.error(text));
        };
        if spec.datatype != self.tensor.datatype {
            let text = other_datatype(self.model, self.side, self.tensor.datatype, spec);
            return Err(self.error(text));
        }
        // A file without a shape cannot contradict one.
        spec.dims.as_ref().map_or(Ok(()), |dims| self.shape(dims))
    }

    /// Compares the dims, those of the model's file first.
    fn shape(&self, model: &Dims) -> Result<(), ConfigError> {
        let tensor = self.tensor;
        if self.scattered {
            return Ok(());
        }
        if tensor.ragged {
            return self.ragged(model);
        }
        if tensor.batched && model.as_slice().first() != Some(&-1) {
            return Err(self.error(format!(
                "model '{}', tensor '{}': for the model to support batching the shape should have at least 1 dimension \
                 and the first dimension must be -1; but shape expected by the model is {model}",
                self.model, tensor.name
            )));
        }
        let full = tensor.full_dims();
        if model.rank() == 0 {
            return self.scalar(&full);
        }
        let mut pairs = model.as_slice().iter().zip(full.as_slice());
        if model.rank() == full.rank() && pairs.all(|(&m, &c)| self.may_be(m, c)) {
            return Ok(());
        }
        let how = if tensor.batched {
            format!(
                "an initial batch dimension because max_batch_size > 0 followed by the explicit tensor shape, making \
                 complete shape {full}"
            )
        } else {
            format!("shape {full}")
        };
        Err(self.error(format!(
            "model '{}', tensor '{}': the model expects {} dimensions (shape {model}) but the model configuration \
             specifies {} dimensions ({how})",
            self.model,
            tensor.name,
            model.rank(),
            full.rank()
        )))
    }

    /// The model sees a ragged input flat.
    fn ragged(&self, model: &Dims) -> Result<(), ConfigError> {
        if *model == self.tensor.full_dims() {
            return Ok(());
        }
        Err(self.error(format!(
            "unable to load model '{}', configuration expects model provides input with shape [-1]  for ragged input \
             '{}', model provides {model}",
            self.model, self.tensor.name
        )))
    }

    /// A scalar of the model has one element in the configuration; an output may leave it open.
    fn scalar(&self, full: &Dims) -> Result<(), ConfigError> {
        let is_output = self.is_output();
        if full
            .as_slice()
            .iter()
            .all(|&d| d == 1 || d == -1 && is_output)
        {
            return Ok(());
        }
        Err(self.error(format!(
            "unable to load model '{}', scalar tensor '{}', should only provide 1 in the model configuration when the \
             model doesn't support batching. Model configuration provided: {full}.",
            self.model, self.tensor.name
        )))
    }

    /// Whether the configuration may say `configured` for a dimension that is `declared` in the file.
    ///
    /// It may fix a variable dimension of an input. It may leave open (-1) a dimension of an output that the file
    /// fixes, because files are often wrong about these; it may not fix one that the file leaves open.
    fn may_be(&self, declared: i64, configured: i64) -> bool {
        let open = if self.is_output() {
            configured
        } else {
            declared
        };
        declared == configured || open == -1
    }

    fn is_output(&self) -> bool {
        self.side == "output"
    }

    fn error(&self, reason: String) -> ConfigError {
        contradiction(self.model, &self.tensor.name, reason)
    }
}

fn contradiction(model: &str, tensor: &str, reason: String) -> ConfigError {
    ConfigError::Signature {
        model: model.to_owned(),
        tensor: tensor.to_owned(),
        reason,
        hint: None,
    }
}

#[cfg(test)]
#[path = "signature_tests.rs"]
mod tests;
