//! Memory that two processes map, and use in turns.
//!
//! The protocol of the two processes decides whose turn it is: between two messages only one of them uses the memory. A
//! mapping keeps its file's pages as long as any part of it lives, even after the descriptor is closed.
#![allow(unsafe_code, reason = "layer 2 owns raw memory (invariant 5)")]

use std::{
    fs::File,
    io::{self, Seek, SeekFrom},
    sync::Arc,
};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};

use crate::{ALIGNMENT, AlignedBuffer};

/// Memory that this process fills and another one reads.
#[derive(Debug)]
pub struct SharedMemory {
    mapping: Arc<MmapRaw>,
}

/// The parts that [`SharedMemory::split`] makes.
#[derive(Debug)]
pub struct SharedParts {
    /// A buffer for each length that was asked for.
    pub buffers: Vec<AlignedBuffer>,
    /// The rest behind them.
    pub rest: AlignedBuffer,
}

impl SharedMemory {
    /// Maps the first `length` bytes of `file`, which must not become shorter afterwards.
    ///
    /// # Errors
    /// The system's; [`io::ErrorKind::InvalidInput`] for a shorter file.
    pub fn map(file: &File, length: usize) -> io::Result<Self> {
        check_length(file, length)?;
        let mapping = MmapOptions::new().len(length).map_raw(file)?;
        Ok(Self {
            mapping: Arc::new(mapping),
        })
    }

    /// Splits the memory into aligned buffers of these lengths, and the rest. They keep the bytes that were there
    /// before.
    ///
    /// `None` if it is too small, or if a buffer of an earlier split still exists.
    pub fn split(&mut self, lengths: &[usize]) -> Option<SharedParts> {
        let total = self.mapping.len();
        let mut end = 0usize;
        let mut places = Vec::with_capacity(lengths.len() + 1);
        for &length in lengths {
            places.push((end, length));
            end = end
                .checked_add(length)?
                .checked_next_multiple_of(ALIGNMENT)?;
        }
        places.push((end.min(total), total.checked_sub(end.min(total))?));
        if places.iter().any(|&(start, length)| start + length > total) {
            return None;
        }
        // No other reference to the mapping: no buffer of it exists.
        Arc::get_mut(&mut self.mapping)?;
        let part = |(offset, length)| {
            // SAFETY: within the mapping and disjoint, as computed above; no earlier buffer exists.
            unsafe { AlignedBuffer::part_of(&self.mapping, offset, length) }
        };
        let mut buffers: Vec<AlignedBuffer> = places.into_iter().map(part).collect();
        let rest = buffers.pop()?;
        Some(SharedParts { buffers, rest })
    }

    /// The offset of bytes in the memory; `None` for bytes that lie elsewhere.
    #[must_use]
    pub fn offset_of(&self, bytes: &[u8]) -> Option<usize> {
        let offset = bytes
            .as_ptr()
            .addr()
            .checked_sub(self.mapping.as_ptr().addr())?;
        let end = offset.checked_add(bytes.len())?;
        (end <= self.mapping.len()).then_some(offset)
    }
}

/// Maps the first `length` bytes of `file`, which another process fills before each of this one's turns, for reading.
/// The file must not become shorter afterwards.
///
/// # Errors
/// The system's; [`io::ErrorKind::InvalidInput`] for a shorter file.
pub fn map_shared(file: &File, length: usize) -> io::Result<Bytes> {
    check_length(file, length)?;
    if length == 0 {
        return Ok(Bytes::new());
    }
    // SAFETY: the file does not shrink, and the other process fills it only in its own turns (documented above).
    let mapping = unsafe { MmapOptions::new().len(length).map(file) }?;
    Ok(Bytes::from_owner(mapping))
}

fn check_length(file: &File, length: usize) -> io::Result<()> {
    // Not from its metadata, which a confined process may not read.
    let mut end = file;
    let got = end.seek(SeekFrom::End(0))?;
    if u64::try_from(length).is_ok_and(|length| length <= got) {
        return Ok(());
    }
    let text = format!("shared memory has {got} bytes, expected {length}");
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::FileExt};

    use super::*;

    fn file(length: u64) -> File {
        let file = tempfile::tempfile().expect("file");
        file.set_len(length).expect("length");
        file
    }

    #[test]
    fn one_side_reads_what_the_other_writes() {
        let file = file(4096);
        let mut memory = SharedMemory::map(&file, 4096).expect("map");
        let mut parts = memory.split(&[3, 0, 100]).expect("split");
        for (number, buffer) in (1..).zip(&mut parts.buffers) {
            buffer.fill(number);
        }
        let offsets: Vec<_> = [0, 2].map(|i| memory.offset_of(&parts.buffers[i])).into();
        assert_eq!(offsets, [Some(0), Some(64)]);
        assert_eq!(memory.offset_of(&parts.rest), Some(192));
        assert_eq!(parts.rest.len(), 4096 - 192);
        assert_eq!(memory.offset_of(&[0; 8]), None);
        let mut read = [0; 4];
        file.read_exact_at(&mut read, 0).expect("read");
        assert_eq!(read, [1, 1, 1, 0]);
        file.read_exact_at(&mut read, 64 + 97).expect("read");
        assert_eq!(read, [3, 3, 3, 0]);
    }

    #[test]
    fn parts_are_made_once_at_a_time_and_within_the_memory() {
        let mut memory = SharedMemory::map(&file(4096), 4096).expect("map");
        assert!(memory.split(&[4097]).is_none());
        assert!(memory.split(&[4096, 1]).is_none());
        assert!(memory.split(&[usize::MAX, usize::MAX]).is_none());
        assert!(memory.split(&[4096, 0]).is_some());
        let kept = memory.split(&[8]).expect("split").buffers;
        assert!(memory.split(&[8]).is_none());
        drop(kept);
        assert!(memory.split(&[8]).is_some());
    }

    #[test]
    fn a_file_that_is_too_short_is_not_mapped() {
        assert!(SharedMemory::map(&file(10), 11).is_err());
        assert!(map_shared(&file(10), 11).is_err());
        assert!(map_shared(&file(0), 0).expect("empty").is_empty());
        let mut file = file(0);
        file.write_all(b"abc").expect("write");
        assert_eq!(&map_shared(&file, 3).expect("map")[..], b"abc");
    }
}
