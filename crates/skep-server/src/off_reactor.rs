//! Work that would block the reactor's threads: parsing and encoding of large requests and answers.

use std::{
    num::NonZeroUsize,
    sync::{Arc, LazyLock},
    thread,
};

use tokio::sync::Semaphore;

use crate::error::ApiError;

/// Limits how many large requests and answers are parsed or encoded at once: one for each processor, which is the
/// fastest. Others wait, and hold only the bytes that have arrived.
static LONG_WORK: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Arc::new(Semaphore::new(cores))
});

/// Runs long work off the reactor: parsing and encoding, whose time is bounded by their size. Work that waits for files
/// or models has other threads (`Runtime::request_load` and the like), so it cannot occupy all of these.
pub(crate) async fn off_reactor<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let turn = Arc::clone(&LONG_WORK).acquire_owned().await;
    let work = move || {
        // Held until the work ends, even if its caller is gone.
        let _turn = turn;
        work()
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::internal(error.to_string()))
}
