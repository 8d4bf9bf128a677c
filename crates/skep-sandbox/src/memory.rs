//! Memory that the server shares with a worker process.
//!
//! The server makes it and never maps it: it writes inputs into the file and reads outputs out of it by system calls,
//! so that nothing that a worker does to the pages meanwhile can disturb more than the figures in them. Only the
//! worker, which has the server to trust, maps it.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// The smallest memory: it takes no more than what is written of it.
const MIN_BYTES: usize = 64 << 10;

/// The largest memory of one batch's inputs or outputs. A worker that asks for more does not get it.
pub(crate) const MAX_BYTES: usize = 4 << 30;

/// A memory file of a length that nobody can change.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: File,
    length: usize,
}

impl MemoryFile {
    /// Memory of at least `bytes` bytes, and of twice as much at most, so that growing batches need few new ones.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] beyond [`MAX_BYTES`], those of the system.
    pub(crate) fn at_least(bytes: usize) -> io::Result<Self> {
        if bytes > MAX_BYTES {
            let text = format!(
                "a batch's tensors take {bytes} bytes, expected {MAX_BYTES} at most with `isolation` `process`"
            );
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
        }
        let length = bytes.next_power_of_two().clamp(MIN_BYTES, MAX_BYTES);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("skep-tensors", flags)?);
        file.set_len(u64::try_from(length).unwrap_or(u64::MAX))?;
        // Neither side can cut off pages under the other's feet.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok(Self { file, length })
    }

    pub(crate) const fn file(&self) -> &File {
        &self.file
    }

    /// In bytes.
    pub(crate) const fn length(&self) -> usize {
        self.length
    }

    /// # Errors
    /// Those of the system, such as no memory.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.file.write_all_at(bytes, offset)
    }

    /// # Errors
    /// Those of the system, and an end before `into` is full.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.file.read_exact_at(into, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_its_length_and_what_is_written() {
        let memory = MemoryFile::at_least((1 << 20) + 1).expect("memory");
        assert_eq!(memory.length(), 2 << 20);
        memory.write(memory.length() - 3, b"end").expect("write");
        let mut read = [0; 3];
        memory.read(memory.length() - 3, &mut read).expect("read");
        assert_eq!(&read, b"end");
        assert!(memory.write(memory.length() - 2, b"end").is_err());
        assert!(memory.read(memory.length() - 2, &mut read).is_err());
        assert!(memory.file.set_len(1).is_err());
        assert!(memory.file.set_len(1 << 30).is_err());
    }

    #[test]
    fn there_is_a_largest_memory() {
        assert_eq!(MemoryFile::at_least(0).expect("memory").length(), MIN_BYTES);
        assert!(MemoryFile::at_least(MAX_BYTES).is_ok());
        let error = MemoryFile::at_least(MAX_BYTES + 1).expect_err("too large");
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }
}
