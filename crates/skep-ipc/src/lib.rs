//! Messages between processes of one machine.
//!
//! [`FrameStream`] carries frames over a stream socket, with file descriptors (`SCM_RIGHTS`). [`MessageWriter`] and
//! [`MessageReader`] encode what a frame holds. Every length that a peer sends is checked against a bound before memory
//! is taken for it.
//!
//! The tensor store and the worker processes each define their own messages on top of this.

mod descriptors;
mod encode;
mod frame;

pub use descriptors::MAX_DESCRIPTORS;
pub use encode::{Malformed, MessageReader, MessageWriter};
pub use frame::{FrameError, FrameStream, Framing, ReceivedFrame};
