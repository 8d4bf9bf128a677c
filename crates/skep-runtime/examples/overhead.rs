//! What an ensemble's steps and a response cache cost a request, without any protocol:
//! `cargo run --release -p skep-runtime --example overhead [ROUNDS]`.
//!
//! A scripted model that computes nothing is called directly, as the only model of chains of 1, 2, 4 and 8 steps, and with a
//! response cache that has the response. Each round makes a block of requests to each of them in turn, one after the
//! other. Printed: a JSON object for each, with the wall and CPU time of a request in microseconds (median and quartiles of
//! the rounds), and for the chains what a step costs beyond a direct call.

use std::{fs, num::NonZeroU64, num::NonZeroUsize, path::Path, sync::Arc, time::Instant};

use skep_backend_mock::Mock;
use skep_runtime::{
    BackendEntry, Backends, Control, InferRequest, LoadOptions, LoadedVersion, MetricsOptions,
    Repository, ResidencySettings, ResponseCache, Runtime, RuntimeOptions, WaitingLimit,
};
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};

/// Requests of a block.
const BLOCK: u32 = 2_000;

const LENGTHS: [usize; 4] = [1, 2, 4, 8];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds = std::env::args()
        .nth(1)
        .map_or(Ok(15), |text| text.parse())?;
    let root = tempfile::tempdir()?;
    write_models(root.path())?;
    let runtime = Runtime::new(options(root.path())?, backends());
    runtime.start(None);
    let version = |name: &str| runtime.resolve(name, None);
    let mut targets = vec![("direct".to_owned(), 1, version("m")?)];
    for length in LENGTHS {
        let name = format!("chain_{length}");
        targets.push((name.clone(), length, version(&name)?));
    }
    targets.push(("cache_hit".to_owned(), 1, version("cached")?));
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut samples = vec![Vec::new(); targets.len()];
    // The first round warms up.
    for round in 0..=rounds {
        for ((.., version), samples) in targets.iter().zip(&mut samples) {
            let sample = reactor.block_on(block(version))?;
            if round > 0 {
                samples.push(sample);
            }
        }
    }
    let direct = quartiles(samples[0].iter().map(|sample| sample.0));
    let direct_cpu = quartiles(samples[0].iter().map(|sample| sample.1));
    for ((name, steps, _), samples) in targets.iter().zip(&samples) {
        let wall = quartiles(samples.iter().map(|sample| sample.0));
        let cpu = quartiles(samples.iter().map(|sample| sample.1));
        #[expect(clippy::cast_precision_loss, reason = "a handful of steps")]
        let steps = *steps as f64;
        let beyond = |whole: [f64; 3], one: [f64; 3]| (whole[1] - steps * one[1]) / steps;
        println!(
            "{{\"target\": \"{name}\", \"wall_us\": {wall:.2?}, \"cpu_us\": {cpu:.2?}, \"beyond_direct_us_a_step\": {:.2}, \"beyond_direct_cpu_us_a_step\": {:.2}}}",
            beyond(wall, direct),
            beyond(cpu, direct_cpu)
        );
    }
    runtime.stop(std::time::Duration::from_secs(5));
    Ok(())
}

/// Wall and CPU time of a request in microseconds, of a block of requests one after the other.
async fn block(version: &Arc<LoadedVersion>) -> Result<(f64, f64), Box<dyn std::error::Error>> {
    let shape = Shape::new(&[1, 4])?;
    let input = Tensor::zeros(DataType::Fp32, shape);
    let (began, cpu) = (Instant::now(), cpu_seconds());
    for _ in 0..BLOCK {
        let request = InferRequest {
            inputs: vec![("x".to_owned(), input.clone())],
            ..InferRequest::default()
        };
        version.infer(request).await?;
    }
    let per_request = 1e6 / f64::from(BLOCK);
    let wall = began.elapsed().as_secs_f64() * per_request;
    Ok((wall, (cpu_seconds() - cpu) * per_request))
}

/// CPU time of the process.
fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    #[expect(clippy::cast_precision_loss, reason = "seconds since the start")]
    let (whole, part) = (time.tv_sec as f64, time.tv_nsec as f64);
    whole + part / 1e9
}

/// The first quartile, the median, the third quartile.
fn quartiles(samples: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut sorted: Vec<f64> = samples.collect();
    sorted.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| sorted[(sorted.len() - 1) * quarter / 4])
}

fn write_models(root: &Path) -> std::io::Result<()> {
    let tensors = |input: &str, output: &str| {
        let tensor = |name: &str| format!("{{ name: \"{name}\" data_type: TYPE_FP32 dims: 4 }}");
        format!("input {} output {}\n", tensor(input), tensor(output))
    };
    let plain = format!(
        "backend: \"mock\" max_batch_size: 8 instance_group {{ count: 1 kind: KIND_CPU }}\n{}",
        tensors("x", "y")
    );
    let write = |name: &str, config: String| {
        let directory = root.join(name);
        fs::create_dir_all(directory.join("1"))?;
        fs::write(directory.join("config.pbtxt"), config)
    };
    write("m", plain.clone())?;
    write("cached", plain + "response_cache { enable: true }")?;
    for length in LENGTHS {
        let steps: String = (0..length)
            .map(|step| {
                let name = |number: usize| match number {
                    0 => "x".to_owned(),
                    number if number == length => "y".to_owned(),
                    number => format!("t{number}"),
                };
                format!(
                    "step {{ model_name: \"m\" model_version: -1 input_map {{ key: \"x\" value: \"{}\" }} output_map {{ key: \"y\" value: \"{}\" }} }}\n",
                    name(step),
                    name(step + 1)
                )
            })
            .collect();
        let head = format!(
            "platform: \"ensemble\" max_batch_size: 8 {}",
            tensors("x", "y")
        );
        write(
            &format!("chain_{length}"),
            format!("{head}ensemble_scheduling {{ {steps} }}"),
        )?;
    }
    Ok(())
}

fn options(root: &Path) -> Result<RuntimeOptions, Box<dyn std::error::Error>> {
    let cache = NonZeroU64::new(1 << 20).map(ResponseCache::new);
    Ok(RuntimeOptions {
        repository: Repository::open(vec![root.to_owned()])?,
        load: LoadOptions {
            auto_complete: true,
            backend_settings: vec![],
            cores: NonZeroUsize::MIN,
            metrics: MetricsOptions::default(),
            config_name: None,
            gpu_as_cpu: false,
            retries: 0,
            waiting_limit: Arc::new(WaitingLimit::default()),
            hold_until: 0,
            cpu: None,
            devices: None,
            profiles: None,
            response_cache: cache,
            rate_limiter: None,
            weights: None,
            request_memory: None,
            sandbox_load_limit: None,
        },
        load_threads: 2,
        max_waiting_loads: 256,
        control: Control::None,
        strict_readiness: true,
        residency: ResidencySettings::default(),
    })
}

/// The scripted backend alone.
fn backends() -> Backends {
    let mut backends = Backends::default();
    backends.add("mock", BackendEntry::new(|| Ok(Arc::new(Mock))));
    backends.prefer(&["mock"]);
    backends
}
