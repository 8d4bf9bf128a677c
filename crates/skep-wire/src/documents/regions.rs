//! The status of a client's shared-memory region.

use serde::{Deserialize, Serialize};
use skep_proto::inference::system_shared_memory_status_response::RegionStatus as RegionMessage;

/// A system shared-memory region.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SystemRegion {
    /// The region's name.
    pub name: String,
    /// The key of its object.
    pub key: String,
    /// Where it begins in the object, in bytes.
    pub offset: u64,
    /// Its size in bytes.
    pub byte_size: u64,
}

impl From<SystemRegion> for RegionMessage {
    fn from(region: SystemRegion) -> Self {
        Self {
            name: region.name,
            key: region.key,
            offset: region.offset,
            byte_size: region.byte_size,
        }
    }
}

impl From<RegionMessage> for SystemRegion {
    fn from(message: RegionMessage) -> Self {
        Self {
            name: message.name,
            key: message.key,
            offset: message.offset,
            byte_size: message.byte_size,
        }
    }
}
