//! Weights that move to the store while their model already runs.
//!
//! A model whose weights no process on the node has in memory serves from the cache's files as soon as these are mapped: a
//! load copies nothing and does not check again what was checked before. But whoever may write the files can change them,
//! and the store does not count their pages. So the weights then move to the store, and the store's sealed pages are mapped
//! over those of the files, address by address. Both hold the same bytes, so runs in flight do not notice.
//!
//! ```text
//! load:    address A -> pages of the file (shared with every process that maps it)   runs begin
//! behind:  file -> segment of the store, verified, sealed
//!          address A -> pages of the segment                                          the file is no longer needed
//! ```
//!
//! If the store finds that the bytes differ from what they should be, the file is damaged in a way that its size and times
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

/// What a backend makes of weights that run in place.
pub trait MoveTarget: Send {
    /// The weights in use; `None` once they are gone.
    fn upgrade(&self) -> Option<Arc<dyn WeightsInUse>>;

    /// Maps the store's pages over those that `cached` lie in. The lease holds them in the same order.
    ///
    /// # Errors
    /// Those of the system; weights that were not reached stay where they are.
    fn exchange(&self, cached: &[CachedTensor], lease: &Lease) -> io::Result<()>;
}

/// Weights that a model runs on.
pub trait WeightsInUse: Send + Sync {
    /// Keeps the right to tensors of the store for as long as the weights are in use. At most once.
    fn keep(&self, lease: Lease);

    /// Marks the weights as damaged: every later run on them is an error.
    fn condemn(&self);
}

/// Weights on their way to the store.
pub struct WeightMove {
    /// The model's file, for messages.
    pub path: PathBuf,
    /// The form that the weights are of.
    pub form: Form,
    /// The store that they go to.
    pub source: WeightSource,
    /// What is to move.
    pub cached: Vec<CachedTensor>,
    /// What uses it.
    pub target: Box<dyn MoveTarget>,
}

/// A tensor in a file of the cache.
#[derive(Debug)]
pub struct CachedTensor {
    /// What it is called in the store.
    pub tensor: Wanted,
    /// Its pages.
    pub mapped: Mapped,
}

/// Models whose weights are queued, at most. Each keeps its files mapped, some hundreds, also if it is unloaded meanwhile.
const MAX_QUEUED: usize = 64;

/// Moves run one after the other, so that models that are being loaded keep most of the processor.
static QUEUE: LazyLock<Option<SyncSender<WeightMove>>> = LazyLock::new(|| {
    let (sender, queue) = sync_channel::<WeightMove>(MAX_QUEUED);
    let started = thread::Builder::new()
        .name("weights".to_owned())
        .spawn(move || queue.into_iter().for_each(WeightMove::run));
    started.is_ok().then_some(sender)
});

/// Brings weights to the store: soon, or now if the queue is full or the system gives no thread.
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
            // A store in another process reports damage in its own words, but of this kind.
            Err(error) if error.kind() == ErrorKind::Content => {
                // Do this first: a reload right after the failure has to verify the files again.
                self.form.distrust();
                weights.condemn();
                // Verify every tensor, also those that other processes found undamaged before.
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
