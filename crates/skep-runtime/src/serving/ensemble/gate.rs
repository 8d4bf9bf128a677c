//! The bound on an ensemble's requests under way, and the wait for their end.

use std::{
    sync::{
        Condvar, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use skep_host::lock;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::error::{ErrorKind, QUEUE_FULL, RuntimeError};

/// The requests of an ensemble: those under way, and those that wait for a place.
#[derive(Debug)]
pub(super) struct EnsembleGate {
    /// `None` if any number may be under way.
    places: Option<Semaphore>,
    max_waiting: usize,
    waiting: AtomicUsize,
    is_draining: AtomicBool,
    under_way: Mutex<usize>,
    is_idle: Condvar,
}

/// A request that is under way. Dropping it gives up its place.
pub(super) struct GatePass<'a> {
    gate: &'a EnsembleGate,
    _place: Option<SemaphorePermit<'a>>,
}

impl EnsembleGate {
    pub(super) fn new(max_inflight: Option<usize>, max_waiting: usize) -> Self {
        Self {
            places: max_inflight.map(|most| Semaphore::new(most.min(Semaphore::MAX_PERMITS))),
            max_waiting,
            waiting: AtomicUsize::new(0),
            is_draining: AtomicBool::new(false),
            under_way: Mutex::new(0),
            is_idle: Condvar::new(),
        }
    }

    /// Lets a request in, as soon as there is a place, within `timeout`. Requests get places in their order.
    pub(super) async fn enter(
        &self,
        timeout: Option<Duration>,
    ) -> Result<GatePass<'_>, RuntimeError> {
        if self.is_draining.load(Ordering::Acquire) {
            return Err(unavailable(
                "Server is stopping, scheduler for model has stopped accepting new inference requests",
            ));
        }
        // Counted before it waits, so that a stop waits for it as well.
        *lock(&self.under_way) += 1;
        let mut pass = GatePass {
            gate: self,
            _place: None,
        };
        let Some(places) = &self.places else {
            return Ok(pass);
        };
        pass._place = match places.try_acquire() {
            Ok(place) => Some(place),
            Err(_) => Some(self.wait(places, timeout).await?),
        };
        Ok(pass)
    }

    async fn wait<'a>(
        &'a self,
        places: &'a Semaphore,
        timeout: Option<Duration>,
    ) -> Result<SemaphorePermit<'a>, RuntimeError> {
        let waiter = WaitCount::new(&self.waiting);
        if waiter.others >= self.max_waiting {
            return Err(unavailable(QUEUE_FULL));
        }
        let place = match timeout {
            None => places.acquire().await,
            Some(timeout) => tokio::time::timeout(timeout, places.acquire())
                .await
                .map_err(|_| timed_out())?,
        };
        place.map_err(|_| RuntimeError::internal("the ensemble's places were closed"))
    }

    /// Requests that wait for a place.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Lets no further request in.
    pub(super) fn drain(&self) {
        self.is_draining.store(true, Ordering::Release);
    }

    /// Blocks until no request is under way, or until `deadline`.
    pub(super) fn wait_until_idle(&self, deadline: Option<Instant>) {
        let mut under_way = lock(&self.under_way);
        while *under_way > 0 {
            let left = deadline.map_or(Duration::MAX, |end| {
                end.saturating_duration_since(Instant::now())
            });
            if left.is_zero() {
                return;
            }
            under_way = self
                .is_idle
                .wait_timeout(under_way, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// The refusal of a request whose time is over. Triton's words.
pub(super) fn timed_out() -> RuntimeError {
    unavailable("Request timeout expired")
}

fn unavailable(text: &str) -> RuntimeError {
    RuntimeError::new(ErrorKind::Unavailable, text)
}

impl Drop for GatePass<'_> {
    fn drop(&mut self) {
        let mut under_way = lock(&self.gate.under_way);
        *under_way -= 1;
        if *under_way == 0 {
            self.gate.is_idle.notify_all();
        }
    }
}

/// Counts a request among those that wait.
struct WaitCount<'a> {
    count: &'a AtomicUsize,
    /// How many waited already.
    others: usize,
}

impl<'a> WaitCount<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        let others = count.fetch_add(1, Ordering::Relaxed);
        Self { count, others }
    }
}

impl Drop for WaitCount<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}
