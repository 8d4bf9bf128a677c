//! Devices of a node, and the memory that tensors lie in.

use std::fmt;

/// A device by its number on the node. The default is the first set of CPU cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceId {
    /// A set of CPU cores. All of them share the host's memory.
    Cpu(u32),
    /// A GPU, with memory of its own.
    Gpu(u32),
}

impl DeviceId {
    /// Whether it is a set of CPU cores.
    #[must_use]
    pub const fn is_cpu(self) -> bool {
        matches!(self, Self::Cpu(_))
    }
}

impl Default for DeviceId {
    fn default() -> Self {
        Self::Cpu(0)
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu(number) => write!(f, "cpu:{number}"),
            Self::Gpu(number) => write!(f, "gpu:{number}"),
        }
    }
}

/// The memory that a tensor's bytes lie in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum MemoryKind {
    /// The host's: every CPU core reads and writes it.
    #[default]
    Host,
    /// A device's own: the host can name the bytes, but not read or write them.
    Device(DeviceId),
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.write_str("host memory"),
            Self::Device(device) => write!(f, "memory of {device}"),
        }
    }
}
