//! Tests on graphs written by hand: as exporters write them, invalid ones and hostile ones.

mod build;
mod control;
mod errors;
mod exporters;
mod hostile;
mod operators;
