//! Memory straight from the system.
#![allow(unsafe_code, reason = "memory straight from the system (invariant 5)")]

use std::{collections::BTreeMap, ffi::c_void, ops::Range, ptr, time::Instant};

use rustix::mm::{
    Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap,
};
use skep_lab::UsableSource;
use skep_layout::allocator::Source;

use super::lines;
use crate::OVERRUN;

/// `mmap` and its kin. Pages take memory once they are written. [`OVERRUN`] bytes behind every chunk and behind every
/// committed page can be read.
#[derive(Debug)]
pub struct MappedSource {
    /// Bytes of each mapping, by its address.
    mappings: BTreeMap<u64, usize>,
    page: u64,
    began: Instant,
}

impl Default for MappedSource {
    fn default() -> Self {
        Self {
            mappings: BTreeMap::new(),
            page: rustix::param::page_size() as u64,
            began: Instant::now(),
        }
    }
}

/// An address as the system takes it.
const fn pointer(address: u64) -> *mut c_void {
    ptr::with_exposed_provenance_mut(address as usize)
}

impl MappedSource {
    /// Maps `bytes` and what may be read behind them.
    fn map(&mut self, bytes: u64, protection: ProtFlags, flags: MapFlags) -> Option<u64> {
        let length = bytes.checked_add(OVERRUN)?;
        let length = length.checked_next_multiple_of(self.page)?;
        let length = usize::try_from(length).ok()?;
        // SAFETY: a new anonymous mapping, wherever the system likes.
        let mapped = unsafe {
            mmap_anonymous(
                ptr::null_mut(),
                length,
                protection,
                flags | MapFlags::PRIVATE,
            )
        };
        let address = mapped.ok()?.expose_provenance() as u64;
        self.mappings.insert(address, length);
        Some(address)
    }

    fn unmap(&mut self, address: u64) {
        if let Some(length) = self.mappings.remove(&address) {
            // SAFETY: the mapping is this source's, and its allocator says that no block lies in it.
            let _ = unsafe { munmap(pointer(address), length) };
        }
    }
}

impl Drop for MappedSource {
    fn drop(&mut self) {
        while let Some((address, _)) = self.mappings.first_key_value() {
            self.unmap(*address);
        }
    }
}

impl UsableSource for MappedSource {
    fn write(&mut self, block: Range<u64>) {
        // SAFETY: the allocator on the bench says that the block lies in memory of this source.
        unsafe { lines::write(block) };
    }

    fn read(&self, block: Range<u64>) {
        // SAFETY: as above.
        unsafe { lines::read(block) };
    }
}

impl Source for MappedSource {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        self.map(bytes, ProtFlags::READ | ProtFlags::WRITE, MapFlags::empty())
    }

    fn give_back(&mut self, address: u64, _: u64) {
        self.unmap(address);
    }

    fn reserve(&mut self, bytes: u64) -> Option<u64> {
        // Pages that nobody has written are all the one page of zeros: what lies behind a block can be read.
        self.map(bytes, ProtFlags::READ, MapFlags::NORESERVE)
    }

    fn release(&mut self, address: u64, _: u64) {
        self.unmap(address);
    }

    fn commit(&mut self, pages: Range<u64>) -> bool {
        let length = (pages.end - pages.start) as usize;
        let flags = MprotectFlags::READ | MprotectFlags::WRITE;
        // SAFETY: the pages are reserved addresses of this source, without memory.
        unsafe { mprotect(pointer(pages.start), length, flags) }.is_ok()
    }

    fn decommit(&mut self, pages: Range<u64>) {
        let length = (pages.end - pages.start) as usize;
        // SAFETY: the pages are committed ones of this source, and its allocator says that no block lies on them.
        unsafe {
            let _ = madvise(pointer(pages.start), length, Advice::LinuxDontNeed);
            let _ = mprotect(pointer(pages.start), length, MprotectFlags::READ);
        }
    }

    fn page(&self) -> u64 {
        self.page
    }

    fn available(&self) -> Option<u64> {
        None
    }

    fn wait(&mut self) {}

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}
