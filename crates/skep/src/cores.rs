//! Work on all cores: pieces that do not depend on each other, on as many threads as the process may use.

use std::{
    num::NonZeroUsize,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use skep_planner::Workers;

/// Applies a function to each item, and returns the results in the items' order.
pub(crate) fn on_all_cores<T: Sync, R: Send>(items: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    if threads.min(items.len()) < 2 {
        return items.iter().map(work).collect();
    }
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(index) else {
                return done;
            };
            done.push((index, work(item)));
        }
    };
    let mut results: Vec<(usize, R)> = thread::scope(|scope| {
        let workers = 0..threads.min(items.len());
        let workers: Vec<_> = workers.map(|_| scope.spawn(worker)).collect();
        let done = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        done.flatten().collect()
    });
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The planner's work on all cores.
pub(crate) struct AllCores;

impl Workers for AllCores {
    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        let numbers: Vec<usize> = (0..jobs).collect();
        on_all_cores(&numbers, |&number| job(number));
    }
}
