//! `ensemble_scheduling`: a model whose steps are requests to other models, with tensors that flow between them by name.
//!
//! What Triton's message cannot say stands in `parameters`, so that Triton still reads the file: a step's condition,
//! priority and timeout.

mod flow;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, num::NonZeroUsize, time::Duration};

use skep_proto::inference::{self, model_config::SchedulingChoice, model_ensembling};
use skep_types::{ModelName, ModelVersion};

use crate::{
    error::ConfigError,
    fields::tensors::{InputConfig, OutputConfig},
    vocabulary::{backends::ENSEMBLE_PLATFORM, notice::Notice},
};

/// The steps of an ensemble.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ensemble {
    /// In the configuration's order.
    pub steps: Vec<EnsembleStep>,
    /// Requests that may be under way at once, over all steps; `None` for any number.
    pub max_inflight_requests: Option<NonZeroUsize>,
}

/// A request that an ensemble makes to another model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnsembleStep {
    /// The model.
    pub model: ModelName,
    /// The repository that it is in, if names need not be unique.
    pub namespace: Option<String>,
    /// Its version; `None` for the latest one.
    pub version: Option<ModelVersion>,
    /// The tensor of the ensemble that each input of the model gets.
    pub inputs: BTreeMap<String, String>,
    /// The tensor of the ensemble that each output of the model becomes.
    pub outputs: BTreeMap<String, String>,
    /// When it runs; `None` for always.
    pub condition: Option<StepCondition>,
    /// Its priority level; `None` for that of the ensemble's request.
    pub priority: Option<u64>,
    /// How long its request may wait, at most as long as the ensemble's.
    pub timeout: Option<Duration>,
}

impl EnsembleStep {
    /// The tensors of the ensemble that have to be known before it starts.
    pub fn reads(&self) -> impl Iterator<Item = &String> {
        let conditions = self.condition.iter().map(|condition| &condition.tensor);
        self.inputs.values().chain(conditions)
    }
}

impl Ensemble {
    /// The steps, by their numbers, in rounds: each comes after those whose tensors it reads. Steps of a round may run at
    /// once.
    #[must_use]
    pub fn rounds(&self) -> Vec<Vec<usize>> {
        flow::rounds(&self.steps).unwrap_or_default()
    }
}

/// A condition on a tensor of the ensemble, which is true if any of its elements is true or not zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepCondition {
    /// The tensor.
    pub tensor: String,
    /// What it has to be.
    pub expected: bool,
}

impl StepCondition {
    /// Whether two steps with these conditions never both run.
    fn excludes(&self, other: &Self) -> bool {
        self.tensor == other.tensor && self.expected != other.expected
    }
}

/// Whether a configuration is that of an ensemble.
#[must_use]
pub fn is_ensemble(proto: &inference::ModelConfig) -> bool {
    proto.platform == ENSEMBLE_PLATFORM || scheduling(proto).is_some()
}

fn scheduling(proto: &inference::ModelConfig) -> Option<&inference::ModelEnsembling> {
    match &proto.scheduling_choice {
        Some(SchedulingChoice::EnsembleScheduling(scheduling)) => Some(scheduling),
        _ => None,
    }
}

/// The names of the models that an ensemble's steps name, and their repositories. Names that no model can have are left
/// out.
pub fn ensemble_parts(
    proto: &inference::ModelConfig,
) -> impl Iterator<Item = (ModelName, Option<String>)> {
    let steps = scheduling(proto).map(|scheduling| &scheduling.step[..]);
    let steps = steps.unwrap_or_default().iter();
    steps.filter_map(|step| {
        let name = ModelName::new(&step.model_name).ok()?;
        Some((name, namespace(step)))
    })
}

fn namespace(step: &model_ensembling::Step) -> Option<String> {
    (!step.model_namespace.is_empty()).then(|| step.model_namespace.clone())
}

/// Checks that an ensemble says so twice, and has nothing that only a model with instances has. Triton's words.
pub(in crate::fields) fn review(proto: &inference::ModelConfig) -> Result<(), ConfigError> {
    let name = &proto.name;
    let refuse = |field: &str, reason: String| Err(ConfigError::invalid(name, field, reason));
    let has_scheduling = scheduling(proto).is_some();
    if proto.platform != ENSEMBLE_PLATFORM {
        if has_scheduling {
            let reason = format!(
                "ensemble scheduling cannot be set for model '{name}' whose platform is not {ENSEMBLE_PLATFORM}"
            );
            return refuse("ensemble_scheduling", reason);
        }
        return Ok(());
    }
    if !proto.backend.is_empty() {
        let reason = format!(
            "unexpected 'platform' and 'backend' pair, got:{ENSEMBLE_PLATFORM}, {}",
            proto.backend
        );
        return refuse("backend", reason);
    }
    if !has_scheduling {
        let reason = format!(
            "ensemble scheduling must be set for ensemble '{name}' whose platform is {ENSEMBLE_PLATFORM}"
        );
        return Err(ConfigError::Invalid {
            model: name.clone(),
            field: "platform".to_owned(),
            reason,
            hint: Some(
                "write the steps in `ensemble_scheduling { step [ ... ] }`, or remove the platform"
                    .to_owned(),
            ),
        });
    }
    for (field, is_set, what) in [
        (
            "instance_group",
            !proto.instance_group.is_empty(),
            "instance group",
        ),
        (
            "optimization",
            proto
                .optimization
                .as_ref()
                .is_some_and(|set| *set != shown_optimization()),
            "optimization",
        ),
        (
            "model_warmup",
            !proto.model_warmup.is_empty(),
            "model_warmup",
        ),
        ("batch_input", !proto.batch_input.is_empty(), "batch_input"),
        (
            "batch_output",
            !proto.batch_output.is_empty(),
            "batch_output",
        ),
    ] {
        if is_set {
            let reason = format!("{what} should not be specified for ensemble '{name}'");
            return refuse(field, reason);
        }
    }
    Ok(())
}

/// What Triton shows of `optimization` where nothing is set, which a client may send back.
fn shown_optimization() -> inference::ModelOptimizationPolicy {
    let mut shown = inference::ModelConfig::default();
    crate::fields::optimization::write_defaults(&mut shown);
    shown.optimization.unwrap_or_default()
}

/// Reads the steps and checks how tensors flow between them.
pub(super) fn read(
    proto: &inference::ModelConfig,
    scheduling: &inference::ModelEnsembling,
    (inputs, outputs): (&[InputConfig], &[OutputConfig]),
    notices: &mut Vec<Notice>,
) -> Result<Ensemble, ConfigError> {
    let inference::ModelEnsembling {
        step,
        max_inflight_requests,
    } = scheduling;
    let name = &proto.name;
    if step.is_empty() {
        let reason = format!("must specify 'step' for ensemble '{name}'");
        return Err(ConfigError::invalid(
            name,
            "ensemble_scheduling.step",
            reason,
        ));
    }
    let reader = StepReader {
        ensemble: name,
        parameters: &proto.parameters,
    };
    let mut steps = Vec::with_capacity(step.len());
    for (index, step) in step.iter().enumerate() {
        steps.push(reader.read(index, step)?);
    }
    reader.check_keys(steps.len())?;
    flow::check(name, &steps, inputs, outputs)?;
    notices.extend(without_effect(proto));
    let most = usize::try_from(*max_inflight_requests).unwrap_or(usize::MAX);
    Ok(Ensemble {
        steps,
        max_inflight_requests: NonZeroUsize::new(most),
    })
}

/// What begins the keys of `parameters` that are about a step: `step[0].condition`.
const STEP_KEY: &str = "step[";

/// Splits `step[2].priority` into the number of the step and the rest.
pub(crate) fn split_step_key(key: &str) -> Option<(usize, &str)> {
    let (index, rest) = key.strip_prefix(STEP_KEY)?.split_once("].")?;
    Some((index.parse().ok()?, rest))
}

/// Reads steps.
struct StepReader<'a> {
    ensemble: &'a str,
    parameters: &'a BTreeMap<String, inference::ModelParameter>,
}

impl StepReader<'_> {
    fn error(&self, field: String, reason: String) -> ConfigError {
        ConfigError::invalid(self.ensemble, field, reason)
    }

    fn read(
        &self,
        index: usize,
        step: &model_ensembling::Step,
    ) -> Result<EnsembleStep, ConfigError> {
        let model_ensembling::Step {
            model_name,
            model_version,
            input_map,
            output_map,
            model_namespace: _,
        } = step;
        let field = |name: &str| format!("ensemble_scheduling.step[{index}].{name}");
        let missing = |name: &str| {
            let ensemble = self.ensemble;
            let reason = format!("must specify '{name}' in step {index} of ensemble '{ensemble}'");
            Err(self.error(field(name), reason))
        };
        if model_name.is_empty() {
            return missing("model_name");
        }
        if input_map.is_empty() {
            return missing("input_map");
        }
        if output_map.is_empty() {
            return missing("output_map");
        }
        let model = ModelName::new(model_name).map_err(|error| {
            let reason = format!("step {index} of ensemble '{}': {error}", self.ensemble);
            self.error(field("model_name"), reason)
        })?;
        let version = match model_version {
            // Protobuf cannot tell 0 from an absent number.
            -1 | 0 => None,
            number => {
                let version = u64::try_from(*number)
                    .ok()
                    .and_then(|number| ModelVersion::new(number).ok());
                let version = version.ok_or_else(|| {
                    let reason = format!(
                        "step {index} of ensemble '{}' names version {number} of model '{model}', expected a positive number, or -1 for the latest version",
                        self.ensemble
                    );
                    self.error(field("model_version"), reason)
                })?;
                Some(version)
            }
        };
        Ok(EnsembleStep {
            model,
            namespace: namespace(step),
            version,
            inputs: input_map.clone(),
            outputs: output_map.clone(),
            condition: self.condition(index)?,
            priority: self.number(index, "priority")?,
            timeout: self.number(index, "timeout_ms")?.map(Duration::from_millis),
        })
    }

    /// The text of a step's own parameter.
    fn text(&self, index: usize, name: &str) -> Option<(String, &str)> {
        let key = format!("{STEP_KEY}{index}].{name}");
        let inference::ModelParameter { string_value } = self.parameters.get(&key)?;
        Some((key, string_value.trim()))
    }

    fn condition(&self, index: usize) -> Result<Option<StepCondition>, ConfigError> {
        let Some((key, text)) = self.text(index, "condition") else {
            return Ok(None);
        };
        let tensor = text.strip_prefix('!').map_or(text, str::trim_start);
        if tensor.is_empty() {
            return Err(self.wrong_value(key, "the name of a tensor, or `!` and a name", text));
        }
        Ok(Some(StepCondition {
            tensor: tensor.to_owned(),
            expected: !text.starts_with('!'),
        }))
    }

    /// A positive number.
    fn number(&self, index: usize, name: &str) -> Result<Option<u64>, ConfigError> {
        let Some((key, text)) = self.text(index, name) else {
            return Ok(None);
        };
        match text.parse() {
            Ok(number @ 1..) => Ok(Some(number)),
            _ => Err(self.wrong_value(key, "a positive number", text)),
        }
    }

    fn wrong_value(&self, key: String, expected: &str, got: &str) -> ConfigError {
        ConfigError::Parameter {
            model: self.ensemble.to_owned(),
            key,
            expected: expected.to_owned(),
            got: got.to_owned(),
        }
    }

    /// Refuses parameters of steps that are not there, and those that no step has.
    fn check_keys(&self, steps: usize) -> Result<(), ConfigError> {
        for key in self.parameters.keys() {
            let Some((index, rest)) = split_step_key(key) else {
                continue;
            };
            let reason = if index >= steps {
                format!(
                    "`{key}` is about step {index} of ensemble '{}', which has {steps} steps, counted from 0",
                    self.ensemble
                )
            } else if !matches!(rest, "condition" | "priority" | "timeout_ms") {
                format!(
                    "`{key}` of ensemble '{}' is unknown, expected `condition`, `priority` or `timeout_ms` after the step",
                    self.ensemble
                )
            } else {
                continue;
            };
            return Err(self.error(format!("parameters.{key}"), reason));
        }
        Ok(())
    }
}

/// Keys of `parameters` that are about instances, their batches or their memory, which an ensemble does not have.
const OF_INSTANCES: [&str; 9] = [
    "batching_policy",
    "isolation",
    "live_configuration",
    "max_execution_ms",
    "max_instances",
    "max_run_memory",
    "slo_miss_action",
    "slo_percentile",
    "tenant",
];

fn without_effect(proto: &inference::ModelConfig) -> impl Iterator<Item = Notice> {
    let set = OF_INSTANCES
        .into_iter()
        .filter(|key| proto.parameters.contains_key(*key));
    set.map(|key| {
        let text =
            "no effect on an ensemble, which has no instances: set it on the models of its steps";
        Notice::new(format!("parameters.{key}"), text.to_owned())
    })
}
