//! Weights that move to the store while their model already runs.
//!
//! If no process on the node has a model's weights in memory, the model serves from the cache's files as soon as
//! these are mapped: the load copies nothing and does not repeat earlier checks. But a process with write access can
//! change the files, and the store does not count their pages. So the weights then move to the store, whose sealed
//! pages are mapped over those of the files, address by address. Both hold the same bytes, so runs in flight do not
//! notice.
//!
//! ```text
//! load:    address A -> pages of the file (shared with every process that maps it)   runs begin
//! after:   file -> segment of the store, verified, sealed
//!          address A -> pages of the segment                                          the file is no longer needed
//! ```
//!
//! If the store finds that the bytes do not match their digest, the file is damaged in a way that its size and times
//! do not show (a disk error, say). The model then answers with errors until it is loaded again.

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, LazyLock,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::Instant,
};

use skep_cache::{Form, Mapped};
use skep_store::{ErrorKind, Lease, StoreError, Wanted};

use crate::WeightSource;

/// A backend's weights that may move to the store while models run on them.
pub trait MoveTarget: Send {
    /// The weights in use; `None` once they are dropped.
    fn upgrade(&self) -> Option<Arc<dyn WeightsInUse>>;

    /// Maps the store's pages over those of `cached`. The lease lists the same tensors in the same order.
    ///
    /// # Errors
    /// Errors of the system; weights that were not reached stay where they are.
    fn exchange(&self, cached: &[CachedTensor], lease: &Lease) -> io::Result<()>;
}

/// Weights that a model runs on.
pub trait WeightsInUse: Send + Sync {
    /// Keeps a lease for as long as the weights are in use. Call it at most once.
    fn keep(&self, lease: Lease);

    /// Marks the weights as damaged: every later run on them fails.
    fn condemn(&self);
}

/// Weights on their way to the store.
pub struct WeightMove {
    /// The model's file, for messages.
    pub path: PathBuf,
    /// The form that the weights belong to.
    pub form: Form,
    /// The store that they move to.
    pub source: WeightSource,
    /// The tensors to move.
    pub cached: Vec<CachedTensor>,
    /// What uses them.
    pub target: Box<dyn MoveTarget>,
}

/// A tensor in a file of the cache.
#[derive(Debug)]
pub struct CachedTensor {
    /// Its name in the store.
    pub tensor: Wanted,
    /// Its pages.
    pub mapped: Mapped,
}

/// The most models in the queue. Each keeps some hundreds of files mapped, even if it is unloaded meanwhile.
const MAX_QUEUED: usize = 64;

/// Moves run one after the other, so that loads keep most of the processor.
static QUEUE: LazyLock<Option<SyncSender<WeightMove>>> = LazyLock::new(|| {
    let (sender, queue) = sync_channel::<WeightMove>(MAX_QUEUED);
    let started = thread::Builder::new()
        .name("weights".to_owned())
        .spawn(move || queue.into_iter().for_each(WeightMove::run));
    started.is_ok().then_some(sender)
});

/// Brings weights to the store: soon, or at once if the queue is full or no thread can be started.
pub fn bring(weights: WeightMove) {
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

impl WeightMove {
    fn run(self) {
        let Some(weights) = self.target.upgrade() else {
            return;
        };
        let path = self.path.display();
        let began = Instant::now();
        match self.acquire() {
            Ok(lease) => {
                let moved = self.target.exchange(&self.cached, &lease);
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
            // A store in another process reports damage with its own text, but with this kind.
            Err(error) if error.kind() == ErrorKind::Content => {
                // Do this first: a reload right after the failure has to verify the files again.
                self.form.distrust();
                weights.condemn();
                // Verify every tensor, also those that other processes found undamaged before.
                let damage = self.form.verify().err();
                self.form.forget();
                let damage = damage.map_or_else(String::new, |damage| format!(": {damage}"));
                tracing::error!(
                    "the baked form of `{path}` is damaged: every request fails until the model is loaded again{damage}"
                );
            }
            Err(error) => {
                tracing::warn!(
                    "weights of `{path}` stay in the cache's files: the tensor store: {error}"
                );
            }
        }
    }

    /// Reads from the mappings: the files may be gone by now.
    fn acquire(&self) -> Result<Lease, StoreError> {
        let wanted: Vec<Wanted> = self.cached.iter().map(|c| c.tensor.clone()).collect();
        let mut fill = |index: usize, bytes: &mut [u8]| {
            bytes.copy_from_slice(&self.cached[index].mapped.bytes());
            Ok(())
        };
        let WeightSource {
            store,
            tenant,
            order,
            ..
        } = &self.source;
        store.acquire(tenant, &wanted, *order, &mut fill)
    }
}
