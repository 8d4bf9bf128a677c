//! The protocol between a daemon and its clients, over a Unix stream socket.
//!
//! ```text
//! frame: length u32 | kind u8 | body          numbers are little-endian; length counts kind and body
//! ```
//!
//! A client says [`Hello`](Request::Hello) first (before that, whoever hands the connection on may
//! [restrict](Request::Restrict) it), and then asks one question after the other; each has one answer. A publication
//! carries one descriptor; an answer comes behind one [`Segment`](Reply::Segment) frame, with a descriptor, for each
//! segment that it names. A frame that is not exactly as it should be ends the connection: nothing is guessed.

mod connection;
mod fields;
mod message;

pub(crate) use connection::Connection;
pub(crate) use message::{MAX_LISTED, StoreReply, StoreRequest, WireLocation};
