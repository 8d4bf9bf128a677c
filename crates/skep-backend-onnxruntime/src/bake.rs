//! Baking: makes the form of a model that the library loads fastest, once, for the cache.
//!
//! ```text
//! model's files (mapped) --- rewrite ---> graph, weights (file)
//! graph + weights (mapped) --- pack ----> packed weights (files that the library packs into)
//! model's files (mapped) --- run -------> outputs  \
//! graph + weights + packed --- run -----> outputs  / equal to the bit
//! ```
//!
//! The library rewrites the graph as it does at every load (fusions, constants, image layouts) and writes the result
//! with its weights. It then loads that graph without rewriting, and Skep keeps the weights that it packs. Then the
//! model and the form run on the same inputs, one after the other. A form whose outputs differ in a single bit is
//! never used.
//!
//! Weights stay in files: the library gets them as ranges of files and packs them into files. Besides, baking takes
//! memory for one tensor on its way to the disk and for the weights that the library rewrites ([`cost`]).

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ffi::{CString, OsStr},
    fs::{self, File},
    io,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;
use skep_alloc::{LoadMode, LoadedBlock, load};
use skep_backend::{BackendError, LoadRequest, ModelFile};
use skep_cache::{Making, Role};
use skep_config::{ExecutionOptions, GraphOptimization, MemoryPlanner};
use skep_onnx::{ExternalData, OnnxModel, is_external};
use skep_proto::onnx::{GraphProto, ModelProto, TensorProto, tensor_proto::DataLocation};
use skep_store::{Description, FileRange, Wanted};
use skep_types::DataType;
use skep_weights::baking::{self, BakeCost, Bakes, FormFailure, FormGraph, NoForm};

use crate::{
    OnnxRuntime, baked,
    ffi::{self, ApiError, NamedWeight, Session, SessionOptions},
    machine, options,
    sessions::SharedSession,
    trial::{self, ExpectedOutputs, TrialResult},
};

/// The version of forms; it changes whenever their content or meaning changes.
const FORM: &[u8] = b"onnxruntime 2";

/// The file that the library writes weights into.
const WEIGHTS: &std::ffi::CStr = c"weights";

/// The name of a form's graph in its directory. Its weights refer to this file, because the library requires that the
/// file exists, although it gets every such weight in memory.
pub(crate) const GRAPH: &str = "graph";

/// Operators whose large inputs the library does not rewrite: it packs them, or reads them in place.
const KEPT: [&str; 5] = ["MatMul", "Gemm", "Gather", "FusedMatMul", "FusedGemm"];

/// Operators that pack their second input if it is a constant matrix, and do not read it afterwards.
const PACKING: [&str; 4] = ["MatMul", "Gemm", "FusedMatMul", "FusedGemm"];

/// A decoded model file with the settings of its sessions: it can be loaded or baked.
pub(crate) struct OrtModelFile<'a> {
    pub(crate) backend: OnnxRuntime,
    pub(crate) path: &'a Path,
    /// The file's bytes; the model's large tensors are slices of them.
    pub(crate) bytes: &'a Bytes,
    pub(crate) onnx: &'a OnnxModel,
    pub(crate) setting: options::SessionSettings<'a>,
}

impl<'a> OrtModelFile<'a> {
    pub(crate) fn of(backend: OnnxRuntime, request: &LoadRequest<'a>, onnx: &'a OnnxModel) -> Self {
        Self {
            backend,
            path: request.file.path(),
            bytes: request.file.bytes(),
            onnx,
            setting: options::SessionSettings {
                execution: request.config.execution(),
                threads: request.threads,
                cpus: request.cpus,
            },
        }
    }
}

/// A failure of the library while it makes a form. It is permanent, unless the library ran out of memory.
impl From<ApiError> for NoForm {
    fn from(error: ApiError) -> Self {
        match error.code {
            ffi::ApiErrorCode::RUNTIME_EXCEPTION => Self::Now(error.message),
            _ => Self::Never(error.message),
        }
    }
}

impl Bakes for OrtModelFile<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn files(&self) -> Vec<PathBuf> {
        baking::files(self.path, self.onnx)
    }

    fn unfit(&self) -> Option<&'static str> {
        has_defaults(self.onnx.graph()).then_some("it has inputs with default values")
    }

    fn depends_on(&self) -> Vec<Vec<u8>> {
        let level = match self.setting.execution.graph_optimization {
            GraphOptimization::Disable => "disable",
            GraphOptimization::Basic => "basic",
            GraphOptimization::Extended => "extended",
            GraphOptimization::All => "all",
        };
        vec![
            FORM.to_vec(),
            self.backend.version().into(),
            self.backend.runtime.build().into(),
            machine::instruction_sets().into(),
            machine::settings(),
            level.into(),
        ]
    }

    fn cost(&self) -> BakeCost {
        cost(self.onnx, &self.files())
    }

    fn make(&self, making: &mut Making) -> Result<FormGraph, NoForm> {
        let source = ExternalModel::of(self);
        let mut baked = self.rewrite(&source, &making.scratch())?;
        let (sequence, packed) = self.pack(&mut baked, making)?;
        let blocks = baked::write_blocks(&sequence);
        self.check_outputs(&source, &making.scratch(), || {
            self.replayed(&baked, making, (&sequence, &packed))
        })?;
        Ok(FormGraph {
            graph: baked.graph,
            notes: BTreeMap::from([(baked::BLOCKS.to_owned(), blocks)]),
        })
    }
}

impl OrtModelFile<'_> {
    /// Lets the library rewrite the graph without packing weights.
    fn rewrite(&self, source: &ExternalModel, scratch: &Path) -> Result<RewrittenModel, NoForm> {
        let graph_path = scratch.join("model.onnx");
        let mut options = options::session_options(self.backend.runtime, &self.setting)?;
        // It warns that the result fits this machine only. The form's key contains the machine.
        options.quiet()?;
        options.rewritten_to(&graph_path)?;
        options.entry(c"session.disable_prepacking", c"1")?;
        let threshold = CString::new(baking::MIN_WEIGHT_BYTES.to_string()).unwrap_or_default();
        let entries = [
            (
                c"session.optimized_model_external_initializers_file_name",
                WEIGHTS,
            ),
            (
                c"session.optimized_model_external_initializers_min_size_in_bytes",
                &threshold,
            ),
        ];
        for (key, value) in entries {
            options.entry(key, value)?;
        }
        let rewritten = self.session(source, options).map_err(|error| {
            // The library writes last. A failure after that, such as a full disk, may not happen next time.
            match fs::read_dir(scratch).is_ok_and(|mut written| written.next().is_some()) {
                true => NoForm::Now(error.message),
                false => error.into(),
            }
        })?;
        drop(rewritten);

        let written = Bytes::from(fs::read(&graph_path)?);
        let mut model = ModelProto::decode(written)
            .map_err(|error| NoForm::Now(format!("the rewritten graph: {error}")))?;
        let weights_path = scratch.join(WEIGHTS.to_string_lossy().as_ref());
        let initializers = Initializers::take(&mut model, &weights_path)?;
        let graph = model.encode_to_vec();
        fs::write(scratch.join(GRAPH), &graph)?;
        Ok(RewrittenModel {
            sources: initializers.sources(model.graph.as_ref()),
            graph,
            initializers,
        })
    }

    /// A session of the model, whose weights the library reads in place. If it refuses that, it reads the whole file.
    fn session(
        &self,
        source: &ExternalModel,
        mut options: SessionOptions,
    ) -> Result<Session, ApiError> {
        let runtime = self.backend.runtime;
        options.external_data_in(&source.directory)?;
        let made = Session::from_bytes(runtime, &source.message, &options);
        made.or_else(|error| {
            let path = self.path.display();
            let why = error.message;
            tracing::warn!("baking reads all of `{path}` into memory: {why}");
            Session::from_file(runtime, self.path, &options)
        })
    }

    /// Lets the library pack weights into files, and adds these and the graph's weights to the form. Returns the
    /// sequence of blocks that the library allocated, and the packed tensors.
    fn pack(
        &self,
        baked: &mut RewrittenModel,
        making: &mut Making,
    ) -> Result<(Vec<LoadedBlock>, Vec<Wanted>), NoForm> {
        let scratch = making.scratch();
        let execution = self.planned_execution();
        let options = self.rewritten_options(&execution, &baked.initializers)?;
        let make = || Session::from_file(self.backend.runtime, &scratch.join(GRAPH), &options);
        let directory = scratch.join("packed");
        fs::create_dir(&directory)?;
        let (session, loaded) = load(LoadMode::Files(&directory), make)?;
        if !loaded.went_as_expected() {
            let why = loaded
                .failure()
                .map_or_else(String::new, |e| format!(": {e}"));
            let text = format!("packed weights cannot be stored{why}");
            return Err(NoForm::Now(text));
        }
        let session = session?;
        let blocks = loaded.sequence().to_vec();
        let kept = (0..blocks.len()).filter(|&index| blocks[index].kept);
        let kept: Vec<usize> = kept.collect();
        // Runs read none of them only if the library packed all of them.
        let sources = baked.sources.iter();
        let are_packed = sources.filter(|is_source| **is_source).count() <= kept.len();
        let roles = baked
            .sources
            .iter()
            .map(|is_source| match *is_source && are_packed {
                true => Role::Source,
                false => Role::Weight,
            });
        for (initializer, role) in baked.initializers.0.iter_mut().zip(roles) {
            let description = Description {
                datatype: initializer.datatype,
                dims: initializer.dims.iter().map(|&dim| dim as u64).collect(),
                layout: baking::PLAIN.into(),
            };
            let tensor = making.add(role, &initializer.name, description, &initializer.bytes)?;
            // The same bytes from the tensor's own file, so that the library's file can be removed.
            let file = ModelFile::map(&scratch, &making.open(&tensor)?)?;
            initializer.bytes = file.bytes().clone();
        }
        let layout = format!(
            "onnxruntime-{}-{}",
            self.backend.version(),
            machine::instruction_sets()
        );
        let mut packed = Vec::new();
        for index in kept {
            let description = Description {
                datatype: DataType::Uint8,
                dims: vec![blocks[index].size],
                layout: layout.clone().into(),
            };
            let bytes = ffi::contents(&session, &loaded, index);
            let path = directory.join(index.to_string());
            if path.exists() {
                // The file ends at a page boundary.
                File::options()
                    .write(true)
                    .open(&path)?
                    .set_len(blocks[index].size)?;
                packed.push(making.add_file(Role::Packed, "", description, (&path, bytes))?);
            } else {
                // The file system cannot reserve space, so the block was in memory.
                packed.push(making.add(Role::Packed, "", description, bytes)?);
            }
        }
        drop((session, loaded, options));
        fs::remove_file(scratch.join(WEIGHTS.to_string_lossy().as_ref())).or_else(|error| {
            // The library writes no file if all weights are small.
            match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }
        })?;
        Ok((blocks, packed))
    }

    /// The model's execution options with the memory planner that shows packed weights. The form does not depend on the
    /// planner.
    fn planned_execution(&self) -> ExecutionOptions {
        ExecutionOptions {
            memory_planner: MemoryPlanner::Planned,
            ..self.setting.execution.clone()
        }
    }

    /// The options of a session over the rewritten graph.
    fn rewritten_options(
        &self,
        execution: &ExecutionOptions,
        initializers: &Initializers,
    ) -> Result<SessionOptions, NoForm> {
        let runtime = self.backend.runtime;
        let setting = options::SessionSettings {
            execution,
            ..self.setting
        };
        let mut options = baked::session_options(runtime, &setting)?;
        let weights = ffi::WeightTensors::new(runtime, initializers.weights(), None)?;
        options.weights(Arc::new(weights))?;
        Ok(options)
    }

    /// The session as later loads make it: packed weights are mapped read-only from files.
    fn replayed(
        &self,
        baked: &RewrittenModel,
        making: &Making,
        (blocks, packed): (&[LoadedBlock], &[Wanted]),
    ) -> Result<Session, NoForm> {
        let execution = self.planned_execution();
        let options = self.rewritten_options(&execution, &baked.initializers)?;
        let path = making.scratch().join(GRAPH);
        let make = || Session::from_file(self.backend.runtime, &path, &options);
        let files = packed.iter().map(|tensor| making.open(tensor));
        let files: Vec<File> = files.collect::<Result<_, _>>()?;
        let places: Vec<FileRange<'_>> = files
            .iter()
            .zip(packed)
            .map(|(file, tensor)| FileRange {
                descriptor: file.as_fd(),
                offset: 0,
                length: tensor.length,
            })
            .collect();
        let made = baked::packed_session(blocks, &places, make, || Ok(()));
        made.map(|(session, _)| session)
            .map_err(|failure| match failure {
                FormFailure::Damaged(why) | FormFailure::Unusable(why) => NoForm::Now(why),
            })
    }

    /// Runs the model and then its form on the same inputs, and compares the outputs to the bit. The two run one
    /// after the other, so that only one is in memory, and the model's packed weights are in files.
    fn check_outputs(
        &self,
        source: &ExternalModel,
        scratch: &Path,
        baked: impl FnOnce() -> Result<Session, NoForm>,
    ) -> Result<(), NoForm> {
        let model = |session| {
            let model = self
                .backend
                .model(self, None, SharedSession::alone(session));
            model.map_err(|error: BackendError| NoForm::Now(error.to_string()))
        };
        let plain = || {
            let execution = self.planned_execution();
            let setting = options::SessionSettings {
                execution: &execution,
                ..self.setting
            };
            let options = options::session_options(self.backend.runtime, &setting)?;
            let directory = scratch.join("plain");
            fs::create_dir(&directory)?;
            let (session, loaded) = load(LoadMode::Files(&directory), || {
                self.session(source, options)
            })?;
            // The mappings keep the files' content as long as the session needs it.
            fs::remove_dir_all(&directory)?;
            if let Some(error) = loaded.failure() {
                return Err(NoForm::Now(format!(
                    "the model cannot run for the comparison: {error}"
                )));
            }
            model(session?)
        };
        let limit = TrialResult::limit();
        let expected = trial::expected(plain()?, limit);
        let path = self.path.display();
        let trial = match expected {
            ExpectedOutputs::Nothing => TrialResult::NotCompared,
            ExpectedOutputs::TooSlow => TrialResult::TooSlow,
            ExpectedOutputs::Outputs(expected) => {
                trial::compare(&expected, model(baked()?)?, limit)
            }
        };
        match trial {
            TrialResult::Same => Ok(()),
            TrialResult::NotCompared => {
                tracing::info!(
                    "the baked form of `{path}` was not compared with the model: the model rejects all inputs that were tried"
                );
                Ok(())
            }
            TrialResult::TooSlow => {
                let seconds = limit.as_secs_f64();
                tracing::info!(
                    "the baked form of `{path}` was not compared with the model: a run takes more than {seconds:.1} s of CPU time"
                );
                Ok(())
            }
            TrialResult::Different => Err(NoForm::Never(
                "the outputs of its baked form differ from the model's".to_owned(),
            )),
            TrialResult::Failed(why) => Err(NoForm::Now(why)),
        }
    }
}

/// The model's message without its large tensors, which the library reads from their files. If a message contains
/// tensors, the library makes up to three copies of each.
struct ExternalModel {
    message: Vec<u8>,
    /// The directory of these files.
    directory: PathBuf,
}

impl ExternalModel {
    fn of(subject: &OrtModelFile<'_>) -> Self {
        let mut proto = subject.onnx.proto().clone();
        // The library does not follow links to such files. If the model consists of one file, its link is resolved
        // here.
        let path = match subject.onnx.external_files().is_empty() {
            true => fs::canonicalize(subject.path).ok(),
            false => None,
        };
        let path = path.unwrap_or_else(|| subject.path.to_owned());
        let name = path.file_name().and_then(OsStr::to_str);
        // Tensors are slices of the mapped file.
        let file = subject.bytes;
        let tensors = proto
            .graph
            .iter_mut()
            .flat_map(|graph| &mut graph.initializer);
        for tensor in tensors {
            let data = tensor
                .raw_data
                .take_if(|data| data.len() >= baking::MIN_WEIGHT_BYTES);
            let Some(data) = data else {
                continue;
            };
            let offset = data.as_ptr().addr().checked_sub(file.as_ptr().addr());
            let offset = offset.filter(|offset| offset + data.len() <= file.len());
            let (Some(location), Some(offset)) = (name, offset) else {
                tensor.raw_data = Some(data);
                continue;
            };
            let there = ExternalData {
                location,
                offset,
                length: Some(data.len()),
            };
            tensor.set_data_location(DataLocation::External);
            tensor.external_data = there.entries();
        }
        Self {
            message: proto.encode_to_vec(),
            directory: path.parent().unwrap_or(Path::new("")).to_owned(),
        }
    }
}

/// The cost of baking. The library holds each tensor that it rewrites twice at a time, and one of the others on its
/// way to the disk. Measured: 2.1 times the weights of convolutions, into which it folds normalisations before it
/// lays them out in blocks of channels.
fn cost(onnx: &OnnxModel, files: &[PathBuf]) -> BakeCost {
    let graph = onnx.graph();
    let rewritten: HashSet<&str> = graph
        .node
        .iter()
        .filter(|node| !KEPT.contains(&node.op_type()))
        .flat_map(|node| node.input.iter().map(String::as_str))
        .collect();
    let tensors = graph.initializer.iter();
    // A file may declare any sizes, so the sums saturate.
    let (mut largest, mut moved, mut all) = (0_u64, 0_u64, 0_u64);
    for tensor in tensors {
        let bytes = tensor_bytes(tensor);
        largest = largest.max(bytes);
        all = all.saturating_add(bytes);
        if rewritten.contains(tensor.name()) {
            moved = moved.saturating_add(bytes);
        }
    }
    let sizes = files.iter().filter_map(|file| fs::metadata(file).ok());
    let on_disk: u64 = sizes.map(|metadata| metadata.len()).sum();
    // The library copies values that the message does not store as bytes, and those of inner graphs.
    let inside = on_disk.saturating_sub(all);
    let parts = [
        largest.saturating_mul(2),
        (moved / 5).saturating_mul(11),
        inside.saturating_mul(3),
    ];
    BakeCost {
        memory_bytes: parts
            .into_iter()
            .fold(baking::BASE_BYTES, u64::saturating_add),
        // The weights as tensors, the packed weights, and first the rewritten weights, later those that the model
        // itself packs.
        disk_bytes: on_disk.saturating_mul(3),
    }
}

/// The size of a tensor's data, in the message or in a file.
fn tensor_bytes(tensor: &TensorProto) -> u64 {
    let external = ExternalData::of(tensor).ok().flatten();
    let external = external.and_then(|external| external.length);
    let inside = tensor.raw_data.as_ref().map_or(0, Bytes::len);
    external.unwrap_or(inside) as u64
}

/// Whether an input has a default value. A request may replace it, so it is not a constant.
fn has_defaults(graph: &GraphProto) -> bool {
    let is_input = |tensor: &TensorProto| graph.input.iter().any(|i| i.name() == tensor.name());
    graph.initializer.iter().any(is_input)
}

/// A rewritten model.
struct RewrittenModel {
    graph: Vec<u8>,
    initializers: Initializers,
    /// For each initializer, whether the library reads it only for packing, provided that it packs it.
    sources: Vec<bool>,
}

/// A large weight of the rewritten graph.
struct Initializer {
    name: String,
    datatype: DataType,
    dims: Vec<usize>,
    bytes: Bytes,
}

impl Initializer {
    /// Whether the library packs it, provided that an operator does.
    fn is_packable(&self) -> bool {
        self.datatype == DataType::Fp32
            && self.dims.len() == 2
            && self.bytes.len() >= skep_alloc::LOADED_BYTES
    }
}

/// The large weights of the rewritten graph, in its order.
struct Initializers(Vec<Initializer>);

impl Initializers {
    /// Takes them from the file that the library wrote.
    fn take(model: &mut ModelProto, weights: &Path) -> Result<Self, NoForm> {
        let Some(graph) = &mut model.graph else {
            return Err(NoForm::Never("the rewritten graph is empty".to_owned()));
        };
        if inner_graphs(graph).any(has_external) {
            let why = "an inner graph has large weights";
            return Err(NoForm::Never(why.to_owned()));
        }
        if !graph.initializer.iter().any(is_external) {
            return Ok(Self(Vec::new()));
        }
        // Only this process writes files in this directory of the cache.
        let file = ModelFile::open(weights).map_err(|error| NoForm::Now(error.to_string()))?;
        let file = file.bytes();
        let taken = graph.initializer.iter_mut();
        let taken = taken.filter(|tensor| is_external(tensor)).map(|tensor| {
            let name = tensor.name().to_owned();
            let wrong = || {
                NoForm::Never(format!(
                    "the library wrote weight `{name}` in an unexpected way"
                ))
            };
            let external = ExternalData::of(tensor).ok().flatten();
            let external = external.filter(|external| external.length.is_some());
            let external = external.ok_or_else(wrong)?;
            let range = external.range(file.len()).map_err(|why| {
                NoForm::Now(format!("weight `{name}` was not written completely: {why}"))
            })?;
            let there = ExternalData {
                location: GRAPH,
                ..external
            };
            tensor.external_data = there.entries();
            let dims = tensor.dims.iter().map(|&dim| usize::try_from(dim).ok());
            Ok(Initializer {
                name: name.clone(),
                datatype: skep_onnx::datatype(tensor.data_type()).ok_or_else(wrong)?,
                dims: dims.collect::<Option<_>>().ok_or_else(wrong)?,
                bytes: file.slice(range),
            })
        });
        taken.collect::<Result<_, _>>().map(Self)
    }

    fn weights(&self) -> impl Iterator<Item = NamedWeight<'_>> {
        self.0.iter().map(|initializer| NamedWeight {
            name: &initializer.name,
            datatype: initializer.datatype,
            dims: &initializer.dims,
            bytes: initializer.bytes.clone(),
        })
    }

    /// For each of them, whether the library reads it only for packing.
    fn sources(&self, graph: Option<&GraphProto>) -> Vec<bool> {
        // By name: whether every use so far is one that packs.
        let mut packs: HashMap<&str, bool> = HashMap::new();
        for node in graph.iter().flat_map(|graph| &graph.node) {
            let is_packing = PACKING.contains(&node.op_type());
            for (position, input) in node.input.iter().enumerate() {
                let only = packs.entry(input).or_insert(true);
                *only &= is_packing && position == 1;
            }
        }
        let only = |initializer: &Initializer| packs.get(&*initializer.name) == Some(&true);
        let sources = self.0.iter();
        sources
            .map(|initializer| initializer.is_packable() && only(initializer))
            .collect()
    }
}

fn has_external(graph: &GraphProto) -> bool {
    graph.initializer.iter().any(is_external) || inner_graphs(graph).any(has_external)
}

/// The inner graphs of a graph's nodes.
fn inner_graphs(graph: &GraphProto) -> impl Iterator<Item = &GraphProto> {
    let attributes = graph.node.iter().flat_map(|node| &node.attribute);
    attributes.flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}
