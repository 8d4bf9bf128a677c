//! The start of an instance: its thread makes the executable copy, warms it up, reports, and then serves.

use std::{
    sync::{Arc, Mutex, mpsc},
    thread,
};

use skep_backend::Instance;
use skep_host::{bind_thread, lock};
use skep_scheduler::InstanceId;

use crate::{
    clock,
    error::RuntimeError,
    serving::{
        cpu_devices::DeviceClaim,
        driver::{Driver, JobBatch},
        instances::{
            members::{InstanceHandle, InstanceList, WantedInstance},
            profile,
            thread::InstanceThread,
            warmup::{self, WarmupRequest},
            watch::{GivenUpRun, OverdueListener},
        },
        origin::VersionLife,
    },
    statistics::recorder::InstanceRecorder,
};

/// How an instance's start ends.
pub(super) type StartOutcome = Result<InstanceHandle, RuntimeError>;

/// Reports how an instance's start ended, once: its thread does, or the listener for overdue executions.
pub(super) struct StartReporter(Mutex<Option<mpsc::SyncSender<StartOutcome>>>);

impl StartReporter {
    pub(super) fn new(sender: mpsc::SyncSender<StartOutcome>) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Some(sender))))
    }

    fn tell(&self, outcome: StartOutcome) {
        if let Some(sender) = lock(&self.0).take() {
            // The receiver may have gone meanwhile.
            drop(sender.send(outcome));
        }
    }
}

/// What happens to an instance whose execution takes too long.
pub(super) struct OverdueInstance {
    pub(super) id: InstanceId,
    pub(super) name: String,
    pub(super) driver: Arc<Driver>,
    pub(super) recorder: Arc<InstanceRecorder>,
    pub(super) report: Arc<StartReporter>,
}

impl OverdueListener for OverdueInstance {
    fn overdue(&self, run: &GivenUpRun) {
        if let Some(end) = run.batch_end {
            self.recorder.failed(end, run.since, clock::now());
            self.driver.overdue(self.id, run.since);
        }
    }

    fn answer(&self, run: GivenUpRun) {
        let (name, error) = (&self.name, &run.error);
        if run.batch_end.is_none() {
            // It was still starting: what it ran served no request.
            let text = format!("instance `{name}` cannot start: {error}");
            self.report.tell(Err(RuntimeError::internal(text)));
            return;
        }
        self.driver.fail(run.waiters, error, clock::now());
        tracing::error!(
            "instance `{name}` runs no further batch until its execution ends: {error}"
        );
    }
}

/// An instance whose thread has not started. Fields are dropped in this order.
pub(super) struct StartingInstance {
    pub(super) thread: InstanceThread,
    pub(super) wanted: WantedInstance,
    /// Its place on a device, if it has one.
    pub(super) place: Option<DeviceClaim>,
    pub(super) mailbox: mpsc::Receiver<JobBatch>,
    /// The watch holds it weakly.
    pub(super) overdue: Arc<OverdueInstance>,
    pub(super) members: Arc<InstanceList>,
    /// Last: a version is gone when its instances and weights are.
    pub(super) _life: Arc<VersionLife>,
}

impl StartingInstance {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn spawn(self, warmups: Arc<Vec<WarmupRequest>>) -> Result<(), RuntimeError> {
        let (id, driver) = (self.thread.id, Arc::clone(&self.overdue.driver));
        let thread = thread::Builder::new().name(thread_name(&self.overdue.name));
        thread
            .spawn(move || self.run(warmups))
            .map(drop)
            .map_err(|error| {
                driver.abandon(id);
                RuntimeError::internal(format!("cannot start an instance's thread: {error}"))
            })
    }

    fn run(self, warmups: Arc<Vec<WarmupRequest>>) {
        let (id, runner) = (self.thread.id, &self.thread.runner);
        let ready = self.bind().and_then(|()| self.make_ready(&warmups));
        drop(warmups);
        let instance = match ready {
            Ok(instance) => instance,
            Err(error) => {
                runner.recorder.end();
                runner.driver.abandon(id);
                self.overdue.report.tell(Err(error));
                return;
            }
        };
        // Before the report: a loaded model takes its first request at once.
        let first = if self.wanted.passive {
            None
        } else {
            runner.driver.ready(id)
        };
        self.overdue.report.tell(Ok(InstanceHandle {
            wanted: self.wanted.clone(),
            id,
            device: self.place.as_ref().map(|place| place.device),
        }));
        self.thread.serve(instance, first, &self.mailbox);
        self.members.lock().retain(|member| member.id != id);
        runner.recorder.end();
        runner.driver.vacate(id);
    }

    /// Binds the thread to the CPUs of its device, if it has one. Threads that it starts are bound as well.
    fn bind(&self) -> Result<(), RuntimeError> {
        let Some(place) = &self.place else {
            return Ok(());
        };
        bind_thread(place.cpus().numbers()).map_err(|error| {
            let (name, device, cpus) = (&self.wanted.name, place.name(), place.cpus());
            RuntimeError::internal(format!(
                "instance `{name}` cannot run on device `{device}`, CPUs {cpus}: {error}"
            ))
        })
    }

    /// Makes the executable copy, warms it up, and measures it if the driver asks for that.
    fn make_ready(&self, warmups: &[WarmupRequest]) -> Result<Box<dyn Instance>, RuntimeError> {
        let runner = &self.thread.runner;
        let mut instance = runner.instantiate()?;
        warmup::run(runner, &mut *instance, warmups)?;
        if runner.driver.wants_profile() && !profile::measure(runner, &mut *instance) {
            instance = runner.instantiate()?;
        }
        Ok(instance)
    }
}

/// Linux shows 15 bytes of a thread's name. Their end tells instances apart.
fn thread_name(instance: &str) -> String {
    let tail: Vec<char> = instance
        .chars()
        .filter(|c| *c != '\0')
        .rev()
        .take(15)
        .collect();
    tail.into_iter().rev().collect()
}
