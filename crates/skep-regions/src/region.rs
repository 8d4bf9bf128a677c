//! A registered region, and spans of it that are read and written.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::unix::fs::FileExt,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use skep_tensor::AlignedBuffer;

use crate::{RegionError, key};

/// A region: a range of a client's object. It keeps the object open, also after it is unregistered, until the last
/// request that uses it ends.
#[derive(Debug)]
pub(crate) struct ClientRegion {
    pub(crate) name: String,
    pub(crate) key: String,
    /// Where the region begins in the object, in bytes.
    pub(crate) offset: u64,
    /// Its size in bytes; `offset + byte_size` does not overflow.
    pub(crate) byte_size: u64,
    object: File,
}

impl ClientRegion {
    /// Opens the object and checks the range against it.
    pub(crate) fn open(
        directory: &Path,
        name: &str,
        key: &str,
        offset: u64,
        byte_size: u64,
    ) -> Result<Self, RegionError> {
        let invalid = |why: String| RegionError::Arguments {
            name: name.to_owned(),
            why,
        };
        let page_bytes = rustix::param::page_size() as u64;
        if !offset.is_multiple_of(page_bytes) {
            return Err(invalid(format!(
                "offset {offset} is not a multiple of the page size, {page_bytes} bytes"
            )));
        }
        if byte_size == 0 {
            return Err(invalid("byte size is 0, expected at least 1".to_owned()));
        }
        let object = key::open(directory, key)?;
        let object_bytes = length(&object, name)?;
        let end = offset.checked_add(byte_size);
        if end.is_none_or(|end| end > object_bytes) {
            return Err(invalid(format!(
                "offset {offset} and byte size {byte_size} exceed the object, which has {object_bytes} bytes"
            )));
        }
        Ok(Self {
            name: name.to_owned(),
            key: key.to_owned(),
            offset,
            byte_size,
            object,
        })
    }

    /// A span of the region, from `offset` within it.
    pub(crate) fn span(
        self: &Arc<Self>,
        offset: u64,
        byte_size: u64,
    ) -> Result<RegionSpan, RegionError> {
        if offset > self.byte_size {
            return Err(RegionError::Offset {
                name: self.name.clone(),
                offset,
                region_bytes: self.byte_size,
            });
        }
        let fits = byte_size <= self.byte_size - offset;
        match usize::try_from(byte_size) {
            Ok(length) if fits => Ok(RegionSpan {
                region: Arc::clone(self),
                offset,
                length,
            }),
            _ => Err(RegionError::Size {
                name: self.name.clone(),
                offset,
                byte_size,
                region_bytes: self.byte_size,
            }),
        }
    }
}

/// The object's length in bytes now.
fn length(object: &File, name: &str) -> Result<u64, RegionError> {
    let metadata = object.metadata();
    metadata
        .map(|metadata| metadata.len())
        .map_err(|error| access(name, "read", &error))
}

fn access(name: &str, action: &'static str, error: &io::Error) -> RegionError {
    RegionError::Access {
        name: name.to_owned(),
        action,
        kind: error.kind(),
    }
}

/// A place of a tensor in a region. It keeps the region's object open.
#[derive(Debug, Clone)]
pub struct RegionSpan {
    region: Arc<ClientRegion>,
    /// Within the region, in bytes.
    offset: u64,
    length: usize,
}

impl RegionSpan {
    /// The region's name.
    #[must_use]
    pub fn region(&self) -> &str {
        &self.region.name
    }

    /// Where it begins in the region, in bytes.
    #[must_use]
    pub const fn offset(&self) -> u64 {
        self.offset
    }

    /// Its size in bytes.
    #[must_use]
    pub const fn byte_size(&self) -> usize {
        self.length
    }

    /// A private copy of its bytes. The client may write to them meanwhile; the copy then has some old and some new
    /// ones.
    ///
    /// # Errors
    /// [`RegionError::Shortened`], [`RegionError::Access`], [`RegionError::NoMemory`].
    pub fn read(&self) -> Result<Bytes, RegionError> {
        // Before the allocation, whose size the client chose.
        let start = self.start(self.length)?;
        let no_memory = |_| RegionError::NoMemory {
            name: self.region.name.clone(),
            bytes: self.length,
        };
        let mut copy = AlignedBuffer::try_zeroed(self.length).map_err(no_memory)?;
        let read = self.region.object.read_exact_at(&mut copy, start);
        read.map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => match self.start(self.length) {
                // Shortened for a moment only.
                Ok(_) => access(&self.region.name, "read", &error),
                Err(shortened) => shortened,
            },
            _ => access(&self.region.name, "read", &error),
        })?;
        Ok(copy.freeze())
    }

    /// Writes `data` to its beginning.
    ///
    /// # Errors
    /// [`RegionError::Shortened`], [`RegionError::Access`], and [`RegionError::Size`] if it is smaller.
    pub fn write(&self, data: &[u8]) -> Result<(), RegionError> {
        if data.len() > self.length {
            return Err(RegionError::Size {
                name: self.region.name.clone(),
                offset: self.offset,
                byte_size: data.len() as u64,
                region_bytes: self.region.byte_size,
            });
        }
        let start = self.start(data.len())?;
        let written = self.region.object.write_all_at(data, start);
        written.map_err(|error| access(&self.region.name, "write", &error))
    }

    /// Where it begins in the object, if so many bytes are there now.
    fn start(&self, bytes: usize) -> Result<u64, RegionError> {
        let region = &*self.region;
        let got = length(&region.object, &region.name)?;
        // No overflow: within the region, whose end was computed when it was registered.
        let start = region.offset + self.offset;
        let expected = start + bytes as u64;
        if expected > got {
            return Err(RegionError::Shortened {
                name: region.name.clone(),
                got,
                expected,
            });
        }
        Ok(start)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    const PAGE: u64 = 4096;

    struct Object {
        directory: tempfile::TempDir,
    }

    impl Object {
        /// An object whose byte `i` is `i % 251`.
        fn new(bytes: u64) -> Self {
            let directory = tempfile::tempdir().expect("directory");
            let content: Vec<u8> = (0..bytes).map(|i| (i % 251) as u8).collect();
            fs::write(directory.path().join("o"), content).expect("file");
            Self { directory }
        }

        fn region(&self, offset: u64, byte_size: u64) -> Result<Arc<ClientRegion>, RegionError> {
            ClientRegion::open(self.directory.path(), "r", "o", offset, byte_size).map(Arc::new)
        }

        fn set_len(&self, bytes: u64) {
            let file = File::options()
                .write(true)
                .open(self.directory.path().join("o"));
            file.and_then(|file| file.set_len(bytes)).expect("length");
        }
    }

    #[test]
    fn a_span_is_read_from_the_region_s_start() {
        let object = Object::new(3 * PAGE);
        let region = object.region(PAGE, PAGE + 10).expect("region");
        let bytes = region.span(5, 3).expect("span").read().expect("there");
        let at = |i: u64| ((PAGE + i) % 251) as u8;
        assert_eq!(bytes, [at(5), at(6), at(7)].as_slice());
        region
            .span(PAGE + 6, 4)
            .expect("span")
            .write(b"abcd")
            .expect("there");
        let all = fs::read(object.directory.path().join("o")).expect("file");
        assert_eq!(all.len() as u64, 3 * PAGE);
        let end = usize::try_from(2 * PAGE + 10).expect("small");
        assert_eq!(&all[end - 4..end], b"abcd");
        assert_eq!(all[end], (end as u64 % 251) as u8);
        assert!(region.span(0, 2).expect("span").write(b"abc").is_err());
        assert!(
            region
                .span(PAGE + 10, 0)
                .expect("empty")
                .read()
                .expect("there")
                .is_empty()
        );
    }

    #[test]
    fn a_registration_that_does_not_fit_is_refused() {
        let object = Object::new(2 * PAGE);
        for (offset, byte_size) in [
            (0, 2 * PAGE + 1),
            (PAGE, PAGE + 1),
            (2 * PAGE, 1),
            (3 * PAGE, 1),
            (0, 0),
            (1, 1),
            (PAGE / 2, 1),
            (0, u64::MAX),
            (u64::MAX - PAGE + 1, PAGE),
            (u64::MAX - PAGE + 1, u64::MAX),
        ] {
            let error = object.region(offset, byte_size).expect_err("refused");
            let text = error.to_string();
            let start = "failed to register shared memory region 'r': invalid args";
            assert!(text.starts_with(start), "{offset} {byte_size}: {text}");
        }
        assert!(object.region(0, 2 * PAGE).is_ok());
        assert!(object.region(PAGE, PAGE).is_ok());
    }

    #[test]
    fn a_shortened_object_is_an_error_at_each_use() {
        let object = Object::new(2 * PAGE);
        let region = object.region(0, 2 * PAGE).expect("region");
        let span = region.span(PAGE, 8).expect("span");
        for bytes in [PAGE + 7, PAGE, 1, 0] {
            object.set_len(bytes);
            let shortened = Err(RegionError::Shortened {
                name: "r".to_owned(),
                got: bytes,
                expected: PAGE + 8,
            });
            assert_eq!(span.read().map(drop), shortened);
            assert_eq!(span.write(&[0; 8]), shortened);
            let now = fs::metadata(object.directory.path().join("o")).expect("file");
            assert_eq!(now.len(), bytes, "nothing lengthens it");
        }
        object.set_len(PAGE + 8);
        assert_eq!(span.read().expect("there"), [0; 8].as_slice());
    }

    proptest! {
        /// A span either lies within its region or is refused, for any numbers.
        #[test]
        fn spans_lie_within_their_region(
            region_bytes in 1..=2 * PAGE,
            offset in prop_oneof![0..=3 * PAGE, any::<u64>()],
            byte_size in prop_oneof![0..=3 * PAGE, any::<u64>()],
        ) {
            let object = Object::new(2 * PAGE);
            let region = object.region(0, region_bytes).expect("region");
            let fits = u128::from(offset) + u128::from(byte_size) <= u128::from(region_bytes);
            match region.span(offset, byte_size) {
                Ok(span) => {
                    prop_assert!(fits);
                    prop_assert_eq!(span.read().expect("there").len() as u64, byte_size);
                }
                Err(error) => {
                    prop_assert!(!fits);
                    let text = error.to_string();
                    let expected = if offset > region_bytes { "Invalid offset for" } else { "Invalid offset + byte size for" };
                    prop_assert!(text.starts_with(expected), "{}", text);
                }
            }
        }
    }
}
