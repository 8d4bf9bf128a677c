//! Model repositories on disk: which models, which versions, which files.
//!
//! ```text
//! <repository>/<model>/config.pbtxt
//! <repository>/<model>/configs/<name>.pbtxt      read instead with `--model-config-name=<name>`
//! <repository>/<model>/<version>/model.onnx
//! ```
//!
//! Source: Triton, user guide, "Model Repository".

pub(crate) mod digest;
mod entries;
mod layout;
pub(crate) mod locate;
pub(crate) mod model_files;
mod roots;
pub(crate) mod scan;
pub(crate) mod source;

pub use digest::{DigestedFiles, files_digest};
pub use entries::is_model;
pub(crate) use entries::versions;
pub use layout::LayoutFinding;
pub use roots::Repository;
pub(crate) use roots::{ModelId, not_polled};
pub use source::LoadOverrides;
