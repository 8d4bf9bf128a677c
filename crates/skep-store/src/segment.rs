//! Segments: memory files that one process fills and seals, and that others then only read.
//!
//! ```text
//! offset 0         4096                  12288          16384
//! +----------------+---------------------+--------------+
//! | tensor 0 |pad  | tensor 1        |pad| tensor 2     |   sealed against writing, growing, shrinking, further seals
//! +----------------+---------------------+--------------+
//! ```
#![allow(
    unsafe_code,
    reason = "mappings of memory files: what is read must not be written (invariant 5)"
)]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::OnceLock,
    thread,
    time::Duration,
};

use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::{
    fs::{
        FallocateFlags, MemfdFlags, SealFlags, SeekFrom, fallocate, fcntl_add_seals,
        fcntl_get_seals, fstat, fstatfs, memfd_create, seek,
    },
    io::{Errno, retry_on_intr},
};

use crate::{StoreError, layout::FileIdentity};

/// All seals. The last one makes the others permanent.
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// The kernel refuses to seal (`EBUSY`) while it holds pages itself, for instance to move them, or while a child
/// process between `fork` and `exec` still has its parent's mappings. Neither lasts.
const SEAL_TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// The file system of memory files (`TMPFS_MAGIC`). Those of huge pages count their blocks differently.
const TMPFS: u64 = 0x0102_1994;

/// A memory file that is still being written.
#[derive(Debug)]
pub(crate) struct SegmentDraft {
    file: OwnedFd,
    bytes: MmapMut,
}

impl SegmentDraft {
    /// A zeroed memory file of `size` bytes, which is not zero.
    ///
    /// All pages are allocated now: a page that the kernel has to allocate later, and cannot, is a SIGBUS for its
    /// reader.
    pub(crate) fn new(size: u64) -> Result<Self, StoreError> {
        // Otherwise the kernel would kill processes to find the memory.
        if size > skep_host::memory().total {
            return Err(no_memory(
                size,
                "more than the machine has",
                io::ErrorKind::OutOfMemory,
            ));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file =
            memfd_create("skep-segment", flags).map_err(|e| no_memory(size, "memfd_create", e))?;
        retry_on_intr(|| fallocate(&file, FallocateFlags::empty(), 0, size))
            .map_err(|e| no_memory(size, "fallocate", e))?;
        let length = usize::try_from(size)
            .map_err(|_| no_memory(size, "mmap", io::ErrorKind::OutOfMemory))?;
        // SAFETY: the file is not shared yet, and keeps its size for as long as this mapping lives.
        let bytes = unsafe { MmapOptions::new().len(length).map_mut(file.as_raw_fd()) }
            .map_err(|e| no_memory(size, "mmap", e))?;
        Ok(Self { file, bytes })
    }

    /// The room for a tensor.
    ///
    /// # Errors
    /// [`StoreError::Memory`] if it does not fit.
    pub(crate) fn part(&mut self, offset: u64, length: u64) -> Result<&mut [u8], StoreError> {
        let size = self.bytes.len() as u64;
        let range = usize::try_from(offset)
            .ok()
            .zip(usize::try_from(offset.saturating_add(length)).ok());
        range
            .and_then(|(start, end)| self.bytes.get_mut(start..end))
            .ok_or_else(|| StoreError::Memory {
                bytes: size,
                step: "room for a tensor",
                cause: io::ErrorKind::OutOfMemory.into(),
            })
    }

    /// Seals the file: it cannot be written any more, by any process.
    pub(crate) fn seal(self) -> Result<Segment, StoreError> {
        let Self { file, mut bytes } = self;
        let size = bytes.len() as u64;
        write_reserved(&file, &mut bytes).map_err(|e| no_memory(size, "SEEK_HOLE", e))?;
        // A file that is mapped for writing cannot be sealed against it.
        drop(bytes);
        add_seals(&file).map_err(|e| no_memory(size, "F_ADD_SEALS", e))?;
        Segment::check(file)
    }
}

fn no_memory(bytes: u64, step: &'static str, cause: impl Into<io::Error>) -> StoreError {
    StoreError::Memory {
        bytes,
        step,
        cause: cause.into(),
    }
}

/// Seals a file that is not mapped for writing, as soon as the kernel allows it.
fn add_seals(file: &OwnedFd) -> Result<(), Errno> {
    for _ in 1..SEAL_TRIES {
        match fcntl_add_seals(file, SEALS) {
            Err(Errno::BUSY) => thread::sleep(BETWEEN_TRIES),
            outcome => return outcome,
        }
    }
    fcntl_add_seals(file, SEALS)
}

/// Writes to allocated pages that were never written, such as that of an empty tensor: the kernel reports them as
/// holes.
fn write_reserved(file: &OwnedFd, bytes: &mut [u8]) -> Result<(), Errno> {
    let mut from = 0;
    while from < bytes.len() {
        let hole = seek(file, SeekFrom::Hole(from as u64))?;
        let hole = usize::try_from(hole).map_err(|_| Errno::OVERFLOW)?;
        if let Some(byte) = bytes.get_mut(hole) {
            *byte = 0;
        }
        from = hole.saturating_add(rustix::param::page_size());
    }
    Ok(())
}

/// A sealed memory file. It is mapped at the first access, and unmapped when it is dropped.
#[derive(Debug)]
pub(crate) struct Segment {
    file: OwnedFd,
    size: u64,
    reserved: u64,
    identity: FileIdentity,
    map: OnceLock<Mmap>,
}

impl Segment {
    /// Takes a descriptor from anywhere, if its bytes can never change.
    ///
    /// # Errors
    /// [`StoreError::Segment`] for anything else: a plain file, a memory file that is not sealed, or one with less
    /// memory than bytes.
    pub(crate) fn check(file: OwnedFd) -> Result<Self, StoreError> {
        let seals = fcntl_get_seals(&file)
            .map_err(|_| StoreError::segment("expected a sealed memory file, got another file"))?;
        if !seals.contains(SEALS) {
            return Err(StoreError::segment(format!(
                "expected seals against writing, growing, shrinking and further seals, got {:#x}",
                seals.bits()
            )));
        }
        let kind = fstatfs(&file)
            .map_err(|e| StoreError::segment(e.to_string()))?
            .f_type;
        if !u64::try_from(kind).is_ok_and(|kind| kind == TMPFS) {
            return Err(StoreError::segment(format!(
                "expected a memory file of ordinary pages, got one of file system {kind:#x}"
            )));
        }
        // From here on neither its size nor its pages change.
        let stat = fstat(&file).map_err(|e| StoreError::segment(e.to_string()))?;
        let size = stat.st_size.unsigned_abs();
        let reserved = stat.st_blocks.unsigned_abs().saturating_mul(512);
        if size == 0 || reserved < size {
            return Err(StoreError::segment(format!(
                "expected a file whose pages are all there, got {reserved} of {size} bytes"
            )));
        }
        Ok(Self {
            file,
            size,
            reserved,
            identity: FileIdentity(stat.st_dev, stat.st_ino),
            map: OnceLock::new(),
        })
    }

    /// Checks that all of its pages are allocated, which takes some tens of milliseconds a GiB. The number of blocks
    /// does not tell: some may lie behind its end.
    ///
    /// # Errors
    /// [`StoreError::Segment`] if one is missing.
    pub(crate) fn check_pages(&self) -> Result<(), StoreError> {
        let hole = seek(&self.file, SeekFrom::Hole(0));
        let hole = hole.map_err(|error| StoreError::segment(error.to_string()))?;
        if hole < self.size {
            return Err(StoreError::segment(format!(
                "expected a file whose pages are all there, got a hole at {hole} of its {} bytes",
                self.size
            )));
        }
        Ok(())
    }

    /// Its size in bytes.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory that it takes: whole pages, and those behind its end, which its maker may have allocated and
    /// which a huge page includes.
    pub(crate) const fn reserved(&self) -> u64 {
        self.reserved
    }

    /// The identity of its memory file.
    pub(crate) const fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// Its descriptor, to map it elsewhere or to pass it on.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Maps it read-only.
    fn map(&self) -> Result<Mmap, StoreError> {
        let length = usize::try_from(self.size)
            .map_err(|_| no_memory(self.size, "mmap", io::ErrorKind::OutOfMemory))?;
        let mut options = MmapOptions::new();
        options.len(length);
        // SAFETY: the file is sealed: its bytes and its size never change.
        unsafe { options.map(self.file.as_raw_fd()) }
            // Kernels before 6.7 refuse a shared mapping of a file that is sealed against writing. A private read-only
            // one has the same pages. SAFETY: as above.
            .or_else(|_| unsafe { options.map_copy_read_only(self.file.as_raw_fd()) })
            .map_err(|e| no_memory(self.size, "mmap", e))
    }

    /// Maps it for [`Self::bytes`], unless it is mapped already.
    pub(crate) fn mapped(&self) -> Result<&[u8], StoreError> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = self.map()?;
        Ok(self.map.get_or_init(|| map))
    }

    /// Reads all of its bytes, through its mapping or a temporary one.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> Result<T, StoreError> {
        match self.map.get() {
            Some(map) => Ok(look(map)),
            None => Ok(look(&self.map()?)),
        }
    }

    /// The bytes of a tensor. `None` before the segment is mapped, and behind its end.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> Option<&[u8]> {
        slice(self.map.get()?, offset, length)
    }
}

/// A part of a mapping; `None` behind its end.
pub(crate) fn slice(bytes: &[u8], offset: u64, length: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(length).ok()?)?;
    bytes.get(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::{
        fs::ftruncate,
        io::pwrite,
        mm::{MapFlags, MprotectFlags, ProtFlags, mmap, mprotect},
    };

    fn sealed() -> Segment {
        let mut draft = SegmentDraft::new(8192).expect("memory");
        draft.part(0, 3).expect("room").copy_from_slice(b"abc");
        draft.seal().expect("sealed")
    }

    #[test]
    fn written_bytes_are_read() {
        let segment = sealed();
        assert_eq!(segment.size(), 8192);
        assert_eq!(segment.bytes(0, 3), None);
        segment.mapped().expect("mapped");
        assert_eq!(segment.bytes(0, 4), Some(&b"abc\0"[..]));
        assert_eq!(segment.bytes(8192, 0), Some(&[][..]));
        assert_eq!(segment.bytes(8192, 1), None);
        assert_eq!(segment.bytes(u64::MAX, 2), None);
    }

    /// Tries every way to write through the descriptor.
    #[test]
    fn a_sealed_segment_cannot_be_written() {
        let segment = sealed();
        let file = segment.descriptor();
        assert!(pwrite(file, b"x", 0).is_err());
        assert!(rustix::io::write(file, b"x").is_err());
        assert!(ftruncate(file, 4096).is_err());
        assert!(ftruncate(file, 16384).is_err());
        assert!(fallocate(file, FallocateFlags::empty(), 8192, 4096).is_err());
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        assert!(fallocate(file, punch, 0, 4096).is_err());
        assert!(fallocate(file, FallocateFlags::ZERO_RANGE, 0, 4096).is_err());
        assert!(fcntl_add_seals(file, SealFlags::FUTURE_WRITE).is_err());
        // SAFETY: a new mapping, which is never accessed.
        let writable = unsafe {
            mmap(
                std::ptr::null_mut(),
                4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                file,
                0,
            )
        };
        assert!(writable.is_err());
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let reopened = std::fs::OpenOptions::new().write(true).open(&path);
        let written = reopened.and_then(|mut file| io::Write::write_all(&mut file, b"x"));
        assert!(written.is_err());
        let emptied = std::fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(path);
        assert!(emptied.is_err());

        let map = segment.map().expect("mapped");
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the mapping is this test's, and is never written, even if that were allowed.
        assert!(unsafe { mprotect(map.as_ptr().cast_mut().cast(), 4096, flags) }.is_err());
        assert_eq!(&map[..3], b"abc");
    }

    #[test]
    fn other_descriptors_are_not_segments() {
        let refused = |file: OwnedFd| Segment::check(file).expect_err("not a segment").to_string();
        let plain = tempfile::tempfile().expect("a file");
        plain.set_len(4096).expect("room");
        assert_eq!(
            refused(plain.into()),
            "not a segment: expected a sealed memory file, got another file"
        );
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let unsealed = memfd_create("unsealed", flags).expect("memory");
        ftruncate(&unsealed, 4096).expect("room");
        assert!(refused(unsealed).contains("expected seals"));
        let half = memfd_create("half", flags).expect("memory");
        fcntl_add_seals(&half, SealFlags::WRITE | SealFlags::SHRINK).expect("seals");
        assert!(refused(half).contains("expected seals"));
        let holes = memfd_create("holes", flags).expect("memory");
        ftruncate(&holes, 8192).expect("room");
        pwrite(&holes, b"x", 4096).expect("written");
        fcntl_add_seals(&holes, SEALS).expect("seals");
        assert_eq!(
            refused(holes),
            "not a segment: expected a file whose pages are all there, got 4096 of 8192 bytes"
        );
        // As many blocks as its bytes need, but behind its end.
        let elsewhere = memfd_create("elsewhere", flags).expect("memory");
        pwrite(&elsewhere, b"x", 0).expect("written");
        ftruncate(&elsewhere, 8192).expect("room");
        let behind = FallocateFlags::KEEP_SIZE;
        fallocate(&elsewhere, behind, 8192, 1 << 20).expect("memory");
        fcntl_add_seals(&elsewhere, SEALS).expect("seals");
        let checked = Segment::check(elsewhere).expect("as far as one sees at once");
        assert_eq!(
            checked.check_pages().expect_err("a hole").to_string(),
            "not a segment: expected a file whose pages are all there, got a hole at 4096 of its 8192 bytes"
        );
        let empty = memfd_create("empty", flags).expect("memory");
        fcntl_add_seals(&empty, SEALS).expect("seals");
        assert!(refused(empty).contains("0 of 0 bytes"));
    }

    #[test]
    fn a_page_that_was_not_written_is_allocated() {
        let mut draft = SegmentDraft::new(5 * 4096).expect("memory");
        draft.part(2 * 4096, 1).expect("room")[0] = 1;
        let segment = draft.seal().expect("sealed");
        segment.check_pages().expect("all are there");
        segment.mapped().expect("mapped");
        let mut expected = vec![0; 5 * 4096];
        expected[2 * 4096] = 1;
        assert_eq!(segment.bytes(0, 5 * 4096), Some(&*expected));
    }

    /// While another mapping exists, sealing has to wait.
    #[test]
    fn a_file_is_sealed_once_its_last_writable_mapping_is_gone() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("busy", flags).expect("memory");
        pwrite(&file, b"x", 0).expect("written");
        // SAFETY: the mapping is never accessed.
        let map = unsafe { MmapOptions::new().len(1).map_mut(file.as_raw_fd()) }.expect("mapped");
        assert_eq!(fcntl_add_seals(&file, SEALS), Err(Errno::BUSY));
        thread::scope(|scope| {
            let sealing = scope.spawn(|| add_seals(&file));
            drop(map);
            assert_eq!(sealing.join().expect("no panic"), Ok(()));
        });
        Segment::check(file).expect("sealed");
    }

    #[test]
    fn pages_behind_the_end_count_as_reserved() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("long", flags).expect("memory");
        pwrite(&file, b"x", 0).expect("written");
        fallocate(&file, FallocateFlags::KEEP_SIZE, 4096, 1 << 20).expect("memory");
        fcntl_add_seals(&file, SEALS).expect("seals");
        let segment = Segment::check(file).expect("whole");
        assert_eq!(segment.size(), 1);
        assert!(segment.reserved() >= 4096 + (1 << 20));
        assert!(sealed().reserved() >= 8192);
        let more = fallocate(
            segment.descriptor(),
            FallocateFlags::KEEP_SIZE,
            8192,
            2 << 20,
        );
        assert!(more.is_err(), "it is sealed");
    }

    #[test]
    fn more_memory_than_any_machine_has_is_an_error() {
        let error = SegmentDraft::new(1 << 60).expect_err("so much memory");
        assert!(matches!(error, StoreError::Memory { bytes, .. } if bytes == 1 << 60));
    }
}
