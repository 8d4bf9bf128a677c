//! A latency table out of a model: loaded as the server loads it, asked over the server's own path, one batch at a
//! time.

use std::{
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use skep_config::{BackendSetting, InputConfig, parse_backend_config};
use skep_runtime::{
    Control, Device, InferRequest, LoadOptions, LoadedVersion, MetricsOptions, Repository,
    ResidencySettings, Runtime, RuntimeOptions,
};
use skep_tensor::Tensor;
use skep_types::{DeviceId, Shape};

use super::saved::Saved;
use crate::{
    axis::number,
    backends,
    colour::Colours,
    commands::sandbox,
    logging::{self, LogFormat, LogOptions},
    measured_model::MeasuredModel,
    output,
    progress::Progress,
    table::TextTable,
};

#[derive(Debug, Args)]
pub(crate) struct MeasureArgs {
    /// Measure the table on a model: its directory in a repository, or an ONNX file. Its instances, its largest batch
    /// and its `slo_latency_ms` then hold unless flags say otherwise
    #[arg(long, value_name = "MODEL")]
    from_model: Option<PathBuf>,
    /// Write the measured table into a file that --table reads
    #[arg(long, value_name = "FILE", requires = "from_model")]
    save_table: Option<PathBuf>,
    /// The shape of an input with variable dimensions, as in ids:128: as the configuration has it, so without the batch
    /// dimension where `max_batch_size` is above 0, and whole where it is 0; may be given several times
    #[arg(long, value_name = "INPUT:DIMS", requires = "from_model")]
    shape: Vec<NamedShape>,
    /// As for `skep serve`
    #[arg(long, value_name = "SETTING", requires = "from_model", value_parser = |text: &str| parse_backend_config(text))]
    backend_config: Vec<BackendSetting>,
    /// As for `skep serve`
    #[arg(long, value_name = "PATH", requires = "from_model")]
    onnxruntime_library: Option<PathBuf>,
    /// As for `skep serve`
    #[arg(long, requires = "from_model")]
    gpu_as_cpu: bool,
}

/// An input's name and its dimensions.
#[derive(Debug, Clone, PartialEq, Eq)]
struct NamedShape {
    name: String,
    dims: Vec<usize>,
}

impl FromStr for NamedShape {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // Names of tensors may have colons.
        let parts = text.rsplit_once(':').filter(|(name, _)| !name.is_empty());
        let shape = parts.and_then(|(name, dims)| {
            let dims = dims.split(',').map(|dim| dim.trim().parse().ok());
            Some(Self {
                name: name.to_owned(),
                dims: dims.collect::<Option<_>>()?,
            })
        });
        shape.ok_or_else(|| {
            "expected INPUT:DIM,DIM with sizes as in ids:128 or x:3,224,224".to_owned()
        })
    }
}

/// What was measured, and what the model's configuration says beside it.
pub(super) struct Measured {
    /// As the flag has it.
    pub(super) name: String,
    points: Vec<MeasuredPoint>,
    pub(super) instances: u32,
    pub(super) max_batch_size: u32,
    pub(super) objective: Option<Duration>,
    /// The model, its version and backend, in words.
    what: String,
}

/// What executions of one batch size took.
struct MeasuredPoint {
    batch: usize,
    median_ms: f64,
    p95_ms: f64,
    executions: usize,
}

/// Executions a size: as many as there is time for, from the least that a median means something for to the most that
/// change nothing any more. The first of a size allocates and does not count.
const LEAST_EXECUTIONS: usize = 5;
const MOST_EXECUTIONS: usize = 200;
const TIME_A_SIZE: Duration = Duration::from_secs(1);

impl MeasureArgs {
    /// Says before the work what could not be written after it.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        output::check("--save-table", self.save_table.as_deref())
    }

    /// Measures the model, if one is named; batches of up to `max`, or of up to what the model takes, or
    /// `default_max` where it is a file.
    pub(super) fn measure(
        &self,
        max: Option<u32>,
        default_max: u32,
        quiet: bool,
        origin: &str,
    ) -> anyhow::Result<Option<Measured>> {
        let Some(path) = &self.from_model else {
            return Ok(None);
        };
        logging::start(LogOptions {
            verbose: 0,
            info: false,
            warning: true,
            // It becomes the command's.
            error: false,
            file: None,
            format: LogFormat::Default,
        })?;
        let flag = || format!("--from-model {}", path.display());
        let model = MeasuredModel::of(path).with_context(flag)?;
        let runtime = self.load(&model, max.unwrap_or(default_max))?;
        let loaded = runtime.start(Some(std::slice::from_ref(&model.name)));
        for (_, outcome) in loaded {
            let error =
                |error: skep_runtime::RuntimeError| anyhow!(model.named(&error.to_string(), path));
            outcome.map_err(error).with_context(flag)?;
        }
        let version = runtime
            .resolve(model.name.as_str(), None)
            .with_context(flag)?;
        let measured = self.measure_version(path, &version, max, quiet);
        drop(version);
        // Worker processes end with it.
        runtime.stop(Duration::from_secs(10));
        let measured = measured.with_context(flag)?;
        output::write("--save-table", self.save_table.as_deref(), || {
            measured.file(origin)
        })?;
        Ok(Some(measured))
    }

    fn load(&self, model: &MeasuredModel, max: u32) -> anyhow::Result<Arc<Runtime>> {
        let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let mut backend_settings = Vec::new();
        if model.is_file() {
            backend_settings.push(BackendSetting::DefaultMaxBatchSize {
                backend: None,
                size: max,
            });
        }
        backend_settings.extend(self.backend_config.iter().cloned());
        let options = RuntimeOptions {
            repository: Repository::open(vec![model.repository.clone()])
                .map_err(anyhow::Error::msg)?,
            load: LoadOptions {
                gpu_as_cpu: self.gpu_as_cpu,
                auto_complete: true,
                backend_settings,
                cores,
                config_name: None,
                retries: 0,
                metrics: MetricsOptions::default(),
                waiting_limit: Arc::default(),
                hold_until: 0,
                devices: None,
                profiles: None,
                response_cache: None,
                rate_limiter: None,
                cpu: Some(Device::new(
                    DeviceId::default(),
                    u32::try_from(cores.get()).unwrap_or(u32::MAX),
                )),
                // A measurement leaves nothing behind.
                weights: None,
                request_memory: None,
                sandbox_load_limit: Some(sandbox::DEFAULT_LOAD_LIMIT),
            },
            load_threads: 1,
            max_waiting_loads: 1,
            control: Control::Explicit,
            strict_readiness: true,
            residency: ResidencySettings::default(),
        };
        let library = self.onnxruntime_library.clone();
        Ok(Runtime::new(options, backends::all(library, false)?))
    }

    fn measure_version(
        &self,
        path: &Path,
        version: &LoadedVersion,
        max: Option<u32>,
        quiet: bool,
    ) -> anyhow::Result<Measured> {
        let config = version.config();
        for shape in &self.shape {
            let known = config.inputs().iter().map(|input| input.name.as_str());
            let known: Vec<&str> = known.collect();
            if !known.contains(&shape.name.as_str()) {
                bail!(
                    "--shape: the model has no input `{}`, it has {}",
                    shape.name,
                    known.join(", ")
                );
            }
        }
        let largest = config.max_batch_size().max(1);
        let max = match max.map(|max| max as usize) {
            Some(max) if max > largest => bail!(
                "--max-batch-size {max}: the model takes batches of up to {largest} (`max_batch_size` of its configuration)"
            ),
            Some(max) => max,
            None => largest,
        };
        let sizes: Vec<usize> = skep_scheduler::profile_sizes(max).collect();
        let progress = Progress::new("measuring", sizes.len(), !quiet);
        let reactor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let mut points = Vec::new();
        for batch in sizes {
            progress.name(format!("batches of {batch}"));
            let request = self.request(config.inputs(), batch)?;
            let point = reactor.block_on(point(version, &request, batch));
            points.push(point.with_context(|| format!("a batch of {batch}"))?);
            progress.step();
        }
        let groups = config.instance_groups().iter();
        let instances = groups.filter(|group| !group.passive).map(|g| g.count).sum();
        Ok(Measured {
            name: path.display().to_string(),
            points,
            instances,
            max_batch_size: u32::try_from(max)?,
            objective: config.latency_objective(),
            what: format!(
                "model `{}` version {} on backend `{}`, {instances} instance{}",
                version.name(),
                version.version(),
                version.backend(),
                if instances == 1 { "" } else { "s" },
            ),
        })
    }

    /// Zeros for every input that a request needs.
    fn request(&self, inputs: &[InputConfig], batch: usize) -> anyhow::Result<InferRequest> {
        let mut request = InferRequest::default();
        for input in inputs {
            let given = self.shape.iter().find(|shape| shape.name == input.name);
            let mut dims = match (given, input.dims.to_shape()) {
                (Some(given), _) => given.dims.clone(),
                (None, Some(shape)) => shape.dims().to_vec(),
                (None, None) if input.optional => continue,
                (None, None) => return Err(self.missing(inputs)),
            };
            if input.batched {
                dims.insert(0, batch);
            }
            let shape = Shape::new(&dims).map_err(|error| anyhow!("--shape: {error}"))?;
            let size = input.datatype.element_size().unwrap_or(0);
            let bytes = shape.element_count().checked_mul(size);
            if bytes.is_none_or(|bytes| bytes > MAX_BYTES) {
                bail!(
                    "input `{}` of shape {shape} is larger than 2 GiB",
                    input.name
                );
            }
            let tensor = Tensor::zeros(input.datatype, shape);
            request.inputs.push((input.name.clone(), tensor));
        }
        Ok(request)
    }

    /// Names every input that needs a shape and has none.
    fn missing(&self, inputs: &[InputConfig]) -> anyhow::Error {
        let is_given = |input: &InputConfig| self.shape.iter().any(|s| s.name == input.name);
        let needs = |input: &&InputConfig| {
            !is_given(input) && !input.optional && input.dims.to_shape().is_none()
        };
        let missing: Vec<&InputConfig> = inputs.iter().filter(needs).collect();
        let lines = missing.iter().map(|input| {
            let batched = if input.batched {
                ", the batch dimension left out"
            } else {
                ""
            };
            format!(
                "input `{}` has variable dimensions, {}{batched}",
                input.name, input.dims
            )
        });
        let flags = missing
            .iter()
            .map(|input| format!(" --shape {}:{}", input.name, example(input)));
        anyhow!(
            "{}\n  choose a size for each `?`:{}",
            lines.collect::<Vec<_>>().join("\n"),
            flags.collect::<String>()
        )
    }
}

/// What a client's request may have.
const MAX_BYTES: usize = 2 << 30;

/// Dimensions for `--shape`, with `?` for those that the user has to choose.
fn example(input: &InputConfig) -> String {
    let dims = input.dims.as_slice().iter().map(|dim| match dim {
        ..0 => "?".to_owned(),
        dim => dim.to_string(),
    });
    dims.collect::<Vec<_>>().join(",")
}

/// Runs batches of one size.
async fn point(
    version: &LoadedVersion,
    request: &InferRequest,
    batch: usize,
) -> anyhow::Result<MeasuredPoint> {
    execute(version, request).await?;
    let end = Instant::now() + TIME_A_SIZE;
    let mut times = Vec::new();
    while times.len() < LEAST_EXECUTIONS || (times.len() < MOST_EXECUTIONS && Instant::now() < end)
    {
        times.push(execute(version, request).await?);
    }
    times.sort_unstable();
    Ok(MeasuredPoint {
        batch,
        median_ms: percentile_ms(&times, 50),
        p95_ms: percentile_ms(&times, 95),
        executions: times.len(),
    })
}

/// A percentile of sorted nanoseconds, of which there is at least one, in milliseconds.
fn percentile_ms(sorted: &[u64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted[rank] as f64 / 1e6
}

/// One request, which is one execution since nothing else waits. The nanoseconds that the server's statistics charge
/// the execution: inputs gathered, model run, outputs split. A batcher's delay is no part of it.
async fn execute(version: &LoadedVersion, request: &InferRequest) -> anyhow::Result<u64> {
    let before = version.statistics();
    version.infer(request.clone()).await?;
    let after = version.statistics();
    Ok(compute_ns(&after)
        .saturating_sub(compute_ns(&before))
        .max(1))
}

/// The nanoseconds of all executions.
fn compute_ns(snapshot: &skep_runtime::StatisticsSnapshot) -> u64 {
    snapshot.compute_input.ns + snapshot.compute_infer.ns + snapshot.compute_output.ns
}

impl Measured {
    /// As `--table` reads it.
    pub(super) fn lines(&self) -> String {
        let lines = self.points.iter();
        let lines = lines.map(|point| format!("{},{:.6}\n", point.batch, point.median_ms));
        format!("batch,ms\n{}", lines.collect::<String>())
    }

    /// The file: where the lines come from, the model's settings, and the lines.
    fn file(&self, origin: &str) -> String {
        let saved = Saved {
            instances: Some(self.instances.max(1)),
            max_batch_size: Some(self.max_batch_size),
            objective: self.objective.map(|own| own.as_secs_f64() * 1e3),
        };
        let comments = saved.comments();
        format!("# {origin}\n# {}\n{comments}{}", self.what, self.lines())
    }

    /// To read.
    pub(super) fn table(&self) -> String {
        let mut table = TextTable::new(&[]);
        let heading = ["batch", "median ms", "p95 ms", "inferences/s", "executions"];
        table.row(heading.into_iter().map(Into::into).collect());
        for point in &self.points {
            let rate = point.batch as f64 / point.median_ms * 1e3;
            table.row(vec![
                point.batch.to_string().into(),
                format!("{:.3}", point.median_ms).into(),
                format!("{:.3}", point.p95_ms).into(),
                format!("{rate:.0}").into(),
                number(point.executions as f64).into(),
            ]);
        }
        format!(
            "Latencies of {}, one execution at a time:\n\n{}",
            self.what,
            table.lines(Colours::NONE)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_a_name_and_sizes() {
        let shape: NamedShape = "a:0:3, 224".parse().expect("valid");
        assert_eq!(
            (shape.name.as_str(), &shape.dims[..]),
            ("a:0", &[3, 224][..])
        );
        for text in ["x", ":3", "x:", "x:-1", "x:3,a", "x:1.5"] {
            assert!(text.parse::<NamedShape>().is_err(), "{text}");
        }
    }
}
