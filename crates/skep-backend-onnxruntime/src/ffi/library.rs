//! The library's file, opened.

use std::path::{Path, PathBuf};

use ort_sys::{ORT_API_VERSION, OrtApi, OrtApiBase};

use super::text;

/// Why a file is not a usable ONNX Runtime library.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OpenError {
    /// The dynamic loader refused it.
    #[error("cannot be opened as a library: {0}")]
    Load(String),
    /// The file is another library.
    #[error("is not ONNX Runtime: it has no `OrtGetApiBase`")]
    Symbol,
    /// ONNX Runtime is too old: it lacks functions that Skep needs.
    #[error("is ONNX Runtime {version}, which is too old: expected at least 1.{ORT_API_VERSION}")]
    TooOld {
        /// Its version.
        version: String,
    },
}

/// An ONNX Runtime library. It is never closed, because its threads and handlers still need its code.
#[derive(Debug, Clone)]
pub(crate) struct Library {
    pub(super) api: &'static OrtApi,
    version: String,
    path: PathBuf,
}

impl Library {
    /// Opens the file at `path`, or what the dynamic loader finds for a name without a directory.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        // SAFETY: opening a library runs its initialisers. The user named this one, or it lies where ONNX Runtime is
        // installed.
        let library = unsafe { libloading::Library::new(path) }
            .map_err(|e| OpenError::Load(loader_message(&e)))?;
        // SAFETY: `OrtGetApiBase` has had this signature in every release; no other library uses the name.
        let base = unsafe {
            library.get::<unsafe extern "system" fn() -> *const OrtApiBase>(b"OrtGetApiBase\0")
        }
        .map_err(|_| OpenError::Symbol)?;
        // SAFETY: the function takes nothing and returns a table that lives as long as the library, or null.
        let base = unsafe { base().as_ref() }.ok_or(OpenError::Symbol)?;
        // SAFETY: the version string lives as long as the library.
        let version = unsafe { text((base.GetVersionString)()) };
        // SAFETY: any version may be asked for; one that the library does not have gives null. The table has the
        // layout of the version asked for, and lives as long as the library.
        let api = unsafe { (base.GetApi)(ORT_API_VERSION).as_ref() };
        let Some(api) = api else {
            return Err(OpenError::TooOld { version });
        };
        // From here on `api` is used for the rest of the process.
        std::mem::forget(library);
        Ok(Self {
            api,
            version,
            path: path.to_owned(),
        })
    }

    /// The library's own version.
    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Its description of its build.
    pub(crate) fn build(&self) -> String {
        // SAFETY: the function takes nothing and returns a text that lives as long as the library.
        unsafe { text((self.api.GetBuildInfoString)()) }
    }

    /// The path from which it was opened.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// The text of the error's cause, which contains the reason.
fn loader_message(error: &libloading::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}
