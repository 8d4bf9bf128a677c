//! Shared by the tests of daemons.
#![allow(dead_code, reason = "each test file takes a part of it")]

use std::{
    path::{Path, PathBuf},
    thread::{self, JoinHandle},
    time::Duration,
};

use skep_store::{
    Daemon, Description, FillError, Stat, Stopper, Store, StoreError, StoreOptions, Tenant, Wanted,
};
use skep_types::DataType;
use tempfile::TempDir;

/// A daemon in this process, in a temporary directory.
pub(crate) struct TestDaemon {
    directory: Option<TempDir>,
    path: PathBuf,
    stopper: Stopper,
    running: Option<JoinHandle<Result<(), StoreError>>>,
}

impl TestDaemon {
    pub(crate) fn start(options: StoreOptions) -> Self {
        Self::start_for(&[Tenant::GENERAL], options)
    }

    pub(crate) fn start_for(tenants: &[Tenant], options: StoreOptions) -> Self {
        let without_window = StoreOptions {
            adoption_window: Duration::ZERO,
            ..options
        };
        let directory = tempfile::tempdir().expect("a directory");
        Self::start_in(directory, tenants, without_window)
    }

    pub(crate) fn start_in(directory: TempDir, tenants: &[Tenant], options: StoreOptions) -> Self {
        let path = directory.path().join("run");
        let daemon = Daemon::bind(&path, tenants, options).expect("sockets");
        let stopper = daemon.stopper();
        Self {
            directory: Some(directory),
            path,
            stopper,
            running: Some(thread::spawn(move || daemon.run())),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Ends the daemon, and keeps its directory.
    pub(crate) fn stop(mut self) -> TempDir {
        self.end();
        self.directory.take().expect("running")
    }

    fn end(&mut self) {
        self.stopper.stop();
        if let Some(running) = self.running.take() {
            running.join().expect("no panic").expect("a clean end");
        }
    }

    /// Until the figures are so: what a connection's end brings comes when the daemon gets to it.
    pub(crate) fn wait_for(&self, tenant: &Tenant, so: impl Fn(&Stat) -> bool) -> Stat {
        let store = Store::connect(&tenant.socket(self.path())).expect("a store");
        loop {
            let stat = store.stat(tenant).expect("figures");
            if so(&stat) {
                return stat;
            }
            thread::yield_now();
        }
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        self.end();
    }
}

/// Bytes that differ from tensor to tensor and from byte to byte.
pub(crate) fn content(number: u8, length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at as u8).wrapping_mul(31) ^ number)
        .collect()
}

pub(crate) fn wanted(bytes: &[u8]) -> Wanted {
    let description = Description {
        datatype: DataType::Uint8,
        dims: vec![bytes.len() as u64],
        layout: "plain".into(),
    };
    Wanted::of(description, bytes)
}

/// Tensors of these lengths, all different.
pub(crate) fn tensors(lengths: &[usize]) -> (Vec<Vec<u8>>, Vec<Wanted>) {
    let contents: Vec<Vec<u8>> = lengths
        .iter()
        .enumerate()
        .map(|(number, length)| content(number as u8, *length))
        .collect();
    let wanted = contents.iter().map(|bytes| wanted(bytes)).collect();
    (contents, wanted)
}

/// Fills tensors.
pub(crate) fn fill(
    contents: &[Vec<u8>],
) -> impl FnMut(usize, &mut [u8]) -> Result<(), FillError> + '_ {
    |index, bytes| {
        bytes.copy_from_slice(&contents[index]);
        Ok(())
    }
}

/// Fails: for tensors that are there.
pub(crate) fn no_fill() -> impl FnMut(usize, &mut [u8]) -> Result<(), FillError> {
    |index, _| Err(FillError::new(format!("tensor {index} should be there")))
}
