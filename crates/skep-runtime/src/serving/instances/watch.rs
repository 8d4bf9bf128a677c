//! The deadline of executions.
//!
//! While an instance executes a batch, an [`ExecutionWatch`] holds the waiters of its requests. Either side that takes
//! them out answers them: the instance when it has finished, or the watch when that takes too long.
//!
//! ```text
//! begin ---> end                                  the usual course
//!   |
//!   + max_execution_ms                            the backend is told to end the run, if it can: a worker process is
//!   |    `--> end, with an error                  killed, ONNX Runtime stops after the current operator
//!   |
//!   + grace                                       the waiters are answered with an error, the driver is told that the
//!        `--> end finds no waiters                instance is overdue; it is back when the run ends
//! ```
//!
//! Not all memory of a run can be counted: a library allocates lists and strings besides tensors. When the machine has
//! almost no memory left, [`end_longest_run`] ends the longest run, before the system kills the process.

use std::{
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use skep_backend::Interrupt;
use skep_host::lock;
use skep_scheduler::BatchEnd;
use skep_types::Time;

use crate::{
    clock,
    error::{ErrorKind, RuntimeError},
    serving::job::Waiters,
    timer::{Alarm, Appointment, Timer},
};

/// How long a run may take to end after it was told to: as long as its limit, between these bounds.
const GRACE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Shorter runs are not ended when memory is short: growth over ten seconds is the danger, not a burst.
const LONG_RUN: Duration = Duration::from_secs(1);

/// The watches of all models: they share the process's memory.
static WATCHES: Mutex<Vec<Weak<ExecutionWatch>>> = Mutex::new(Vec::new());

/// Is told of executions that take too long.
pub(crate) trait OverdueListener: Send + Sync {
    /// An execution is given up. Called with the watch's lock held, so that the execution cannot end before it is
    /// counted as overdue. Must not wait for anything that a full pipe or a client can block.
    fn overdue(&self, run: &GivenUpRun);

    /// Answers the waiters of the execution. Called without the lock.
    fn answer(&self, run: GivenUpRun);
}

/// Watches over the executions of one instance.
pub(crate) struct ExecutionWatch {
    limit: Duration,
    state: Mutex<WatchState>,
    listener: Weak<dyn OverdueListener>,
}

struct WatchState {
    run: Option<WatchedRun>,
    interrupt: Option<Arc<dyn Interrupt>>,
    appointment: Appointment,
}

struct WatchedRun {
    since: Time,
    waiters: Waiters,
    /// Why the batch was closed; `None` for an execution that serves no request.
    batch_end: Option<BatchEnd>,
    /// Why it was interrupted, if it was.
    interrupted: Option<InterruptReason>,
}

/// Why an execution is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum InterruptReason {
    /// It takes longer than its limit.
    Deadline,
    /// Almost no memory is left; it has run for this long.
    Memory(Duration),
}

/// An execution that has ended without having been given up.
pub(crate) struct EndedRun {
    /// The waiters of its requests.
    pub(crate) waiters: Waiters,
    /// Why it was interrupted, if it was.
    pub(crate) interrupted: Option<InterruptReason>,
}

/// An execution that is given up.
pub(crate) struct GivenUpRun {
    /// When it began.
    pub(crate) since: Time,
    /// The waiters of its requests.
    pub(crate) waiters: Waiters,
    /// Why its batch was closed; `None` if it serves no request.
    pub(crate) batch_end: Option<BatchEnd>,
    /// The error for the waiters.
    pub(crate) error: RuntimeError,
}

impl ExecutionWatch {
    /// A watch over one instance, whose executions may take `limit`.
    ///
    /// # Errors
    /// When the process cannot start its timer.
    pub(crate) fn new(
        limit: Duration,
        listener: Weak<dyn OverdueListener>,
    ) -> Result<Arc<Self>, RuntimeError> {
        let timer = Timer::started()?;
        let watch = Arc::new_cyclic(|this: &Weak<Self>| {
            let alarm: Weak<dyn Alarm> = this.clone();
            Self {
                limit,
                state: Mutex::new(WatchState {
                    run: None,
                    interrupt: None,
                    appointment: Appointment::new(timer, alarm),
                }),
                listener,
            }
        });
        let mut watches = lock(&WATCHES);
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(&watch));
        Ok(watch)
    }

    fn lock(&self) -> MutexGuard<'_, WatchState> {
        lock(&self.state)
    }

    /// Sets how to end an execution of the instance's present copy.
    pub(crate) fn interrupt_by(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        self.lock().interrupt = interrupt;
    }

    /// An execution begins.
    pub(crate) fn begin(&self, since: Time, waiters: Waiters, batch_end: Option<BatchEnd>) {
        let mut state = self.lock();
        if let Some(interrupt) = &state.interrupt {
            interrupt.begin();
        }
        state.run = Some(WatchedRun {
            since,
            waiters,
            batch_end,
            interrupted: None,
        });
        // An appointment of an earlier execution may come sooner: at most one needless call for each limit.
        state.appointment.no_later_than(since + self.limit);
    }

    /// The execution is over. `None` if it was given up.
    pub(crate) fn end(&self) -> Option<EndedRun> {
        let run = self.lock().run.take()?;
        Some(EndedRun {
            waiters: run.waiters,
            interrupted: run.interrupted,
        })
    }

    /// The error for the waiters of an execution that was told to end.
    pub(crate) fn error(&self, reason: InterruptReason) -> RuntimeError {
        match reason {
            InterruptReason::Deadline => RuntimeError::new(
                ErrorKind::Unavailable,
                format!(
                    "the execution takes longer than {} ms (`max_execution_ms`) and was given up",
                    self.limit.as_millis()
                ),
            ),
            InterruptReason::Memory(ran) => RuntimeError::new(
                ErrorKind::Exhausted,
                format!(
                    "the execution was ended after {} ms: the machine or its control group had almost no memory left",
                    ran.as_millis()
                ),
            ),
        }
    }

    /// When the present execution began, if it can be told to end and has not been.
    fn executes_since(&self) -> Option<Time> {
        let state = self.lock();
        state.interrupt.as_ref()?;
        let run = state.run.as_ref()?;
        run.interrupted.is_none().then_some(run.since)
    }

    /// Tells the execution that began at `since` to end, if it still runs. Returns how long it has run.
    fn end_for_memory(&self, since: Time, now: Time) -> Option<Duration> {
        let mut guard = self.lock();
        let state = &mut *guard;
        let run = state.run.as_mut().filter(|run| run.since == since)?;
        let ran = now.since(since);
        run.interrupted = Some(InterruptReason::Memory(ran));
        // Under the lock, so that the next execution cannot have begun.
        state.interrupt.as_ref()?.interrupt();
        Some(ran)
    }
}

/// Ends the longest execution of this process, if it has run for at least a second. Returns how long it has run; `None`
/// if no execution has run that long. Call it when almost no memory is left.
pub fn end_longest_run() -> Option<Duration> {
    let watches: Vec<Arc<ExecutionWatch>> =
        lock(&WATCHES).iter().filter_map(Weak::upgrade).collect();
    end_longest_of(&watches, clock::now(), LONG_RUN)
}

fn end_longest_of(
    watches: &[Arc<ExecutionWatch>],
    now: Time,
    at_least: Duration,
) -> Option<Duration> {
    let running = watches
        .iter()
        .filter_map(|watch| Some((watch.executes_since()?, watch)));
    let (since, watch) = running.min_by_key(|(since, _)| *since)?;
    if now.since(since) < at_least {
        return None;
    }
    watch.end_for_memory(since, now)
}

impl Alarm for ExecutionWatch {
    fn ring(&self) {
        let mut guard = self.lock();
        let state = &mut *guard;
        state.appointment.rung();
        let Some(run) = &mut state.run else { return };
        let (least, most) = GRACE;
        let grace = match &state.interrupt {
            None => Duration::ZERO,
            Some(_) => self.limit.clamp(least, most),
        };
        let now = clock::now();
        let due = run.since + self.limit;
        let end = due + grace;
        if now < due {
            state.appointment.no_later_than(due);
            return;
        }
        if let Some(interrupt) = &state.interrupt
            && run.interrupted.is_none()
        {
            run.interrupted = Some(InterruptReason::Deadline);
            // Under the lock, so that the next execution cannot have begun.
            interrupt.interrupt();
        }
        if now < end {
            state.appointment.no_later_than(end);
            return;
        }
        let Some(run) = state.run.take() else { return };
        let Some(listener) = self.listener.upgrade() else {
            return;
        };
        let run = GivenUpRun {
            since: run.since,
            waiters: run.waiters,
            batch_end: run.batch_end,
            error: self.error(InterruptReason::Deadline),
        };
        listener.overdue(&run);
        drop(guard);
        listener.answer(run);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct RecordingListener(mpsc::SyncSender<&'static str>);

    impl OverdueListener for RecordingListener {
        fn overdue(&self, run: &GivenUpRun) {
            assert!(run.error.to_string().contains("max_execution_ms"));
        }

        fn answer(&self, _: GivenUpRun) {
            self.0.send("overdue").expect("a reader");
        }
    }

    impl Interrupt for RecordingListener {
        fn begin(&self) {}

        fn interrupt(&self) {
            self.0.send("interrupted").expect("a reader");
        }
    }

    fn watch(
        limit: Duration,
    ) -> (
        Arc<ExecutionWatch>,
        Arc<RecordingListener>,
        mpsc::Receiver<&'static str>,
    ) {
        let (sender, events) = mpsc::sync_channel(8);
        let told = Arc::new(RecordingListener(sender));
        let weak: Weak<dyn OverdueListener> =
            Arc::downgrade(&(Arc::clone(&told) as Arc<dyn OverdueListener>));
        (
            ExecutionWatch::new(limit, weak).expect("a timer"),
            told,
            events,
        )
    }

    #[test]
    fn an_execution_that_ends_in_time_is_left_alone() {
        let (watch, _told, events) = watch(Duration::from_secs(3600));
        watch.begin(clock::now(), Waiters::new(), None);
        assert!(watch.end().is_some() && watch.end().is_none());
        watch.ring();
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn an_execution_that_takes_too_long_is_given_up() {
        let (watch, _told, events) = watch(Duration::from_millis(1));
        watch.begin(clock::now(), Waiters::new(), None);
        assert_eq!(events.recv(), Ok("overdue"));
        assert!(watch.end().is_none(), "answered");
    }

    #[test]
    fn an_interruptible_execution_is_interrupted_first() {
        let (watch, told, events) = watch(Duration::from_millis(1));
        watch.interrupt_by(Some(told));
        watch.begin(clock::now(), Waiters::new(), None);
        assert_eq!(events.recv(), Ok("interrupted"));
        assert_eq!(events.recv(), Ok("overdue"), "it goes on");
        assert!(watch.end().is_none());
    }

    #[test]
    fn the_longest_interruptible_run_is_ended_first_when_memory_is_short() {
        const HOUR: Duration = Duration::from_secs(3600);
        // The timer goes by the clock, which may have begun hours ago.
        let began = clock::now();
        let at = |ms| began + Duration::from_millis(ms);
        let all: Vec<_> = (0..3).map(|_| watch(HOUR)).collect();
        let watches: Vec<_> = all.iter().map(|(watch, ..)| Arc::clone(watch)).collect();
        // The first watch has nothing to interrupt.
        for (number, (watch, told, _)) in all.iter().enumerate() {
            if number > 0 {
                watch.interrupt_by(Some(Arc::clone(told) as Arc<dyn Interrupt>));
            }
        }
        assert_eq!(
            end_longest_of(&watches, at(9000), LONG_RUN),
            None,
            "nothing runs"
        );
        for (watch, since) in watches.iter().zip([0, 2000, 1000]) {
            watch.begin(at(since), Waiters::new(), None);
        }
        assert_eq!(
            end_longest_of(&watches, at(1999), LONG_RUN),
            None,
            "too short"
        );
        let first = end_longest_of(&watches, at(5000), LONG_RUN);
        assert_eq!(first, Some(Duration::from_secs(4)));
        assert_eq!(all[2].2.try_recv(), Ok("interrupted"));
        assert!(all[1].2.try_recv().is_err());
        let second = end_longest_of(&watches, at(5000), LONG_RUN);
        assert_eq!(second, Some(Duration::from_secs(3)), "the next one");
        let third = end_longest_of(&watches, at(5000), LONG_RUN);
        assert_eq!(third, None, "each is interrupted once");
        let ended = watches[2].end().expect("it was not given up");
        let reason = ended.interrupted.expect("it was told");
        assert_eq!(reason, InterruptReason::Memory(Duration::from_secs(4)));
        assert_eq!(watches[2].error(reason).kind(), ErrorKind::Exhausted);
    }
}
