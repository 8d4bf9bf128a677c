//! All open connections, and the sweep that ends those that take too long.

use std::{
    collections::HashMap,
    fmt,
    future::poll_fn,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use skep_host::lock;
use tokio::sync::watch;

use super::{
    activity::{Activity, ActivityLimits, ConnectionOrder, SweepClock, millis},
    limits::Limits,
};

/// The longest time between two sweeps.
const MAX_SWEEP: Duration = Duration::from_secs(1);

/// The shortest: even tests need no finer limits.
const MIN_SWEEP: Duration = Duration::from_millis(10);

/// All open connections.
pub(crate) struct Connections {
    clock: Arc<SweepClock>,
    sweep: Duration,
    open: Mutex<OpenConnections>,
    /// Each open connection holds a receiver.
    alive: watch::Sender<()>,
}

#[derive(Default)]
struct OpenConnections {
    next: u64,
    stopping: bool,
    connections: HashMap<u64, Arc<Activity>>,
}

impl Connections {
    pub(crate) fn new(limits: &Limits) -> Self {
        let mut shortest = limits.head.min(limits.write).min(limits.idle);
        if !limits.half_closed.is_zero() {
            shortest = shortest.min(limits.half_closed);
        }
        Self {
            clock: Arc::default(),
            sweep: (shortest / 4).clamp(MIN_SWEEP, MAX_SWEEP),
            open: Mutex::default(),
            alive: watch::Sender::new(()),
        }
    }

    /// Registers a connection until the returned entry is dropped.
    pub(super) fn enter(self: &Arc<Self>, times: ActivityLimits) -> ConnectionEntry {
        let activity = Arc::new(Activity::new(Arc::clone(&self.clock), times));
        let mut open = self.lock();
        if open.stopping {
            activity.give(ConnectionOrder::Finish);
        }
        let id = open.next;
        open.next += 1;
        open.connections.insert(id, Arc::clone(&activity));
        ConnectionEntry {
            id,
            activity,
            connections: Arc::clone(self),
            _alive: self.alive.subscribe(),
        }
    }

    /// Sweeps for ever.
    pub(crate) async fn sweep(&self) {
        let mut ticks = tokio::time::interval(self.sweep);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let (period, mut last) = (millis(self.sweep), Instant::now());
        loop {
            ticks.tick().await;
            let elapsed = millis(last.elapsed()).min(2 * period);
            last = Instant::now();
            let now = self.clock.advance(elapsed);
            for activity in self.lock().connections.values() {
                if let Some((order, why)) = activity.verdict(now, period)
                    && activity.give(order)
                {
                    tracing::debug!("closing a connection: {why}");
                }
            }
        }
    }

    /// Makes room for a new connection: closes the one that has been idle for the longest.
    pub(super) fn close_idlest(&self) {
        let open = self.lock();
        let idle = open.connections.values();
        let idle = idle.filter_map(|activity| Some((activity.idle_since()?, activity)));
        if let Some((_, activity)) = idle.min_by_key(|(since, _)| *since) {
            activity.give(ConnectionOrder::Finish);
        }
    }

    /// Orders all connections, including later ones, to finish.
    pub(crate) fn finish(&self) {
        let mut open = self.lock();
        open.stopping = true;
        for activity in open.connections.values() {
            activity.give(ConnectionOrder::Finish);
        }
    }

    /// Waits until no connection is open.
    pub(crate) async fn all_closed(&self) {
        self.alive.closed().await;
    }

    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        // Each change is one step: a panic leaves nothing half done.
        lock(&self.open)
    }
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections").finish_non_exhaustive()
    }
}

/// The registration of an open connection.
pub(super) struct ConnectionEntry {
    id: u64,
    pub(super) activity: Arc<Activity>,
    connections: Arc<Connections>,
    _alive: watch::Receiver<()>,
}

impl ConnectionEntry {
    /// Registers the task of `context`, which is woken on orders from then on.
    pub(super) fn register(&self, context: &Context<'_>) {
        self.activity.register(context.waker());
    }

    /// The result of `poll`; `None` if it failed, or the connection was told to end before.
    pub(super) async fn unless_told<T, E: fmt::Display>(
        &self,
        mut poll: impl FnMut(&mut Context<'_>) -> Poll<Result<T, E>>,
    ) -> Option<T> {
        poll_fn(|cx| match poll(cx) {
            Poll::Ready(Ok(done)) => Poll::Ready(Some(done)),
            Poll::Ready(Err(error)) => {
                tracing::debug!("a connection ended before its first request: {error}");
                Poll::Ready(None)
            }
            Poll::Pending if self.activity.order() == ConnectionOrder::Serve => Poll::Pending,
            Poll::Pending => Poll::Ready(None),
        })
        .await
    }
}

impl Drop for ConnectionEntry {
    fn drop(&mut self) {
        self.connections.lock().connections.remove(&self.id);
    }
}
