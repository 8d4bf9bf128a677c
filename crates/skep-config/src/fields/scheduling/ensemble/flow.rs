//! How tensors flow through an ensemble: each is written once and used, and no step waits for itself.

use std::collections::BTreeMap;

use super::EnsembleStep;
use crate::{
    error::ConfigError,
    fields::tensors::{InputConfig, OutputConfig},
};

/// Where a tensor of an ensemble comes from and goes to.
#[derive(Debug, Default)]
struct TensorFlow {
    is_input: bool,
    /// The steps that write it.
    writers: Vec<usize>,
    is_read: bool,
}

/// Checks that every tensor that is read is written, by one step or by steps of which only one can run; that every
/// tensor is used; and that the steps form no circle.
pub(super) fn check(
    ensemble: &str,
    steps: &[EnsembleStep],
    inputs: &[InputConfig],
    outputs: &[OutputConfig],
) -> Result<(), ConfigError> {
    let mut tensors: BTreeMap<&str, TensorFlow> = BTreeMap::new();
    for input in inputs {
        tensors.entry(&input.name).or_default().is_input = true;
    }
    for (index, step) in steps.iter().enumerate() {
        for tensor in step.outputs.values() {
            let flow = tensors.entry(tensor).or_default();
            flow.writers.push(index);
        }
    }
    let checker = FlowChecker { ensemble, steps };
    for (index, step) in steps.iter().enumerate() {
        for tensor in step.reads() {
            let field = format!("ensemble_scheduling.step[{index}].input_map");
            checker.read(&mut tensors, tensor, &format!("step {index}"), field)?;
        }
    }
    for (index, output) in outputs.iter().enumerate() {
        let field = format!("output[{index}].name");
        checker.read(&mut tensors, &output.name, "a client", field)?;
    }
    for (name, tensor) in &tensors {
        checker.tensor(name, tensor)?;
    }
    checker.circle()
}

struct FlowChecker<'a> {
    ensemble: &'a str,
    steps: &'a [EnsembleStep],
}

impl<'a> FlowChecker<'a> {
    fn error(&self, step: Option<usize>, part: &str, reason: String) -> ConfigError {
        let field = match step {
            Some(step) => format!("ensemble_scheduling.step[{step}].{part}"),
            None => "ensemble_scheduling".to_owned(),
        };
        ConfigError::invalid(self.ensemble, field, reason)
    }

    /// Notes that a tensor is read, which something has to write.
    fn read(
        &self,
        tensors: &mut BTreeMap<&'a str, TensorFlow>,
        name: &str,
        reader: &str,
        field: String,
    ) -> Result<(), ConfigError> {
        match tensors.get_mut(name) {
            Some(tensor) => {
                tensor.is_read = true;
                Ok(())
            }
            None => {
                let ensemble = self.ensemble;
                let reason = format!(
                    "ensemble tensor '{name}', which {reader} reads, is neither an input of ensemble '{ensemble}' nor written by a step"
                );
                Err(ConfigError::invalid(ensemble, field, reason))
            }
        }
    }

    /// Checks that one step at most writes a tensor, and that it is used.
    fn tensor(&self, name: &str, tensor: &TensorFlow) -> Result<(), ConfigError> {
        let ensemble = self.ensemble;
        let writers = &tensor.writers;
        if tensor.is_input
            && let Some(writer) = writers.first()
        {
            let reason = format!(
                "ensemble tensor '{name}' is an input of ensemble '{ensemble}', and step {writer} writes it as well"
            );
            return Err(self.error(Some(*writer), "output_map", reason));
        }
        for (position, second) in writers.iter().enumerate() {
            let rivals = writers[..position].iter();
            if let Some(first) = rivals.copied().find(|first| !self.exclude(*first, *second)) {
                let reason = format!(
                    "ensemble tensor '{name}' is written by steps {first} and {second} of ensemble '{ensemble}', expected one, or steps with opposite conditions"
                );
                return Err(self.error(Some(*second), "output_map", reason));
            }
        }
        if !tensor.is_read {
            let what = match writers.first() {
                Some(writer) => format!("which step {writer} writes: remove it from `output_map`"),
                None => "an input: let a step read it, or remove it".to_owned(),
            };
            let reason =
                format!("ensemble tensor '{name}' is unused in ensemble '{ensemble}', {what}");
            return Err(self.error(writers.first().copied(), "output_map", reason));
        }
        Ok(())
    }

    /// Whether two steps never both run.
    fn exclude(&self, first: usize, second: usize) -> bool {
        let conditions = (&self.steps[first].condition, &self.steps[second].condition);
        matches!(conditions, (Some(first), Some(second)) if first.excludes(second))
    }

    /// Refuses steps that wait for each other.
    fn circle(&self) -> Result<(), ConfigError> {
        let Err(waiting) = rounds(self.steps) else {
            return Ok(());
        };
        let steps: Vec<String> = waiting
            .iter()
            .map(|step| format!("{step} ('{}')", self.steps[*step].model))
            .collect();
        let reason = format!(
            "steps of ensemble '{}' wait for each other's tensors: {}",
            self.ensemble,
            steps.join(", ")
        );
        Err(self.error(waiting.first().copied(), "input_map", reason))
    }
}

/// The steps in rounds: each step comes in the round after those whose tensors it reads.
///
/// # Errors
/// The steps that wait for each other, or for such steps.
pub(super) fn rounds(steps: &[EnsembleStep]) -> Result<Vec<Vec<usize>>, Vec<usize>> {
    let mut left: Vec<usize> = (0..steps.len()).collect();
    let mut rounds = Vec::new();
    while !left.is_empty() {
        let waits = |step: &usize| {
            let mut writers = left.iter().map(|writer| &steps[*writer]);
            writers.any(|writer| {
                let mut written = writer.outputs.values();
                written.any(|tensor| steps[*step].reads().any(|read| read == tensor))
            })
        };
        let (waiting, round): (Vec<usize>, Vec<usize>) = left.iter().partition(|step| waits(step));
        if round.is_empty() {
            return Err(waiting);
        }
        rounds.push(round);
        left = waiting;
    }
    Ok(rounds)
}
