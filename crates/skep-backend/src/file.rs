//! A model's file, mapped.
#![allow(
    unsafe_code,
    reason = "mapping a file is an unsafe promise about that file (invariant 5)"
)]

use std::{
    fs::File,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use memmap2::Mmap;

use crate::{BackendError, ErrorKind};

/// A model's file: where it lies, and its bytes as a read-only mapping that lives as long as anyone holds a slice.
#[derive(Debug, Clone)]
pub struct ModelFile {
    path: PathBuf,
    bytes: Bytes,
}

impl ModelFile {
    /// Maps the file at `path`. Files with external data beside it are the backend's to open.
    ///
    /// The file must not be overwritten in place while the model is loaded (replace it by renaming instead), as with
    /// any server that maps its models.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] when the file cannot be opened or mapped.
    pub fn open(path: &Path) -> Result<Self, BackendError> {
        let error = |e: std::io::Error| {
            BackendError::new(
                ErrorKind::InvalidModel,
                format!("cannot read `{}`: {e}", path.display()),
            )
        };
        Self::map(path, &skep_host::open_file(path).map_err(error)?).map_err(error)
    }

    /// Maps a file that is open already, and that lies at `path` for a backend that opens it by its name; otherwise as
    /// [`ModelFile::open`].
    ///
    /// # Errors
    /// Those of the system.
    pub fn map(path: &Path, file: &File) -> std::io::Result<Self> {
        let length = file.metadata()?.len();
        let bytes = if length == 0 {
            Bytes::new()
        } else {
            // SAFETY: the mapping is private and read-only; the repository's files are replaced, not rewritten, while
            // they are served (documented above and for users in docs/model-repository.md).
            Bytes::from_owner(unsafe { Mmap::map(file) }?)
        };
        Ok(Self {
            path: path.to_owned(),
            bytes,
        })
    }

    /// A model that has no file: what the `mock` backend serves.
    #[must_use]
    pub fn none() -> Self {
        Self {
            path: PathBuf::new(),
            bytes: Bytes::new(),
        }
    }

    /// Where the file lies.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
