//! The deadline of executions.
//!
//! While an instance executes a batch, a [`Watch`] holds those who wait for its answers. Whoever takes them out answers
//! them: the instance when it has finished, or the watch when that takes too long.
//!
//! ```text
//! begin ---> end                                  the usual way
//!   |
//!   + max_execution_ms                            the backend is told to end the run, where it can:
//!   |    `--> end, with an error                  a worker process is killed, ONNX Runtime stops behind an operator
//!   |
//!   + grace                                       the waiting are answered with an error, the driver is told that the
//!        `--> end finds nobody waiting            instance is overdue; it is back when the run ends after all
//! ```

use std::{
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use skep_backend::Interrupt;
use skep_scheduler::BatchEnd;
use skep_types::Time;
use smallvec::SmallVec;

use crate::{
    RuntimeError, clock,
    job::Waiter,
    lock::lock,
    timer::{Alarm, Appointment, Timer},
};

/// How long a run that was told to end may take for that, at least and at most; in between as long as it was allowed.
const GRACE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));

/// Those who wait for the answers of a batch.
pub(crate) type Waiters = SmallVec<[Waiter; 4]>;

/// Who is told of an execution that takes too long.
pub(crate) trait Overdue: Send + Sync {
    /// Answers those who wait for an execution that takes too long.
    fn overdue(&self, run: GivenUp);
}

/// What may end an instance's execution.
pub(crate) struct Watch {
    limit: Duration,
    state: Mutex<State>,
    told: Weak<dyn Overdue>,
}

struct State {
    run: Option<Run>,
    interrupt: Option<Arc<dyn Interrupt>>,
    appointment: Appointment,
}

struct Run {
    since: Time,
    waiters: Waiters,
    /// Why the batch is as large as it is; `None` of an execution that serves no request.
    batch_end: Option<BatchEnd>,
    was_interrupted: bool,
}

/// An execution that has ended, and that was not given up.
pub(crate) struct Ended {
    /// Those who wait for its answers.
    pub(crate) waiters: Waiters,
    /// Whether it was told to end.
    pub(crate) was_interrupted: bool,
}

/// An execution that is given up.
pub(crate) struct GivenUp {
    /// When it began.
    pub(crate) since: Time,
    /// Those who wait for its answers.
    pub(crate) waiters: Waiters,
    /// Why its batch is as large as it is; `None` where it serves no request.
    pub(crate) batch_end: Option<BatchEnd>,
    /// What they are to be told.
    pub(crate) error: RuntimeError,
}

impl Watch {
    /// A watch over one instance, whose executions may take `limit`.
    ///
    /// # Errors
    /// When the process cannot start its timer.
    pub(crate) fn new(limit: Duration, told: Weak<dyn Overdue>) -> Result<Arc<Self>, RuntimeError> {
        let timer = Timer::started()?;
        Ok(Arc::new_cyclic(|this: &Weak<Self>| {
            let alarm: Weak<dyn Alarm> = this.clone();
            Self {
                limit,
                state: Mutex::new(State {
                    run: None,
                    interrupt: None,
                    appointment: Appointment::new(timer, alarm),
                }),
                told,
            }
        }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// How an execution of the instance's present copy is told to end.
    pub(crate) fn interrupt_by(&self, interrupt: Option<Arc<dyn Interrupt>>) {
        self.lock().interrupt = interrupt;
    }

    /// An execution begins.
    pub(crate) fn begin(&self, since: Time, waiters: Waiters, batch_end: Option<BatchEnd>) {
        let mut state = self.lock();
        state.run = Some(Run {
            since,
            waiters,
            batch_end,
            was_interrupted: false,
        });
        // An earlier execution's is sooner, and rings for nothing at most once a limit.
        state.appointment.no_later_than(since + self.limit);
    }

    /// It is over; `None` where it was given up before.
    pub(crate) fn end(&self) -> Option<Ended> {
        let run = self.lock().run.take()?;
        Some(Ended {
            waiters: run.waiters,
            was_interrupted: run.was_interrupted,
        })
    }

    /// Why an execution is given up.
    pub(crate) fn error(&self) -> RuntimeError {
        RuntimeError::new(
            crate::ErrorKind::Unavailable,
            format!(
                "the execution takes longer than {} ms (`max_execution_ms`), and was given up",
                self.limit.as_millis()
            ),
        )
    }
}

impl Alarm for Watch {
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
            && !run.was_interrupted
        {
            run.was_interrupted = true;
            // Under the lock: the next execution cannot have begun.
            interrupt.interrupt();
        }
        if now < end {
            state.appointment.no_later_than(end);
            return;
        }
        let Some(run) = state.run.take() else { return };
        drop(guard);
        if let Some(told) = self.told.upgrade() {
            told.overdue(GivenUp {
                since: run.since,
                waiters: run.waiters,
                batch_end: run.batch_end,
                error: self.error(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    struct Told(mpsc::SyncSender<&'static str>);

    impl Overdue for Told {
        fn overdue(&self, run: GivenUp) {
            assert!(run.error.to_string().contains("max_execution_ms"));
            self.0.send("overdue").expect("somebody listens");
        }
    }

    impl Interrupt for Told {
        fn interrupt(&self) {
            self.0.send("interrupted").expect("somebody listens");
        }
    }

    fn watch(limit: Duration) -> (Arc<Watch>, Arc<Told>, mpsc::Receiver<&'static str>) {
        let (sender, events) = mpsc::sync_channel(8);
        let told = Arc::new(Told(sender));
        let weak: Weak<dyn Overdue> = Arc::downgrade(&(Arc::clone(&told) as Arc<dyn Overdue>));
        (Watch::new(limit, weak).expect("a timer"), told, events)
    }

    #[test]
    fn what_ends_in_time_is_left_alone() {
        let (watch, _told, events) = watch(Duration::from_secs(3600));
        watch.begin(clock::now(), Waiters::new(), None);
        assert!(watch.end().is_some() && watch.end().is_none());
        watch.ring();
        assert!(events.try_recv().is_err());
    }

    #[test]
    fn what_takes_too_long_is_given_up() {
        let (watch, _told, events) = watch(Duration::from_millis(1));
        watch.begin(clock::now(), Waiters::new(), None);
        assert_eq!(events.recv(), Ok("overdue"));
        assert!(watch.end().is_none(), "answered");
    }

    #[test]
    fn a_run_that_can_be_ended_is_told_so_first() {
        let (watch, told, events) = watch(Duration::from_millis(1));
        watch.interrupt_by(Some(told));
        watch.begin(clock::now(), Waiters::new(), None);
        assert_eq!(events.recv(), Ok("interrupted"));
        assert_eq!(events.recv(), Ok("overdue"), "it goes on");
        assert!(watch.end().is_none());
    }
}
