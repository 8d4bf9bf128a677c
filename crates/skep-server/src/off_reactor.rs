//! Work that would hold up the reactor's threads: parsing and encoding of large requests and answers.

use std::{
    num::NonZeroUsize,
    sync::{Arc, LazyLock},
    thread,
};

use tokio::sync::Semaphore;

use crate::error::ApiError;

/// How many requests and answers are read and written off the reactor at once: as many as there are processors, which is
/// as fast as it gets. Others wait, and hold no more than what has come of them.
static LONG_WORK: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Arc::new(Semaphore::new(cores))
});

/// Runs what takes long off the reactor: parsing and encoding, whose time is bounded by their size. What waits for files
/// or models has threads of its own ([`Runtime::request_load`] and its like), so that it cannot take all of these.
pub(crate) async fn off_reactor<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = Arc::clone(&LONG_WORK).acquire_owned().await;
    let work = move || {
        // Until the end, also where nobody waits for it any more.
        let _turn = turn;
        work()
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(error.to_string()))
}
