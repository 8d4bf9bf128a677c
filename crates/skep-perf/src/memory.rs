//! What a process holds in memory, as the kernel counts it.

use std::{fs, io};

/// The memory of a process at one moment.
#[derive(Debug, Clone, Copy)]
pub struct ProcessMemory {
    /// Pages that no other process has, in KiB.
    pub private_kib: f64,
    /// Pages that other processes have too, each counted in full, in KiB.
    pub shared_kib: f64,
    /// Pages of no file: what the process allocated, without its code and what it maps, in KiB.
    pub anonymous_kib: f64,
    /// Private pages and a share of those that others have too, in KiB.
    pub pss_kib: f64,
}

/// Reads a process's figures.
///
/// # Errors
/// When there is no such process, or its figures cannot be read.
pub fn memory(pid: u32) -> io::Result<ProcessMemory> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = |field: &str| {
        let line = rollup.lines().find(|line| line.starts_with(field));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse::<f64>().ok())
            .ok_or_else(|| io::Error::other(format!("no `{field}` in smaps_rollup")))
    };
    Ok(ProcessMemory {
        private_kib: kib("Private_Clean:")? + kib("Private_Dirty:")?,
        shared_kib: kib("Shared_Clean:")? + kib("Shared_Dirty:")?,
        anonymous_kib: kib("Anonymous:")?,
        pss_kib: kib("Pss:")?,
    })
}
