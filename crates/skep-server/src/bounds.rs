//! How many entries a request may have, whatever their size: bounds on what decoding it takes, far above what any model
//! asks for.

/// Inputs and outputs together.
pub(crate) const MAX_TENSORS: usize = 4096;

/// Parameters: those of a message and of its inputs and outputs together over gRPC, those of each object in JSON; also the
/// members of an object whose names are not the protocol's.
pub(crate) const MAX_PARAMETERS: usize = 4096;

/// Dimensions of a shape.
pub(crate) const MAX_DIMS: usize = 256;

/// The largest request of a call that manages, other than a load with its files.
pub(crate) const MAX_MANAGEMENT_BYTES: usize = 1 << 20;

/// What a byte of such a request may become at most: two bytes on the wire are an entry in a map.
pub(crate) const MANAGEMENT_WEIGHT: usize = 32;
