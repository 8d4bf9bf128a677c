//! The keys of the `parameters` map: their table, what their values look like, and the page that documents them.

mod markdown;
pub(crate) mod table;
pub(crate) mod value;

pub use markdown::parameters_markdown;
pub use table::{PARAMETERS, ParameterEffect, ParameterSpec};
pub use value::ParameterType;
