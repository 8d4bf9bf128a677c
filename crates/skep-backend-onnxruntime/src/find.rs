//! Where ONNX Runtime's library may be.
//!
//! The library comes with the Python package `onnxruntime` as `capi/libonnxruntime.so.<version>`, without an
//! unversioned name, so directories are searched for any version and the newest is taken. Python itself never runs: a
//! start must not wait for an interpreter, and the location of `python3` determines its directories.

use std::{
    cmp::Reverse,
    env,
    ffi::{OsStr, OsString},
    fmt, fs,
    path::{Path, PathBuf},
};

/// Environment variable that names the library's file or the directory that holds it.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// Directories in which systems keep libraries, besides those that the dynamic loader searches by name.
const SYSTEM_DIRECTORIES: &[&str] = &[
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/lib/aarch64-linux-gnu",
    "/lib/x86_64-linux-gnu",
    "/lib/aarch64-linux-gnu",
    "/opt/onnxruntime/lib",
    "/opt/homebrew/lib",
];

/// The package's directory in Python's `site-packages`.
const IN_SITE_PACKAGES: &str = "onnxruntime/capi";

/// Why a place is searched, in the order of the search.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LibraryOrigin {
    /// A flag names it; then no other place is searched.
    Flag,
    /// [`LIBRARY_VARIABLE`] names it; then no other place is searched.
    Variable,
    /// Beside the executable.
    Executable,
    /// Under `target/` of the working directory, where `cargo xtask setup` puts it.
    Target,
    /// In the packages of the active Python.
    Python,
    /// Where the system keeps libraries.
    System,
}

impl fmt::Display for LibraryOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Flag => "--onnxruntime-library",
            Self::Variable => LIBRARY_VARIABLE,
            Self::Executable => "beside the executable",
            Self::Target => "target/ of the working directory",
            Self::Python => "active Python",
            Self::System => "system",
        })
    }
}

/// The places to search, derived from the process's environment. They are plain values, so that tests can set others.
#[derive(Debug, Clone, Default)]
pub struct LibrarySearch {
    /// The file that a flag names, or a directory that contains one.
    pub flag: Option<PathBuf>,
    /// The file or directory that [`LIBRARY_VARIABLE`] names.
    pub variable: Option<PathBuf>,
    /// The running executable.
    pub executable: Option<PathBuf>,
    /// The working directory.
    pub working_directory: Option<PathBuf>,
    /// Roots of active Python environments (`VIRTUAL_ENV`, `CONDA_PREFIX`).
    pub python_roots: Vec<PathBuf>,
    /// Directories of executables (`PATH`), which are searched for `python3`.
    pub path: Vec<PathBuf>,
    /// The user's home, for packages installed with `pip install --user`.
    pub home: Option<PathBuf>,
    /// Whether to search the system's directories and ask the dynamic loader.
    pub system: bool,
}

/// A library file to try, or a place without one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) origin: LibraryOrigin,
    /// The file to open; without one, the directory that was searched.
    pub(crate) path: PathBuf,
    /// Whether there is a file to open.
    pub(crate) exists: bool,
}

impl Candidate {
    /// Whether it is a name for the dynamic loader; only the loader knows whether there is a file.
    pub(crate) fn is_loader_name(&self) -> bool {
        self.path.parent() == Some(Path::new(""))
    }
}

impl LibrarySearch {
    /// The places that this process's environment gives.
    #[must_use]
    pub fn from_environment() -> Self {
        Self {
            flag: None,
            variable: variable(LIBRARY_VARIABLE).map(PathBuf::from),
            executable: env::current_exe().ok(),
            working_directory: env::current_dir().ok(),
            python_roots: ["VIRTUAL_ENV", "CONDA_PREFIX"]
                .into_iter()
                .filter_map(variable)
                .map(PathBuf::from)
                .collect(),
            path: variable("PATH")
                .map(|value| env::split_paths(&value).collect())
                .unwrap_or_default(),
            home: variable("HOME").map(PathBuf::from),
            system: true,
        }
    }

    /// The same, with the file or directory that a flag names.
    #[must_use]
    pub fn with_flag(mut self, flag: Option<PathBuf>) -> Self {
        self.flag = flag;
        self
    }

    /// Whether a flag or variable names the library, so that no other may be used instead.
    #[must_use]
    pub const fn is_named(&self) -> bool {
        self.flag.is_some() || self.variable.is_some()
    }

    /// All places in the order of the search. A place that is named explicitly is the only one.
    pub(crate) fn candidates(&self) -> Vec<Candidate> {
        for (origin, named) in [
            (LibraryOrigin::Flag, &self.flag),
            (LibraryOrigin::Variable, &self.variable),
        ] {
            if let Some(named) = named {
                return named_place(origin, named);
            }
        }
        let mut found = Vec::new();
        let mut look = |origin, directories: Vec<PathBuf>| {
            for directory in directories {
                if !found.iter().any(|c: &Candidate| {
                    c.path.parent() == Some(&*directory) || c.path == directory
                }) {
                    found.extend(in_directory(origin, &directory));
                }
            }
        };
        look(LibraryOrigin::Executable, self.beside_executable());
        look(LibraryOrigin::Target, self.under_target());
        look(LibraryOrigin::Python, self.python_packages());
        if self.system {
            look(
                LibraryOrigin::System,
                SYSTEM_DIRECTORIES
                    .iter()
                    .map(PathBuf::from)
                    .filter(|d| d.is_dir())
                    .collect(),
            );
            found.push(Candidate {
                origin: LibraryOrigin::System,
                path: unversioned_name(),
                exists: true,
            });
        }
        found
    }

    fn beside_executable(&self) -> Vec<PathBuf> {
        let directory = self.executable.as_deref().and_then(Path::parent);
        directory
            .map(|d| vec![d.to_owned(), d.join("../lib")])
            .unwrap_or_default()
    }

    fn under_target(&self) -> Vec<PathBuf> {
        let Some(working) = &self.working_directory else {
            return Vec::new();
        };
        let target = working.join("target");
        let mut directories = vec![target.clone()];
        directories.extend(site_packages(&target.join("venv")));
        directories
    }

    fn python_packages(&self) -> Vec<PathBuf> {
        let mut roots = self.python_roots.clone();
        if let Some(python) = self
            .path
            .iter()
            .map(|d| d.join("python3"))
            .find(|p| p.is_file())
        {
            // `<root>/bin/python3`; the links of a virtual environment lead to the interpreter that it was made from.
            let resolved = python.canonicalize().ok();
            for file in [Some(python), resolved].into_iter().flatten() {
                roots.extend(file.parent().and_then(Path::parent).map(Path::to_owned));
            }
        }
        // Debian's `pip install` as root, whichever `python3` comes first.
        roots.push(PathBuf::from("/usr/local"));
        roots.extend(self.home.as_deref().map(|home| home.join(".local")));
        roots.dedup();
        roots.iter().flat_map(|root| site_packages(root)).collect()
    }
}

/// The value of an environment variable that is set and not empty.
fn variable(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|value| !value.is_empty())
}

/// The package's existing directories below a Python root, newest interpreter first.
fn site_packages(root: &Path) -> Vec<PathBuf> {
    let mut pythons = entries(&root.join("lib"), |name| name.starts_with("python3"));
    pythons.sort_by_key(|p| Reverse(version(p)));
    pythons
        .iter()
        .flat_map(|p| [p.join("site-packages"), p.join("dist-packages")])
        .map(|packages| packages.join(IN_SITE_PACKAGES))
        .filter(|directory| directory.is_dir())
        .collect()
}

/// The place that a flag or variable names: a file, or a directory that must contain one.
fn named_place(origin: LibraryOrigin, named: &Path) -> Vec<Candidate> {
    if named.is_dir() {
        return in_directory(origin, named);
    }
    // The dynamic loader finds a name without a directory.
    let exists = named.exists() || named.parent() == Some(Path::new(""));
    vec![Candidate {
        origin,
        path: named.to_owned(),
        exists,
    }]
}

/// The newest library in a directory, or the directory itself as a place without one.
fn in_directory(origin: LibraryOrigin, directory: &Path) -> Vec<Candidate> {
    let mut files = entries(directory, is_library_name);
    // `libonnxruntime.so` is a link to a version, usually the newest: it comes last, after the versions themselves.
    files.sort_by_key(|file| Reverse(version(file)));
    let newest = files.into_iter().next();
    vec![Candidate {
        origin,
        exists: newest.is_some(),
        path: newest.unwrap_or_else(|| directory.to_owned()),
    }]
}

/// A directory's entries with a wanted name; empty if the directory cannot be read.
fn entries(directory: &Path, wanted: impl Fn(&str) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().to_str().is_some_and(&wanted))
        .map(|entry| entry.path())
        .collect();
    paths.sort();
    paths
}

/// `libonnxruntime.so`, `libonnxruntime.so.1.31.1`, `libonnxruntime.1.31.1.dylib`; not the providers' libraries.
fn is_library_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix("libonnxruntime.") else {
        return false;
    };
    let numbers = match (rest.strip_prefix("so"), rest.strip_suffix("dylib")) {
        (Some(numbers), _) | (None, Some(numbers)) => numbers,
        (None, None) => return false,
    };
    numbers.bytes().all(|b| b.is_ascii_digit() || b == b'.')
}

/// The numbers in a file's name, compared as a version.
fn version(path: &Path) -> Vec<u64> {
    let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|part| part.parse().ok())
        .collect()
}

fn unversioned_name() -> PathBuf {
    PathBuf::from(format!("libonnxruntime{}", env::consts::DLL_SUFFIX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn touch(root: &Path, file: &str) -> PathBuf {
        let path = root.join(file);
        fs::create_dir_all(path.parent().expect("a parent")).expect("directories");
        fs::write(&path, b"no library").expect("a file");
        path
    }

    fn paths(search: &LibrarySearch) -> Vec<(LibraryOrigin, PathBuf)> {
        let candidates = search.candidates().into_iter();
        candidates
            .filter(|c| c.exists)
            .map(|c| (c.origin, c.path))
            .collect()
    }

    #[test]
    fn versions_compare_as_numbers_and_other_libraries_are_skipped() {
        let root = tempfile::tempdir().expect("a directory");
        touch(root.path(), "libonnxruntime.so.1.9.0");
        touch(root.path(), "libonnxruntime.so");
        touch(root.path(), "libonnxruntime_providers_shared.so");
        touch(root.path(), "libonnxruntime.so.1.9.0.bak");
        let newest = touch(root.path(), "libonnxruntime.so.1.31.1");
        let search = LibrarySearch {
            flag: Some(root.path().to_owned()),
            ..LibrarySearch::default()
        };
        assert_eq!(paths(&search), [(LibraryOrigin::Flag, newest)]);
    }

    #[test]
    fn places_are_searched_in_the_documented_order() {
        let root = tempfile::tempdir().expect("a directory");
        let packages = "lib/python3.11/site-packages/onnxruntime/capi/libonnxruntime.so.1.20.1";
        let beside = touch(root.path(), "bin/libonnxruntime.so.1.20.1");
        let target = touch(root.path(), &format!("work/target/venv/{packages}"));
        let venv = touch(root.path(), &format!("venv/{packages}"));
        let python = touch(root.path(), &format!("python/{packages}"));
        touch(root.path(), "python/bin/python3");
        let user = touch(root.path(), &format!("home/.local/{packages}"));
        let search = LibrarySearch {
            executable: Some(root.path().join("bin/skep")),
            working_directory: Some(root.path().join("work")),
            python_roots: vec![root.path().join("venv")],
            path: vec![root.path().join("nowhere"), root.path().join("python/bin")],
            home: Some(root.path().join("home")),
            ..LibrarySearch::default()
        };
        let found = paths(&search);
        let mine: Vec<_> = found
            .into_iter()
            .filter(|(_, p)| p.starts_with(root.path()))
            .collect();
        assert_eq!(
            mine,
            [
                (LibraryOrigin::Executable, beside),
                (LibraryOrigin::Target, target),
                (LibraryOrigin::Python, venv),
                (LibraryOrigin::Python, python),
                (LibraryOrigin::Python, user),
            ]
        );
    }

    #[test]
    fn a_named_place_is_the_only_one() {
        let root = tempfile::tempdir().expect("a directory");
        let beside = touch(root.path(), "libonnxruntime.so.1.20.1");
        let search = LibrarySearch {
            executable: Some(root.path().join("skep")),
            variable: Some(root.path().join("missing.so")),
            ..LibrarySearch::default()
        };
        assert_eq!(paths(&search), []);
        assert_eq!(search.candidates().len(), 1, "but it is reported");
        let search = search.with_flag(Some(beside.clone()));
        assert_eq!(paths(&search), [(LibraryOrigin::Flag, beside)]);
    }
}
