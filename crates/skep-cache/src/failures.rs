//! Deaths of processes while they made a form, which is then not tried again at once.
//!
//! ```text
//! failures/<key>:  <seconds since 1970> <how many in a row> <what happened>
//! ```

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    time::{Duration, SystemTime},
};

use skep_host::read_text;

use crate::{Cache, CacheError, FormKey};

/// Two numbers and a text.
const MAX_BYTES: u64 = 4096;

/// The wait after the first death. It doubles with each further one.
const FIRST_WAIT: Duration = Duration::from_secs(3600);

/// The longest wait: a day.
const LONGEST_WAIT: Duration = Duration::from_secs(24 * 3600);

/// The longest text about a death, in bytes.
const MAX_TEXT_BYTES: usize = 1024;

/// Deaths of processes while they made one form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deaths {
    /// The number in a row.
    pub count: u32,
    /// The time of the last one.
    pub last: SystemTime,
    /// How the last one happened.
    pub why: String,
}

impl Deaths {
    /// How long to wait before the next attempt; `None` if it may start now.
    #[must_use]
    pub fn wait(&self, now: SystemTime) -> Option<Duration> {
        let doublings = self.count.saturating_sub(1).min(8);
        let wait = (FIRST_WAIT * (1 << doublings)).min(LONGEST_WAIT);
        // A clock that was set back does not make the wait longer.
        let since = now.duration_since(self.last).unwrap_or_default();
        wait.checked_sub(since).filter(|left| !left.is_zero())
    }

    fn decode(text: &str) -> Option<Self> {
        let (seconds, rest) = text.trim_end().split_once(' ')?;
        let (count, why) = rest.split_once(' ')?;
        let seconds = Duration::from_secs(seconds.parse().ok()?);
        Some(Self {
            count: count.parse().ok()?,
            last: SystemTime::UNIX_EPOCH.checked_add(seconds)?,
            why: why.to_owned(),
        })
    }
}

impl Cache {
    /// Deaths while the form of this key was made, unless it was made since.
    #[must_use]
    pub fn deaths(&self, key: &FormKey) -> Option<Deaths> {
        let text = read_text(&self.failure_path(key), MAX_BYTES).ok()?;
        Deaths::decode(&text)
    }

    /// Records that a process died at `now` while it made the form of this key.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn note_death(&self, key: &FormKey, now: SystemTime, why: &str) -> Result<(), CacheError> {
        let path = self.failure_path(key);
        let count = self.deaths(key).map_or(0, |deaths| deaths.count);
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH);
        let seconds = seconds.unwrap_or_default().as_secs();
        let why = why.replace(char::is_control, " ");
        let why = &why[..why.floor_char_boundary(MAX_TEXT_BYTES)];
        let text = format!("{seconds} {} {why}\n", count.saturating_add(1));
        write_atomically(&self.path("tmp"), &path, &text)
            .map_err(|error| CacheError::io("write", &path, error))
    }

    /// Forgets the deaths of a key, because its form exists.
    pub(crate) fn forget_deaths(&self, key: &FormKey) {
        let _ = fs::remove_file(self.failure_path(key));
    }

    fn failure_path(&self, key: &FormKey) -> std::path::PathBuf {
        self.path("failures").join(key.to_string())
    }
}

fn write_atomically(tmp: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = tempfile::NamedTempFile::new_in(tmp)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

/// Removes records that no longer cause a wait.
pub(crate) fn forget_old(directory: &Path, now: SystemTime) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let text = read_text(&path, MAX_BYTES).unwrap_or_default();
        let is_old = Deaths::decode(&text).is_none_or(|deaths| {
            let age = now.duration_since(deaths.last).unwrap_or_default();
            // Twice the longest wait, so that another death soon after a wait still counts as in a row.
            age > 2 * LONGEST_WAIT
        });
        if is_old {
            let _ = fs::remove_file(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_with_each_death_up_to_a_day() {
        let root = tempfile::tempdir().expect("a directory");
        let cache = Cache::open(root.path(), 1 << 20).expect("a cache");
        let key = FormKey::of(&[b"a"]);
        let start = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(cache.deaths(&key), None);
        for (count, hours) in [(1, 1), (2, 2), (3, 4), (4, 8), (5, 16), (6, 24), (7, 24)] {
            cache
                .note_death(&key, start, "by signal\n9")
                .expect("noted");
            let deaths = cache.deaths(&key).expect("there");
            assert_eq!((deaths.count, &*deaths.why), (count, "by signal 9"));
            assert_eq!(deaths.last, start);
            let wait = Duration::from_secs(hours * 3600);
            assert_eq!(deaths.wait(start), Some(wait));
            assert_eq!(deaths.wait(after(hours * 3600)), None);
            let before = start - Duration::from_secs(60);
            assert_eq!(deaths.wait(before), Some(wait), "the clock was set back");
        }
        let failures = root.path().join("v1/failures");
        forget_old(&failures, after(47 * 3600)).expect("looked");
        assert!(cache.deaths(&key).is_some());
        forget_old(&failures, after(49 * 3600)).expect("looked");
        assert_eq!(cache.deaths(&key), None);
        fs::write(failures.join("junk"), "nonsense").expect("written");
        forget_old(&failures, start).expect("looked");
        assert!(!failures.join("junk").exists());
    }
}
