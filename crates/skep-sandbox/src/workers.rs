//! The worker processes that run models now: what they hold and use together. Processes that bake are not among them.

use std::{collections::BTreeSet, sync::Mutex, time::Duration};

use skep_host::lock;

use crate::process::cpu_time;

/// By process id.
static WORKERS: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Counts a worker process as long as it lives.
#[derive(Debug)]
pub(crate) struct CountedWorker(u32);

impl CountedWorker {
    pub(crate) fn new(number: u32) -> Self {
        lock(&WORKERS).insert(number);
        Self(number)
    }
}

impl Drop for CountedWorker {
    fn drop(&mut self) {
        lock(&WORKERS).remove(&self.0);
    }
}

/// Bytes that worker processes hold, and no other process.
#[must_use]
pub fn worker_bytes() -> u64 {
    let workers = lock(&WORKERS).clone();
    let held = workers.into_iter().filter_map(skep_host::private_bytes_of);
    held.sum()
}

/// CPU time of the worker processes that live now.
#[must_use]
pub fn worker_cpu_time() -> Duration {
    let workers = lock(&WORKERS).clone();
    workers.into_iter().filter_map(cpu_time).sum()
}
