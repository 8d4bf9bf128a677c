//! The properties of the machine that determine how the library lays out memory.

use std::{
    env::{self, consts::ARCH},
    ffi::{OsStr, OsString},
    fs,
    os::unix::ffi::OsStrExt,
    sync::LazyLock,
};

/// The channel block that the library uses on this machine: 16 with AVX-512, 8 with AVX, 1 without a blocked image
/// layout (`MlasNchwcGetBlockSize`).
#[must_use]
pub fn channel_block() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            return 16;
        }
        if is_x86_feature_detected!("avx") {
            return 8;
        }
    }
    1
}

/// The instruction sets of this machine, which the library chooses kernels, layouts and packed forms by, as one word:
/// what the kernel says of the processor's features, all of them, since any may be one that a version of the library
/// looks at.
pub(crate) fn instruction_sets() -> &'static str {
    /// Read once: the file has a part for each processor, which takes milliseconds where there are many.
    static SETS: LazyLock<String> = LazyLock::new(|| {
        let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let features = text.lines().find(|line| {
            let name = line.split(':').next().unwrap_or_default().trim();
            name == "flags" || name == "Features"
        });
        let digest = blake3::hash(features.unwrap_or_default().as_bytes());
        format!("{}-{}", ARCH, &digest.to_hex()[..16])
    });
    &SETS
}

/// Whether an environment variable is a setting that the library reads itself.
pub(crate) fn is_setting(variable: &OsStr) -> bool {
    let name = variable.as_encoded_bytes();
    // The library's path is passed on in another way.
    (name.starts_with(b"ORT_") || name.starts_with(b"MLAS_")) && name != b"ORT_DYLIB_PATH"
}

/// The environment's settings that the library reads itself.
pub(crate) fn settings() -> Vec<u8> {
    let mut settings: Vec<(OsString, OsString)> = env::vars_os()
        .filter(|(name, _)| is_setting(name))
        .collect();
    settings.sort();
    let mut text = Vec::new();
    for (name, value) in settings {
        for word in [name, value] {
            text.extend_from_slice(word.as_bytes());
            text.push(0);
        }
    }
    text
}
