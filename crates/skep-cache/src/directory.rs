//! The directory itself: how it is made, and whether one that is there already may be used.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use rustix::process::geteuid;

use crate::CacheError;

/// What is in the directory of a layout.
const INNER: [&str; 6] = ["models", "tensors", "stamps", "making", "failures", "tmp"];

/// Whether all of it is there.
pub(crate) fn is_whole(root: &Path) -> bool {
    INNER.iter().all(|inner| root.join(inner).is_dir())
}

/// Who may do what with a directory, for comments on its permissions.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// The user whom everybody trusts.
const ROOT: u32 = 0;

/// Makes a directory and those above it that are not there, for their owner alone.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Whether a file is still the one of its name.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Makes what is not there of a cache directory, and `root` in it.
///
/// # Errors
/// [`CacheError::Io`]; [`CacheError::Unsafe`] for a directory that others than this process's user may change.
pub(crate) fn open(directory: &Path, root: &Path) -> Result<(), CacheError> {
    let made = |path: &Path, is_outermost| {
        make(path).map_err(|error| CacheError::io("make", path, error))?;
        check(path, is_outermost)
    };
    made(directory, true)?;
    made(root, false)?;
    INNER
        .iter()
        .try_for_each(|inner| made(&root.join(inner), false))
}

/// The same for a part of a cache directory: makes its directories, the outer one first, and `root` in the last.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_part(directories: &[&Path], root: &Path) -> Result<(), CacheError> {
    let made = |path: &Path| {
        make(path).map_err(|error| CacheError::io("make", path, error))?;
        check(path, false)
    };
    directories.iter().try_for_each(|path| made(path))?;
    made(root)?;
    INNER.iter().try_for_each(|inner| made(&root.join(inner)))
}

fn check(path: &Path, is_outermost: bool) -> Result<(), CacheError> {
    let metadata = fs::metadata(path).map_err(|error| CacheError::io("read", path, error))?;
    let facts = Facts {
        owner: metadata.uid(),
        mode: metadata.mode() & 0o7777,
        user: geteuid().as_raw(),
        is_outermost,
    };
    let objection = facts.objection(path);
    objection.map_or(Ok(()), |why| Err(CacheError::not_safe(path, why)))
}

/// What decides whether a directory may be used.
#[derive(Debug, Clone, Copy)]
struct Facts {
    owner: u32,
    mode: u32,
    /// Whom this process runs as.
    user: u32,
    /// The directory that somebody named; otherwise one that a cache made in it.
    is_outermost: bool,
}

impl Facts {
    /// Why not, and what to do.
    fn objection(self, path: &Path) -> Option<String> {
        let Self {
            owner, mode, user, ..
        } = self;
        if owner != user && owner != ROOT {
            let expected = match user {
                ROOT => "root, as which this process runs".to_owned(),
                user => format!("user {user}, as which this process runs, or root"),
            };
            return Some(format!("it belongs to user {owner}, expected {expected}"));
        }
        // What lies in a sticky directory only its owners replace, and all that a cache has there is looked at as well.
        if self.is_outermost && mode & STICKY != 0 {
            return None;
        }
        // A directory of root's that a group may write, such as a volume, is how root lets this user in.
        let is_shared_by_root = self.is_outermost && owner != user;
        let (who, right) = if mode & OTHERS_WRITE != 0 {
            ("everybody", "go-w")
        } else if mode & GROUP_WRITES != 0 && !is_shared_by_root {
            ("a group", "g-w")
        } else {
            return None;
        };
        Some(format!(
            "{who} may write it (mode {mode:o}), expected its owner alone; `chmod {right} {}` mends that",
            path.display()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_change_a_cache() {
        let belongs =
            "it belongs to user 7, expected user 1000, as which this process runs, or root";
        let roots = "it belongs to user 7, expected root, as which this process runs";
        let everybody = "everybody may write it (mode 777), expected its owner alone; `chmod go-w /c` mends that";
        let group =
            "a group may write it (mode 775), expected its owner alone; `chmod g-w /c` mends that";
        // User, owner, mode; what is said of the directory that was named, and of one inside.
        for (user, owner, mode, named, inside) in [
            (1000, 1000, 0o700, "", ""),
            // To be read is no danger.
            (1000, 1000, 0o755, "", ""),
            (1000, 1000, 0o775, group, group),
            (1000, 1000, 0o777, everybody, everybody),
            (1000, 7, 0o700, belongs, belongs),
            (1000, 7, 0o1777, belongs, belongs),
            // Made by root for this user: what else would it be for?
            (1000, 0, 0o755, "", ""),
            (1000, 0, 0o775, "", group),
            (1000, 0, 0o777, everybody, everybody),
            // As root nobody else is to be trusted, not even who gave a group the right.
            (0, 0, 0o700, "", ""),
            (0, 0, 0o775, group, group),
            (0, 7, 0o700, roots, roots),
        ] {
            let of = |is_outermost| {
                let facts = Facts {
                    owner,
                    mode,
                    user,
                    is_outermost,
                };
                facts.objection(Path::new("/c")).unwrap_or_default()
            };
            assert_eq!(of(true), named, "{user} {owner} {mode:o}");
            assert_eq!(of(false), inside, "{user} {owner} {mode:o}");
        }
    }

    #[test]
    fn a_sticky_directory_is_as_safe_as_what_is_in_it() {
        for (owner, user) in [(0, 1000), (0, 0), (1000, 1000)] {
            let facts = Facts {
                owner,
                mode: 0o1777,
                user,
                is_outermost: true,
            };
            assert_eq!(facts.objection(Path::new("/tmp")), None);
            let inside = Facts {
                is_outermost: false,
                ..facts
            };
            assert!(inside.objection(Path::new("/tmp/v1")).is_some());
        }
    }
}
