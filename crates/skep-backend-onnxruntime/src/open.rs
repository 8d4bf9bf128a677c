//! Opens the first usable library of a search, with a report on all places.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Mutex,
};

use crate::{
    LibraryOrigin, LibrarySearch,
    ffi::{Library, OrtRuntime},
    find::Candidate,
};

/// The result of searching a place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SearchFinding {
    /// No such file.
    Nothing,
    /// A directory without a library.
    Empty,
    /// The library that is used.
    Used {
        /// Its version.
        version: String,
    },
    /// A file that cannot be used, and why.
    Unusable(String),
    /// A file that was not tried, because an earlier one is used.
    NotTried,
    /// A name that the dynamic loader was not asked for, because an earlier file is used.
    NotAsked,
}

/// One place of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchedPlace {
    /// Why it was searched.
    pub origin: LibraryOrigin,
    /// The file, or the directory without one.
    pub path: PathBuf,
    /// What was found.
    pub finding: SearchFinding,
}

impl fmt::Display for SearchFinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("not there"),
            Self::Empty => f.write_str("holds no library of ONNX Runtime"),
            Self::Used { version } => write!(f, "ONNX Runtime {version}, used"),
            Self::Unusable(why) => f.write_str(why),
            Self::NotTried => f.write_str("there, not needed"),
            Self::NotAsked => f.write_str("not tried"),
        }
    }
}

impl fmt::Display for SearchedPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        write!(f, "{}: `{path}`: {}", self.origin, self.finding)
    }
}

/// All places of a search, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SearchReport {
    /// The places.
    pub places: Vec<SearchedPlace>,
}

impl fmt::Display for SearchReport {
    /// One line per place.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, place) in self.places.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            place.fmt(f)?;
        }
        Ok(())
    }
}

/// Why ONNX Runtime cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// No place has a usable library.
    #[error("{}", missing(.report))]
    Missing {
        /// What was found where.
        report: SearchReport,
    },
    /// The library was opened but does not start.
    #[error("ONNX Runtime {version} at `{}` does not start: {message}", path.display())]
    Start {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: String,
        /// Its error message.
        message: String,
    },
    /// A process can use one library only, and it uses another already.
    #[error("ONNX Runtime at `{}` is in use already: `{}` cannot be used in the same process", used.display(), wanted.display())]
    InUse {
        /// The library in use.
        used: PathBuf,
        /// The library asked for.
        wanted: PathBuf,
    },
}

impl FindError {
    /// The report of the search, if the search itself failed.
    #[must_use]
    pub const fn report(&self) -> Option<&SearchReport> {
        match self {
            Self::Missing { report } => Some(report),
            Self::Start { .. } | Self::InUse { .. } => None,
        }
    }
}

fn missing(report: &SearchReport) -> String {
    let named =
        |p: &&SearchedPlace| matches!(p.origin, LibraryOrigin::Flag | LibraryOrigin::Variable);
    let mut text = match report.places.iter().find(named) {
        Some(place) => format!("ONNX Runtime cannot be used: {place}"),
        None => String::from("ONNX Runtime's library was not found"),
    };
    for place in report.places.iter().filter(|p| !named(p)) {
        // It is normal that the dynamic loader does not know a name.
        let loader = place.path.parent() == Some("".as_ref());
        if let SearchFinding::Unusable(_) = &place.finding
            && !loader
        {
            text.push_str(&format!("\n{place}"));
        }
    }
    text.push_str(if report.places.iter().any(|place| named(&place)) {
        "\nname another file or directory, or none to search the usual places"
    } else {
        "\ninstall it with `pip install onnxruntime`, or name its file with `--onnxruntime-library` or the environment variable \
         `ORT_DYLIB_PATH`"
    });
    text
}

/// The process's runtime, once it is started.
static STARTED: Mutex<Option<&'static OrtRuntime>> = Mutex::new(None);

/// Finds, opens and starts the library. Later calls return the started one if they find the same file.
pub(crate) fn start(
    search: &LibrarySearch,
) -> Result<(&'static OrtRuntime, SearchReport), FindError> {
    // A panic during the start leaves `None`, which is correct.
    let mut started = skep_host::lock(&STARTED);
    let (library, report) = open_first(search.candidates());
    let Some(library) = library else {
        return Err(FindError::Missing { report });
    };
    if let Some(runtime) = *started {
        let (used, wanted) = (runtime.path().to_owned(), library.path().to_owned());
        if resolved(&used) == resolved(&wanted) {
            return Ok((runtime, report));
        }
        return Err(FindError::InUse { used, wanted });
    }
    let (path, version) = (library.path().to_owned(), library.version().to_owned());
    let runtime = OrtRuntime::start(library).map_err(|e| FindError::Start {
        path,
        version,
        message: e.message,
    })?;
    *started = Some(runtime);
    Ok((runtime, report))
}

/// A path without links, if the file exists.
fn resolved(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// Opens the first usable candidate.
fn open_first(candidates: Vec<Candidate>) -> (Option<Library>, SearchReport) {
    let mut used = None;
    let mut report = SearchReport::default();
    for candidate in candidates {
        let finding = match (candidate.exists, &used) {
            (false, _) if candidate.path.is_dir() => SearchFinding::Empty,
            (false, _) => SearchFinding::Nothing,
            (true, Some(_)) => after_use(&candidate),
            (true, None) => match Library::open(&candidate.path) {
                Ok(library) => {
                    let version = library.version().to_owned();
                    used = Some(library);
                    SearchFinding::Used { version }
                }
                Err(error) => SearchFinding::Unusable(error.to_string()),
            },
        };
        report.places.push(SearchedPlace {
            origin: candidate.origin,
            path: candidate.path,
            finding,
        });
    }
    (used, report)
}

/// The finding for a candidate after the one in use. The loader might open that one again under another name.
fn after_use(candidate: &Candidate) -> SearchFinding {
    match candidate.is_loader_name() {
        true => SearchFinding::NotAsked,
        false => SearchFinding::NotTried,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn error_for(content: &[u8]) -> String {
        let root = tempfile::tempdir().expect("a directory");
        let file = root.path().join("libonnxruntime.so.1.0.0");
        fs::write(&file, content).expect("a file");
        let search = LibrarySearch {
            flag: Some(file.clone()),
            ..LibrarySearch::default()
        };
        let error = start(&search).map(|_| ()).expect_err("no library");
        error
            .to_string()
            .replace(&file.display().to_string(), "FILE")
    }

    #[test]
    fn a_file_that_is_not_a_library_gives_an_error_with_a_remedy() {
        let error = error_for(b"no library at all");
        assert!(
            error.starts_with(
                "ONNX Runtime cannot be used: --onnxruntime-library: `FILE`: cannot be opened as a library"
            ),
            "{error}"
        );
        assert!(error.contains("name another file"), "{error}");
    }

    #[test]
    fn another_library_is_recognised() {
        // The C library is on every system and has no `OrtGetApiBase`.
        let search = LibrarySearch {
            flag: Some("libc.so.6".into()),
            ..LibrarySearch::default()
        };
        let error = start(&search)
            .map(|_| ())
            .expect_err("another library")
            .to_string();
        assert!(error.contains("is not ONNX Runtime"), "{error}");
    }

    #[test]
    fn loader_names_are_not_reported_as_existing_files() {
        let finding = |path: &str| {
            after_use(&Candidate {
                origin: LibraryOrigin::System,
                path: path.into(),
                exists: true,
            })
        };
        let findings = ["libonnxruntime.so", "/lib/libonnxruntime.so.1"].map(finding);
        assert_eq!(findings, [SearchFinding::NotAsked, SearchFinding::NotTried]);
    }

    #[test]
    fn without_any_places_the_error_is_the_remedy() {
        let error = start(&LibrarySearch::default())
            .map(|_| ())
            .expect_err("nothing");
        assert!(
            error.to_string().contains("was not found\ninstall it with"),
            "{error}"
        );
        assert!(error.report().is_some());
    }
}
