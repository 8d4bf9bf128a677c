//! Creates a cache directory, and checks whether an existing one is safe.

use std::{
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

use rustix::process::geteuid;

use crate::CacheError;

/// The subdirectories of a layout.
const INNER: [&str; 6] = ["models", "tensors", "stamps", "making", "failures", "tmp"];

/// Whether all subdirectories exist.
pub(crate) fn is_whole(root: &Path) -> bool {
    INNER.iter().all(|inner| root.join(inner).is_dir())
}

/// Permission bits of a directory.
const GROUP_WRITES: u32 = 0o020;
const OTHERS_WRITE: u32 = 0o002;
const STICKY: u32 = 0o1000;

/// The user that everybody trusts.
const ROOT: u32 = 0;

/// Creates a directory and its missing parents, for their owner alone.
pub(crate) fn make(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Whether a file still has its name.
pub(crate) fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let own = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (own.dev(), own.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Creates what is missing of a cache directory, and `root` in it.
///
/// # Errors
/// [`CacheError::Io`]; [`CacheError::Unsafe`] for a directory that other users may change.
pub(crate) fn open(directory: &Path, root: &Path) -> Result<(), CacheError> {
    make_checked(directory, true)?;
    make_layout(root)
}

/// The same for a tenant's part: creates its directories, the outer one first, and `root` in the last.
///
/// # Errors
/// As [`open`].
pub(crate) fn open_part(directories: &[&Path], root: &Path) -> Result<(), CacheError> {
    for directory in directories {
        make_checked(directory, false)?;
    }
    make_layout(root)
}

/// Creates `root` and its subdirectories.
fn make_layout(root: &Path) -> Result<(), CacheError> {
    make_checked(root, false)?;
    INNER
        .iter()
        .try_for_each(|inner| make_checked(&root.join(inner), false))
}

fn make_checked(path: &Path, is_outermost: bool) -> Result<(), CacheError> {
    make(path).map_err(|error| CacheError::io("make", path, error))?;
    check(path, is_outermost)
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

/// What decides whether a directory is safe.
#[derive(Debug, Clone, Copy)]
struct Facts {
    owner: u32,
    mode: u32,
    /// The user that this process runs as.
    user: u32,
    /// Whether this is the configured directory; otherwise it is one that a cache made in there.
    is_outermost: bool,
}

impl Facts {
    /// Why the directory is not safe, and how to change that.
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
        // In a sticky directory only the owner of an entry can replace it, and all entries of a cache are checked as
        // well.
        if self.is_outermost && mode & STICKY != 0 {
            return None;
        }
        // With a directory that a group may write, such as a volume, root gives this user access.
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
    fn a_directory_that_other_users_may_change_is_unsafe() {
        let belongs =
            "it belongs to user 7, expected user 1000, as which this process runs, or root";
        let roots = "it belongs to user 7, expected root, as which this process runs";
        let everybody = "everybody may write it (mode 777), expected its owner alone; `chmod go-w /c` mends that";
        let group =
            "a group may write it (mode 775), expected its owner alone; `chmod g-w /c` mends that";
        // User, owner, mode; the objection to the configured directory, and to one inside it.
        for (user, owner, mode, named, inside) in [
            (1000, 1000, 0o700, "", ""),
            // Reading does no harm.
            (1000, 1000, 0o755, "", ""),
            (1000, 1000, 0o775, group, group),
            (1000, 1000, 0o777, everybody, everybody),
            (1000, 7, 0o700, belongs, belongs),
            (1000, 7, 0o1777, belongs, belongs),
            // Root made it for this user.
            (1000, 0, 0o755, "", ""),
            (1000, 0, 0o775, "", group),
            (1000, 0, 0o777, everybody, everybody),
            // Root trusts no other user, not even a group.
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
    fn a_sticky_directory_is_as_safe_as_its_entries() {
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
