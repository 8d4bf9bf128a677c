//! How many entries a request may have, whatever their size. The limits bound the memory of decoding, and are far above
//! the needs of any model.

/// Inputs and outputs together.
pub(crate) const MAX_TENSORS: usize = 4096;

/// Parameters: over gRPC those of a message, its inputs and its outputs together; in JSON those of each object, and
/// members of an object with unknown names.
pub(crate) const MAX_PARAMETERS: usize = 4096;

/// Dimensions of a shape.
pub(crate) const MAX_DIMS: usize = 256;

/// The largest request of a management call, apart from a load with files.
pub(crate) const MAX_MANAGEMENT_BYTES: usize = 1 << 20;

/// Bytes of memory that a byte of such a request may become: two bytes on the wire can be an entry in a map.
pub(crate) const MANAGEMENT_WEIGHT: usize = 32;
