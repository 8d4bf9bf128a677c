//! What executions take, measured before the first request: policies that keep a latency objective begin with it.
//!
//! Batches of powers of two run on the first instance, with zeros. Models with variable dimensions have no shapes to run
//! with before the first request; for them, as for sizes that the time did not suffice for, the policy learns from what
//! it serves.

use std::time::{Duration, Instant};

use skep_backend::Instance;
use skep_tensor::Tensor;
use skep_types::Shape;

use crate::{
    InferRequest, RuntimeError,
    serving::{instances::runner::InstanceRunner, validate},
};

/// How long measuring may keep a load waiting, but for the execution that is under way.
const BUDGET: Duration = Duration::from_secs(1);

/// Executions a size; the first of a new shape allocates and counts for nothing.
const EXECUTIONS: usize = 4;

/// Measures what executions take and tells the driver; whether the instance came through it well.
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
                    "model `{}`: no profile of its executions: {error}",
                    runner.interface.model
                );
                return false;
            }
        }
    }
    true
}

/// The least that an execution takes; none where time is over after the first. What is measured while the machine is
/// busy with something else, other loads perhaps, is too much, and what seems slow is executed rarely.
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

/// A request of zeros with this batch size; none where a dimension is variable.
fn request(runner: &InstanceRunner, size: usize) -> Option<InferRequest> {
    let mut request = InferRequest::default();
    for port in &runner.interface.inputs {
        let mut dims = port.config.dims.to_shape()?.dims().to_vec();
        if port.config.batched {
            dims.insert(0, size);
        }
        let shape = Shape::new(&dims).ok()?;
        let tensor = Tensor::zeros(port.config.datatype, shape);
        request.inputs.push((port.name.to_string(), tensor));
    }
    Some(request)
}
