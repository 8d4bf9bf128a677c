//! Files that are looked at now and then, and read again when they have changed.

use std::{fs, os::unix::fs::MetadataExt, path::Path, time::SystemTime};

/// What the system says of a file, whatever links lead to it. A change of its content changes this, as does another file in
/// its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
    changed: (i64, i64),
}

impl Stamp {
    /// `None` where there is no file, or nothing is said of it.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: metadata.modified().ok(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Files that belong together.
#[derive(Debug)]
pub(super) struct Watched {
    /// As they were when they were read.
    read: Vec<Option<Stamp>>,
    /// As they were at the last look.
    seen: Vec<Option<Stamp>>,
}

impl Watched {
    pub(super) fn new(read: Vec<Option<Stamp>>) -> Self {
        Self {
            seen: read.clone(),
            read,
        }
    }

    /// They are read now.
    pub(super) fn settled(&mut self, now: Vec<Option<Stamp>>) {
        *self = Self::new(now);
    }

    /// Whether they are to be read again: they are not as they were read, and as they were at the last look. Between two
    /// looks somebody may have written one file of two.
    pub(super) fn look(&mut self, now: Vec<Option<Stamp>>) -> bool {
        let is_due = now != self.read && now == self.seen;
        if is_due {
            self.read.clone_from(&now);
        }
        self.seen = now;
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_due_once_when_it_is_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let [one, two, link] = ["one", "two", "link"].map(|name| directory.path().join(name));
        for path in [&one, &two] {
            fs::write(path, "a").expect("written");
        }
        std::os::unix::fs::symlink(&one, &link).expect("a link");
        let stamps = || vec![Stamp::of(&link), Stamp::of(&two)];
        let mut watched = Watched::new(stamps());
        assert!(!watched.look(stamps()), "nothing has changed");
        fs::write(&one, "ab").expect("written");
        assert!(!watched.look(stamps()), "the second file may follow");
        fs::write(&two, "abc").expect("written");
        assert!(!watched.look(stamps()));
        assert!(watched.look(stamps()));
        assert!(!watched.look(stamps()), "once");
        fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink(&two, &link).expect("a link");
        assert!(!watched.look(stamps()));
        assert!(watched.look(stamps()), "another file behind the same name");
        fs::remove_file(&two).expect("removed");
        assert!(!watched.look(stamps()));
        assert!(watched.look(stamps()), "a file that is gone");
        fs::write(&two, "d").expect("written");
        watched.settled(stamps());
        assert!(!watched.look(stamps()) && !watched.look(stamps()));
    }
}
