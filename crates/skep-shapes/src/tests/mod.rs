//! Tests on graphs written by hand, as exporters write them and as nobody should.

mod build;
mod control;
mod errors;
mod exporters;
mod hostile;
mod operators;
