//! Traces as bytes in, events and errors out: each format with its traps, and any bytes at all.

mod any_bytes;
mod common;
mod event_table;
mod pytorch;
mod tensorflow;
mod xla;
