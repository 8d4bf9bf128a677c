//! Work on all cores: pieces that do not depend on each other, on as many threads as the process may use.

use std::{
    num::NonZeroUsize,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use skep_planner::JobRunner;

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

/// The planner's work on all cores, once it has turned out to be long enough.
pub(crate) struct AllCores {
    began: Instant,
}

/// Less work than this is done sooner by one thread than others are started.
const SHORT: Duration = Duration::from_millis(1);

impl AllCores {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
        }
    }
}

impl JobRunner for AllCores {
    fn run(&self, jobs: usize, job: &(dyn Fn(usize) + Sync)) {
        let mut next = 0;
        while next < jobs && self.began.elapsed() < SHORT {
            job(next);
            next += 1;
        }
        let rest: Vec<usize> = (next..jobs).collect();
        on_all_cores(&rest, |&number| job(number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_item_is_worked_on_once() {
        let items: Vec<usize> = (0..1000).collect();
        assert_eq!(
            on_all_cores(&items, |item| item * 2),
            items.iter().map(|item| item * 2).collect::<Vec<_>>()
        );
        assert!(on_all_cores(&[], |(): &()| ()).is_empty());
        let counts: Vec<AtomicUsize> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        AllCores::new().run(counts.len(), &|number| {
            counts[number].fetch_add(1, Ordering::Relaxed);
        });
        assert!(counts.into_iter().all(|count| count.into_inner() == 1));
    }
}
