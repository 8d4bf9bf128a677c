//! Whether the parts of an ensemble fit it: names, datatypes, shapes, batch sizes. The texts begin as Triton's.

use std::sync::Arc;

use skep_config::{Ensemble, EnsembleStep, ModelConfig, TensorConfig};
use skep_types::{DataType, Dims};

use super::parts::{PartConfigs, StepTarget};
use crate::error::RuntimeError;

/// What is known of a tensor of the ensemble, and from where.
struct KnownTensor<'a> {
    name: &'a str,
    datatype: DataType,
    dims: Dims,
    source: String,
}

/// Checks the parts, in the order of the steps, against the ensemble's configuration.
///
/// # Errors
/// The first contradiction.
pub(crate) fn check_parts(
    config: &ModelConfig,
    ensemble: &Ensemble,
    parts: &[Arc<ModelConfig>],
) -> Result<(), RuntimeError> {
    let mut checker = PartCheck {
        name: config.name().as_str(),
        known: Vec::new(),
    };
    for tensor in config.inputs().iter().chain(config.outputs()) {
        checker.agree(tensor, &tensor.name, "the ensemble's configuration")?;
    }
    for (step, part) in ensemble.steps.iter().zip(parts) {
        checker.batch_size(config, part)?;
        checker.inputs(config, step, part)?;
        checker.outputs(step, part)?;
        if part.is_decoupled() && !config.is_decoupled() {
            let text = format!(
                "in ensemble '{}', model '{}' is decoupled, and the ensemble is not: write `model_transaction_policy {{ decoupled: true }}`",
                config.name(),
                part.name()
            );
            return Err(RuntimeError::invalid(text));
        }
    }
    checker.conditions(ensemble)
}

struct PartCheck<'a> {
    name: &'a str,
    known: Vec<KnownTensor<'a>>,
}

impl<'a> PartCheck<'a> {
    fn error(&self, text: &str) -> RuntimeError {
        RuntimeError::invalid(format!("in ensemble '{}', {text}", self.name))
    }

    fn batch_size(&self, config: &ModelConfig, part: &ModelConfig) -> Result<(), RuntimeError> {
        let (own, parts) = (config.max_batch_size(), part.max_batch_size());
        if own <= parts || own == 0 {
            return Ok(());
        }
        Err(RuntimeError::invalid(format!(
            "ensemble '{}' allows maximum batch size {own}, but it contains model '{}' which only allows maximum batch size to be {parts}",
            self.name,
            part.name()
        )))
    }

    fn inputs(
        &mut self,
        config: &ModelConfig,
        step: &'a EnsembleStep,
        part: &ModelConfig,
    ) -> Result<(), RuntimeError> {
        let model = part.name();
        for (of_part, of_ensemble) in &step.inputs {
            let Some(input) = part.input(of_part) else {
                return Err(self.error(&format!(
                    "ensemble tensor '{of_ensemble}' is mapping to non-existing input '{of_part}' in model '{model}'"
                )));
            };
            let of_client = config.input(of_ensemble);
            if !input.optional && of_client.is_some_and(|client| client.optional) {
                return Err(self.error(&format!(
                    "input '{of_ensemble}' is optional, but model '{model}' requires it as input '{of_part}'"
                )));
            }
            self.agree(input, of_ensemble, &format!("model '{model}'"))?;
        }
        let mut required = part.inputs().iter().filter(|input| !input.optional);
        match required.find(|input| !step.inputs.contains_key(&input.name)) {
            None => Ok(()),
            Some(input) => Err(self.error(&format!(
                "input '{}' in model '{model}' is not mapped to any ensemble tensors",
                input.name
            ))),
        }
    }

    fn outputs(&mut self, step: &'a EnsembleStep, part: &ModelConfig) -> Result<(), RuntimeError> {
        let model = part.name();
        for (of_part, of_ensemble) in &step.outputs {
            let Some(output) = part.output(of_part) else {
                return Err(self.error(&format!(
                    "ensemble tensor '{of_ensemble}' is mapping to non-existing output '{of_part}' in model '{model}'"
                )));
            };
            self.agree(output, of_ensemble, &format!("model '{model}'"))?;
        }
        Ok(())
    }

    /// Compares a tensor of a configuration with what is known of the ensemble's tensor that it is.
    fn agree(
        &mut self,
        tensor: &TensorConfig,
        name: &'a str,
        source: &str,
    ) -> Result<(), RuntimeError> {
        let dims = tensor.client_dims();
        let Some(known) = self.known.iter_mut().find(|known| known.name == name) else {
            self.known.push(KnownTensor {
                name,
                datatype: tensor.datatype,
                dims,
                source: source.to_owned(),
            });
            return Ok(());
        };
        let other = &known.source;
        if known.datatype != tensor.datatype {
            let (first, second) = (known.datatype, tensor.datatype);
            let text = format!(
                "ensemble tensor '{name}': inconsistent data type: {first} is inferred from {other} while {second} is inferred from {source}"
            );
            return Err(self.error(&text));
        }
        let fits = |(a, b): (&i64, &i64)| a == b || *a == -1 || *b == -1;
        let mut pairs = known.dims.as_slice().iter().zip(dims.as_slice());
        // The elements of a ragged input may have any shape.
        if tensor.ragged || known.dims.rank() == dims.rank() && pairs.all(fits) {
            return Ok(());
        }
        let text = format!(
            "ensemble tensor '{name}': inconsistent shape: {} is inferred from {other} while {dims} is inferred from {source}",
            known.dims
        );
        Err(self.error(&text))
    }

    /// Conditions are truth values or integers.
    fn conditions(&self, ensemble: &Ensemble) -> Result<(), RuntimeError> {
        for (index, step) in ensemble.steps.iter().enumerate() {
            let Some(condition) = &step.condition else {
                continue;
            };
            let tensor = &condition.tensor;
            let known = self.known.iter().find(|known| known.name == *tensor);
            let datatype = known.map(|known| known.datatype);
            if let Some(datatype) = datatype.filter(|datatype| !may_be_condition(*datatype)) {
                return Err(self.error(&format!(
                    "the condition of step {index} is tensor '{tensor}' of type {datatype}, expected BOOL or an integer"
                )));
            }
        }
        Ok(())
    }
}

const fn may_be_condition(datatype: DataType) -> bool {
    use DataType::{Bool, Int8, Int16, Int32, Int64, Uint8, Uint16, Uint32, Uint64};
    matches!(
        datatype,
        Bool | Int8 | Int16 | Int32 | Int64 | Uint8 | Uint16 | Uint32 | Uint64
    )
}

/// The configurations of an ensemble's parts, in the order of its steps.
///
/// # Errors
/// If a part is not available, or if the ensemble is among its own parts.
pub(crate) fn find_parts(
    config: &ModelConfig,
    ensemble: &Ensemble,
    namespace: Option<&Arc<str>>,
    models: &dyn PartConfigs,
) -> Result<Vec<Arc<ModelConfig>>, RuntimeError> {
    let mut path = vec![config.name().to_string()];
    let mut parts = Vec::with_capacity(ensemble.steps.len());
    for step in &ensemble.steps {
        let target = StepTarget::new(step, namespace);
        if step.model == *config.name() {
            return Err(circle(&path, config.name().as_str()));
        }
        let part = models.config(&target).map_err(|error| {
            RuntimeError::invalid(format!(
                "ensemble '{}' contains models that are not available or ambiguous: {target}\n  {}",
                config.name(),
                error.to_string().trim_end().replace('\n', "\n  ")
            ))
        })?;
        refuse_circle(&mut path, &part, namespace, models)?;
        parts.push(part);
    }
    Ok(parts)
}

/// Refuses a part whose own parts lead back to the ensemble that `path` begins with.
fn refuse_circle(
    path: &mut Vec<String>,
    part: &ModelConfig,
    namespace: Option<&Arc<str>>,
    models: &dyn PartConfigs,
) -> Result<(), RuntimeError> {
    let Some(inner) = part.ensemble() else {
        return Ok(());
    };
    path.push(part.name().to_string());
    for step in &inner.steps {
        if path.iter().any(|name| *name == step.model.as_str()) {
            return Err(circle(path, step.model.as_str()));
        }
        // What is missing there is that ensemble's fault.
        if let Ok(part) = models.config(&StepTarget::new(step, namespace)) {
            refuse_circle(path, &part, namespace, models)?;
        }
    }
    path.pop();
    Ok(())
}

fn circle(path: &[String], back: &str) -> RuntimeError {
    let path = path.join(" -> ");
    RuntimeError::invalid(format!(
        "circular dependency between ensembles: {path} -> {back}"
    ))
}
