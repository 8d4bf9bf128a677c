//! Reads files that others may have replaced by something else.
//!
//! Opening a pipe waits for a writer, a device may never end, and a file can have any length. Such a file in a
//! repository or a cache must neither block a thread for ever nor use up all memory.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::OFlags;

/// Opens a regular file for reading.
///
/// # Errors
/// The system's, and [`io::ErrorKind::InvalidInput`] for anything but a regular file.
pub fn open_file(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    // Has no effect on a regular file, and keeps a pipe from waiting for its writer.
    options
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed());
    let file = options.open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    let text = "it is not a regular file";
    Err(io::Error::new(io::ErrorKind::InvalidInput, text))
}

/// Reads a regular file of at most `limit` bytes.
///
/// # Errors
/// Those of [`open_file`], and [`io::ErrorKind::FileTooLarge`] for a longer one.
pub fn read_file(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    bounded(open_file(path)?, limit)
}

/// Reads a file of at most `limit` bytes that a command line names. It may be a pipe, whose writer it waits for.
///
/// # Errors
/// The system's, and [`io::ErrorKind::FileTooLarge`] for more bytes.
pub fn read_named(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    bounded(File::open(path)?, limit)
}

/// The same for text.
///
/// # Errors
/// Those of [`read_named`], and [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_named_text(path: &Path, limit: u64) -> io::Result<String> {
    text(read_named(path, limit)?)
}

fn bounded(file: File, limit: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    let too_large = |length: u64| {
        let text = format!("it has {length} bytes, expected at most {limit}");
        io::Error::new(io::ErrorKind::FileTooLarge, text)
    };
    if length > limit {
        return Err(too_large(length));
    }
    let mut bytes = Vec::new();
    let room = usize::try_from(length).map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes
        .try_reserve_exact(room)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    // It may grow meanwhile.
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    let length = bytes.len() as u64;
    if length > limit {
        return Err(too_large(length));
    }
    Ok(bytes)
}

/// Reads a regular file of text, of at most `limit` bytes.
///
/// # Errors
/// Those of [`read_file`], and [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    text(read_file(path, limit)?)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn other_than_regular_files_and_long_ones_are_refused_at_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = |name: &str| directory.path().join(name);
        fs::write(path("file"), "text").expect("written");
        assert_eq!(read_text(&path("file"), 4).expect("read"), "text");
        let kind = |outcome: io::Result<String>| outcome.expect_err("refused").kind();
        assert_eq!(
            kind(read_text(&path("file"), 3)),
            io::ErrorKind::FileTooLarge
        );
        assert_eq!(kind(read_text(&path("none"), 3)), io::ErrorKind::NotFound);
        assert_eq!(
            kind(read_text(directory.path(), 3)),
            io::ErrorKind::InvalidInput
        );
        mknodat(CWD, path("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("a pipe");
        assert_eq!(
            kind(read_text(&path("pipe"), 3)),
            io::ErrorKind::InvalidInput
        );
        let zero = Path::new("/dev/zero");
        assert_eq!(kind(read_text(zero, 3)), io::ErrorKind::InvalidInput);
        // Its length is said to be 0.
        assert_eq!(kind(read_named_text(zero, 3)), io::ErrorKind::FileTooLarge);
        assert_eq!(read_named_text(&path("file"), 4).expect("read"), "text");
        let (reader, mut writer) = io::pipe().expect("a pipe");
        io::Write::write_all(&mut writer, b"text").expect("room");
        drop(writer);
        let name = format!("/dev/fd/{}", rustix::fd::AsRawFd::as_raw_fd(&reader));
        assert_eq!(read_named_text(Path::new(&name), 4).expect("read"), "text");
        // A sparse file of a terabyte.
        let sparse = File::create(path("sparse")).expect("made");
        sparse.set_len(1 << 40).expect("grown");
        assert_eq!(
            kind(read_text(&path("sparse"), 1 << 30)),
            io::ErrorKind::FileTooLarge
        );
        fs::write(path("binary"), [0xff]).expect("written");
        assert_eq!(
            kind(read_text(&path("binary"), 3)),
            io::ErrorKind::InvalidData
        );
    }
}
