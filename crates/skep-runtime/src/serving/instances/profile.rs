//! How long executions take, measured before the first request, for policies that keep a latency objective.
//!
//! Batches of powers of two run on the first instance, with zeros. A model with variable dimensions has no shapes to
//! run with before the first request. For such models, and for sizes that the time did not suffice for, the policy
//! learns from the requests that it serves.

use std::time::{Duration, Instant};

use skep_backend::Instance;
use skep_tensor::Tensor;
use skep_types::Shape;

use crate::{
    error::RuntimeError,
    serving::{instances::runner::InstanceRunner, request::InferRequest, validate},
};

/// How long measuring may delay a load, besides the execution under way.
const BUDGET: Duration = Duration::from_secs(1);

/// Executions for each size. The first of a new shape allocates and is not counted.
const EXECUTIONS: usize = 4;

/// Measures how long executions take and tells the driver. Returns whether the instance is still sound.
pub(super) fn measure(runner: &InstanceRunner, instance: &mut dyn Instance) -> bool {
    let max = runner.interface.max_batch_size.max(1);
    let end = Instant::now() + BUDGET;
    for size in skep_scheduler::profile_sizes(max) {
        let Some(request) = request(runner, size).filter(|_| Instant::now() < end) else {
            return true;
        };
        match least(runner, instance, &request, end) {
            Ok(Some(took)) => runner.driver.measured(size, took),
            Ok(None) => {}
            Err(error) => {
                tracing::info!(
                    "model `{}`: cannot measure its executions: {error}",
                    runner.interface.model
                );
                return false;
            }
        }
    }
    true
}

/// The shortest of several executions; `None` if the time is over after the first. A machine that is busy with other
/// work, such as other loads, makes executions slower, and the policy rarely chooses a size that seems slow.
fn least(
    runner: &InstanceRunner,
    instance: &mut dyn Instance,
    request: &InferRequest,
    end: Instant,
) -> Result<Option<Duration>, RuntimeError> {
    run(runner, instance, request)?;
    let mut least: Option<Duration> = None;
    for _ in 1..EXECUTIONS {
        if Instant::now() >= end {
            break;
        }
        let took = run(runner, instance, request)?;
        least = Some(least.map_or(took, |least| least.min(took)));
    }
    Ok(least)
}

fn run(
    runner: &InstanceRunner,
    instance: &mut dyn Instance,
    request: &InferRequest,
) -> Result<Duration, RuntimeError> {
    let prepared = validate::prepare(request, &runner.interface)?;
    runner.try_out(instance, prepared)
}

/// A request of zeros with this batch size; `None` if a dimension is variable.
fn request(runner: &InstanceRunner, size: usize) -> Option<InferRequest> {
    let mut request = InferRequest::default();
    for input in &runner.interface.inputs {
        let mut dims = input.config.dims.to_shape()?.dims().to_vec();
        if input.config.batched {
            dims.insert(0, size);
        }
        let shape = Shape::new(&dims).ok()?;
        let tensor = Tensor::zeros(input.config.datatype, shape);
        request.inputs.push((input.name.to_string(), tensor));
    }
    Some(request)
}
