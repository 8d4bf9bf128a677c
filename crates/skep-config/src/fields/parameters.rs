//! The `parameters` map: checks every value and types the known keys.

use std::collections::BTreeMap;

use super::options::{
    ALLOCATOR, ExecutionOptions, Isolation, MemoryPlanner, MockOptions, ParameterValues,
    RUNTIME_MEMORY, RunLimits,
};
use super::residency::ModelResidency;
use crate::{
    error::ConfigError,
    hints::near_miss,
    parameters::{
        table::{ParameterEffect, ParameterSpec, parameter},
        value::ParameterType,
    },
    vocabulary::{
        backends,
        notice::{NO_GPU, Notice},
    },
};

/// The `parameters` map, typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) execution: ExecutionOptions,
    pub(crate) mock: MockOptions,
    pub(crate) isolation: Isolation,
    pub(crate) run_limits: RunLimits,
    pub(crate) residency: ModelResidency,
    /// `None` if the map does not set it.
    pub(crate) max_queue_size: Option<usize>,
}

impl Parameters {
    /// Checks every value, then reads the known keys. `backend` decides which of them have an effect.
    pub(crate) fn read(
        model: &str,
        backend: &str,
        map: &BTreeMap<String, String>,
        notices: &mut Vec<Notice>,
    ) -> Result<Self, ConfigError> {
        for (key, value) in map {
            match parameter(key) {
                Some(spec) => notices.extend(check(spec, model, backend, value)?),
                None => notices.extend(misspelt(key)),
            }
        }
        let values = ParameterValues(map);
        if backend == backends::ONNXRUNTIME {
            notices.extend(overruled_by_planner(map, values.memory_planner()));
        }
        let max_queue_size = map
            .contains_key("max_queue_size")
            .then(|| usize::try_from(values.integer("max_queue_size")).unwrap_or(usize::MAX));
        Ok(Self {
            execution: values.execution(),
            mock: values.mock(),
            isolation: values.isolation(),
            run_limits: values.run_limits(),
            residency: values.residency(),
            max_queue_size,
        })
    }
}

/// The key of the memory planner.
const PLANNER: &str = "memory_planner";

/// A key of the runtime's arena that by itself does not choose `memory_planner` `runtime`.
const INITIALIZERS_ASIDE: &str = "session.use_device_allocator_for_initializers";

/// The keys about memory that have no effect under the chosen memory planner.
fn overruled_by_planner(map: &BTreeMap<String, String>, chosen: MemoryPlanner) -> Vec<Notice> {
    let value = |key: &str| map.get(key).map(|value| value.trim());
    let written = value(PLANNER);
    if chosen == MemoryPlanner::Runtime {
        let overruled = [
            (PLANNER, written.filter(|planner| *planner != "runtime")),
            (ALLOCATOR, value(ALLOCATOR).filter(|name| !name.is_empty())),
        ];
        let overruled = overruled
            .into_iter()
            .filter_map(|(key, value)| Some((key, value?)));
        return overruled
            .map(|(key, value)| {
                let text = format!(
                    "`{value}` has no effect with `execution_mode` 1, where allocations have no fixed order"
                );
                Notice::new(format!("parameters.{key}"), text)
            })
            .collect();
    }
    let by = match chosen {
        MemoryPlanner::Allocator => "`allocator`".to_owned(),
        _ => format!("`memory_planner` `{}`", written.unwrap_or("planned")),
    };
    RUNTIME_MEMORY
        .iter()
        .chain([&INITIALIZERS_ASIDE])
        .chain((chosen == MemoryPlanner::Allocator).then_some(&PLANNER))
        .filter(|key| map.contains_key(**key))
        .filter(|key| chosen != MemoryPlanner::Malloc || **key != "enable_mem_pattern")
        .map(|key| Notice::new(format!("parameters.{key}"), format!("no effect with {by}")))
        .collect()
}

/// A warning about a key that is nearly one of the table's; any other unknown key is the user's own.
fn misspelt(key: &str) -> Option<Notice> {
    let meant = near_miss::meant(key)?;
    let text = format!("unknown key, kept without effect; did you mean `{meant}`?");
    Some(Notice::new(format!("parameters.{key}"), text))
}

/// Checks the value of a known key; returns a notice if it has no effect.
fn check(
    spec: &ParameterSpec,
    model: &str,
    backend: &str,
    value: &str,
) -> Result<Option<Notice>, ConfigError> {
    let field = format!("parameters.{}", spec.key);
    if !spec.value.accepts(value) {
        return Err(ConfigError::Parameter {
            model: model.to_owned(),
            key: spec.key.to_owned(),
            expected: spec.value.describe(),
            got: value.to_owned(),
        });
    }
    Ok(match spec.effect {
        ParameterEffect::Unsupported => return Err(ConfigError::unsupported(model, field)),
        ParameterEffect::None(NO_GPU) => Some(Notice::about_gpus(field)),
        ParameterEffect::None(why) => Some(Notice::new(field, format!("no effect: {why}"))),
        ParameterEffect::HonouredBy(backends) if !backends.contains(&backend) => {
            let names = backends.join("`, `");
            let text = format!("no effect with backend `{backend}`: honoured by `{names}`");
            Some(Notice::new(field, text))
        }
        ParameterEffect::Honoured | ParameterEffect::HonouredBy(_) => {
            let names_a_gpu = spec.value == ParameterType::Devices
                && value
                    .split(';')
                    .any(|device| device.trim().starts_with("gpu"));
            names_a_gpu.then(|| Notice::new(field, format!("no effect on GPUs: {NO_GPU}")))
        }
    })
}

#[cfg(test)]
#[path = "parameters_tests.rs"]
mod tests;
