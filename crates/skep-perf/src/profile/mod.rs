//! Profiles: what a model takes, and how fast it is, by cores, instances and batch.
//!
//! ```text
//! for cores in 1, 2, 4, ...            a server of its own, bound to so many cores
//!   for instances in 1 ..= cores       the model with so many instances; its threads share the cores
//!     for batch in 1, 2, 4, ...        batches of that size, as many outstanding as there are instances
//! ```
//!
//! A direction ends when its batches take more than half of the objective, or when larger ones bring no more requests a
//! second. Every point goes over the server's HTTP, as a client's requests do.

mod document;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use skep_client::{Client, Error, HttpClient, InferRequest, ModelMetadata, TensorRow};

pub use self::document::{
    Direction, FORMAT, LatencyFigures, Machine, MeasuredConfiguration, ModelProfile, ProfileError,
    ProfileFile, StartTimes,
};
use crate::{
    closed_loop::{ClosedLoop, Measurement, closed_loop},
    server::{ServerError, ServerProcess},
};

/// A model to profile, and how far.
#[derive(Debug)]
pub struct ProfileTask<'a> {
    /// The `skep` binary.
    pub binary: &'a Path,
    /// A repository that has the model.
    pub repository: &'a Path,
    /// The model's name in it.
    pub model: &'a str,
    /// Further flags of `skep serve`, among them where baked weights are.
    pub flags: &'a [String],
    /// The numbers of cores to measure.
    pub cpus: &'a [u32],
    /// The largest batch, if the model takes one as large.
    pub max_batch: u32,
    /// What an answer may take, if a direction is to end there.
    pub objective: Option<Duration>,
    /// How long a point is measured; slower batches are measured longer, until there are a few.
    pub point: Duration,
}

impl ProfileTask<'_> {
    /// How many points there are, if no direction ends early and the model takes batches as large as allowed.
    #[must_use]
    pub fn points(&self) -> usize {
        let directions = self.cpus.iter().map(|cpus| instance_counts(*cpus).len());
        directions.sum::<usize>() * powers_of_two(self.max_batch).len()
    }
}

/// Why a model has no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileFailure {
    /// The server did not start.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// A request failed, or a load.
    #[error(transparent)]
    Client(#[from] Error),
    /// The caller cannot make a request, or cannot keep what was measured.
    #[error("{0}")]
    Caller(String),
    /// The server said something unexpected.
    #[error("the server's answer is not as expected: {0}")]
    Answer(String),
}

/// What [`profile`] asks of its caller.
pub trait ProfileObserver {
    /// A request with a batch of this size; without the dimension for it if the model does not take `batches`.
    ///
    /// # Errors
    /// A text, if the model's inputs do not allow it.
    fn request(
        &mut self,
        metadata: &ModelMetadata,
        batches: bool,
        batch: u32,
    ) -> Result<InferRequest, String>;

    /// What an earlier profile of the same files has, to be continued.
    fn earlier(&self) -> &ModelProfile;

    /// A start was measured, with the tensors that the model shares.
    ///
    /// # Errors
    /// A text, if it cannot be kept.
    fn started(&mut self, times: StartTimes, tensors: Vec<TensorRow>) -> Result<(), String>;

    /// A point is about to be measured.
    fn begins(&mut self, direction: Direction, batch: u32);

    /// All batches of so many cores and instances were measured.
    ///
    /// # Errors
    /// A text, if it cannot be kept.
    fn ends(&mut self, direction: Direction) -> Result<(), String>;

    /// A point was measured.
    ///
    /// # Errors
    /// A text, if it cannot be kept.
    fn measured(&mut self, configuration: MeasuredConfiguration) -> Result<(), String>;
}

/// The fewest batches of a point, for a 95th percentile that means something.
const LEAST_BATCHES: u32 = 20;

/// The longest that a point is measured, whatever a batch takes.
const LONGEST_POINT: Duration = Duration::from_secs(10);

/// A larger batch has to bring so many times the requests a second, twice in a row, for the direction to go on.
const LEAST_GAIN: f64 = 1.02;

/// How long weights may take to move to the tensor store after a load.
const LONGEST_MOVE: Duration = Duration::from_secs(3);

/// Measures a model.
///
/// # Errors
/// See [`ProfileFailure`]. What was measured before is with the observer.
pub async fn profile(
    task: &ProfileTask<'_>,
    observer: &mut dyn ProfileObserver,
) -> Result<(), ProfileFailure> {
    for &cpus in task.cpus {
        for instances in instance_counts(cpus) {
            let direction = Direction { cpus, instances };
            if observer.earlier().finished.contains(&direction) {
                continue;
            }
            let server = ProfiledServer::start(task, cpus).await?;
            if observer.earlier().start.is_none() {
                server.measure_start(task, observer).await?;
            }
            server.measure_batches(task, direction, observer).await?;
            observer.ends(direction).map_err(ProfileFailure::Caller)?;
        }
    }
    Ok(())
}

/// One by one up to 4, then powers of two, and all of them.
fn instance_counts(cpus: u32) -> Vec<u32> {
    let mut counts: Vec<u32> = (1..=cpus.min(4)).collect();
    let mut count = 8;
    while count < cpus {
        counts.push(count);
        count *= 2;
    }
    if cpus > 4 {
        counts.push(cpus);
    }
    counts
}

/// Powers of two up to `most`, and that.
#[must_use]
pub fn powers_of_two(most: u32) -> Vec<u32> {
    let powers = (0..32).map(|power| 1_u32 << power);
    let mut counts: Vec<u32> = powers.take_while(|power| *power < most).collect();
    counts.push(most.max(1));
    counts
}

/// A server without models.
struct ProfiledServer {
    process: ServerProcess,
    client: HttpClient,
    /// How long it took to be ready.
    took: Duration,
    /// What it holds without a model.
    baseline: u64,
}

impl ProfiledServer {
    async fn start(task: &ProfileTask<'_>, cpus: u32) -> Result<Self, ProfileFailure> {
        let mut flags = vec!["--model-control-mode=explicit"];
        flags.extend(task.flags.iter().map(String::as_str));
        let began = Instant::now();
        let process = ServerProcess::start_on(task.binary, task.repository, &flags, cpus)?;
        let took = began.elapsed();
        let Client::Http(client) = Client::connect(process.http()).await? else {
            return Err(ProfileFailure::Answer("no HTTP".to_owned()));
        };
        let baseline = process.private_bytes();
        Ok(Self {
            process,
            client,
            took,
            baseline,
        })
    }

    /// The model as its configuration has it: its load, its first inference, its tensors.
    async fn measure_start(
        &self,
        task: &ProfileTask<'_>,
        observer: &mut dyn ProfileObserver,
    ) -> Result<(), ProfileFailure> {
        let began = Instant::now();
        self.client.load(task.model).await?;
        let load = began.elapsed();
        let (metadata, limit) = self.interface(task.model).await?;
        let request = observer.request(&metadata, limit > 0, 1);
        let request = request.map_err(ProfileFailure::Caller)?;
        let mut took = [Duration::ZERO; 6];
        for one in &mut took {
            let began = Instant::now();
            self.client.infer(&request).await?;
            *one = began.elapsed();
        }
        let later: Duration = took[1..].iter().sum::<Duration>() / 5;
        let tensors = self.tensors(task.model).await?;
        let times = StartTimes {
            process_ms: millis(self.took),
            load_ms: millis(load),
            first_inference_ms: millis(took[0]),
            inference_ms: millis(later),
        };
        let kept = observer.started(times, tensors);
        kept.map_err(ProfileFailure::Caller)
    }

    async fn measure_batches(
        &self,
        task: &ProfileTask<'_>,
        direction: Direction,
        observer: &mut dyn ProfileObserver,
    ) -> Result<(), ProfileFailure> {
        let Direction { cpus, instances } = direction;
        let threads = (cpus / instances).max(1);
        let shares = !observer.earlier().tensors.is_empty();
        self.load_with(task.model, instances, threads, shares)
            .await?;
        let (metadata, limit) = self.interface(task.model).await?;
        let (mut best, mut without_gain) = (0.0_f64, 0);
        for batch in powers_of_two(limit.clamp(1, task.max_batch.max(1))) {
            let earlier = observer.earlier().find(direction, batch).cloned();
            let one = match earlier {
                Some(earlier) => earlier,
                None => {
                    observer.begins(direction, batch);
                    let request = observer.request(&metadata, limit > 0, batch);
                    let request = request.map_err(ProfileFailure::Caller)?;
                    let measured = self.measure(task, &request, instances).await?;
                    let held = self.process.private_bytes();
                    let one = MeasuredConfiguration {
                        cpus,
                        instances,
                        threads,
                        batch,
                        latency: figures(&measured),
                        requests_per_second: measured.rate() * f64::from(batch),
                        private_bytes: held.saturating_sub(self.baseline),
                    };
                    let kept = observer.measured(one.clone());
                    kept.map_err(ProfileFailure::Caller)?;
                    one
                }
            };
            without_gain = match one.requests_per_second >= best * LEAST_GAIN {
                true => 0,
                false => without_gain + 1,
            };
            best = best.max(one.requests_per_second);
            let half = task.objective.map(|objective| millis(objective) / 2.0);
            let is_late = half.is_some_and(|half| one.latency.p95_ms > half);
            if is_late || without_gain >= 2 {
                break;
            }
        }
        Ok(())
    }

    /// Loads the model with so many instances and threads, without waiting for batches to form; until its weights are in
    /// the store, if it `shares` them.
    async fn load_with(
        &self,
        model: &str,
        instances: u32,
        threads: u32,
        shares: bool,
    ) -> Result<(), ProfileFailure> {
        self.client.load(model).await?;
        let mut config: Value = self.client.model_config(model, None).await?;
        let Some(members) = config.as_object_mut() else {
            return Err(ProfileFailure::Answer(
                "the configuration is no object".to_owned(),
            ));
        };
        members.insert(
            "instance_group".to_owned(),
            json!([{ "count": instances, "kind": "KIND_CPU" }]),
        );
        // Each request is a batch.
        members.remove("dynamic_batching");
        let parameters = members.entry("parameters").or_insert_with(|| json!({}));
        if let Some(parameters) = parameters.as_object_mut() {
            let threads = json!({ "string_value": threads.to_string() });
            parameters.insert("intra_op_thread_count".to_owned(), threads);
            for key in [
                "slo_latency_ms",
                "batching_policy",
                "min_instances",
                "max_instances",
                "live_configuration",
            ] {
                parameters.remove(key);
            }
        }
        self.client.unload(model).await?;
        self.client
            .load_with_config(model, &config.to_string())
            .await?;
        if shares {
            self.tensors(model).await?;
        }
        Ok(())
    }

    /// The model's metadata, and its largest batch: 0 if it takes no batches.
    async fn interface(&self, model: &str) -> Result<(ModelMetadata, u32), ProfileFailure> {
        let metadata = self.client.model_metadata(model, None).await?;
        let config: Value = self.client.model_config(model, None).await?;
        Ok((metadata, max_batch_size(&config)))
    }

    /// The tensors that the model shares, once they are in the store; none if it has none there after a while.
    async fn tensors(&self, model: &str) -> Result<Vec<TensorRow>, ProfileFailure> {
        let deadline = Instant::now() + LONGEST_MOVE;
        loop {
            let status = self
                .client
                .residency(&["resident".to_owned()], true)
                .await?;
            let row = status.models.into_iter().find(|row| row.name == model);
            let Some(row) = row else {
                return Err(ProfileFailure::Answer(format!(
                    "model `{model}` is not resident"
                )));
            };
            if !row.tensors.is_empty() || Instant::now() >= deadline {
                return Ok(row.tensors);
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn measure(
        &self,
        task: &ProfileTask<'_>,
        request: &InferRequest,
        instances: u32,
    ) -> Result<Measurement, Error> {
        // One to allocate, one to know how long they take.
        self.client.infer(request).await?;
        let began = Instant::now();
        self.client.infer(request).await?;
        let one = began.elapsed();
        let enough = one * LEAST_BATCHES.div_ceil(instances);
        let duration = task.point.max(enough).min(LONGEST_POINT.max(one * 2));
        let plan = ClosedLoop {
            concurrency: usize::try_from(instances).unwrap_or(1),
            connections: 1,
            warm_up: one * 2,
            duration,
        };
        closed_loop(self.process.http(), request, plan).await
    }
}

fn max_batch_size(config: &Value) -> u32 {
    let size = config.get("max_batch_size").and_then(Value::as_u64);
    size.and_then(|size| u32::try_from(size).ok()).unwrap_or(0)
}

fn figures(measured: &Measurement) -> LatencyFigures {
    let quantile = |share| millis(measured.quantile(share));
    LatencyFigures {
        p50_ms: quantile(0.5),
        p95_ms: quantile(0.95),
        p99_ms: quantile(0.99),
        batches: measured.requests,
    }
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_is_fine_where_it_is_small() {
        assert_eq!(instance_counts(1), [1]);
        assert_eq!(instance_counts(3), [1, 2, 3]);
        assert_eq!(instance_counts(16), [1, 2, 3, 4, 8, 16]);
        assert_eq!(instance_counts(6), [1, 2, 3, 4, 6]);
        assert_eq!(powers_of_two(1), [1]);
        assert_eq!(powers_of_two(2), [1, 2]);
        assert_eq!(powers_of_two(12), [1, 2, 4, 8, 12]);
    }
}
