//! Why a call about regions fails.

use std::io;

/// Why a call about regions fails. Texts name what the client named, and nothing of the server's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegionError {
    /// A request names a region that is not registered.
    #[error("Unable to find shared memory region: '{name}'")]
    Unknown {
        /// The region.
        name: String,
    },
    /// The status of a region that is not registered.
    #[error("Unable to find system shared memory region: '{name}'")]
    UnknownStatus {
        /// The region.
        name: String,
    },
    /// The name is taken.
    #[error("shared memory region '{name}' already in manager")]
    Registered {
        /// The region.
        name: String,
    },
    /// There are as many regions as there may be.
    #[error(
        "failed to register shared memory region '{name}': {limit} regions are registered, which is the limit"
    )]
    Full {
        /// The region.
        name: String,
        /// The largest number of regions.
        limit: usize,
    },
    /// A key names no object that can be opened.
    #[error("Unable to open shared memory region: '{key}': {why}")]
    Unopened {
        /// The object's key.
        key: String,
        /// The reason.
        why: String,
    },
    /// The arguments of a registration do not fit together, or do not fit the object.
    #[error("failed to register shared memory region '{name}': invalid args: {why}")]
    Arguments {
        /// The region.
        name: String,
        /// The reason.
        why: String,
    },
    /// A span begins behind the end of its region.
    #[error(
        "Invalid offset for shared memory region: '{name}': offset {offset} is behind its end, the region has {region_bytes} bytes"
    )]
    Offset {
        /// The region.
        name: String,
        /// Where the span begins, in bytes.
        offset: u64,
        /// The region's size in bytes.
        region_bytes: u64,
    },
    /// A span ends behind the end of its region.
    #[error(
        "Invalid offset + byte size for shared memory region: '{name}': offset {offset} and byte size {byte_size} exceed the region's {region_bytes} bytes"
    )]
    Size {
        /// The region.
        name: String,
        /// Where the span begins, in bytes.
        offset: u64,
        /// The span's size in bytes.
        byte_size: u64,
        /// The region's size in bytes.
        region_bytes: u64,
    },
    /// The client has shortened the object.
    #[error(
        "Invalid offset + byte size for shared memory region: '{name}': its object was shortened after it was registered, it has {got} bytes and the tensor ends at byte {expected}"
    )]
    Shortened {
        /// The region.
        name: String,
        /// The object's size in bytes.
        got: u64,
        /// The end of the span in the object, in bytes.
        expected: u64,
    },
    /// The system cannot read or write the object.
    #[error("cannot {action} shared memory region '{name}': {kind}")]
    Access {
        /// The region.
        name: String,
        /// "read" or "write".
        action: &'static str,
        /// The system's reason.
        kind: io::ErrorKind,
    },
    /// There is no memory for an input's copy.
    #[error("there is no memory for {bytes} bytes of shared memory region '{name}'")]
    NoMemory {
        /// The region.
        name: String,
        /// The size of the copy in bytes.
        bytes: usize,
    },
}

/// The kind of a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionErrorKind {
    /// The call is at fault.
    Invalid,
    /// There is no such region.
    NotFound,
    /// There is such a region already.
    AlreadyExists,
    /// The server has no room for it now.
    Full,
    /// The system failed.
    Internal,
}

impl RegionError {
    /// The kind.
    #[must_use]
    pub const fn kind(&self) -> RegionErrorKind {
        match self {
            Self::Unknown { .. } | Self::UnknownStatus { .. } => RegionErrorKind::NotFound,
            Self::Registered { .. } => RegionErrorKind::AlreadyExists,
            Self::Full { .. } | Self::NoMemory { .. } => RegionErrorKind::Full,
            Self::Unopened { .. }
            | Self::Arguments { .. }
            | Self::Offset { .. }
            | Self::Size { .. }
            | Self::Shortened { .. } => RegionErrorKind::Invalid,
            Self::Access { .. } => RegionErrorKind::Internal,
        }
    }
}
