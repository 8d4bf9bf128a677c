//! The table of registered regions.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::{RegionError, RegionSpan, region::ClientRegion};

/// The most regions at a time. Each takes a descriptor of the server, which connections need as well.
pub const MAX_REGIONS: usize = 1024;

/// The longest name of a region, in bytes.
pub const MAX_NAME_BYTES: usize = 1024;

/// Where `shm_open` keeps objects.
const DIRECTORY: &str = "/dev/shm";

/// The regions that clients have registered. All clients share them, as on Triton.
#[derive(Debug)]
pub struct ClientRegions {
    directory: PathBuf,
    /// At most [`MAX_REGIONS`].
    table: Mutex<BTreeMap<String, Arc<ClientRegion>>>,
}

/// What was registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionStatus {
    /// The region's name.
    pub name: String,
    /// The object's key.
    pub key: String,
    /// Where the region begins in the object, in bytes.
    pub offset: u64,
    /// The region's size in bytes.
    pub byte_size: u64,
}

impl Default for ClientRegions {
    fn default() -> Self {
        Self::within(DIRECTORY.into())
    }
}

impl ClientRegions {
    /// An empty table of regions of objects in a directory.
    fn within(directory: PathBuf) -> Self {
        Self {
            directory,
            table: Mutex::default(),
        }
    }

    /// Registers `byte_size` bytes of the object `key`, from `offset` on, as region `name`.
    ///
    /// # Errors
    /// [`RegionError::Registered`], [`RegionError::Full`], [`RegionError::Unopened`], [`RegionError::Arguments`].
    pub fn register(
        &self,
        name: &str,
        key: &str,
        offset: u64,
        byte_size: u64,
    ) -> Result<(), RegionError> {
        if name.is_empty() || name.len() > MAX_NAME_BYTES {
            return Err(RegionError::Arguments {
                name: name.chars().take(MAX_NAME_BYTES).collect(),
                why: format!(
                    "the name has {} bytes, expected 1 to {MAX_NAME_BYTES}",
                    name.len()
                ),
            });
        }
        let mut table = self.table();
        if table.contains_key(name) {
            return Err(RegionError::Registered {
                name: name.to_owned(),
            });
        }
        if table.len() >= MAX_REGIONS {
            return Err(RegionError::Full {
                name: name.to_owned(),
                limit: MAX_REGIONS,
            });
        }
        // Under the lock: opening waits for nothing.
        let region = ClientRegion::open(&self.directory, name, key, offset, byte_size)?;
        table.insert(name.to_owned(), Arc::new(region));
        Ok(())
    }

    /// Forgets a region, if there is one of this name. Requests that use it finish with it.
    pub fn unregister(&self, name: &str) {
        let removed = self.table().remove(name);
        // Closed outside of the lock: the last use of an unlinked object frees its memory.
        drop(removed);
    }

    /// Forgets all regions.
    pub fn unregister_all(&self) {
        let removed = std::mem::take(&mut *self.table());
        drop(removed);
    }

    /// All regions, by name.
    #[must_use]
    pub fn all(&self) -> Vec<RegionStatus> {
        self.table().values().map(|region| status(region)).collect()
    }

    /// One region.
    ///
    /// # Errors
    /// [`RegionError::UnknownStatus`].
    pub fn status(&self, name: &str) -> Result<RegionStatus, RegionError> {
        let table = self.table();
        let region = table.get(name).ok_or_else(|| RegionError::UnknownStatus {
            name: name.to_owned(),
        })?;
        Ok(status(region))
    }

    /// `byte_size` bytes of a region, from `offset` within it, for a tensor.
    ///
    /// # Errors
    /// [`RegionError::Unknown`], [`RegionError::Offset`], [`RegionError::Size`].
    pub fn span(&self, name: &str, offset: u64, byte_size: u64) -> Result<RegionSpan, RegionError> {
        let region = self.table().get(name).cloned();
        let region = region.ok_or_else(|| RegionError::Unknown {
            name: name.to_owned(),
        })?;
        region.span(offset, byte_size)
    }

    fn table(&self) -> MutexGuard<'_, BTreeMap<String, Arc<ClientRegion>>> {
        // Each change is one call on the map.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn status(region: &ClientRegion) -> RegionStatus {
    RegionStatus {
        name: region.name.clone(),
        key: region.key.clone(),
        offset: region.offset,
        byte_size: region.byte_size,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::RegionErrorKind;

    fn regions() -> (tempfile::TempDir, ClientRegions) {
        let directory = tempfile::tempdir().expect("directory");
        fs::write(directory.path().join("o"), [7; 64]).expect("file");
        let regions = ClientRegions::within(directory.path().to_owned());
        (directory, regions)
    }

    #[test]
    fn regions_come_and_go_by_name() {
        let (_directory, regions) = regions();
        regions.register("b", "/o", 0, 64).expect("registered");
        regions.register("a", "o", 0, 32).expect("registered");
        let error = regions.register("a", "o", 0, 64).expect_err("twice");
        assert_eq!(
            (error.kind(), error.to_string()),
            (
                RegionErrorKind::AlreadyExists,
                "shared memory region 'a' already in manager".to_owned()
            )
        );
        let names: Vec<String> = regions
            .all()
            .into_iter()
            .map(|region| region.name)
            .collect();
        assert_eq!(names, ["a", "b"]);
        let b = regions.status("b").expect("there");
        assert_eq!((&*b.key, b.offset, b.byte_size), ("/o", 0, 64));
        regions.unregister("a");
        regions.unregister("never");
        assert_eq!(
            regions.status("a").map_err(|error| error.to_string()),
            Err("Unable to find system shared memory region: 'a'".to_owned())
        );
        regions.unregister_all();
        assert!(regions.all().is_empty());
        let error = regions.span("b", 0, 1).map(drop).expect_err("unknown");
        assert_eq!(
            (error.kind(), error.to_string()),
            (
                RegionErrorKind::NotFound,
                "Unable to find shared memory region: 'b'".to_owned()
            )
        );
    }

    #[test]
    fn a_span_outlives_its_region_and_the_object_s_name() {
        let (directory, regions) = regions();
        regions.register("a", "o", 0, 64).expect("registered");
        let span = regions.span("a", 60, 4).expect("span");
        regions.unregister("a");
        fs::remove_file(directory.path().join("o")).expect("removed");
        assert_eq!(span.read().expect("there"), [7; 4].as_slice());
        span.write(&[1]).expect("there");
        assert_eq!(span.read().expect("there"), [1, 7, 7, 7].as_slice());
    }

    #[test]
    fn names_and_their_number_are_bounded() {
        let (_directory, regions) = regions();
        for name in ["", &"n".repeat(MAX_NAME_BYTES + 1)] {
            let error = regions.register(name, "o", 0, 64).expect_err("refused");
            assert_eq!(error.kind(), RegionErrorKind::Invalid);
        }
        for number in 0..MAX_REGIONS {
            regions
                .register(&number.to_string(), "o", 0, 64)
                .expect("registered");
        }
        let error = regions.register("more", "o", 0, 64).expect_err("full");
        assert_eq!(error.kind(), RegionErrorKind::Full);
        regions.unregister("5");
        regions.register("more", "o", 0, 64).expect("registered");
    }
}
