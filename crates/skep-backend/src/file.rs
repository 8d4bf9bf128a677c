//! A model's file: mapped, or copied if it is small.
//!
//! If a mapped file is truncated and a process then reads a lost page, the system ends the process (SIGBUS), here the
//! whole server. A large file is worth that risk, because its weights are used in place and shared by all processes.
//! A small file is not.
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
use skep_tensor::AlignedBuffer;
use skep_weights::baking;

use crate::{BackendError, ErrorKind};

/// Files up to this many bytes are copied. Models of this size are not [baked](skep_weights::baking), so their files
/// would stay mapped for as long as they are served, and the copy costs less than the pages of a loaded library.
pub const COPIED_BYTES: u64 = baking::MIN_MODEL_BYTES;

/// A model's file: its path, and its bytes, which live as long as any slice of them.
#[derive(Debug, Clone)]
pub struct ModelFile {
    path: PathBuf,
    bytes: Bytes,
    /// The decoded file, as long as it is in use.
    pub(crate) decoded: Arc<Mutex<Weak<OnnxModel>>>,
}

impl ModelFile {
    /// Maps the file at `path`, or copies it ([`COPIED_BYTES`]). The backend opens files with external data beside it.
    ///
    /// A mapped file must not be overwritten in place while the model is loaded, as with any server that maps its
    /// models. Replace it by renaming instead.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidModel`] if the file cannot be opened or read.
    pub fn open(path: &Path) -> Result<Self, BackendError> {
        let error = |e: io::Error| {
            BackendError::new(
                ErrorKind::InvalidModel,
                format!("cannot read `{}`: {e}", path.display()),
            )
        };
        Self::of(path, &skep_host::open_file(path).map_err(error)?).map_err(error)
    }

    /// The same for an open file. A backend that opens the file by its name uses `path`.
    ///
    /// # Errors
    /// Errors of the system.
    pub fn of(path: &Path, file: &File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        if length > COPIED_BYTES {
            return Self::map(path, file);
        }
        // Aligned like a mapping, because weights are used in place.
        let copy = AlignedBuffer::try_zeroed(usize::try_from(length).unwrap_or(usize::MAX));
        let mut copy = copy.map_err(|error| io::Error::new(io::ErrorKind::OutOfMemory, error))?;
        file.read_exact_at(&mut copy, 0)?;
        Ok(Self::new(path, copy.freeze()))
    }

    /// Maps an open file of any size.
    ///
    /// # Errors
    /// Errors of the system.
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

    /// A model without a file, for the `mock` backend.
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

    /// The file's path.
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
    fn a_small_file_that_is_truncated_stays_readable() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("model.onnx");
        for length in [0, 5, 8192] {
            fs::write(&path, vec![7; length]).expect("a file");
            let file = ModelFile::open(&path).expect("opened");
            fs::write(&path, b"").expect("truncated");
            // With a mapping this would end the process.
            assert_eq!(file.bytes().to_vec(), vec![7; length]);
        }
    }
}
