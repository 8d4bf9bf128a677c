//! The messages between the server and a worker process.
//!
//! ```text
//! server                                  worker
//!   Load {model, settings}  + file  ----->  opens the backend, loads, confines itself
//!                           <-----------  Loaded {signature}, or Refused; after a bake Baked, and ends;
//!                                          after a question Told, and ends
//!   Run {inputs, wanted}  [+ memory] ---->  runs
//!                           <-----------  NeedRoom {bytes}, where the outputs' memory is too small
//!   Room {bytes}            + memory ---->  or NoRoom, where the run may not have so much
//!                           <-----------  Ran {outputs}, or Failed
//! ```
//!
//! The sides take turns: no message is sent while an answer is due. Only the server sends descriptors. Tensors lie in
//! shared memory; messages say where.

use skep_backend::{BackendError, ErrorKind, FileInterface, RunMemory};
use skep_ipc::{Malformed, MessageReader, MessageWriter};
use skep_types::{DataType, Dims, ModelSignature, Shape, TensorSpec};

/// Begins a conversation, so that other input to the worker is refused at once.
const HELLO: &[u8] = b"skep worker 6";

/// The longest error text of a worker, in bytes.
const MAX_TEXT_BYTES: usize = 16 << 10;

/// What to load, and how. Two descriptors may come with it, in this order: the model's file, and the connection to the
/// tensor store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LoadTask {
    pub(crate) backend: String,
    /// The library that the server's backend opened.
    pub(crate) library: Option<Vec<u8>>,
    /// The library of the model's allocator, with the name that its configuration uses.
    pub(crate) allocator: Option<AllocatorLibrary>,
    pub(crate) model: String,
    /// The path of the model's file; empty for a model without one.
    pub(crate) path: Vec<u8>,
    /// The cache and the store.
    pub(crate) weights: Option<WeightLocations>,
    /// How to bake the model, if the process has to bake and not to load.
    pub(crate) bake: Option<BakeTask>,
    /// Whether the process only has to report the model's inputs and outputs. There is no configuration yet.
    pub(crate) ask: bool,
    /// Threads that one run may use when the configuration does not say.
    pub(crate) threads: u32,
    pub(crate) intra_op_threads: Option<u32>,
    pub(crate) inter_op_threads: Option<u32>,
    /// The encoded protobuf message of the configuration.
    pub(crate) config: Vec<u8>,
}

/// A library of allocators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AllocatorLibrary {
    /// Its name in configurations.
    pub(crate) name: String,
    pub(crate) path: Vec<u8>,
}

/// Where the worker finds weights: the cache, and the tensor store, whose connection comes with the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WeightLocations {
    /// The directory of baked models.
    pub(crate) directory: Vec<u8>,
    /// The model's form, once it is known.
    pub(crate) form: Option<FormFiles>,
    /// The cache's budget, in bytes.
    pub(crate) budget_bytes: u64,
    /// Whether each process brings weights into the store in its own random order.
    pub(crate) random_order: bool,
}

/// How to bake a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BakeTask {
    /// The only directory that the process may write into.
    pub(crate) directory: Vec<u8>,
    /// The largest form, in bytes.
    pub(crate) budget_bytes: u64,
    /// CPU seconds that it may take, if it bakes in the background at low priority.
    pub(crate) behind: Option<u64>,
}

impl BakeTask {
    fn encode(&self, writer: &mut MessageWriter) {
        writer.bytes(&self.directory);
        writer.u64(self.budget_bytes);
        writer.option(self.behind, MessageWriter::u64);
    }

    fn decode(reader: &mut MessageReader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            directory: reader.bytes()?.to_vec(),
            budget_bytes: reader.u64()?,
            behind: reader.option(MessageReader::u64)?,
        })
    }
}

/// A form, and the only files of the cache that the process may read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FormFiles {
    pub(crate) key: [u8; 32],
    pub(crate) files: Vec<Vec<u8>>,
}

impl WeightLocations {
    fn encode(&self, writer: &mut MessageWriter) {
        writer.bytes(&self.directory);
        writer.option(self.form.as_ref(), |writer, form| {
            writer.bytes(&form.key);
            writer.list(form.files.iter(), |writer, file| writer.bytes(file));
        });
        writer.u64(self.budget_bytes);
        writer.bool(self.random_order);
    }

    fn decode(reader: &mut MessageReader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            directory: reader.bytes()?.to_vec(),
            form: reader.option(|reader| {
                let key = reader.bytes()?.try_into();
                Ok(FormFiles {
                    key: key.map_err(|_| Malformed::new("a key has another length"))?,
                    files: reader.list(|reader| reader.bytes().map(<[u8]>::to_vec))?,
                })
            })?,
            budget_bytes: reader.u64()?,
            random_order: reader.bool()?,
        })
    }
}

/// A tensor in shared memory: `length` bytes from `offset` on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SharedTensor {
    pub(crate) datatype: DataType,
    pub(crate) shape: Shape,
    pub(crate) offset: usize,
    pub(crate) length: usize,
}

/// A message of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ToWorker {
    Load(Box<LoadTask>),
    Run {
        /// The length in bytes of new memory for inputs, which comes with the message.
        memory: Option<usize>,
        inputs: Vec<SharedTensor>,
        /// Which outputs of the signature.
        wanted: Vec<usize>,
    },
    /// New memory for outputs, which comes with the message; its length in bytes.
    Room(usize),
    /// The room is refused; the run has to end with an error.
    NoRoom,
}

/// What the server knows of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkerModel {
    pub(crate) signature: ModelSignature,
    pub(crate) cpu_threads: Option<u32>,
    pub(crate) echoes_parameters: bool,
    /// Whether the worker found the baked form damaged. Only the server can repair it.
    pub(crate) found_damage: bool,
    /// Whether the worker's model runs on its baked form.
    pub(crate) is_baked: bool,
}

/// A message of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FromWorker {
    Loaded(WorkerModel),
    /// The inputs and outputs, as the runtime reports them.
    Told(FileInterface),
    /// The directory holds the form, or the reason why there cannot be one.
    Baked,
    Refused(BackendError),
    /// Asks for memory for outputs, in bytes.
    NeedRoom(usize),
    Ran {
        outputs: Vec<SharedTensor>,
        memory: Option<RunMemory>,
    },
    Failed {
        error: BackendError,
        memory: Option<RunMemory>,
        /// Whether the worker ends, because the backend panicked.
        ends: bool,
    },
}

impl ToWorker {
    pub(crate) fn encode(&self, writer: &mut MessageWriter) {
        match self {
            Self::Load(load) => {
                writer.u8(1);
                load.encode(writer);
            }
            Self::Run {
                memory,
                inputs,
                wanted,
            } => {
                writer.u8(2);
                writer.option(*memory, MessageWriter::size);
                writer.list(inputs.iter(), |writer, place| place.encode(writer));
                writer.list(wanted.iter(), |writer, &index| writer.size(index));
            }
            Self::Room(bytes) => {
                writer.u8(3);
                writer.size(*bytes);
            }
            Self::NoRoom => writer.u8(4),
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = MessageReader::new(bytes);
        let request = match reader.u8()? {
            1 => Self::Load(Box::new(LoadTask::decode(&mut reader)?)),
            2 => Self::Run {
                memory: reader.option(MessageReader::size)?,
                inputs: reader.list(SharedTensor::decode)?,
                wanted: reader.list(MessageReader::size)?,
            },
            3 => Self::Room(reader.size()?),
            4 => Self::NoRoom,
            _ => return Err(Malformed::new("its kind is unknown")),
        };
        reader.end().map(|()| request)
    }
}

impl LoadTask {
    fn encode(&self, writer: &mut MessageWriter) {
        writer.bytes(HELLO);
        writer.bytes(self.backend.as_bytes());
        writer.option(self.library.as_deref(), MessageWriter::bytes);
        writer.option(self.allocator.as_ref(), |writer, library| {
            writer.bytes(library.name.as_bytes());
            writer.bytes(&library.path);
        });
        writer.bytes(self.model.as_bytes());
        writer.bytes(&self.path);
        writer.option(self.weights.as_ref(), |writer, kept| kept.encode(writer));
        writer.option(self.bake.as_ref(), |writer, bake| bake.encode(writer));
        writer.bool(self.ask);
        writer.u32(self.threads);
        writer.option(self.intra_op_threads, MessageWriter::u32);
        writer.option(self.inter_op_threads, MessageWriter::u32);
        writer.bytes(&self.config);
    }

    fn decode(reader: &mut MessageReader<'_>) -> Result<Self, Malformed> {
        if reader.bytes()? != HELLO {
            return Err(Malformed::new("it is not from a server of this version"));
        }
        Ok(Self {
            backend: reader.text()?.to_owned(),
            library: reader.option(MessageReader::bytes)?.map(<[u8]>::to_vec),
            allocator: reader.option(|reader| {
                Ok(AllocatorLibrary {
                    name: reader.text()?.to_owned(),
                    path: reader.bytes()?.to_vec(),
                })
            })?,
            model: reader.text()?.to_owned(),
            path: reader.bytes()?.to_vec(),
            weights: reader.option(WeightLocations::decode)?,
            bake: reader.option(BakeTask::decode)?,
            ask: reader.bool()?,
            threads: reader.u32()?,
            intra_op_threads: reader.option(MessageReader::u32)?,
            inter_op_threads: reader.option(MessageReader::u32)?,
            config: reader.bytes()?.to_vec(),
        })
    }
}

impl SharedTensor {
    fn encode(&self, writer: &mut MessageWriter) {
        writer.datatype(self.datatype);
        writer.list(self.shape.dims().iter(), |writer, &dim| writer.size(dim));
        writer.size(self.offset);
        writer.size(self.length);
    }

    fn decode(reader: &mut MessageReader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            datatype: reader.datatype()?,
            shape: Shape::new(&reader.list(MessageReader::size)?)
                .map_err(|_| Malformed::new("a shape has more elements than can be addressed"))?,
            offset: reader.size()?,
            length: reader.size()?,
        })
    }
}

impl FromWorker {
    pub(crate) fn encode(&self, writer: &mut MessageWriter) {
        match self {
            Self::Loaded(loaded) => {
                writer.u8(1);
                write_signature(writer, &loaded.signature);
                writer.option(loaded.cpu_threads, MessageWriter::u32);
                writer.bool(loaded.echoes_parameters);
                writer.bool(loaded.found_damage);
                writer.bool(loaded.is_baked);
            }
            Self::Refused(error) => {
                writer.u8(2);
                write_error(writer, error);
            }
            Self::NeedRoom(bytes) => {
                writer.u8(3);
                writer.size(*bytes);
            }
            Self::Ran { outputs, memory } => {
                writer.u8(4);
                writer.list(outputs.iter(), |writer, place| place.encode(writer));
                writer.option(memory.as_ref(), write_memory);
            }
            Self::Failed {
                error,
                memory,
                ends,
            } => {
                writer.u8(5);
                write_error(writer, error);
                writer.option(memory.as_ref(), write_memory);
                writer.bool(*ends);
            }
            Self::Baked => writer.u8(6),
            Self::Told(told) => {
                writer.u8(7);
                write_signature(writer, &told.signature);
                writer.list(told.dimension_names.iter(), |writer, (tensor, names)| {
                    writer.bytes(tensor.as_bytes());
                    writer.list(names.iter(), |writer, name| writer.bytes(name.as_bytes()));
                });
            }
        }
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = MessageReader::new(bytes);
        let answer = match reader.u8()? {
            1 => Self::Loaded(WorkerModel {
                signature: read_signature(&mut reader)?,
                cpu_threads: reader.option(MessageReader::u32)?,
                echoes_parameters: reader.bool()?,
                found_damage: reader.bool()?,
                is_baked: reader.bool()?,
            }),
            2 => Self::Refused(read_error(&mut reader)?),
            3 => Self::NeedRoom(reader.size()?),
            4 => Self::Ran {
                outputs: reader.list(SharedTensor::decode)?,
                memory: reader.option(read_memory)?,
            },
            5 => Self::Failed {
                error: read_error(&mut reader)?,
                memory: reader.option(read_memory)?,
                ends: reader.bool()?,
            },
            6 => Self::Baked,
            7 => Self::Told(FileInterface {
                signature: read_signature(&mut reader)?,
                dimension_names: {
                    let name = |reader: &mut MessageReader<'_>| reader.text().map(str::to_owned);
                    let named = reader.list(|reader| Ok((name(reader)?, reader.list(name)?)))?;
                    named.into_iter().collect()
                },
            }),
            _ => return Err(Malformed::new("its kind is unknown")),
        };
        reader.end().map(|()| answer)
    }
}

fn write_signature(writer: &mut MessageWriter, signature: &ModelSignature) {
    writer.list(signature.inputs.iter(), write_spec);
    writer.list(signature.outputs.iter(), write_spec);
}

fn read_signature(reader: &mut MessageReader<'_>) -> Result<ModelSignature, Malformed> {
    Ok(ModelSignature {
        inputs: reader.list(read_spec)?,
        outputs: reader.list(read_spec)?,
    })
}

fn write_spec(writer: &mut MessageWriter, spec: &TensorSpec) {
    writer.bytes(spec.name.as_bytes());
    writer.datatype(spec.datatype);
    writer.option(spec.dims.as_ref(), |writer, dims| {
        writer.list(dims.as_slice().iter(), |writer, dim| {
            writer.u64(dim.cast_unsigned());
        });
    });
}

fn read_spec(reader: &mut MessageReader<'_>) -> Result<TensorSpec, Malformed> {
    Ok(TensorSpec {
        name: reader.text()?.to_owned(),
        datatype: reader.datatype()?,
        dims: reader.option(|reader| {
            let dims = reader.list(|reader| reader.u64().map(u64::cast_signed))?;
            Dims::new(&dims).map_err(|_| Malformed::new("dims hold a number below -1"))
        })?,
    })
}

/// The kinds of errors; each is encoded as its position.
const KINDS: [ErrorKind; 6] = [
    ErrorKind::InvalidArgument,
    ErrorKind::InvalidModel,
    ErrorKind::Unsupported,
    ErrorKind::Unavailable,
    ErrorKind::Exhausted,
    ErrorKind::Internal,
];

fn write_error(writer: &mut MessageWriter, error: &BackendError) {
    let position = KINDS.iter().position(|kind| *kind == error.kind());
    // A kind that is missing here is sent as the last one, an internal error.
    let number = position.unwrap_or(KINDS.len() - 1);
    writer.u8(u8::try_from(number).expect("a handful of kinds"));
    let text = error.to_string();
    let end = text.floor_char_boundary(MAX_TEXT_BYTES);
    writer.bytes(&text.as_bytes()[..end]);
}

fn read_error(reader: &mut MessageReader<'_>) -> Result<BackendError, Malformed> {
    let kind = KINDS.get(usize::from(reader.u8()?)).copied();
    let text = reader.text()?;
    if text.len() > MAX_TEXT_BYTES {
        return Err(Malformed::new("a text is too long"));
    }
    let kind = kind.ok_or(Malformed::new("an error kind is unknown"))?;
    Ok(BackendError::new(kind, text))
}

fn write_memory(writer: &mut MessageWriter, memory: &RunMemory) {
    let RunMemory {
        planned_bytes,
        used_bytes,
        saved_bytes,
        planned_runs,
        recorded_runs,
        deviated_runs,
        unplanned_runs,
        reserved_bytes,
    } = *memory;
    for number in [
        planned_bytes,
        used_bytes,
        saved_bytes,
        planned_runs,
        recorded_runs,
        deviated_runs,
        unplanned_runs,
        reserved_bytes,
    ] {
        writer.u64(number);
    }
}

fn read_memory(reader: &mut MessageReader<'_>) -> Result<RunMemory, Malformed> {
    Ok(RunMemory {
        planned_bytes: reader.u64()?,
        used_bytes: reader.u64()?,
        saved_bytes: reader.u64()?,
        planned_runs: reader.u64()?,
        recorded_runs: reader.u64()?,
        deviated_runs: reader.u64()?,
        unplanned_runs: reader.u64()?,
        reserved_bytes: reader.u64()?,
    })
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
