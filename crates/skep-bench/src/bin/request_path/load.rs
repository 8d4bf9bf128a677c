//! The load generators, and what a round of each measures.

use std::{collections::BTreeMap, fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use prost::Message as _;
use skep_client::InferRequest;
use skep_perf::{ClosedLoop, Measurement, closed_loop, cpu_time};
use skep_proto::inference::{ModelInferRequest, model_infer_request::InferInputTensor};
use skep_tensor::Tensor;
use skep_types::{DataType, Shape};

use super::{CONCURRENCY, LoadRound, LoadTarget, WIDTH};

/// The request as a `wrk` script.
pub(super) fn lua() -> String {
    format!(
        r#"local json = '{{"inputs":[{{"name":"INPUT0","shape":[1,{WIDTH}],"datatype":"FP32","parameters":{{"binary_data_size":{}}}}}],"outputs":[{{"name":"OUTPUT0","parameters":{{"binary_data":true}}}}]}}'
wrk.method = "POST"
wrk.body = json .. string.rep(string.char(0, 0, 128, 63), {WIDTH})
wrk.headers["Inference-Header-Content-Length"] = tostring(#json)
wrk.headers["Content-Type"] = "application/octet-stream"
"#,
        WIDTH * size_of::<f32>()
    )
}

pub(super) fn wrk(
    target: &LoadTarget,
    duration: Duration,
    script: Option<&Path>,
) -> Result<LoadRound> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "--latency"]);
    command.arg(format!("-c{CONCURRENCY}"));
    command.arg(format!("-d{}s", duration.as_secs()));
    if let Some(script) = script {
        command.arg("-s").arg(script);
    }
    let before = tree_cpu_time(target.pid)?;
    let output = command.arg(&target.url).output()?;
    let cpu = cpu_since(&before);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && !text.contains("Non-2xx") && !text.contains("Socket errors"),
        "wrk against {}:\n{text}",
        target.url
    );
    let after = |label: &str| -> Result<&str> {
        let line = text.lines().find(|line| line.trim().starts_with(label));
        let value = line.and_then(|line| line.trim()[label.len()..].split_whitespace().next());
        value.with_context(|| format!("wrk printed no `{label}`:\n{text}"))
    };
    let requests = text
        .lines()
        .find_map(|line| line.trim().split_once(" requests in "))
        .context("wrk printed no number of requests")?;
    Ok(LoadRound {
        rate: after("Requests/sec:")?.parse()?,
        cpu_us: cpu.as_secs_f64() * 1e6 / requests.0.parse::<f64>()?,
        p50_us: microseconds(after("50%")?)?,
        p99_us: microseconds(after("99%")?)?,
    })
}

/// `wrk` prints latencies as `210.00us`, `1.24ms`, `1.02s`.
fn microseconds(text: &str) -> Result<f64> {
    let (number, scale) = [("us", 1.0), ("ms", 1e3), ("s", 1e6)]
        .into_iter()
        .find_map(|(unit, scale)| text.strip_suffix(unit).map(|number| (number, scale)))
        .with_context(|| format!("`{text}` is no latency"))?;
    Ok(number.parse::<f64>()? * scale)
}

fn floats() -> Bytes {
    [1f32; WIDTH].iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// The request as the body of a gRPC call.
fn message(model: &str) -> Vec<u8> {
    let input = InferInputTensor {
        name: "INPUT0".to_owned(),
        datatype: "FP32".to_owned(),
        shape: vec![1, i64::try_from(WIDTH).expect("small")],
        ..InferInputTensor::default()
    };
    let message = ModelInferRequest {
        model_name: model.to_owned(),
        inputs: vec![input],
        raw_input_contents: vec![floats()],
        ..ModelInferRequest::default()
    }
    .encode_to_vec();
    let length = u32::try_from(message.len()).expect("short").to_be_bytes();
    [&[0][..], &length, &message].concat()
}

pub(super) fn h2load(
    target: &LoadTarget,
    connections: usize,
    duration: Duration,
) -> Result<LoadRound> {
    let scratch = tempfile::tempdir()?;
    let (body, log) = (scratch.path().join("body"), scratch.path().join("log"));
    fs::write(&body, message(&target.model))?;
    let mut command = Command::new("h2load");
    command.arg("-t1").arg(format!("-c{connections}"));
    command.arg(format!("-m{}", CONCURRENCY / connections));
    command.args(["-D", &duration.as_secs().to_string()]);
    command.args(["-H", "content-type: application/grpc", "-H", "te: trailers"]);
    command.arg("-d").arg(&body).arg("--log-file").arg(&log);
    let authority = target.url.trim_start_matches("grpc://");
    command.arg(format!(
        "http://{authority}/inference.GRPCInferenceService/ModelInfer"
    ));
    let before = tree_cpu_time(target.pid)?;
    let output = command.output()?;
    let cpu = cpu_since(&before);
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains(" 0 failed, 0 errored, 0 timeout"),
        "h2load against {}:\n{text}",
        target.url
    );
    // A line a request: when it began, its status, its latency in microseconds.
    let log = fs::read_to_string(&log)?;
    let latencies = log.lines().map(|line| {
        let latency = line.rsplit('\t').next().and_then(|us| us.parse().ok());
        let latency = latency.map(Duration::from_micros);
        latency.with_context(|| format!("h2load logged `{line}`"))
    });
    let mut latencies = latencies.collect::<Result<Vec<Duration>>>()?;
    latencies.sort_unstable();
    ensure!(!latencies.is_empty(), "h2load sent nothing:\n{text}");
    // A refused call has status 200 too, but no message.
    let data = text.lines().find_map(|line| {
        let (_, data) = line.strip_suffix(" data")?.rsplit_once('(')?;
        data.strip_suffix(')')?.parse::<usize>().ok()
    });
    ensure!(
        data.is_some_and(|bytes| bytes >= latencies.len() * WIDTH * size_of::<f32>()),
        "not all of {}'s answers hold the tensor:\n{text}",
        target.url
    );
    let measured = Measurement {
        requests: latencies.len(),
        elapsed: duration,
        latencies,
    };
    Ok(round(&measured, cpu))
}

pub(super) async fn client(
    target: &LoadTarget,
    connections: usize,
    duration: Duration,
) -> Result<LoadRound> {
    let data = floats();
    let tensor = Tensor::new(DataType::Fp32, Shape::new(&[1, WIDTH])?, data)?;
    let mut request = InferRequest::new(&target.model);
    request.inputs.push(("INPUT0".to_owned(), tensor));
    let plan = ClosedLoop {
        concurrency: CONCURRENCY,
        connections,
        warm_up: Duration::ZERO,
        duration,
    };
    let before = tree_cpu_time(target.pid)?;
    let measured = closed_loop(&target.url, &request, plan).await?;
    let cpu = cpu_since(&before);
    Ok(round(&measured, cpu))
}

fn round(measured: &Measurement, cpu: Duration) -> LoadRound {
    let us = |share| measured.quantile(share).as_secs_f64() * 1e6;
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let requests = measured.requests as f64;
    LoadRound {
        rate: measured.rate(),
        cpu_us: cpu.as_secs_f64() * 1e6 / requests,
        p50_us: us(0.5),
        p99_us: us(0.99),
    }
}

/// The CPU time of a process and of all below it: Triton runs Python models in processes of their own.
///
/// The system leaves children out of its list when threads come and go meanwhile, so it is asked more than once.
fn tree_cpu_time(root: u32) -> Result<BTreeMap<u32, Duration>> {
    let mut tree = BTreeMap::from([(root, cpu_time(root)?)]);
    for _ in 0..4 {
        let mut open: Vec<u32> = tree.keys().copied().collect();
        while let Some(pid) = open.pop() {
            // What has just ended has no children.
            let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
                continue;
            };
            for task in tasks.flatten() {
                let children = fs::read_to_string(task.path().join("children"));
                for child in children.unwrap_or_default().split_whitespace() {
                    let child = child.parse()?;
                    if let (false, Ok(cpu)) = (tree.contains_key(&child), cpu_time(child)) {
                        tree.insert(child, cpu);
                        open.push(child);
                    }
                }
            }
        }
    }
    Ok(tree)
}

/// What those of these processes that still run have used since.
fn cpu_since(before: &BTreeMap<u32, Duration>) -> Duration {
    let since =
        |(pid, before): (&u32, &Duration)| Some(cpu_time(*pid).ok()?.saturating_sub(*before));
    before.iter().filter_map(since).sum()
}
