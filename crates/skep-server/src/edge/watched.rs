//! When files that are checked now and then have to be read again.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant, SystemTime},
};

/// How long after a failure unchanged files are tried again. Some failures are temporary: too many open files, an
/// unreachable network file system.
const AGAIN: Duration = Duration::from_secs(60);

/// A file's identity and times, links resolved. It changes with the file's content, and when another file takes its
/// place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileStamp {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: Option<SystemTime>,
    changed: (i64, i64),
}

impl FileStamp {
    /// `None` if the file does not exist or cannot be examined.
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
pub(super) struct WatchedFiles {
    /// Their stamps when they were last read successfully.
    read: Vec<Option<FileStamp>>,
    /// Their stamps at the last look.
    seen: Vec<Option<FileStamp>>,
    /// The last attempt to read them, if it failed.
    failed: Option<FailedRead>,
}

#[derive(Debug)]
struct FailedRead {
    stamps: Vec<Option<FileStamp>>,
    reason: String,
    /// When to try again although the files are unchanged: the failure may have been temporary.
    again: Instant,
}

impl WatchedFiles {
    pub(super) fn new(read: Vec<Option<FileStamp>>) -> Self {
        Self {
            seen: read.clone(),
            read,
            failed: None,
        }
    }

    /// The files have been read successfully.
    pub(super) fn settled(&mut self, now: Vec<Option<FileStamp>>) {
        *self = Self::new(now);
    }

    /// The files could not be read. Returns whether this is news: the files or the reason have changed since the last
    /// failure.
    pub(super) fn failed(
        &mut self,
        now: Vec<Option<FileStamp>>,
        reason: String,
        at: Instant,
    ) -> bool {
        let is_news =
            (self.failed.as_ref()).is_none_or(|last| last.stamps != now || last.reason != reason);
        self.failed = Some(FailedRead {
            stamps: now,
            reason,
            again: at + AGAIN,
        });
        is_news
    }

    /// Whether the files have to be read: they differ from what was read, and are unchanged since the last look, so
    /// that a half-finished update of two files is not read. Files that could not be read are due again after a while.
    pub(super) fn look(&mut self, now: &[Option<FileStamp>], at: Instant) -> bool {
        let is_steady = now == self.seen;
        self.seen = now.to_vec();
        if now == self.read {
            self.failed = None;
            return false;
        }
        let waits = |failed: &FailedRead| failed.stamps == now && at < failed.again;
        is_steady && !self.failed.as_ref().is_some_and(waits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_read_once_it_is_complete() {
        let directory = tempfile::tempdir().expect("a directory");
        let [one, two, link] = ["one", "two", "link"].map(|name| directory.path().join(name));
        for path in [&one, &two] {
            fs::write(path, "a").expect("written");
        }
        std::os::unix::fs::symlink(&one, &link).expect("a link");
        let stamps = || vec![FileStamp::of(&link), FileStamp::of(&two)];
        let at = Instant::now();
        let mut watched = WatchedFiles::new(stamps());
        let look = |watched: &mut WatchedFiles| watched.look(&stamps(), at);
        assert!(!look(&mut watched), "nothing has changed");
        fs::write(&one, "ab").expect("written");
        assert!(!look(&mut watched), "the second file may follow");
        fs::write(&two, "abc").expect("written");
        assert!(!look(&mut watched));
        assert!(look(&mut watched));
        assert!(look(&mut watched), "nobody has read them");
        watched.settled(stamps());
        assert!(!look(&mut watched), "they are read");
        fs::remove_file(&link).expect("removed");
        std::os::unix::fs::symlink(&two, &link).expect("a link");
        assert!(!look(&mut watched));
        assert!(look(&mut watched), "another file behind the same name");
        fs::remove_file(&two).expect("removed");
        assert!(!look(&mut watched));
        assert!(look(&mut watched), "a file that is gone");
        fs::write(&two, "d").expect("written");
        watched.settled(stamps());
        assert!(!look(&mut watched) && !look(&mut watched));
    }

    #[test]
    fn files_that_could_not_be_read_are_tried_again_later() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("file");
        fs::write(&path, "a").expect("written");
        let stamps = || vec![FileStamp::of(&path)];
        let at = Instant::now();
        let mut watched = WatchedFiles::new(stamps());
        fs::write(&path, "ab").expect("written");
        assert!(!watched.look(&stamps(), at));
        assert!(watched.look(&stamps(), at));
        let too_many = || "too many open files".to_owned();
        assert!(watched.failed(stamps(), too_many(), at));
        assert!(!watched.look(&stamps(), at + AGAIN / 2), "not at once");
        assert!(watched.look(&stamps(), at + AGAIN));
        assert!(
            !watched.failed(stamps(), too_many(), at + AGAIN),
            "said before"
        );
        assert!(watched.failed(stamps(), "stale".to_owned(), at + AGAIN));
        assert!(!watched.look(&stamps(), at + AGAIN));
        fs::write(&path, "abc").expect("written");
        assert!(!watched.look(&stamps(), at + AGAIN));
        assert!(
            watched.look(&stamps(), at + AGAIN),
            "a change waits for nothing"
        );
        assert!(watched.failed(stamps(), too_many(), at + AGAIN));
        watched.settled(stamps());
        assert!(!watched.look(&stamps(), at + 9 * AGAIN));
    }
}
