//! Hashing and copying that would keep a reactor's thread for too long.

use std::{
    num::NonZeroUsize,
    sync::{Arc, LazyLock},
    thread,
};

use tokio::sync::Semaphore;

/// Bytes that are hashed or copied within a millisecond, on the reactor's thread. More goes to another thread, so that no
/// connection waits for it.
pub(super) const SHORT_BYTES: usize = 1 << 20;

/// As many at once as there are cores, which is the fastest. Others wait.
static TURNS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| {
    let cores = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    Arc::new(Semaphore::new(cores))
});

/// Whether work over so many bytes may run on the reactor's thread.
pub(super) const fn is_short(bytes: usize) -> bool {
    bytes <= SHORT_BYTES
}

/// Runs long work on another thread. `None` if it panicked, or if the process is ending.
pub(super) async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let turn = Arc::clone(&TURNS).acquire_owned().await.ok()?;
    let work = move || {
        // Held until the work ends, even if its caller is gone.
        let _turn = turn;
        work()
    };
    tokio::task::spawn_blocking(work).await.ok()
}
