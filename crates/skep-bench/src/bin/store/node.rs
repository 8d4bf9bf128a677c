//! What is measured: a repository of generated models, a server over it, and the memory of all its processes.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use skep_backend_onnxruntime::{LibrarySearch, OnnxRuntime};
use skep_client::InferRequest;
use skep_models::{Inputs, Kind, Options};
use skep_perf::{Memfd, ServerProcess, mappings, tree_memory};
use skep_types::DataType;

pub(crate) const MIB: f64 = 1024.0;

/// What the store calls its memory files.
const SEGMENT: &str = "skep-segment";

/// What is left to others.
const RESERVE_MIB: f64 = 4096.0;

/// Tokens a row, for BERT.
const TOKENS: usize = 128;

/// Files that only the measured servers have open.
pub(crate) struct Copies {
    directory: tempfile::TempDir,
    binary: PathBuf,
    library: PathBuf,
}

impl Copies {
    pub(crate) fn new(binary: &Path) -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let (runtime, _) = OnnxRuntime::start(&LibrarySearch::from_environment())?;
        let copy = |file: &Path| -> Result<PathBuf> {
            let copy = directory
                .path()
                .join(file.file_name().context("a file's path")?);
            fs::copy(file, &copy).with_context(|| file.display().to_string())?;
            Ok(copy)
        };
        Ok(Self {
            binary: copy(binary)?,
            library: copy(runtime.path())?,
            directory,
        })
    }
}

impl Copies {
    /// ONNX Runtime's library.
    pub(crate) fn library(&self) -> &Path {
        &self.library
    }
}

/// How a server holds weights.
#[derive(Debug, Clone, Copy)]
pub(crate) enum WeightSetup<'a> {
    /// One copy of each, kept on disk in this directory.
    Shared(&'a Path),
    /// Whatever each load makes of them.
    Plain,
}

/// Where the instances of a model run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BenchIsolation {
    Thread,
    Process,
}

impl BenchIsolation {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Thread => "thread",
            Self::Process => "process",
        }
    }
}

/// A model repository of its own and, beside it, the directory of a weight cache.
pub(crate) struct BenchNode<'a> {
    copies: &'a Copies,
    root: tempfile::TempDir,
}

impl<'a> BenchNode<'a> {
    pub(crate) fn new(copies: &'a Copies) -> Result<Self> {
        // Beside the binary: the same file system for all.
        let root = tempfile::tempdir_in(copies.directory.path())?;
        fs::create_dir(root.path().join("models"))?;
        fs::create_dir(root.path().join("weights"))?;
        Ok(Self { copies, root })
    }

    pub(crate) fn repository(&self) -> PathBuf {
        self.root.path().join("models")
    }

    /// Where weights are kept.
    pub(crate) fn cache(&self) -> PathBuf {
        self.root.path().join("weights")
    }

    /// Whether nothing was kept yet.
    pub(crate) fn has_no_weights(&self) -> Result<bool> {
        Ok(fs::read_dir(self.cache())?.next().is_none())
    }

    /// Empties the weight cache.
    pub(crate) fn forget_weights(&self) -> Result<()> {
        fs::remove_dir_all(self.cache())?;
        Ok(fs::create_dir(self.cache())?)
    }

    /// Writes a model into the repository. Each instance runs it twice before it is ready: the first run of a shape is
    /// recorded, and only those after it hold what every later run does.
    pub(crate) fn model(
        &self,
        name: &str,
        kind: &Kind,
        options: &Options,
        instances: usize,
        isolation: BenchIsolation,
    ) -> Result<()> {
        let model = skep_models::generate(kind, options)?;
        model.write_repository(self.repository(), name, None)?;
        self.configure(name, kind, instances, isolation)
    }

    /// Writes another configuration of a model.
    pub(crate) fn configure(
        &self,
        name: &str,
        kind: &Kind,
        instances: usize,
        isolation: BenchIsolation,
    ) -> Result<()> {
        let warm_up: String = skep_models::inputs(kind, wanted(0))
            .iter()
            .map(|input| {
                let dims: Vec<String> = input.shape.dims()[1..].iter().map(ToString::to_string).collect();
                format!(
                    "inputs {{ key: \"{}\" value {{ data_type: {} dims: [ {} ] zero_data: true }} }} ",
                    input.name,
                    config_name(input.datatype),
                    dims.join(", ")
                )
            })
            .collect();
        let config = format!(
            "backend: \"onnxruntime\" max_batch_size: 1
             instance_group {{ count: {instances} kind: KIND_CPU }}
             parameters {{ key: \"isolation\" value {{ string_value: \"{}\" }} }}
             model_warmup {{ name: \"twice\" batch_size: 1 count: 2 {warm_up} }}",
            isolation.name()
        );
        Ok(fs::write(
            self.repository().join(name).join("config.pbtxt"),
            config,
        )?)
    }

    /// Takes the runs for warming up out of a model's configuration: a load is then a load and nothing else.
    pub(crate) fn without_runs(&self, name: &str) -> Result<()> {
        let path = self.repository().join(name).join("config.pbtxt");
        let config = fs::read_to_string(&path)?;
        let loads = config.split("model_warmup").next().unwrap_or_default();
        Ok(fs::write(path, loads)?)
    }

    /// A server over the repository, ready.
    pub(crate) fn serve(&self, weights: WeightSetup<'_>, flags: &[&str]) -> Result<ServerProcess> {
        let library = format!("--onnxruntime-library={}", self.copies.library.display());
        let cache = match weights {
            WeightSetup::Shared(directory) => format!("--weight-cache={}", directory.display()),
            WeightSetup::Plain => "--weight-cache=off".to_owned(),
        };
        // A first load bakes, so that the loads after it find what there is to share.
        let flags = [
            &[library.as_str(), cache.as_str(), "--weight-bake=foreground"],
            flags,
        ]
        .concat();
        Ok(ServerProcess::start_with(
            &self.copies.binary,
            &self.repository(),
            &flags,
        )?)
    }

    /// What a server over the repository holds once it is ready, by rounds of a server each. A server that shares
    /// weights finds them in the cache, as any but the very first does.
    pub(crate) fn held(&self, weights: WeightSetup<'_>, rounds: usize) -> Result<Vec<HeldMemory>> {
        if matches!(weights, WeightSetup::Shared(_)) && self.has_no_weights()? {
            drop(self.serve(weights, &[])?);
        }
        let held = |_| {
            let server = self.serve(weights, &[])?;
            self.wait_for_store(&server)?;
            HeldMemory::of(&server, &self.cache())
        };
        (0..rounds).map(held).collect()
    }

    /// Waits until a server that is ready, and has run its models, runs them on nothing but the store. Each look is a
    /// walk through the process's pages.
    fn wait_for_store(&self, server: &ServerProcess) -> Result<()> {
        let cache = self.cache().display().to_string();
        let of_cache = |pid| -> Result<f64> {
            let mapped = mappings(pid)?.into_iter();
            let mapped = mapped.filter(|mapping| mapping.path.starts_with(&cache));
            Ok(mapped.map(|mapping| mapping.pss_kib).sum())
        };
        while of_cache(server.pid())? > 0.0 {}
        Ok(())
    }

    /// Bytes of all weights in the cache that runs want, each once.
    pub(crate) fn kept_bytes(&self) -> Result<u64> {
        let mut tensors = BTreeMap::new();
        for form in fs::read_dir(self.cache().join("v1/models"))? {
            let manifest = fs::read_to_string(form?.path().join("manifest"))?;
            for line in manifest.lines() {
                if let ["tensor", "weight" | "packed", digest, bytes, ..] =
                    line.split(' ').collect::<Vec<_>>()[..]
                {
                    tensors.insert(digest.to_owned(), bytes.parse::<u64>()?);
                }
            }
        }
        Ok(tensors.values().sum())
    }
}

/// The memory of a server and all of its processes.
#[derive(Debug)]
pub(crate) struct HeldMemory {
    /// All of it, each page once, in MiB.
    pub(crate) all: f64,
    /// Of it the tensors that are kept: the store's segments, mapped or not, and mapped files of the cache, in MiB.
    pub(crate) tensors: f64,
    /// The server's own process, without tensors that are kept, in MiB.
    pub(crate) server: f64,
    /// Private to each process but the server, without tensors that are kept, in MiB.
    pub(crate) others: Vec<f64>,
}

impl HeldMemory {
    pub(crate) fn of(server: &ServerProcess, cache: &Path) -> Result<Self> {
        let memory = tree_memory(&[server.pid()])?;
        let (cache, segment) = (cache.display().to_string(), format!("/memfd:{SEGMENT}"));
        let (mut mapped, mut own) = (0.0, 0.0);
        let mut others = Vec::new();
        for (pid, process) in &memory.processes {
            let kept: Vec<_> = mappings(*pid)?
                .into_iter()
                .filter(|mapping| {
                    mapping.path.starts_with(&segment) || mapping.path.starts_with(&cache)
                })
                .collect();
            mapped += kept.iter().map(|mapping| mapping.pss_kib).sum::<f64>();
            let private: f64 = kept.iter().map(|mapping| mapping.private_kib).sum();
            if *pid == server.pid() {
                let kept: f64 = kept.iter().map(|mapping| mapping.pss_kib).sum();
                own = (process.pss_kib - kept) / MIB;
            } else {
                others.push((process.private_kib - private) / MIB);
            }
        }
        let segments = memory.memfds.iter().filter(|memfd| memfd.name == SEGMENT);
        let unmapped: f64 = segments.map(Memfd::unmapped_kib).sum();
        Ok(Self {
            all: memory.held_kib() / MIB,
            tensors: (mapped + unmapped) / MIB,
            server: own,
            others,
        })
    }
}

/// A request of one row.
pub(crate) fn request(model: &str, kind: &Kind, seed: u64) -> Result<InferRequest> {
    let mut request = InferRequest::new(model);
    request.inputs = skep_bench::named_inputs(kind, wanted(seed))?;
    Ok(request)
}

fn wanted(seed: u64) -> Inputs {
    Inputs {
        seed,
        batch: 1,
        sequence: TOKENS,
    }
}

fn config_name(datatype: DataType) -> String {
    match datatype {
        DataType::Bytes => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{}", other.protocol_name()),
    }
}

/// The median of what `of` says of each round.
pub(crate) fn median_of<T>(rounds: &[T], of: impl Fn(&T) -> f64) -> f64 {
    skep_perf::median(&rounds.iter().map(of).collect::<Vec<f64>>())
}

/// Whether so many MiB are to be had, with a reserve for everybody else.
pub(crate) fn has_room(mib: f64) -> Result<bool> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let available = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok())
        .context("no `MemAvailable` in /proc/meminfo")?;
    Ok(mib + RESERVE_MIB < available / MIB)
}
