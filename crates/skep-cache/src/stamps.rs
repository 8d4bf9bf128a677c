//! File stamps, and digests of model files remembered by them.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use skep_host::{open_file, read_text};

use crate::{CacheError, FileContent, manifest::hex};

/// A file that was modified this recently may change again without a new modification time, so its digest is not
/// remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// Identifies a state of a file: device, inode, size, and the times of the last changes of content and inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct FileFingerprint {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl FileFingerprint {
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let metadata = file.metadata()?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// Whether the last change is old enough that another change would get another time.
    pub(crate) fn is_settled(&self, now: SystemTime) -> bool {
        let now = now.duration_since(SystemTime::UNIX_EPOCH);
        let changed = self.modified.max(self.changed);
        let age = now.ok().and_then(|now| {
            let seconds = u64::try_from(changed.0).ok()?;
            now.checked_sub(Duration::new(seconds, u32::try_from(changed.1).ok()?))
        });
        age.is_some_and(|age| age >= SETTLED)
    }

    /// As one word.
    pub(crate) fn text(&self) -> String {
        let Self {
            device,
            inode,
            bytes,
            modified,
            changed,
        } = self;
        format!(
            "{device}:{inode}:{bytes}:{}.{}:{}.{}",
            modified.0, modified.1, changed.0, changed.1
        )
    }
}

/// The digest of a file; from `directory`, if it has not changed since an earlier call.
pub(crate) fn content(directory: &Path, path: &Path) -> Result<FileContent, CacheError> {
    match look(directory, path)? {
        RememberedFile::Known(content) => Ok(content),
        RememberedFile::UnreadFile(unknown) => unknown.read(directory, path),
    }
}

/// What is known of a file without reading it.
pub(crate) enum RememberedFile {
    /// Its content, from an earlier call.
    Known(FileContent),
    /// It has to be read.
    UnreadFile(UnreadFile),
}

impl RememberedFile {
    pub(crate) const fn bytes(&self) -> u64 {
        match self {
            Self::Known(content) => content.bytes,
            Self::UnreadFile(unknown) => unknown.stamp.bytes,
        }
    }
}

/// A file without a remembered digest for its current state.
pub(crate) struct UnreadFile {
    file: File,
    stamp: FileFingerprint,
    memo: PathBuf,
}

/// Looks up a file's remembered digest.
pub(crate) fn look(directory: &Path, path: &Path) -> Result<RememberedFile, CacheError> {
    let fail = |error| CacheError::io("read", path, error);
    let file = open_file(path).map_err(fail)?;
    let stamp = FileFingerprint::of(&file).map_err(fail)?;
    let absolute = path.canonicalize().map_err(fail)?;
    let name = blake3::hash(absolute.as_os_str().as_bytes()).to_string();
    let memo = directory.join(name);
    if let Some((known, digest)) = read(&memo)
        && known == stamp.text()
    {
        let bytes = stamp.bytes;
        return Ok(RememberedFile::Known(FileContent { digest, bytes }));
    }
    Ok(RememberedFile::UnreadFile(UnreadFile { file, stamp, memo }))
}

impl UnreadFile {
    /// Reads the file.
    fn read(self, directory: &Path, path: &Path) -> Result<FileContent, CacheError> {
        let Self { file, stamp, memo } = self;
        let fail = |error| CacheError::io("read", path, error);
        let mut hasher = blake3::Hasher::new();
        hasher
            .update_reader((&file).take(stamp.bytes))
            .map_err(fail)?;
        let digest = hasher.finalize();
        let is_settled = file
            .metadata()
            .and_then(|metadata| metadata.modified())
            .is_ok_and(|modified| {
                let age = SystemTime::now().duration_since(modified);
                age.is_ok_and(|age| age >= SETTLED)
            });
        if is_settled && FileFingerprint::of(&file).is_ok_and(|after| after == stamp) {
            // Without the record, the file is read again the next time.
            let _ = remember(&memo, directory, &format!("{} {digest}\n", stamp.text()));
        }
        Ok(FileContent {
            digest: *digest.as_bytes(),
            bytes: stamp.bytes,
        })
    }
}

/// A stamp and a digest take some 200 bytes.
const MAX_MEMO_BYTES: u64 = 4096;

/// Reads a record: the stamp of a file, and its digest.
fn read(memo: &Path) -> Option<(String, [u8; 32])> {
    let text = read_text(memo, MAX_MEMO_BYTES).ok()?;
    let (stamp, digest) = text.trim_end().split_once(' ')?;
    Some((stamp.to_owned(), hex(digest)?))
}

/// Removes records of other contents than these.
pub(crate) fn forget_others(directory: &Path, kept: &HashSet<[u8; 32]>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let memo = entry?.path();
        if read(&memo).is_none_or(|(_, digest)| !kept.contains(&digest)) {
            // If a record was just made, its file is read again: no other harm is done.
            let _ = fs::remove_file(memo);
        }
    }
    Ok(())
}

/// Writes a record atomically.
fn remember(memo: &Path, directory: &Path, text: &str) -> io::Result<PathBuf> {
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.persist(memo)?;
    Ok(memo.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aged(path: &Path, text: &str, seconds: u64) {
        fs::write(path, text).expect("written");
        let file = File::options().append(true).open(path).expect("opened");
        let then = SystemTime::now() - Duration::from_secs(seconds);
        file.set_modified(then).expect("set");
    }

    #[test]
    fn a_file_is_read_again_only_when_it_changed() {
        let root = tempfile::tempdir().expect("a directory");
        let (memos, model) = (root.path().join("memos"), root.path().join("model"));
        fs::create_dir(&memos).expect("made");
        let count = || fs::read_dir(&memos).expect("read").count();
        let of = |text: &str| *blake3::hash(text.as_bytes()).as_bytes();

        aged(&model, "one", 0);
        assert_eq!(content(&memos, &model).expect("read").digest, of("one"));
        assert_eq!(count(), 0, "changed a moment ago");

        aged(&model, "one", 60);
        assert_eq!(content(&memos, &model).expect("read").digest, of("one"));
        assert_eq!(count(), 1);

        // A changed record is trusted, which shows that the file is not read.
        let memo = fs::read_dir(&memos)
            .expect("read")
            .next()
            .expect("one")
            .expect("read")
            .path();
        let text = fs::read_to_string(&memo).expect("read");
        let (stamp, _) = text.split_once(' ').expect("two words");
        let other = blake3::Hash::from(of("other"));
        fs::write(&memo, format!("{stamp} {other}\n")).expect("written");
        assert_eq!(content(&memos, &model).expect("read").digest, of("other"));

        aged(&model, "two", 30);
        assert_eq!(content(&memos, &model).expect("read").digest, of("two"));
        fs::write(&memo, "nonsense").expect("written");
        assert_eq!(content(&memos, &model).expect("read").digest, of("two"));
        assert!(content(&memos, &root.path().join("none")).is_err());
    }
}
