//! The documents that a server gives about itself, its models and its repository, each one structure for JSON and protobuf.
//!
//! The structures serialize to the JSON that Triton answers with: a member for each field, in the order of declaration. The
//! conversions to and from protobuf's messages stand below each structure. So a new field is added in one file: the field,
//! and its line in the two conversions. Reading is lenient: an absent member has its default.

mod index;
mod metadata;
mod regions;
mod residency;
mod statistics;

pub use index::IndexRow;
pub use metadata::{MetadataError, ModelMetadata, ServerMetadata, TensorMetadata};
pub use regions::SystemRegion;
pub use residency::{
    ConfigurationRow, DecisionRow, DeviceRow, ModelStatus, ResidencyMemory, ResidencyStatus,
    TensorRow,
};
pub use statistics::{
    BatchSizeStatistics, CountedDuration, DeviceMemory, InferenceStatistics, ModelStatistics,
    ObjectiveStatistics, ResponseStatistics, SequenceStatistics, StatisticsReport,
};
