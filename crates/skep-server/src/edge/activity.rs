//! What a connection is doing, and when that has taken too long.
//!
//! A connection notes what happens to it with a few relaxed stores; the time is that of the last sweep, so it reads no
//! clock. A limit is therefore kept to within one sweep, and never cut short.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::Duration,
};

use futures_util::task::AtomicWaker;

use super::limits::Limits;

/// How long a connection without a request may be silent once it has been told to finish: time for the last packets of
/// an answer and for the client to close, and too short to delay a stop noticeably.
const FINISH_GRACE_MS: u64 = 2_000;

/// Bytes that a client must read of an answer, or of all answers of its connection, within the limit on writing: far
/// less than any usable line carries, so it only ends clients that hold answers on purpose.
pub(super) const MIN_PROGRESS_BYTES: usize = 16 << 10;

/// Stands for "never" or "not now" where a time is expected.
const NEVER: u64 = u64::MAX;

/// What a connection has been told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ConnectionOrder {
    /// Serve on.
    Serve = 0,
    /// Finish what is in flight, take nothing new.
    Finish = 1,
    /// End at once.
    Abort = 2,
}

/// Limits in milliseconds, as the sweep compares them.
#[derive(Debug, Clone, Copy)]
pub(super) struct ActivityLimits {
    head: u64,
    write: u64,
    idle: u64,
    half_closed: u64,
    max_age: u64,
    max_age_grace: u64,
}

impl ActivityLimits {
    pub(super) fn new(limits: &Limits, age: Option<Duration>, grace: Option<Duration>) -> Self {
        Self {
            head: millis(limits.head),
            write: millis(limits.write),
            idle: millis(limits.idle),
            half_closed: millis(limits.half_closed),
            max_age: age.map_or(NEVER, millis),
            max_age_grace: grace.map_or(NEVER, millis),
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(NEVER)
}

/// One connection, as the sweep sees it. Times are milliseconds of [`Connections`]' clock.
#[derive(Debug)]
pub(super) struct Activity {
    clock: Arc<SweepClock>,
    times: ActivityLimits,
    opened: u64,
    /// Requests whose answer is not done.
    requests: AtomicU32,
    /// When the wait for a request's head, or for the handshake, began.
    head: AtomicU64,
    /// When bytes moved last, in either direction.
    moved: AtomicU64,
    /// When bytes came in last.
    received: AtomicU64,
    /// When the socket began to take less than [`MIN_PROGRESS_BYTES`] of the bytes to write.
    blocked: AtomicU64,
    /// Bytes that it took since then.
    taken_bytes: AtomicUsize,
    /// When it was told to finish.
    finishing: AtomicU64,
    /// Whether several requests may be under way at once, with frames between them that belong to no request.
    multiplexed: AtomicBool,
    /// Whether a request was answered before its body was read.
    unread: AtomicBool,
    /// Over HTTP/1.1, when the client closed its sending side while a request was under way.
    sent_all: AtomicU64,
    /// Whether the last request's answer has begun.
    answering: AtomicBool,
    order: AtomicU8,
    task: AtomicWaker,
}

impl Activity {
    pub(super) fn new(clock: Arc<SweepClock>, times: ActivityLimits) -> Self {
        let now = clock.now();
        Self {
            clock,
            times,
            opened: now,
            requests: AtomicU32::new(0),
            head: AtomicU64::new(now),
            moved: AtomicU64::new(now),
            received: AtomicU64::new(now),
            taken_bytes: AtomicUsize::new(0),
            blocked: AtomicU64::new(NEVER),
            finishing: AtomicU64::new(NEVER),
            multiplexed: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            sent_all: AtomicU64::new(NEVER),
            answering: AtomicBool::new(false),
            order: AtomicU8::new(ConnectionOrder::Serve as u8),
            task: AtomicWaker::new(),
        }
    }

    /// Sets the task to wake when there is an order.
    pub(super) fn register(&self, task: &Waker) {
        self.task.register(task);
    }

    pub(super) fn order(&self) -> ConnectionOrder {
        match self.order.load(Ordering::Acquire) {
            0 => ConnectionOrder::Serve,
            1 => ConnectionOrder::Finish,
            _ => ConnectionOrder::Abort,
        }
    }

    /// Gives an order, unless an earlier one is as strict. Returns whether the order is new.
    pub(super) fn give(&self, order: ConnectionOrder) -> bool {
        let is_news = self.order.fetch_max(order as u8, Ordering::AcqRel) < order as u8;
        if is_news {
            if order == ConnectionOrder::Finish {
                self.finishing.store(self.clock.now(), Ordering::Relaxed);
            }
            self.task.wake();
        }
        is_news
    }

    /// The client speaks HTTP/2. Heads of requests cannot be told from other frames then, so the limit on heads ends
    /// here; the limit on idle connections remains.
    pub(super) fn multiplexed(&self) {
        self.multiplexed.store(true, Ordering::Relaxed);
        self.head.store(NEVER, Ordering::Relaxed);
    }

    /// Bytes have come in.
    pub(super) fn read(&self) {
        let now = self.clock.now();
        self.moved.store(now, Ordering::Relaxed);
        self.received.store(now, Ordering::Relaxed);
        if self.requests.load(Ordering::Relaxed) == 0
            && self.head.load(Ordering::Relaxed) == NEVER
            && !self.multiplexed.load(Ordering::Relaxed)
        {
            self.head.store(now, Ordering::Relaxed);
        }
    }

    /// Bytes have gone out. A few bytes do not count as progress: a client that reads one at a time would hold an
    /// answer forever.
    pub(super) fn written(&self, bytes: usize) {
        self.moved.store(self.clock.now(), Ordering::Relaxed);
        if self.blocked.load(Ordering::Relaxed) == NEVER {
            return;
        }
        let taken = self.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
        if taken.saturating_add(bytes) >= MIN_PROGRESS_BYTES {
            self.blocked.store(NEVER, Ordering::Relaxed);
        }
    }

    /// All pending bytes have gone out.
    pub(super) fn flushed(&self) {
        self.blocked.store(NEVER, Ordering::Relaxed);
        if self.has_ended_sending() {
            // The protocol may now read the end of the input, which was withheld from it.
            self.task.wake();
        }
    }

    /// The socket takes no bytes.
    pub(super) fn blocked(&self) {
        if self.blocked.load(Ordering::Relaxed) == NEVER {
            self.taken_bytes.store(0, Ordering::Relaxed);
            self.blocked.store(self.clock.now(), Ordering::Relaxed);
        }
    }

    /// Whether the socket still has bytes to take.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed) != NEVER
    }

    /// How long nothing has come in, as of the last sweep.
    pub(super) fn silence(&self) -> Duration {
        let received = self.received.load(Ordering::Relaxed);
        Duration::from_millis(self.clock.now().saturating_sub(received))
    }

    /// A request's body is given up before its end.
    pub(super) fn leave_unread(&self) {
        self.unread.store(true, Ordering::Relaxed);
    }

    pub(super) fn left_unread(&self) -> bool {
        self.unread.load(Ordering::Relaxed)
    }

    /// The client has closed its sending side. Returns whether a request, or the writing of its answer, is still under
    /// way; if not, the connection is over.
    pub(super) fn ends_sending(&self) -> bool {
        let is_done = self.requests.load(Ordering::Relaxed) == 0 && !self.is_blocked();
        if self.times.half_closed == 0 || is_done {
            return false;
        }
        if !self.has_ended_sending() {
            self.sent_all.store(self.clock.now(), Ordering::Relaxed);
        }
        true
    }

    /// Whether the client closed its sending side during a request.
    pub(super) fn has_ended_sending(&self) -> bool {
        self.sent_all.load(Ordering::Relaxed) != NEVER
    }

    /// The client is still sending bytes that will be discarded; it gets the time of a head to stop.
    pub(super) fn lingers(&self) {
        self.head.store(self.clock.now(), Ordering::Relaxed);
    }

    /// A request's head is complete.
    pub(super) fn request_begins(&self) {
        self.head.store(NEVER, Ordering::Relaxed);
        self.answering.store(false, Ordering::Relaxed);
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Its answer begins.
    pub(super) fn answer_begins(&self) {
        self.answering.store(true, Ordering::Relaxed);
    }

    /// Its answer is done, or given up.
    pub(super) fn request_ends(&self) {
        self.moved.store(self.clock.now(), Ordering::Relaxed);
        self.requests.fetch_sub(1, Ordering::Relaxed);
        if self.has_ended_sending() {
            // The protocol has to read the end of the input now, which was withheld from it.
            self.task.wake();
        }
    }

    /// When bytes moved last, if the connection is idle and has no order; `None` otherwise.
    pub(super) fn idle_since(&self) -> Option<u64> {
        let is_idle =
            self.requests.load(Ordering::Relaxed) == 0 && self.order() == ConnectionOrder::Serve;
        is_idle.then(|| self.moved.load(Ordering::Relaxed))
    }

    /// Whether several requests are under way.
    pub(super) fn has_many_requests(&self) -> bool {
        self.requests.load(Ordering::Relaxed) > 1
    }

    /// The order that the connection must get at `now`, and why; `None` if it may go on. `slack` is the time between
    /// two sweeps.
    pub(super) fn verdict(&self, now: u64, slack: u64) -> Option<(ConnectionOrder, &'static str)> {
        let over = |since: u64, limit: u64| {
            since != NEVER
                && limit != NEVER
                && now.saturating_sub(since) > limit.saturating_add(slack)
        };
        let load = |time: &AtomicU64| time.load(Ordering::Relaxed);
        let ActivityLimits {
            head,
            write,
            idle,
            half_closed,
            max_age,
            max_age_grace,
        } = self.times;
        let moved = load(&self.moved);
        let is_blocked = load(&self.blocked) != NEVER;
        if over(load(&self.blocked), write) {
            return Some((
                ConnectionOrder::Abort,
                "the client reads its answers too slowly",
            ));
        }
        if over(self.opened, max_age.saturating_add(max_age_grace)) {
            return Some((
                ConnectionOrder::Abort,
                "its maximum age and the grace period after it are over",
            ));
        }
        if over(load(&self.sent_all), half_closed) && !self.answering.load(Ordering::Relaxed) {
            return Some((
                ConnectionOrder::Abort,
                "the client has closed its sending side, and its request had no answer in time",
            ));
        }
        if self.requests.load(Ordering::Relaxed) == 0 {
            if over(load(&self.head), head) {
                return Some((
                    ConnectionOrder::Abort,
                    "a request's head did not arrive in time",
                ));
            }
            if self.order() == ConnectionOrder::Finish
                && !is_blocked
                && over(load(&self.finishing).max(moved), FINISH_GRACE_MS)
            {
                return Some((ConnectionOrder::Abort, "the client did not close it"));
            }
            if over(moved, idle) {
                return Some((ConnectionOrder::Finish, "it was idle for too long"));
            }
        }
        if over(self.opened, max_age) {
            return Some((ConnectionOrder::Finish, "its maximum age is reached"));
        }
        None
    }
}

/// The time of the last sweep. Time in which the server itself did not run does not count: no client could be served
/// then.
#[derive(Debug, Default)]
pub(super) struct SweepClock {
    now: AtomicU64,
}

impl SweepClock {
    fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    /// Advances by `elapsed` milliseconds and returns the new time.
    pub(super) fn advance(&self, elapsed: u64) -> u64 {
        self.now.fetch_add(elapsed, Ordering::Relaxed) + elapsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity() -> Activity {
        let times = ActivityLimits {
            head: 100,
            write: 200,
            idle: 1_000,
            half_closed: 300,
            max_age: 50_000,
            max_age_grace: 5_000,
        };
        Activity::new(Arc::default(), times)
    }

    fn at(activity: &Activity, now: u64) -> ConnectionOrder {
        activity.clock.now.store(now, Ordering::Relaxed);
        activity
            .verdict(now, 10)
            .map_or(ConnectionOrder::Serve, |(order, _)| order)
    }

    #[test]
    fn a_silent_connection_gets_less_time_than_an_idle_one() {
        let it = activity();
        assert_eq!(at(&it, 110), ConnectionOrder::Serve);
        assert_eq!(at(&it, 111), ConnectionOrder::Abort);
        it.request_begins();
        assert_eq!(
            at(&it, 9_000),
            ConnectionOrder::Serve,
            "a handler may take its time"
        );
        it.request_ends();
        assert_eq!(at(&it, 10_010), ConnectionOrder::Serve);
        assert_eq!(at(&it, 10_011), ConnectionOrder::Finish);
    }

    #[test]
    fn the_head_of_a_further_request_counts_from_its_first_byte() {
        let it = activity();
        it.request_begins();
        it.request_ends();
        assert_eq!(at(&it, 500), ConnectionOrder::Serve);
        it.read();
        assert_eq!(at(&it, 600), ConnectionOrder::Serve);
        it.read();
        assert_eq!(
            at(&it, 611),
            ConnectionOrder::Abort,
            "from the first byte, not the last"
        );
    }

    #[test]
    fn a_half_closed_client_gets_only_an_answer_that_begins_in_time() {
        let it = activity();
        assert!(!it.ends_sending(), "without a request it is the end");
        it.request_begins();
        assert!(it.ends_sending());
        assert_eq!(at(&it, 310), ConnectionOrder::Serve);
        assert!(it.ends_sending());
        assert_eq!(at(&it, 311), ConnectionOrder::Abort, "from the first time");
        it.answer_begins();
        assert_eq!(
            at(&it, 9_000),
            ConnectionOrder::Serve,
            "the limit on writing holds"
        );
        it.request_begins();
        assert_eq!(
            at(&it, 9_000),
            ConnectionOrder::Abort,
            "a request behind the first"
        );
    }

    #[test]
    fn http_2_frames_do_not_start_the_limit_on_heads() {
        let it = activity();
        it.multiplexed();
        assert_eq!(
            at(&it, 500),
            ConnectionOrder::Serve,
            "without a request too"
        );
        it.read();
        assert_eq!(at(&it, 900), ConnectionOrder::Serve);
    }

    #[test]
    fn stalled_writes_end_the_connection() {
        let it = activity();
        it.request_begins();
        it.blocked();
        assert_eq!(at(&it, 150), ConnectionOrder::Serve);
        it.blocked();
        assert_eq!(at(&it, 211), ConnectionOrder::Abort);
        it.written(MIN_PROGRESS_BYTES);
        assert_eq!(at(&it, 9_000), ConnectionOrder::Serve);
    }

    #[test]
    fn a_few_bytes_do_not_count_as_progress() {
        let it = activity();
        it.request_begins();
        it.blocked();
        assert_eq!(at(&it, 150), ConnectionOrder::Serve);
        it.written(MIN_PROGRESS_BYTES - 1);
        it.blocked();
        assert_eq!(at(&it, 211), ConnectionOrder::Abort);
        it.written(1);
        it.blocked();
        assert_eq!(at(&it, 300), ConnectionOrder::Serve, "together they are");
        it.written(1);
        it.flushed();
        assert_eq!(at(&it, 9_000), ConnectionOrder::Serve, "all is taken");
    }

    #[test]
    fn old_connections_get_a_grace_period_and_silent_ones_do_not_delay_a_stop() {
        let it = activity();
        it.request_begins();
        assert_eq!(at(&it, 50_011), ConnectionOrder::Finish);
        assert_eq!(at(&it, 55_011), ConnectionOrder::Abort);
        let it = activity();
        it.request_begins();
        it.request_ends();
        it.give(ConnectionOrder::Finish);
        assert_eq!(at(&it, 500), ConnectionOrder::Serve);
        assert_eq!(at(&it, 2_011), ConnectionOrder::Abort);
    }

    #[test]
    fn orders_only_grow() {
        let it = activity();
        it.give(ConnectionOrder::Abort);
        it.give(ConnectionOrder::Finish);
        assert_eq!(it.order(), ConnectionOrder::Abort);
    }
}
