//! One thread that calls schedulers at the moments they ask for: a delay is over, a request has waited too long.
//!
//! tokio's timers count milliseconds, queue delays are microseconds. The thread sleeps until the earliest moment that
//! any driver asked for, and is woken only for an earlier one. Each driver is listed once, with its earliest moment;
//! when it is called, it asks for the next one. The scheduler decides by the clock whether something has expired.

use std::{
    collections::BTreeMap,
    num::NonZeroU64,
    sync::{
        Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use skep_host::lock;
use skep_types::Time;

use crate::{clock, error::RuntimeError};

/// Is called at the moments that it asks for.
pub(crate) trait Alarm: Send + Sync {
    /// The moment has come.
    fn ring(&self);
}

/// The process's timer.
pub(crate) struct Timer {
    due: Mutex<Due>,
    earlier: Condvar,
}

/// By moment, then by the alarm's number. Each alarm is listed once at most.
type Due = BTreeMap<(Time, u64), Weak<dyn Alarm>>;

static TIMER: Timer = Timer {
    due: Mutex::new(BTreeMap::new()),
    earlier: Condvar::new(),
};

/// Whether the thread runs.
static STARTED: Mutex<bool> = Mutex::new(false);

impl Timer {
    /// The timer. The first call starts its thread, which runs as long as the process.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub(crate) fn started() -> Result<&'static Self, RuntimeError> {
        let mut started = lock(&STARTED);
        if !*started {
            thread::Builder::new()
                .name("timer".to_owned())
                .spawn(|| TIMER.run())
                .map_err(|error| {
                    RuntimeError::internal(format!("cannot start the timer's thread: {error}"))
                })?;
            *started = true;
        }
        Ok(&TIMER)
    }

    fn run(&self) -> ! {
        // Otherwise Linux adds up to 50 us to each sleep. If this fails, delays are that much longer.
        if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(1)) {
            tracing::debug!("cannot set the timer's slack: {error}");
        }
        let mut due = self.lock();
        loop {
            let now = clock::now();
            match due.first_key_value() {
                None => {
                    due = self
                        .earlier
                        .wait(due)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Some(((moment, _), _)) if *moment > now => {
                    let sleep = moment.since(now);
                    let woken = self.earlier.wait_timeout(due, sleep);
                    due = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
                Some(_) => {
                    let alarm = due.pop_first();
                    drop(due);
                    if let Some(alarm) = alarm.and_then(|(_, alarm)| alarm.upgrade()) {
                        alarm.ring();
                    }
                    due = self.lock();
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Due> {
        lock(&self.due)
    }
}

/// An alarm's place at the timer. Its owner keeps it under its own lock, so that changes come in order.
pub(crate) struct Appointment {
    timer: &'static Timer,
    alarm: Weak<dyn Alarm>,
    number: u64,
    /// When the alarm rings next.
    at: Option<Time>,
}

impl Appointment {
    pub(crate) fn new(timer: &'static Timer, alarm: Weak<dyn Alarm>) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self {
            timer,
            alarm,
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            at: None,
        }
    }

    /// Makes the alarm ring at this moment, unless it rings earlier.
    pub(crate) fn no_later_than(&mut self, moment: Time) {
        if self.at.is_some_and(|at| at <= moment) {
            return;
        }
        let mut due = self.timer.lock();
        if let Some(at) = self.at.replace(moment) {
            due.remove(&(at, self.number));
        }
        let key = (moment, self.number);
        due.insert(key, Weak::clone(&self.alarm));
        let first = due
            .first_key_value()
            .is_some_and(|(first, _)| *first == key);
        drop(due);
        if first {
            self.timer.earlier.notify_one();
        }
    }

    /// The alarm has rung.
    pub(crate) fn rung(&mut self) {
        self.at = None;
    }
}

impl Drop for Appointment {
    fn drop(&mut self) {
        if let Some(at) = self.at {
            self.timer.lock().remove(&(at, self.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        sync::{Arc, mpsc},
        time::Duration,
    };

    use super::*;

    struct Reporter {
        appointment: Mutex<Option<Appointment>>,
        rings: mpsc::SyncSender<Time>,
    }

    impl Alarm for Reporter {
        fn ring(&self) {
            let mut appointment = self.appointment.lock().expect("whole");
            appointment.as_mut().expect("made").rung();
            self.rings.send(clock::now()).expect("a reader");
        }
    }

    fn reporter() -> (Arc<Reporter>, mpsc::Receiver<Time>) {
        let (rings, rung) = mpsc::sync_channel(4);
        let reporter = Arc::new(Reporter {
            appointment: Mutex::new(None),
            rings,
        });
        let alarm: Arc<dyn Alarm> = reporter.clone();
        *reporter.appointment.lock().expect("whole") = Some(Appointment::new(
            Timer::started().expect("a thread"),
            Arc::downgrade(&alarm),
        ));
        (reporter, rung)
    }

    fn ask(reporter: &Reporter, moment: Time) {
        let mut appointment = reporter.appointment.lock().expect("whole");
        appointment.as_mut().expect("made").no_later_than(moment);
    }

    fn listed(number: u64) -> usize {
        let due = TIMER.lock();
        due.keys().filter(|(_, listed)| *listed == number).count()
    }

    #[test]
    fn the_earliest_moment_counts_and_no_alarm_rings_early() {
        let (reporter, rings) = reporter();
        let now = clock::now();
        let far = now + Duration::from_secs(3600);
        ask(&reporter, far);
        let near = now + Duration::from_millis(2);
        ask(&reporter, near);
        ask(&reporter, far);
        assert!(rings.recv().expect("rung") >= near);
        let past = now;
        ask(&reporter, past);
        rings.recv().expect("rung at once");
        let appointment = reporter.appointment.lock().expect("whole");
        let number = appointment.as_ref().expect("made").number;
        drop(appointment);
        assert_eq!(listed(number), 0, "the replaced moment is gone");
        ask(&reporter, far);
        assert_eq!(listed(number), 1);
        drop(reporter);
        // The timer may still hold the alarm from the last ring; the sender is dropped last.
        assert!(rings.recv().is_err());
        assert_eq!(listed(number), 0, "a dropped alarm is not listed");
    }

    #[test]
    fn the_timer_does_not_keep_alarms_alive() {
        let (reporter, rings) = reporter();
        ask(&reporter, clock::now() + Duration::from_secs(3600));
        drop(reporter);
        assert!(rings.recv().is_err(), "the sender is dropped with it");
    }
}
