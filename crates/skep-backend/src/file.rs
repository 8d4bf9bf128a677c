//! A model's file: mapped, or copied where it is small.
//!
//! The system ends a process that reads a page of a mapped file which was cut meanwhile (SIGBUS), the whole server. A large
//! file is worth that: its weights are used where they lie, and all processes share them. A small one is not.
#![allow(
    unsafe_code,
    reason = "mapping a file is an unsafe promise about that file (invariant 5)"
)]

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, Weak},
};

use bytes::Bytes;
use memmap2::Mmap;
use skep_onnx::OnnxModel;
use skep_tensor::{AlignedBuffer, TensorError};

use skep_weights::baking;

use crate::{BackendError, ErrorKind};

/// Files up to this many bytes are copied. Models below it are not [baked](skep_weights::baking), which takes larger ones off their
/// files, so they would be mapped for as long as they are served; and a copy of them costs less than a loaded library's pages.
pub const COPIED_BYTES: u64 = baking::MIN_MODEL_BYTES;

/// A model's file: where it lies, and its bytes, which live as long as anyone holds a slice.
#[derive(Debug, Clone)]
pub struct ModelFile {
    path: PathBuf,
    bytes: Bytes,
    /// The decoded file, as long as somebody holds it.
    pub(crate) decoded: Arc<Mutex<Weak<OnnxModel>>>,
}

impl ModelFile {
    /// Maps the file at `path`, or copies it ([`COPIED_BYTES`]). Files with external data beside it are the backend's to open.
    ///
    /// A file that is mapped must not be overwritten in place while the model is loaded (replace it by renaming instead), as
    /// with any server that maps its models.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] when the file cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, BackendError> {
        let error = |e: io::Error| {
            BackendError::new(
                ErrorKind::InvalidModel,
                format!("cannot read `{}`: {e}", path.display()),
            )
        };
        Self::of(path, &skep_host::open_file(path).map_err(error)?).map_err(error)
    }

    /// The same for a file that is open already, and that lies at `path` for a backend that opens it by its name.
    ///
    /// # Errors
    /// Those of the system.
    pub fn of(path: &Path, file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        if length > COPIED_BYTES {
            return Self::map(path, file);
        }
        // As aligned as a mapping: weights are used where they lie.
        let no_memory = |error: TensorError| io::Error::new(io::ErrorKind::OutOfMemory, error);
        let mut copy = AlignedBuffer::try_zeroed(usize::try_from(length).unwrap_or(usize::MAX))
            .map_err(no_memory)?;
        file.read_exact_at(&mut copy, 0)?;
        Ok(Self::new(path, copy.freeze()))
    }

    /// Maps a file that is open already, however small it is.
    ///
    /// # Errors
    /// Those of the system.
    pub fn map(path: &Path, file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let bytes = if length == 0 {
            Bytes::new()
        } else {
            // SAFETY: the mapping is private and read-only; the repository's files are replaced, not rewritten, while
            // they are served (documented above and for users in docs/model-repository.md).
            Bytes::from_owner(unsafe { Mmap::map(file) }?)
        };
        Ok(Self::new(path, bytes))
    }

    /// A model that has no file: what the `mock` backend serves.
    #[must_use]
    pub fn none() -> Self {
        Self::new(Path::new(""), Bytes::new())
    }

    fn new(path: &Path, bytes: Bytes) -> Self {
        Self {
            path: path.to_owned(),
            bytes,
            decoded: Arc::default(),
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_small_file_that_is_cut_is_still_there() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("model.onnx");
        for length in [0, 5, 8192] {
            fs::write(&path, vec![7; length]).expect("a file");
            let file = ModelFile::open(&path).expect("opened");
            fs::write(&path, b"").expect("cut");
            // Of a mapping this would end the process.
            assert_eq!(file.bytes().to_vec(), vec![7; length]);
        }
    }
}
