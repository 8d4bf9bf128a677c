//! Memory of the process's global allocator.
#![allow(
    unsafe_code,
    reason = "an allocator is made of raw memory (invariant 5)"
)]

use std::{
    alloc::{Layout, alloc, dealloc},
    collections::BTreeMap,
    ops::Range,
    ptr,
};

use skep_lab::UsableSource;
use skep_layout::allocator::{CHUNK_ALIGNMENT, Source};

use super::{MappedSource, lines};
use crate::OVERRUN;

/// Chunks of the global allocator. Addresses and their pages come from the system.
#[derive(Debug, Default)]
pub struct HeapSource {
    chunks: BTreeMap<u64, Layout>,
    pages: MappedSource,
}

impl HeapSource {
    fn free(&mut self, address: u64) {
        if let Some(layout) = self.chunks.remove(&address) {
            // SAFETY: the chunk was allocated with this layout, and its allocator says that no block lies in it.
            unsafe { dealloc(ptr::with_exposed_provenance_mut(address as usize), layout) };
        }
    }
}

impl Drop for HeapSource {
    fn drop(&mut self) {
        while let Some((address, _)) = self.chunks.first_key_value() {
            self.free(*address);
        }
    }
}

impl UsableSource for HeapSource {
    fn write(&mut self, block: Range<u64>) {
        // SAFETY: the allocator on the bench says that the block lies in memory of this source.
        unsafe { lines::write(block) };
    }

    fn read(&self, block: Range<u64>) {
        // SAFETY: as above.
        unsafe { lines::read(block) };
    }
}

impl Source for HeapSource {
    fn take(&mut self, bytes: u64) -> Option<u64> {
        let size = usize::try_from(bytes.checked_add(OVERRUN)?).ok()?;
        let layout = Layout::from_size_align(size, CHUNK_ALIGNMENT as usize).ok()?;
        // SAFETY: the layout is not empty.
        let chunk = unsafe { alloc(layout) };
        if chunk.is_null() {
            return None;
        }
        let address = chunk.expose_provenance() as u64;
        self.chunks.insert(address, layout);
        Some(address)
    }

    fn give_back(&mut self, address: u64, _: u64) {
        self.free(address);
    }

    fn reserve(&mut self, bytes: u64) -> Option<u64> {
        self.pages.reserve(bytes)
    }

    fn release(&mut self, address: u64, bytes: u64) {
        self.pages.release(address, bytes);
    }

    fn commit(&mut self, pages: Range<u64>) -> bool {
        self.pages.commit(pages)
    }

    fn decommit(&mut self, pages: Range<u64>) {
        self.pages.decommit(pages);
    }

    fn page(&self) -> u64 {
        self.pages.page()
    }

    fn available(&self) -> Option<u64> {
        None
    }

    fn wait(&mut self) {}

    fn now(&self) -> u64 {
        self.pages.now()
    }
}
