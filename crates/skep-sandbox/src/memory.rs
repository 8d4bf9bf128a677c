//! Memory that the server shares with a worker process.
//!
//! The server makes the memory file and never maps it: it writes inputs and reads outputs by system calls, so that a
//! worker can change the data meanwhile, but cannot harm the server. Only the worker, which trusts the server, maps it.

use std::{fs::File, io, os::unix::fs::FileExt};

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

/// The smallest file. Only pages that are written take memory.
const MIN_BYTES: usize = 64 << 10;

/// The largest file for one batch's inputs or outputs. A worker that asks for more is ended.
pub(crate) const MAX_BYTES: usize = 4 << 30;

/// A memory file whose length is sealed.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    file: File,
    length: usize,
}

impl MemoryFile {
    /// A file of at least `bytes` bytes, and at most twice as many, so that growing batches need few new files.
    ///
    /// # Errors
    /// [`io::ErrorKind::FileTooLarge`] beyond [`MAX_BYTES`]; the system's errors.
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
        // Neither side can truncate the file under the other.
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
    /// The system's, such as no memory.
    pub(crate) fn write(&self, offset: usize, bytes: &[u8]) -> io::Result<()> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.file.write_all_at(bytes, offset)
    }

    /// # Errors
    /// The system's, and an end before `into` is full.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) -> io::Result<()> {
        let offset = u64::try_from(offset).unwrap_or(u64::MAX);
        self.file.read_exact_at(into, offset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_keeps_its_length_and_its_bytes() {
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
