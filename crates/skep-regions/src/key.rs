//! From a key to an object: only regular files directly in the directory of shared memory.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::{fs::OFlags, io::Errno};

use crate::RegionError;

/// The longest name of a file, in bytes.
const MAX_KEY_BYTES: usize = 255;

/// Why a file of another kind is refused.
const NOT_AN_OBJECT: &str = "it is not a shared-memory object";

/// The name of the object that a key means: as with `shm_open`, the key may begin with a slash.
fn object_name(key: &str) -> Result<&str, &'static str> {
    let name = key.strip_prefix('/').unwrap_or(key);
    match name {
        "" => Err("the key is empty"),
        "." | ".." => Err("the key names a directory"),
        name if name.contains('/') => {
            Err("the key has a slash after its beginning, expected the name of an object")
        }
        name if name.contains('\0') => Err("the key has a zero byte"),
        name if name.len() > MAX_KEY_BYTES => Err("the key is longer than 255 bytes"),
        name => Ok(name),
    }
}

/// Opens the object of a key for reading and writing. Follows no symbolic link, and waits for nothing.
pub(crate) fn open(directory: &Path, key: &str) -> Result<File, RegionError> {
    let unopened = |why: &str| RegionError::Unopened {
        key: key.to_owned(),
        why: why.to_owned(),
    };
    let name = object_name(key).map_err(unopened)?;
    // NONBLOCK: neither a pipe's other end nor the holder of a lease is waited for.
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(i32::try_from(flags.bits()).unwrap_or_default())
        .open(directory.join(name))
        .map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::NOENT) => unopened("there is no such object"),
            Some(Errno::ACCESS | Errno::PERM) => unopened("the server may not read and write it"),
            Some(Errno::AGAIN) => unopened("another process holds a lease on it"),
            // A symbolic link, a directory, a socket.
            Some(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => unopened(NOT_AN_OBJECT),
            _ => unopened(&error.kind().to_string()),
        })?;
    let metadata = file.metadata();
    if !metadata.is_ok_and(|metadata| metadata.is_file()) {
        return Err(unopened(NOT_AN_OBJECT));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix};

    use super::*;

    #[test]
    fn a_key_is_a_plain_name() {
        assert_eq!(object_name("/a"), Ok("a"));
        assert_eq!(object_name("a.b-c ü"), Ok("a.b-c ü"));
        assert_eq!(object_name(&"x".repeat(255)).map(str::len), Ok(255));
        let long = "x".repeat(256);
        for key in [
            "", "/", ".", "..", "/.", "/..", "//a", "a/b", "../a", "/../a", "a/", "a\0b", &long,
        ] {
            assert!(object_name(key).is_err(), "{key}");
        }
    }

    #[test]
    fn only_regular_files_in_the_directory_are_opened() {
        let directory = tempfile::tempdir().expect("directory");
        let inside = |name: &str| directory.path().join(name);
        fs::write(inside("object"), b"abc").expect("file");
        fs::create_dir(inside("sub")).expect("directory");
        fs::write(inside("sub/hidden"), b"abc").expect("file");
        unix::fs::symlink(inside("object"), inside("link")).expect("link");
        unix::fs::symlink("/nonexistent", inside("dangling")).expect("link");
        let _socket = unix::net::UnixListener::bind(inside("socket")).expect("socket");
        let pipe = inside("pipe");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &pipe,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RWXU,
            0,
        )
        .expect("pipe");
        assert!(open(directory.path(), "object").is_ok());
        assert!(open(directory.path(), "/object").is_ok());
        for key in [
            "link",
            "dangling",
            "sub",
            "socket",
            "pipe",
            "nosuch",
            "sub/hidden",
            "../object",
        ] {
            let error = open(directory.path(), key).expect_err(key).to_string();
            let start = format!("Unable to open shared memory region: '{key}'");
            assert!(error.starts_with(&start), "{error}");
            let path = directory.path().to_string_lossy();
            assert!(!error.contains(&*path), "{error}");
        }
        assert!(
            !inside("nosuch").exists(),
            "an object is never made by opening it"
        );
    }
}
