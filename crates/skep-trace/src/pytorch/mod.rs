//! PyTorch's two traces of memory: profiles and CUDA snapshots.

mod json;
mod pickle;
mod profile;
mod snapshot;

pub(crate) use profile::ProfileReader;
pub(crate) use snapshot::SnapshotReader;
