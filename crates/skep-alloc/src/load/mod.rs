//! Memory that a runtime takes while it loads a model: its weights in layouts of its own.
//!
//! A runtime packs weights again for its kernels, into private copies, and it does so at every load. A caller
//! that has kept what an earlier load packed saves the copies and most of the work:
//!
//! ```text
//! LoadMode::Record                       LoadMode::Replay                   then LoadedBlocks::replace
//!
//! block 0 [ pages of its own ]          block 0 [ s s s s s s ]           block 0 [ kept pages, read-only ]
//! block 1 [ pages of its own ]          block 1 [ s s s ]                 block 1 [ kept pages, read-only ]
//!    the caller keeps what they hold       s: the same scratch pages, everywhere
//! ```
//!
//! In a replay the runtime packs into address space whose pages are all the same few scratch pages: nothing is
//! allocated, and what is written stays in the processor's cache. When the load is over the caller maps what it kept
//! over each block. That is right only if the runtime allocates in the same order, and keeps the same blocks, as when
//! it was recorded; otherwise [`LoadedBlocks::went_as_expected`] is false, the blocks hold garbage, and the caller must
//! drop what it loaded.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    cell::RefCell,
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    ptr::{self, NonNull},
    slice,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use rustix::{
    fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create},
    io::Errno,
    mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap},
};

use crate::OVERRUN;

/// Smaller blocks come from the heap: they are not worth pages of their own, and runtimes allocate them in no fixed
/// order.
pub const LOADED_BYTES: usize = 64 << 10;

/// Scratch pages: small enough for a processor's own cache, so that writing them over and over costs no memory traffic;
/// large enough that mapping them next to each other takes few calls (measured: 178 ms for a session of BERT-base with
/// this, 330 with memory of its own, 270 with one huge page).
const SCRATCH_BYTES: usize = 256 << 10;

/// Mappings of scratch pages in one load, at most: a process may have 65,530 mappings in all (`vm.max_map_count`).
const MAX_SCRATCH_MAPPINGS: usize = 4096;

/// A block of a recorded load, in the order of allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadedBlock {
    /// Requested bytes; at least [`LOADED_BYTES`].
    pub size: u64,
    /// Whether the runtime still had it when the load was over.
    pub kept: bool,
}

/// What large blocks of a load lie on.
#[derive(Debug, Clone, Copy)]
pub enum LoadMode<'a> {
    /// Pages of their own.
    Record,
    /// Pages of files in this directory, each called by its place in the sequence: what is packed takes no memory that
    /// the system could not write to the disk. A file has whole pages; the block is its first bytes.
    Files(&'a Path),
    /// The kept ones of this sequence: scratch pages, until the caller replaces them.
    Replay(&'a [LoadedBlock]),
}

/// A large block, mapped as long as the runtime or a [`LoadedBlocks`] has it.
#[derive(Debug)]
struct MappedBlock {
    base: NonNull<u8>,
    /// Of the mapping, in bytes.
    length: usize,
    size: usize,
    is_live: AtomicBool,
}

// SAFETY: the block owns its mapping, which is not bound to a thread.
unsafe impl Send for MappedBlock {}
// SAFETY: a shared reference changes nothing but the flag.
unsafe impl Sync for MappedBlock {}

/// Every live block, in order of address: readers do not wait.
static BLOCKS: LazyLock<ArcSwap<Vec<Arc<MappedBlock>>>> = LazyLock::new(ArcSwap::default);

impl Drop for MappedBlock {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody has it any more: the runtime freed it, and the last `LoadedBlocks` is
        // gone.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.length) };
    }
}

impl MappedBlock {
    /// Maps and lists a block; over `scratch` or a new file where there is some.
    fn map(size: usize, pages: BackingPages<'_>) -> io::Result<Arc<Self>> {
        let length = size
            .checked_add(OVERRUN as usize)
            .and_then(|length| length.checked_next_multiple_of(rustix::param::page_size()))
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new anonymous mapping, wherever the system likes.
        let base = unsafe { mmap_anonymous(ptr::null_mut(), length, protection, flags) }?;
        let block = Arc::new(Self {
            base: NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?,
            length,
            size,
            is_live: AtomicBool::new(true),
        });
        match pages {
            BackingPages::Own => {}
            BackingPages::Scratch(scratch) => block.cover(scratch)?,
            BackingPages::File(path) => block.lie_on(&path)?,
        }
        BLOCKS.rcu(|blocks| {
            let mut blocks = Vec::clone(blocks);
            let position = blocks.partition_point(|other| other.base < block.base);
            blocks.insert(position, Arc::clone(&block));
            blocks
        });
        Ok(block)
    }

    /// Bytes of the pages that the block itself lies on; behind them may follow one more that can be read.
    fn page_bytes(&self) -> usize {
        self.size.next_multiple_of(rustix::param::page_size())
    }

    /// Maps a new file over the block.
    fn lie_on(&self, path: &Path) -> io::Result<()> {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)?;
        // Without room a page that is written would end the process.
        match fallocate(&file, FallocateFlags::empty(), 0, self.page_bytes() as u64) {
            // The block stays memory, and no file says otherwise.
            Err(Errno::OPNOTSUPP) => return fs::remove_file(path),
            allocated => allocated?,
        }
        // SAFETY: the range is the block's own, which nobody has yet.
        unsafe {
            mmap(
                self.base.as_ptr().cast(),
                self.page_bytes(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file.as_fd(),
                0,
            )
        }?;
        Ok(())
    }

    /// Maps the scratch pages over the block, as often as needed.
    fn cover(&self, scratch: &ScratchPages) -> io::Result<()> {
        let mut at = 0;
        while at < self.page_bytes() {
            let length = scratch.length.min(self.page_bytes() - at);
            // SAFETY: the range lies in the block's own mapping, which nobody has yet.
            unsafe {
                mmap(
                    self.base.add(at).as_ptr().cast(),
                    length,
                    ProtFlags::READ | ProtFlags::WRITE,
                    MapFlags::SHARED | MapFlags::FIXED | MapFlags::POPULATE,
                    scratch.file.as_fd(),
                    0,
                )
            }?;
            at += length;
        }
        Ok(())
    }
}

/// The memory behind a block.
enum BackingPages<'a> {
    Own,
    Scratch(&'a ScratchPages),
    File(PathBuf),
}

/// A few pages that many blocks lie on.
#[derive(Debug)]
struct ScratchPages {
    file: OwnedFd,
    length: usize,
}

impl ScratchPages {
    fn new(expected: &[LoadedBlock]) -> io::Result<Self> {
        let total: u64 = expected.iter().map(|block| block.size).sum();
        let total = usize::try_from(total).map_err(|_| io::ErrorKind::OutOfMemory)?;
        let least = total / MAX_SCRATCH_MAPPINGS;
        let length = least
            .max(SCRATCH_BYTES)
            .checked_next_power_of_two()
            .ok_or(io::ErrorKind::OutOfMemory)?;
        let file = memfd_create(c"skep-scratch", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, length as u64)?;
        Ok(Self { file, length })
    }
}

/// A load in progress.
#[derive(Debug)]
struct CurrentLoad {
    /// Of a replay.
    expected: Option<(Vec<LoadedBlock>, ScratchPages)>,
    /// Where blocks are files.
    directory: Option<PathBuf>,
    blocks: Vec<Arc<MappedBlock>>,
    /// Why a block has no memory.
    failure: Option<io::Error>,
}

thread_local! {
    static CURRENT: RefCell<Option<CurrentLoad>> = const { RefCell::new(None) };
}

impl CurrentLoad {
    fn malloc(&mut self, size: usize) -> Option<*mut u8> {
        let position = self.blocks.len();
        let pages = match (&self.expected, &self.directory) {
            (None, None) => BackingPages::Own,
            (None, Some(directory)) => BackingPages::File(directory.join(position.to_string())),
            (Some((blocks, scratch)), _) => match blocks.get(position) {
                Some(block) if block.size == size as u64 && block.kept => {
                    BackingPages::Scratch(scratch)
                }
                // Also a block that deviates, which the sequence shows in the end.
                _ => BackingPages::Own,
            },
        };
        let block = match MappedBlock::map(size, pages) {
            Ok(block) => block,
            Err(error) => {
                // Then the position in the sequence is lost as well.
                self.failure = Some(error);
                return None;
            }
        };
        let address = block.base.as_ptr();
        self.blocks.push(block);
        Some(address)
    }
}

/// A block of the calling thread's load; `None` outside of a load, for a small block, and without memory.
pub(crate) fn malloc(size: usize) -> Option<*mut u8> {
    if size < LOADED_BYTES {
        return None;
    }
    let made = CURRENT.try_with(|current| {
        let mut current = current.try_borrow_mut().ok()?;
        current.as_mut()?.malloc(size)
    });
    made.ok().flatten()
}

/// Frees the block at `address` if it belongs to a load, and returns its size.
pub(crate) fn free(address: usize) -> Option<u64> {
    let blocks = BLOCKS.load();
    let of = |block: &Arc<MappedBlock>| block.base.as_ptr() as usize;
    let position = blocks.binary_search_by_key(&address, of).ok()?;
    let block = &blocks[position];
    block.is_live.store(false, Ordering::Release);
    BLOCKS.rcu(|blocks| {
        let others = blocks.iter().filter(|other| of(other) != address);
        others.cloned().collect::<Vec<_>>()
    });
    Some(block.size as u64)
}

/// The large blocks that a load took.
#[derive(Debug)]
pub struct LoadedBlocks {
    blocks: Vec<Arc<MappedBlock>>,
    sequence: Vec<LoadedBlock>,
    went_as_expected: bool,
    failure: Option<io::Error>,
}

/// Carries out a load on the calling thread; its large blocks lie where `how` says.
///
/// # Errors
/// There is no memory for scratch pages; `load` has not been called.
pub fn load<T>(how: LoadMode<'_>, load: impl FnOnce() -> T) -> io::Result<(T, LoadedBlocks)> {
    let expected = match how {
        LoadMode::Record | LoadMode::Files(_) => None,
        LoadMode::Replay(blocks) => Some((blocks.to_vec(), ScratchPages::new(blocks)?)),
    };
    let directory = match how {
        LoadMode::Files(directory) => Some(directory.to_owned()),
        LoadMode::Record | LoadMode::Replay(_) => None,
    };
    let outer = CURRENT.replace(Some(CurrentLoad {
        expected,
        directory,
        blocks: Vec::new(),
        failure: None,
    }));
    let _restore = OuterLoad(outer);
    let result = load();
    let ended = CURRENT.take();
    // Nothing else takes it.
    let Some(ended) = ended else {
        return Err(io::ErrorKind::Other.into());
    };
    let sequence: Vec<LoadedBlock> = ended
        .blocks
        .iter()
        .map(|block| LoadedBlock {
            size: block.size as u64,
            kept: block.is_live.load(Ordering::Acquire),
        })
        .collect();
    let as_recorded = ended
        .expected
        .is_none_or(|(expected, _)| expected == sequence);
    let loaded = LoadedBlocks {
        blocks: ended.blocks,
        sequence,
        went_as_expected: as_recorded && ended.failure.is_none(),
        failure: ended.failure,
    };
    Ok((result, loaded))
}

/// Puts the load back that the calling thread was in before, after a panic as well.
struct OuterLoad(Option<CurrentLoad>);

impl Drop for OuterLoad {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

impl LoadedBlocks {
    /// All large blocks, in the order of allocation.
    #[must_use]
    pub fn sequence(&self) -> &[LoadedBlock] {
        &self.sequence
    }

    /// Whether a replay allocated and kept the expected blocks, each with its own addresses; of a recorded load,
    /// whether all blocks found memory.
    #[must_use]
    pub const fn went_as_expected(&self) -> bool {
        self.went_as_expected
    }

    /// The error of a block that found no memory, or no room for its file.
    #[must_use]
    pub const fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// What block `index` of the sequence holds.
    ///
    /// # Safety
    /// The runtime does not write into it any more.
    ///
    /// # Panics
    /// When the sequence has no such block.
    #[must_use]
    pub unsafe fn bytes(&self, index: usize) -> &[u8] {
        let block = &self.blocks[index];
        // SAFETY: the mapping has that many bytes and lives as long as `self` holds the block; nobody writes to it, as
        // the caller promises.
        unsafe { slice::from_raw_parts(block.base.as_ptr(), block.size) }
    }

    /// Maps pages of a file over block `index` of the sequence, read-only. `offset` in the file is a multiple of the
    /// page size; the file has the block's size from there on.
    ///
    /// # Errors
    /// The system's, such as too many mappings; the block then holds what it held.
    ///
    /// # Safety
    /// The runtime does not write into the block any more, and the file's bytes there are what it would have written.
    /// They do not change while the block lives. If the runtime reads the block during the call, it reads what that
    /// held before or what it holds afterwards: both must be right.
    ///
    /// # Panics
    /// When the sequence has no such block.
    pub unsafe fn replace(
        &self,
        index: usize,
        file: BorrowedFd<'_>,
        offset: u64,
    ) -> io::Result<()> {
        let block = &self.blocks[index];
        // SAFETY: the range is the block's own; the caller promises the rest.
        unsafe { skep_host::replace_pages(block.base, block.page_bytes(), file, offset) }
    }
}

#[cfg(test)]
mod tests;
