//! The vocabulary of Skep: names and versions of models, datatypes, shapes, signatures, policies, time.
//!
//! Layer 0: no logic, no I/O and no clock. Constructors keep the invariants, so that the layers above never check them
//! again. The words are those of `docs/glossary.md`.

mod cpus;
mod datatype;
mod device;
mod name;
mod policy;
mod sequence;
mod shape;
mod signature;
mod time;

pub use cpus::{CpuSet, InvalidCpuSet};
pub use datatype::{DataType, UnknownDataType};
pub use device::{DeviceId, MemoryKind};
pub use name::{InvalidModelName, InvalidModelVersion, ModelName, ModelVersion};
pub use policy::{ObjectivePolicy, Percentile, QueuePolicy, TimeoutAction};
pub use sequence::{CorrelationId, SequenceStep};
pub use shape::{Dims, InvalidDims, Shape, ShapeError};
pub use signature::{DimensionNames, ModelSignature, TensorSpec};
pub use time::Time;
