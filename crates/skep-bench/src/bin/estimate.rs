//! How near memory is estimated before anything runs: `cargo xtask bench estimate`.
//!
//! For each model, batch size and number of instances: the estimate, made from the file alone; then a server that
//! serves this model and nothing else, after each instance has answered requests of that batch size, as the kernel
//! counts its memory. Binary and library are copies of the benchmark's own, so that no other process shares their pages
//! and PSS is what the server costs by itself. Printed: a JSON object for each.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use bytes::Bytes;
use serde_json::json;
use skep_backend_onnxruntime::{LibrarySearch, OnnxRuntime, channel_block};
use skep_client::{Client, InferRequest};
use skep_estimate::{CpuTraits, MemoryClasses, MemoryEstimate};
use skep_models::{Inputs, Kind, Options};
use skep_onnx::OnnxModel;
use skep_perf::{ProcessMemory, ServerProcess, median, memory};
use skep_shapes::{GivenShapes, infer_shapes};
use skep_tensor::Tensor;

/// Servers that are started for each figure.
const ROUNDS: usize = 3;
/// Requests to each instance: its plan is recorded in one at most, and used in the others.
const REQUESTS: usize = 4;
/// Tokens a row, for BERT.
const TOKENS: usize = 128;

/// Model, batch size, instances.
const CASES: [(&str, usize, usize); 20] = [
    ("cnn", 1, 1),
    ("cnn", 8, 1),
    ("cnn", 8, 4),
    ("resnet50", 1, 1),
    ("resnet50", 8, 1),
    ("resnet50", 8, 4),
    ("mobilenetv2", 1, 1),
    ("mobilenetv2", 8, 1),
    ("mobilenetv2", 8, 4),
    ("bert-base", 1, 1),
    ("bert-base", 8, 1),
    ("bert-base", 8, 4),
    ("text-recogniser", 1, 1),
    ("text-recogniser", 8, 1),
    ("text-recogniser", 8, 4),
    ("mlp", 1, 1),
    ("mlp", 8, 1),
    ("mlp", 8, 4),
    ("bert-tiny", 8, 1),
    ("bert-tiny", 8, 4),
];

const MODEL: &str = "model";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: estimate SKEP_BINARY [MODEL]";
    let binary: PathBuf = arguments.next().context(usage)?.into();
    let only = arguments.next();
    let root = tempfile::tempdir()?;
    let (runtime, _) = OnnxRuntime::start(&LibrarySearch::from_environment())?;
    let copies = Copies {
        binary: copy(&binary, root.path())?,
        library: copy(runtime.path(), root.path())?,
    };
    for (kind, batch, instances) in CASES {
        if only.as_deref().is_none_or(|only| only == kind) {
            let case = EstimateCase {
                kind: kind.parse()?,
                batch,
                instances,
            };
            println!("{}", case.row(&copies).await?);
        }
    }
    Ok(())
}

/// Files that only the measured servers have open.
struct Copies {
    binary: PathBuf,
    library: PathBuf,
}

fn copy(file: &Path, into: &Path) -> Result<PathBuf> {
    let name = file.file_name().context("a file's path")?;
    let copy = into.join(name);
    fs::copy(file, &copy).with_context(|| file.display().to_string())?;
    Ok(copy)
}

struct EstimateCase {
    kind: Kind,
    batch: usize,
    instances: usize,
}

impl EstimateCase {
    async fn row(&self, copies: &Copies) -> Result<serde_json::Value> {
        let repository = tempfile::tempdir()?;
        let config = format!(
            "backend: \"onnxruntime\" max_batch_size: {} instance_group {{ count: {} kind: KIND_CPU }}",
            self.batch, self.instances
        );
        let model = skep_models::generate(&self.kind, &Options::default())?;
        model.write_repository(repository.path(), MODEL, Some(&config))?;
        let classes = self.estimate(&repository.path().join(MODEL).join("1/model.onnx"))?;
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            rounds.push(self.measured(copies, repository.path()).await?);
        }
        let mib = |of: fn(&ProcessMemory) -> f64| {
            median(&rounds.iter().map(of).collect::<Vec<f64>>()) / 1024.0
        };
        let of_bytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let (estimate, measured) = (of_bytes(classes.total()), mib(|m| m.pss_kib));
        Ok(json!({
            "model": self.kind.name(),
            "batch": self.batch,
            "instances": self.instances,
            "weights_mib": of_bytes(classes.weights),
            "intermediates_mib": of_bytes(classes.intermediates),
            "workspace_mib": of_bytes(classes.workspace),
            "runtime_mib": of_bytes(classes.runtime),
            "estimate_mib": estimate,
            "measured_mib": measured,
            "mapped_mib": mib(|m| m.pss_kib - m.anonymous_kib),
            "anonymous_mib": mib(|m| m.anonymous_kib),
            "error_percent": (estimate / measured - 1.0) * 100.0,
            "pss_kib": rounds.iter().map(|m| m.pss_kib).collect::<Vec<f64>>(),
        }))
    }

    fn estimate(&self, file: &Path) -> Result<MemoryClasses> {
        let model = OnnxModel::decode(Bytes::from(fs::read(file)?))?;
        let given = GivenShapes {
            inputs: self
                .inputs()?
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.shape().dims().to_vec()))
                .collect(),
            ..GivenShapes::default()
        };
        let machine = CpuTraits {
            channel_block: channel_block(),
            cores: std::thread::available_parallelism()?.get(),
        };
        let estimate = MemoryEstimate::new(&model, &infer_shapes(&model, &given)?, machine)?;
        Ok(estimate.with_instances(self.instances as u64))
    }

    fn inputs(&self) -> Result<Vec<(String, Tensor)>> {
        let wanted = Inputs {
            seed: 1,
            batch: self.batch,
            sequence: TOKENS,
        };
        let inputs = skep_models::inputs(&self.kind, wanted);
        let tensor = |input: skep_models::InputTensor| {
            let tensor = Tensor::new(input.datatype, input.shape, Bytes::from(input.data))?;
            Ok((input.name.to_string(), tensor))
        };
        inputs.into_iter().map(tensor).collect()
    }

    /// The memory of a server of its own, after every instance has answered.
    async fn measured(&self, copies: &Copies, repository: &Path) -> Result<ProcessMemory> {
        let library = format!("--onnxruntime-library={}", copies.library.display());
        let server = ServerProcess::start_with(&copies.binary, repository, &[&library])?;
        let mut request = InferRequest::new(MODEL);
        request.inputs = self.inputs()?;
        let mut clients = tokio::task::JoinSet::new();
        for _ in 0..self.instances {
            let client = Client::connect(server.http()).await?;
            let request = request.clone();
            clients.spawn(async move {
                for _ in 0..REQUESTS {
                    client.infer(&request).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(done) = clients.join_next().await {
            done??;
        }
        Ok(memory(server.pid())?)
    }
}
