//! The protocol between a daemon and its clients, over a Unix stream socket.
//!
//! ```text
//! frame: length u32 | kind u8 | body          numbers are little-endian; length counts kind and body
//! ```
//!
//! A client first sends [`Hello`](StoreRequest::Hello). Before that, a process that will hand the connection on may [restrict](StoreRequest::Restrict) it. Then each request has one answer, one after the other. A publication carries one descriptor. Before an answer comes one [`Segment`](StoreReply::Segment) frame, with a descriptor, for each segment that it names. Any malformed frame ends the connection.

mod connection;
mod fields;
mod message;

pub(crate) use connection::Connection;
pub(crate) use message::{MAX_LISTED, StoreReply, StoreRequest, WireLocation};
