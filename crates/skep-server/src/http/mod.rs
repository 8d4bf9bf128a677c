//! HTTP: the Open Inference Protocol with Triton's extensions, and the web page.

mod acquire;
mod compression;
mod docs;
mod extract;
mod fault;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod generate;
mod infer;
mod input;
mod lean;
mod logging;
mod management;
mod members;
mod object;
mod page;
mod parameters;
mod raw;
mod reply;
mod repository;
mod request;
mod response;
mod routes;
mod sequence;
mod shared_memory;
mod traces;

pub(crate) use self::{page::render as render_page, routes::routes};
