//! The runtime over scripted backends: loading, serving, failing, unloading, stopping.

mod common;
mod echo;
mod loading;
mod management;
mod overdue;
mod residency;
mod response_cache;
mod serving;
mod slots;
