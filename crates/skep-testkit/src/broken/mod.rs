//! Files that must be refused, each with what is wrong with it: models in [`onnx_files`], configurations in
//! [`config_files`].
//!
//! A server meets them as a model directory among good ones. It must name the file and the fault, serve the other
//! models, and neither crash nor hang nor take memory in proportion to a number that a file merely claims.

mod config;
mod onnx;

use std::{fs, io, path::Path};

pub use config::config_files;
pub use onnx::onnx_files;

/// A file with a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenFile {
    /// A name for tests and directories: lower case, hyphens.
    pub name: &'static str,
    /// What is wrong with it.
    pub fault: &'static str,
    /// Which backends must refuse it.
    pub refused: RefusedBy,
    /// A word that a useful message holds, empty where only the fact can be told.
    pub mentions: &'static str,
    /// The file itself.
    pub bytes: Vec<u8>,
}

/// Which backends must refuse a [`BrokenFile`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedBy {
    /// Every backend.
    Always,
    /// The embedded backend alone: the file is valid, but that backend would compute something else.
    ByEmbedded,
}

/// A file that every backend must refuse.
fn refused(
    name: &'static str,
    fault: &'static str,
    mentions: &'static str,
    bytes: Vec<u8>,
) -> BrokenFile {
    BrokenFile {
        name,
        fault,
        refused: RefusedBy::Always,
        mentions,
        bytes,
    }
}

impl BrokenFile {
    /// Writes the file into the directory of a model called [`BrokenFile::name`]: a model as `1/model.onnx`, a
    /// configuration as `config.pbtxt` (the caller adds the model that it configures).
    ///
    /// # Errors
    /// When the system refuses to write.
    pub fn write(&self, repository: impl AsRef<Path>, relative_path: &str) -> io::Result<()> {
        let path = repository.as_ref().join(self.name).join(relative_path);
        let directory = path.parent().unwrap_or(&path);
        fs::create_dir_all(directory)?;
        fs::write(&path, &self.bytes)
    }
}
