//! Baking: the form of a model that the library loads fastest, made once and kept in the cache.
//!
//! The library rewrites the graph as it does at every load (fusions, constants, layouts of images), and writes the result
//! beside its weights. That graph is loaded once more, without rewriting, and what the library packs is written down. Both
//! sessions then run on the same inputs; a form whose answers differ in a bit is never used.

use std::{
    collections::{BTreeMap, HashMap},
    ffi::CString,
    fs::{self, File},
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use prost::Message as _;
use skep_alloc::{LoadUse, LoadedBlock, load};
use skep_backend::{
    BackendError, LoadRequest,
    baking::{self, Bakes, Failure, NoForm, Rest},
};
use skep_cache::{Making, Role};
use skep_config::{ExecutionOptions, GraphOptimization, MemoryPlanner};
use skep_onnx::{ExternalData, OnnxModel, is_external};
use skep_proto::onnx::{GraphProto, ModelProto, TensorProto};
use skep_store::{Description, Place, Wanted};
use skep_types::DataType;

use crate::{
    OnnxRuntime, baked,
    ffi::{self, Session, SessionOptions, Weight},
    machine, options,
    sessions::Shared,
    trial::{self, Trial},
};

/// Changes when what a form holds or means does.
const FORM: &[u8] = b"onnxruntime 1";

/// The file that the library writes weights into.
const WEIGHTS: &std::ffi::CStr = c"weights";

/// The name of a form's graph in its directory, to which its weights refer: the library wants a file to be there, although
/// every weight that refers to it is given in memory.
pub(crate) const GRAPH: &str = "graph";

/// Operators that pack their second input where it is a constant matrix, and then do not read it any more.
const PACKING: [&str; 4] = ["MatMul", "Gemm", "FusedMatMul", "FusedGemm"];

/// What is to be loaded.
pub(crate) struct Subject<'a> {
    pub(crate) backend: OnnxRuntime,
    pub(crate) path: &'a Path,
    pub(crate) onnx: &'a OnnxModel,
    pub(crate) setting: options::Setting<'a>,
}

impl<'a> Subject<'a> {
    pub(crate) fn of(backend: OnnxRuntime, request: &LoadRequest<'a>, onnx: &'a OnnxModel) -> Self {
        Self {
            backend,
            path: request.file.path(),
            onnx,
            setting: options::Setting {
                execution: request.config.execution(),
                threads: request.threads,
            },
        }
    }
}

/// Of the library, while it makes a form: what it cannot load, or load again, it never can, unless it lacked memory.
impl From<ffi::ApiError> for NoForm {
    fn from(error: ffi::ApiError) -> Self {
        match error.code {
            ffi::Code::RUNTIME_EXCEPTION => Self::Now(error.message),
            _ => Self::Never(error.message),
        }
    }
}

impl Bakes for Subject<'_> {
    fn path(&self) -> &Path {
        self.path
    }

    fn files(&self) -> Vec<PathBuf> {
        baking::files(self.path, self.onnx)
    }

    fn unfit(&self) -> Option<&'static str> {
        has_defaults(self.onnx.graph()).then_some("it has inputs with values of their own")
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

    fn make(&self, making: &mut Making) -> Result<Rest, NoForm> {
        let (baked, plain) = self.rewrite(making.directory())?;
        let packed = baked.add_to(making)?;
        let session = self.replayed(&baked, making, &packed)?;
        self.same_answers(plain, session)?;
        Ok(Rest {
            graph: baked.graph,
            notes: BTreeMap::from([(baked::BLOCKS.to_owned(), baked::write_blocks(&baked.blocks))]),
        })
    }
}

impl Subject<'_> {
    /// Lets the library rewrite and pack. The session of the model as it is comes back as well.
    fn rewrite(&self, directory: &Path) -> Result<(Baked, Session), NoForm> {
        let graph_path = directory.join("model.onnx");
        let runtime = self.backend.runtime;
        let mut options = options::session_options(runtime, &self.setting)?;
        // It warns that what it writes is made for this machine, which the key says.
        options.quiet()?;
        options.rewritten_to(&graph_path)?;
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
        let plain = Session::from_file(runtime, self.path, &options).map_err(|error| {
            // It writes last. What fails then, a disk that is full for instance, may go well the next time.
            match fs::read_dir(directory).is_ok_and(|mut written| written.next().is_some()) {
                true => NoForm::Now(error.message),
                false => error.into(),
            }
        })?;
        drop(options);

        let written = Bytes::from(fs::read(&graph_path)?);
        let mut model = ModelProto::decode(written)
            .map_err(|error| NoForm::Now(format!("the rewritten graph: {error}")))?;
        let weights_path = directory.join(WEIGHTS.to_string_lossy().as_ref());
        let initializers = Initializers::take(&mut model, &weights_path)?;
        let graph = model.encode_to_vec();
        let loaded_path = directory.join(GRAPH);
        fs::write(&loaded_path, &graph)?;

        let execution = self.any_planner();
        let options = self.rewritten_options(&execution, &initializers)?;
        let make = || Session::from_file(runtime, &loaded_path, &options);
        let (session, loaded) = load(LoadUse::Record, make)?;
        let session = session?;
        if !loaded.went_as_expected() {
            return Err(NoForm::Now(
                "there is no memory for packed weights".to_owned(),
            ));
        }
        let kept = loaded.sequence().iter().enumerate();
        let kept = kept.filter(|(_, block)| block.kept);
        let packed: Vec<Bytes> = kept
            .map(|(index, _)| Bytes::copy_from_slice(ffi::contents(&session, &loaded, index)))
            .collect();
        let blocks = loaded.sequence().to_vec();
        // Only if each of them was packed is none read any more.
        let sources = initializers.sources(model.graph.as_ref());
        let are_packed = sources.iter().filter(|is_source| **is_source).count() <= packed.len();
        drop((session, loaded));
        let baked = Baked {
            graph,
            roles: sources
                .into_iter()
                .map(|is_source| match is_source && are_packed {
                    true => Role::Source,
                    false => Role::Weight,
                })
                .collect(),
            initializers,
            packed,
            blocks,
            layout: format!(
                "onnxruntime-{}-{}",
                self.backend.version(),
                machine::instruction_sets()
            ),
        };
        Ok((baked, plain))
    }

    /// This model's setting, but for where intermediate tensors lie: the form is that of any, and only so is what is packed
    /// seen.
    fn any_planner(&self) -> ExecutionOptions {
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
        let setting = options::Setting {
            execution,
            ..self.setting
        };
        let mut options = baked::session_options(runtime, &setting)?;
        let weights = ffi::Weights::new(runtime, initializers.weights(), None)?;
        options.weights(Arc::new(weights))?;
        Ok(options)
    }

    /// The session as later loads make it: packed weights read-only, out of files.
    fn replayed(
        &self,
        baked: &Baked,
        making: &Making,
        packed: &[Wanted],
    ) -> Result<Session, NoForm> {
        let execution = self.any_planner();
        let options = self.rewritten_options(&execution, &baked.initializers)?;
        let path = making.directory().join(GRAPH);
        let make = || Session::from_file(self.backend.runtime, &path, &options);
        let files = packed.iter().map(|tensor| making.open(tensor));
        let files: Vec<File> = files.collect::<Result<_, _>>()?;
        let places: Vec<Place<'_>> = files
            .iter()
            .zip(packed)
            .map(|(file, tensor)| Place {
                descriptor: file.as_fd(),
                offset: 0,
                length: tensor.length,
            })
            .collect();
        let made = baked::packed_session(&baked.blocks, &places, make, || Ok(()));
        made.map(|(session, _)| session)
            .map_err(|failure| match failure {
                Failure::Damaged(why) | Failure::Unusable(why) => NoForm::Now(why),
            })
    }

    /// Runs both sessions on the same inputs; the answers must be the same to the bit.
    fn same_answers(&self, plain: Session, baked: Session) -> Result<(), NoForm> {
        let model = |session| self.backend.model(self, &[], Shared::alone(session));
        let models = model(plain).and_then(|plain| Ok((plain, model(baked)?)));
        let (plain, baked) =
            models.map_err(|error: BackendError| NoForm::Now(error.to_string()))?;
        match trial::same_answers(plain, baked) {
            Trial::Same => Ok(()),
            Trial::NotCompared => {
                let path = self.path.display();
                tracing::info!(
                    "the baked form of `{path}` was not compared with it: it takes none of the inputs tried"
                );
                Ok(())
            }
            Trial::Different => Err(NoForm::Never(
                "its baked form answers otherwise than the model".to_owned(),
            )),
            Trial::Failed(why) => Err(NoForm::Now(why)),
        }
    }
}

/// Whether an input has a value of its own, which a request may replace: such values are not constants.
fn has_defaults(graph: &GraphProto) -> bool {
    let is_input = |tensor: &TensorProto| graph.input.iter().any(|i| i.name() == tensor.name());
    graph.initializer.iter().any(is_input)
}

/// A form that is not in the cache yet.
struct Baked {
    graph: Vec<u8>,
    initializers: Initializers,
    /// Of the initializers.
    roles: Vec<Role>,
    packed: Vec<Bytes>,
    blocks: Vec<LoadedBlock>,
    /// Of packed weights.
    layout: String,
}

impl Baked {
    /// Adds its tensors; the packed ones come back.
    fn add_to(&self, making: &mut Making) -> Result<Vec<Wanted>, NoForm> {
        for (initializer, role) in self.initializers.0.iter().zip(&self.roles) {
            let description = Description {
                datatype: initializer.datatype,
                dims: initializer.dims.iter().map(|&dim| dim as u64).collect(),
                layout: baking::PLAIN.into(),
            };
            making.add(*role, &initializer.name, description, &initializer.bytes)?;
        }
        let mut packed = Vec::new();
        for bytes in &self.packed {
            let description = Description {
                datatype: DataType::Uint8,
                dims: vec![bytes.len() as u64],
                layout: self.layout.clone().into(),
            };
            packed.push(making.add(Role::Packed, "", description, bytes)?);
        }
        Ok(packed)
    }
}

/// A large weight of the rewritten graph.
struct Initializer {
    name: String,
    datatype: DataType,
    dims: Vec<usize>,
    bytes: Bytes,
}

/// The large weights of the rewritten graph, in its order.
struct Initializers(Vec<Initializer>);

impl Initializers {
    /// Reads them out of the file that the library wrote.
    fn take(model: &mut ModelProto, weights: &Path) -> Result<Self, NoForm> {
        let Some(graph) = &mut model.graph else {
            return Err(NoForm::Never("the rewritten graph is empty".to_owned()));
        };
        if inner_graphs(graph).any(has_external) {
            let why = "a graph within the graph has large weights of its own";
            return Err(NoForm::Never(why.to_owned()));
        }
        if !graph.initializer.iter().any(is_external) {
            return Ok(Self(Vec::new()));
        }
        let file = Bytes::from(fs::read(weights)?);
        let taken = graph.initializer.iter_mut();
        let taken = taken.filter(|tensor| is_external(tensor)).map(|tensor| {
            let name = tensor.name().to_owned();
            let wrong = || {
                NoForm::Never(format!(
                    "the library wrote weight `{name}` in an unknown way"
                ))
            };
            let external = ExternalData::of(tensor).ok().flatten();
            let external = external.filter(|external| external.length.is_some());
            let external = external.ok_or_else(wrong)?;
            let range = external.range(file.len()).map_err(|why| {
                NoForm::Now(format!("weight `{name}` was not written whole: {why}"))
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

    fn weights(&self) -> impl Iterator<Item = Weight<'_>> {
        self.0.iter().map(|initializer| Weight {
            name: &initializer.name,
            datatype: initializer.datatype,
            dims: &initializer.dims,
            bytes: initializer.bytes.clone(),
        })
    }

    /// Which of them the library only reads to pack them.
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
        let is_matrix = |initializer: &Initializer| {
            initializer.datatype == DataType::Fp32
                && initializer.dims.len() == 2
                && initializer.bytes.len() >= skep_alloc::LOADED_BYTES
        };
        let only = |initializer: &Initializer| packs.get(&*initializer.name) == Some(&true);
        let sources = self.0.iter();
        sources
            .map(|initializer| is_matrix(initializer) && only(initializer))
            .collect()
    }
}

fn has_external(graph: &GraphProto) -> bool {
    graph.initializer.iter().any(is_external) || inner_graphs(graph).any(has_external)
}

/// The graphs that a graph's nodes hold themselves.
fn inner_graphs(graph: &GraphProto) -> impl Iterator<Item = &GraphProto> {
    let attributes = graph.node.iter().flat_map(|node| &node.attribute);
    attributes.flat_map(|attribute| attribute.g.iter().chain(&attribute.graphs))
}
