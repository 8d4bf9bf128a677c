//! Weights that are brought to the store while the model runs already.
//!
//! A model that nobody on the node has in memory is served from the cache's files as soon as these are mapped: nothing is
//! copied, and what was found whole before is not looked at again. Files can be written by whoever has the right to, and
//! their pages are not counted by the store, so the weights are then brought to the store, as they would have been before
//! the load, and its sealed pages are mapped over those of the files, address by address. Both hold the same bytes: runs
//! that go on meanwhile notice nothing.
//!
//! ```text
//! load:    address A -> pages of the file (shared with whoever maps it)        runs begin
//! behind:  file -> segment of the store, verified, sealed
//!          address A -> pages of the segment                                   the file is not needed any more
//! ```
//!
//! What the store finds to be other bytes than they should be is damage that size and times of a file do not show, such as
//! a disk's. The model then answers nothing more until it is loaded again.

use std::{
    path::PathBuf,
    sync::{
        LazyLock, Weak,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Instant,
};

use skep_alloc::LoadedBlocks;
use skep_backend::Weights as Shared;
use skep_cache::{Form, Mapped};
use skep_store::{ErrorKind, Lease, StoreError, Wanted};

use crate::ffi::{self, Weights};

/// Weights on their way to the store.
pub(crate) struct Move {
    /// The model's file, for messages.
    pub(crate) path: PathBuf,
    pub(crate) form: Form,
    pub(crate) shared: Shared,
    /// What is to move.
    pub(crate) cached: Vec<Cached>,
    /// What the library packed, where `cached` refers to it.
    pub(crate) loaded: Option<LoadedBlocks>,
    /// Those of the session; gone when that is.
    pub(crate) weights: Weak<Weights>,
}

/// A tensor in a file of the cache.
pub(crate) struct Cached {
    pub(crate) tensor: Wanted,
    pub(crate) mapped: Mapped,
    /// Of a packed weight the block of the load that the file is mapped over.
    pub(crate) block: Option<usize>,
}

/// Models whose weights are queued, at most: each keeps its files mapped, some hundreds, also when it was unloaded meanwhile.
const MAX_QUEUED: usize = 64;

/// Where they are queued: one after the other, so that models that are being loaded keep most of the processor.
static QUEUE: LazyLock<Option<SyncSender<Move>>> = LazyLock::new(|| {
    let (sender, queue) = sync_channel::<Move>(MAX_QUEUED);
    let started = thread::Builder::new()
        .name("weights".to_owned())
        .spawn(move || queue.into_iter().for_each(Move::run));
    started.is_ok().then_some(sender)
});

/// Brings weights to the store, soon; now if too many are queued, or if the system gives no thread.
pub(crate) fn bring(weights: Move) {
    let left = match &*QUEUE {
        Some(queue) => match queue.try_send(weights) {
            Ok(()) => None,
            Err(TrySendError::Full(unsent) | TrySendError::Disconnected(unsent)) => Some(unsent),
        },
        None => Some(weights),
    };
    if let Some(weights) = left {
        weights.run();
    }
}

impl Move {
    fn run(self) {
        let Some(weights) = self.weights.upgrade() else {
            return;
        };
        let path = self.path.display();
        let began = Instant::now();
        match self.acquire() {
            Ok(lease) => {
                let moved = self.exchange(&lease);
                weights.keep(lease);
                match moved {
                    Ok(()) => tracing::info!(
                        "weights of `{path}` are in the tensor store, after {} ms",
                        began.elapsed().as_millis()
                    ),
                    Err(error) => tracing::warn!(
                        "weights of `{path}` stay in the cache's files: mapping them: {error}"
                    ),
                }
            }
            // A store in another process says so in words of its own, of this kind.
            Err(error) if error.kind() == ErrorKind::Content => {
                // First: who loads the model again as soon as it does not answer looks at the files.
                self.form.distrust();
                weights.condemn();
                // Whichever they are, and whoever found them whole before.
                let damage = self.form.verify().err();
                self.form.forget();
                let damage = damage.map_or_else(String::new, |damage| format!(": {damage}"));
                tracing::error!(
                    "the baked form of `{path}` is damaged, the model answers nothing until it is loaded again{damage}"
                );
            }
            Err(error) => {
                tracing::warn!(
                    "weights of `{path}` stay in the cache's files: the tensor store: {error}"
                );
            }
        }
    }

    /// The files may be gone by now, their mappings are not.
    fn acquire(&self) -> Result<Lease, StoreError> {
        let wanted: Vec<Wanted> = self.cached.iter().map(|c| c.tensor.clone()).collect();
        let mut fill = |index: usize, bytes: &mut [u8]| {
            bytes.copy_from_slice(&self.cached[index].mapped.bytes());
            Ok(())
        };
        let Shared { store, tenant, .. } = &self.shared;
        store.acquire(tenant, &wanted, self.shared.order, &mut fill)
    }

    fn exchange(&self, lease: &Lease) -> std::io::Result<()> {
        for (index, cached) in self.cached.iter().enumerate() {
            match (cached.block, &self.loaded) {
                (Some(block), Some(loaded)) => {
                    ffi::exchange_packed(loaded, block, lease, index)?;
                }
                _ => ffi::exchange(&cached.mapped, lease, index)?,
            }
        }
        Ok(())
    }
}
