//! Fixtures for tests, made from the models of `skep-models`.
//!
//! [`broken`] holds files that must be refused. With the feature `baking` there are `node`, with which tests of baked
//! models begin, and `forge`, which changes a cache as an attacker could.

pub mod broken;
#[cfg(feature = "baking")]
pub mod forge;
#[cfg(feature = "baking")]
pub mod node;

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file below a directory, in the order of their paths.
///
/// # Panics
/// When a directory cannot be read.
#[must_use]
#[expect(
    clippy::expect_used,
    reason = "for tests, which state what they expect"
)]
pub fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).expect("read") {
        let path = entry.expect("read").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}
