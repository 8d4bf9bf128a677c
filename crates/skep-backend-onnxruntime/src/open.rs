//! From the places where the library may lie to the one that is used, with a report of all of them.

use std::{
    fmt,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use crate::{
    Origin, Search,
    ffi::{Library, Runtime},
    find::Candidate,
};

/// What was found at a place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Finding {
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
    /// A file that was not tried, because one before it is used.
    NotTried,
    /// A name that the dynamic loader was not asked for, because a file before it is used.
    NotAsked,
}

/// One place that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SearchedPlace {
    /// Why it was looked at.
    pub origin: Origin,
    /// The file, or the directory without one.
    pub path: PathBuf,
    /// What was found.
    pub finding: Finding,
}

impl fmt::Display for Finding {
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

/// Every place that was looked at, in the order of looking.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The places.
    pub places: Vec<SearchedPlace>,
}

impl fmt::Display for Report {
    /// One line a place.
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

/// Why there is no ONNX Runtime.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// No place had a library that can be used.
    #[error("{}", missing(.report))]
    Missing {
        /// What was found where.
        report: Report,
    },
    /// The library was opened but would not start.
    #[error("ONNX Runtime {version} at `{}` does not start: {message}", path.display())]
    Start {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: String,
        /// Its own words.
        message: String,
    },
    /// A process uses one library, and it uses another one already.
    #[error("ONNX Runtime at `{}` is in use already, `{}` cannot be used beside it", used.display(), wanted.display())]
    InUse {
        /// The library in use.
        used: PathBuf,
        /// The library asked for.
        wanted: PathBuf,
    },
}

impl FindError {
    /// What was found where, if the search got that far.
    #[must_use]
    pub const fn report(&self) -> Option<&Report> {
        match self {
            Self::Missing { report } => Some(report),
            Self::Start { .. } | Self::InUse { .. } => None,
        }
    }
}

fn missing(report: &Report) -> String {
    let named = |p: &&SearchedPlace| matches!(p.origin, Origin::Flag | Origin::Variable);
    let mut text = match report.places.iter().find(named) {
        Some(place) => format!("ONNX Runtime cannot be used: {place}"),
        None => String::from("ONNX Runtime's library was not found"),
    };
    for place in report.places.iter().filter(|p| !named(p)) {
        // Names that the dynamic loader does not know are no news.
        let loader = place.path.parent() == Some("".as_ref());
        if let Finding::Unusable(_) = &place.finding
            && !loader
        {
            text.push_str(&format!("\n{place}"));
        }
    }
    text.push_str(if report.places.iter().any(|place| named(&place)) {
        "\nname another file or directory, or none: the usual places are looked at then"
    } else {
        "\ninstall it with `pip install onnxruntime`, or name its file with `--onnxruntime-library` or the environment variable \
         `ORT_DYLIB_PATH`"
    });
    text
}

/// The process's runtime, once it is started.
static STARTED: Mutex<Option<&'static Runtime>> = Mutex::new(None);

/// Finds the library, opens it and starts it; later calls give the started one, if it is the one they would find.
pub(crate) fn start(search: &Search) -> Result<(&'static Runtime, Report), FindError> {
    // A panic while starting leaves `None`, which is true.
    let mut started = STARTED.lock().unwrap_or_else(PoisonError::into_inner);
    let (library, report) = open_first(search.candidates());
    let Some(library) = library else {
        return Err(FindError::Missing { report });
    };
    if let Some(runtime) = *started {
        let same = |a: &PathBuf| a.canonicalize().unwrap_or_else(|_| a.clone());
        let (used, wanted) = (runtime.path().to_owned(), library.path().to_owned());
        if same(&used) == same(&wanted) {
            return Ok((runtime, report));
        }
        return Err(FindError::InUse { used, wanted });
    }
    let (path, version) = (library.path().to_owned(), library.version().to_owned());
    let runtime = Runtime::start(library).map_err(|e| FindError::Start {
        path,
        version,
        message: e.message,
    })?;
    *started = Some(runtime);
    Ok((runtime, report))
}

/// Opens the first candidate that can be used.
fn open_first(candidates: Vec<Candidate>) -> (Option<Library>, Report) {
    let mut used = None;
    let mut report = Report::default();
    for candidate in candidates {
        let finding = match (candidate.exists, &used) {
            (false, _) if candidate.path.is_dir() => Finding::Empty,
            (false, _) => Finding::Nothing,
            (true, Some(_)) => after_use(&candidate),
            (true, None) => match Library::open(&candidate.path) {
                Ok(library) => {
                    let version = library.version().to_owned();
                    used = Some(library);
                    Finding::Used { version }
                }
                Err(error) => Finding::Unusable(error.to_string()),
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

/// What is said of a candidate that comes behind the one in use. The loader would give that one again under another name.
fn after_use(candidate: &Candidate) -> Finding {
    match candidate.is_loaders() {
        true => Finding::NotAsked,
        false => Finding::NotTried,
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
        let search = Search {
            flag: Some(file.clone()),
            ..Search::default()
        };
        let error = start(&search).map(|_| ()).expect_err("no library");
        error
            .to_string()
            .replace(&file.display().to_string(), "FILE")
    }

    #[test]
    fn a_file_that_is_no_library_is_an_error_that_says_what_to_do() {
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
    fn another_library_is_told_apart() {
        // The C library is on every system and has no `OrtGetApiBase`.
        let search = Search {
            flag: Some("libc.so.6".into()),
            ..Search::default()
        };
        let error = start(&search)
            .map(|_| ())
            .expect_err("another library")
            .to_string();
        assert!(error.contains("is not ONNX Runtime"), "{error}");
    }

    #[test]
    fn names_for_the_loader_are_not_said_to_be_there() {
        let finding = |path: &str| {
            after_use(&Candidate {
                origin: Origin::System,
                path: path.into(),
                exists: true,
            })
        };
        let findings = ["libonnxruntime.so", "/lib/libonnxruntime.so.1"].map(finding);
        assert_eq!(findings, [Finding::NotAsked, Finding::NotTried]);
    }

    #[test]
    fn nothing_anywhere_lists_no_places_but_the_remedy() {
        let error = start(&Search::default()).map(|_| ()).expect_err("nothing");
        assert!(
            error.to_string().contains("was not found\ninstall it with"),
            "{error}"
        );
        assert!(error.report().is_some());
    }
}
