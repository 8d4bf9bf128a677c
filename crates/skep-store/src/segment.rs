//! Segments: memory files that are filled, sealed, and from then on read by many and written by none.
//!
//! ```text
//! offset 0         4096                  12288          16384
//! +----------------+---------------------+--------------+
//! | tensor 0 |pad  | tensor 1        |pad| tensor 2     |   sealed against writing, growing, shrinking, further seals
//! +----------------+---------------------+--------------+
//! ```
#![allow(
    unsafe_code,
    reason = "mappings of memory files: nobody may write what is read (invariant 5)"
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

/// Every seal that there is; the last one keeps the others on.
const SEALS: SealFlags = SealFlags::WRITE
    .union(SealFlags::SHRINK)
    .union(SealFlags::GROW)
    .union(SealFlags::SEAL);

/// The system refuses to seal (`EBUSY`) while it holds pages itself, which it moves for instance, or while a process that was
/// forked a moment ago, and has not begun another program yet, has what its parent had mapped. Neither lasts.
const SEAL_TRIES: u32 = 100;
const BETWEEN_TRIES: Duration = Duration::from_millis(10);

/// The file system of memory files (`TMPFS_MAGIC`): those of huge pages count their blocks otherwise.
const TMPFS: u64 = 0x0102_1994;

/// A memory file that its maker still writes.
#[derive(Debug)]
pub(crate) struct SegmentDraft {
    file: OwnedFd,
    bytes: MmapMut,
}

impl SegmentDraft {
    /// A zeroed memory file of `size` bytes, which is not zero.
    ///
    /// Its pages are there at once: one that the system has to find later, and cannot, is a SIGBUS to whoever reads it.
    pub(crate) fn new(size: u64) -> Result<Self, StoreError> {
        let error = |step| {
            move |cause: io::Error| StoreError::Memory {
                bytes: size,
                step,
                cause,
            }
        };
        // The system would look for what it does not have until it ends processes.
        if size > skep_host::memory().total {
            return Err(error("more than the machine has")(
                io::ErrorKind::OutOfMemory.into(),
            ));
        }
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file =
            memfd_create("skep-segment", flags).map_err(|e| error("memfd_create")(e.into()))?;
        retry_on_intr(|| fallocate(&file, FallocateFlags::empty(), 0, size))
            .map_err(|e| error("fallocate")(e.into()))?;
        let length =
            usize::try_from(size).map_err(|_| error("mmap")(io::ErrorKind::OutOfMemory.into()))?;
        // SAFETY: nobody else has the file yet, and it keeps its size for as long as this mapping lives.
        let bytes = unsafe { MmapOptions::new().len(length).map_mut(file.as_raw_fd()) }
            .map_err(error("mmap"))?;
        Ok(Self { file, bytes })
    }

    /// Where to write a tensor.
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

    /// Gives up writing, for everybody and for good.
    pub(crate) fn seal(self) -> Result<Segment, StoreError> {
        let Self { file, mut bytes } = self;
        let size = bytes.len() as u64;
        let error = |step| {
            move |cause: Errno| StoreError::Memory {
                bytes: size,
                step,
                cause: cause.into(),
            }
        };
        write_reserved(&file, &mut bytes).map_err(error("SEEK_HOLE"))?;
        // A file that is mapped for writing cannot be sealed against it.
        drop(bytes);
        add_seals(&file).map_err(error("F_ADD_SEALS"))?;
        Segment::check(file)
    }
}

/// Seals a file that is not mapped for writing, when the system is ready to.
fn add_seals(file: &OwnedFd) -> Result<(), Errno> {
    for _ in 1..SEAL_TRIES {
        match fcntl_add_seals(file, SEALS) {
            Err(Errno::BUSY) => thread::sleep(BETWEEN_TRIES),
            outcome => return outcome,
        }
    }
    fcntl_add_seals(file, SEALS)
}

/// Writes to the pages that are reserved and that nobody has written, such as that of an empty tensor: they cannot be told
/// from holes.
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

/// A sealed memory file. It is mapped when its bytes are first looked at, and unmapped when it is dropped.
#[derive(Debug)]
pub(crate) struct Segment {
    file: OwnedFd,
    size: u64,
    reserved: u64,
    identity: FileIdentity,
    map: OnceLock<Mmap>,
}

impl Segment {
    /// Takes a descriptor, whoever made it, if nobody can ever change what it holds.
    ///
    /// # Errors
    /// [`StoreError::Segment`] if it is something else: a plain file, a memory file that is not sealed, or one that has
    /// less memory than bytes.
    pub(crate) fn check(file: OwnedFd) -> Result<Self, StoreError> {
        let seals = fcntl_get_seals(&file)
            .map_err(|_| StoreError::segment("expected a sealed memory file, got another file"))?;
        if !seals.contains(SEALS) {
            return Err(StoreError::segment(format!(
                "expected seals against writing, growing, shrinking and further seals, got {:#x}",
                seals.bits()
            )));
        }
        let unreadable = |e: Errno| StoreError::segment(e.to_string());
        let kind = fstatfs(&file).map_err(unreadable)?.f_type;
        if !u64::try_from(kind).is_ok_and(|kind| kind == TMPFS) {
            return Err(StoreError::segment(format!(
                "expected a memory file of ordinary pages, got one of file system {kind:#x}"
            )));
        }
        // From here on nothing of it changes: neither its size nor which pages it has.
        let stat = fstat(&file).map_err(unreadable)?;
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

    /// Looks whether all of its pages are there, which takes some tens of milliseconds a GiB. How many blocks it has says
    /// nothing of where they are: some may lie behind its end.
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

    /// Bytes of it.
    pub(crate) const fn size(&self) -> u64 {
        self.size
    }

    /// Bytes of memory that it takes: whole pages, and those behind its end, which a maker may have added and which a huge
    /// page brings.
    pub(crate) const fn reserved(&self) -> u64 {
        self.reserved
    }

    /// Which memory file it is.
    pub(crate) const fn identity(&self) -> FileIdentity {
        self.identity
    }

    /// For mapping it elsewhere, or passing it on.
    pub(crate) fn descriptor(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// A read-only mapping of its own.
    fn map(&self) -> Result<Mmap, StoreError> {
        let error = |cause| StoreError::Memory {
            bytes: self.size,
            step: "mmap",
            cause,
        };
        let length =
            usize::try_from(self.size).map_err(|_| error(io::ErrorKind::OutOfMemory.into()))?;
        let mut options = MmapOptions::new();
        options.len(length);
        // SAFETY: the file is sealed: its bytes and its size stay as they are for good.
        unsafe { options.map(self.file.as_raw_fd()) }
            // Kernels before 6.7 refuse a shared mapping of a file that is sealed against writing. A private one that
            // nobody can write has the same pages.
            // SAFETY: as above.
            .or_else(|_| unsafe { options.map_copy_read_only(self.file.as_raw_fd()) })
            .map_err(error)
    }

    /// Maps it for [`Self::bytes`], unless it is mapped already.
    pub(crate) fn mapped(&self) -> Result<&[u8], StoreError> {
        if let Some(map) = self.map.get() {
            return Ok(map);
        }
        let map = self.map()?;
        Ok(self.map.get_or_init(|| map))
    }

    /// Looks at all of its bytes, by the mapping that there is, or by one for this look alone.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&[u8]) -> T) -> Result<T, StoreError> {
        match self.map.get() {
            Some(map) => Ok(look(map)),
            None => Ok(look(&self.map()?)),
        }
    }

    /// The bytes of a tensor in it. None before it is mapped, and behind its end.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> Option<&[u8]> {
        slice(self.map.get()?, offset, length)
    }
}

/// A part of a mapping, if that reaches so far.
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
    fn what_was_written_is_read() {
        let segment = sealed();
        assert_eq!(segment.size(), 8192);
        assert_eq!(segment.bytes(0, 3), None);
        segment.mapped().expect("mapped");
        assert_eq!(segment.bytes(0, 4), Some(&b"abc\0"[..]));
        assert_eq!(segment.bytes(8192, 0), Some(&[][..]));
        assert_eq!(segment.bytes(8192, 1), None);
        assert_eq!(segment.bytes(u64::MAX, 2), None);
    }

    /// Every way to write that there is, tried by someone who has the descriptor.
    #[test]
    fn nobody_can_write_a_sealed_segment() {
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
        // SAFETY: a mapping wherever the system likes, which nobody looks at.
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
        // SAFETY: the mapping is ours, and nobody writes it even if that were allowed.
        assert!(unsafe { mprotect(map.as_ptr().cast_mut().cast(), 4096, flags) }.is_err());
        assert_eq!(&map[..3], b"abc");
    }

    #[test]
    fn other_descriptors_are_no_segments() {
        let refused = |file: OwnedFd| Segment::check(file).expect_err("no segment").to_string();
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
        // As many blocks as its bytes need, but not where these are.
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
    fn a_page_that_nobody_wrote_is_there() {
        let mut draft = SegmentDraft::new(5 * 4096).expect("memory");
        draft.part(2 * 4096, 1).expect("room")[0] = 1;
        let segment = draft.seal().expect("sealed");
        segment.check_pages().expect("all are there");
        segment.mapped().expect("mapped");
        let mut expected = vec![0; 5 * 4096];
        expected[2 * 4096] = 1;
        assert_eq!(segment.bytes(0, 5 * 4096), Some(&*expected));
    }

    /// Nobody may take memory that no figure shows.
    #[test]
    fn a_file_that_somebody_is_about_to_let_go_of_is_sealed_then() {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = memfd_create("busy", flags).expect("memory");
        pwrite(&file, b"x", 0).expect("written");
        // SAFETY: nobody looks at it.
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
    fn pages_behind_the_end_count() {
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
    fn what_no_system_has_is_an_error() {
        let error = SegmentDraft::new(1 << 60).expect_err("so much memory");
        assert!(matches!(error, StoreError::Memory { bytes, .. } if bytes == 1 << 60));
    }
}
