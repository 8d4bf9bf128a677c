//! An instance's thread: takes batches, runs them, answers their requests.
//!
//! A panic or an error of the backend answers its batch only. After a panic the executable copy is recreated, and so is
//! a copy that says it is lost: at once, and after further losses ever later.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{Receiver, RecvTimeoutError},
};

use skep_backend::{Instance, panic_text};
use skep_heap::give_back_freed_memory;
use skep_scheduler::{BatchEnd, InstanceId};
use skep_types::Time;
use smallvec::SmallVec;

use crate::{
    clock,
    error::{ErrorKind, RuntimeError},
    serving::{
        driver::JobBatch,
        instances::{
            back_off::BackOff,
            outputs::charge_outputs,
            runner::{ExecutedBatch, InstanceRunner},
            watch::EndedRun,
        },
        job::{Job, Waiters},
        request::{InferResponse, Timing},
    },
    statistics::recorder::ExecutedSize,
};

/// The body of an instance's thread.
pub(super) struct InstanceThread {
    pub(super) id: InstanceId,
    pub(super) runner: InstanceRunner,
}

/// The jobs of a batch: one, under light load.
type Jobs = SmallVec<[Box<Job>; 4]>;

/// What a batch did to the executable copy.
enum ExecutableCopy {
    /// It can run the next batch.
    Sound,
    Panicked,
    /// The process that it ran in is gone.
    Lost,
}

/// The end of an execution.
struct ServeEnd {
    copy: ExecutableCopy,
    /// When the batch was answered; `None` if the watch answered it, because the execution took too long.
    answered: Option<Time>,
}

impl InstanceThread {
    /// Serves batches until the mailbox closes, `first` before any. The driver knows already that the instance is
    /// ready.
    pub(super) fn serve(
        &self,
        instance: Box<dyn Instance>,
        first: Option<JobBatch>,
        mailbox: &Receiver<JobBatch>,
    ) {
        let mut instance = instance;
        let mut next = first;
        let mut back_off = BackOff::new(clock::now());
        loop {
            let Some(mut batch) = next.take().or_else(|| mailbox.recv().ok()) else {
                return;
            };
            let taken = clock::now();
            if instance.is_lost()
                && let Ok(renewed) = self.runner.instantiate()
            {
                // It was lost while idle, which costs no request. If it cannot be recreated, the run fails and says
                // why.
                self.note_recreated();
                back_off.started(taken);
                instance = renewed;
            }
            let ServeEnd { copy, answered } =
                self.run_and_answer(&mut *instance, &mut batch, taken);
            if let (ExecutableCopy::Sound, Some(ended)) = (&copy, answered) {
                next = self
                    .runner
                    .driver
                    .finished(self.id, taken, ended, batch.requests);
                continue;
            }
            let is_wanted = match answered {
                Some(_) => self.runner.driver.gone(self.id, taken),
                None => self.runner.driver.back(self.id),
            };
            if !is_wanted {
                return;
            }
            match copy {
                ExecutableCopy::Sound => {
                    tracing::info!(
                        "an execution of instance `{}` that had been given up has ended",
                        self.runner.name
                    );
                }
                ExecutableCopy::Panicked => {
                    let Some(restarted) = self.restart() else {
                        return self.runner.driver.give_up(self.id);
                    };
                    instance = restarted;
                }
                ExecutableCopy::Lost => {
                    drop(instance);
                    let Some(replaced) = self.replace(mailbox, &mut back_off) else {
                        return;
                    };
                    instance = replaced;
                }
            }
            next = self.runner.driver.ready(self.id);
        }
    }

    fn restart(&self) -> Option<Box<dyn Instance>> {
        match self.runner.instantiate() {
            Ok(instance) => {
                tracing::warn!(
                    "instance `{}` was restarted after a panic",
                    self.runner.name
                );
                self.runner.recorder.restarted();
                Some(instance)
            }
            Err(error) => {
                tracing::error!(
                    "instance `{}` cannot be restarted: {error}",
                    self.runner.name
                );
                None
            }
        }
    }

    /// Recreates a lost copy, however many attempts that takes; `None` if the instance is removed meanwhile.
    fn replace(
        &self,
        mailbox: &Receiver<JobBatch>,
        back_off: &mut BackOff,
    ) -> Option<Box<dyn Instance>> {
        loop {
            let wait = back_off.lost(clock::now());
            // The driver sends no batch to an instance that is gone; closing the mailbox ends the wait.
            if let Err(RecvTimeoutError::Disconnected) = mailbox.recv_timeout(wait) {
                return None;
            }
            match self.runner.instantiate() {
                Ok(instance) => {
                    self.note_recreated();
                    back_off.started(clock::now());
                    return Some(instance);
                }
                Err(error) => {
                    tracing::error!(
                        "instance `{}` cannot be recreated yet: {error}",
                        self.runner.name
                    );
                }
            }
        }
    }

    fn note_recreated(&self) {
        tracing::warn!("instance `{}` was recreated", self.runner.name);
        self.runner.recorder.restarted();
    }

    /// Runs a batch that was taken at `taken`, and answers each of its requests unless the watch has done so.
    fn run_and_answer(
        &self,
        instance: &mut dyn Instance,
        batch: &mut JobBatch,
        taken: Time,
    ) -> ServeEnd {
        self.runner.recorder.began(taken);
        let (size, end) = (batch.size(), batch.end);
        let lie = batch.rows.take();
        let mut jobs: Jobs = batch
            .requests
            .drain(..)
            .map(|request| request.payload)
            .collect();
        let waiters: Waiters = jobs.iter_mut().map(|job| job.take_waiter()).collect();
        self.runner.watch.begin(taken, waiters, Some(end));
        let result = catch_unwind(AssertUnwindSafe(|| {
            self.runner.execute(instance, &jobs, lie.as_deref(), taken)
        }));
        let ended = self.runner.watch.end();
        let was_interrupted = ended
            .as_ref()
            .is_none_or(|ended| ended.interrupted.is_some());
        let (result, copy) = match result {
            Ok(result) => {
                // An interrupt that came after the result may have ended the copy although the result is good.
                let may_be_lost = result.is_err() || was_interrupted;
                let copy = match may_be_lost && instance.is_lost() {
                    true => ExecutableCopy::Lost,
                    false => ExecutableCopy::Sound,
                };
                (result, copy)
            }
            Err(panic) => {
                let text = panic_text(&*panic);
                tracing::error!("instance `{}` panicked: {text}", self.runner.name);
                let text = format!("instance `{}` panicked: {text}", self.runner.name);
                (Err(RuntimeError::internal(text)), ExecutableCopy::Panicked)
            }
        };
        let Some(EndedRun {
            waiters,
            interrupted,
        }) = ended
        else {
            return ServeEnd {
                copy,
                answered: None,
            };
        };
        let answered = match result {
            Ok(executed) => {
                let answered = executed.at.ended;
                self.answer(waiters, &jobs, executed, size, end);
                answered
            }
            Err(error) => {
                // The error of an interrupted run says only that it was interrupted.
                let error = interrupted.map_or(error, |reason| self.runner.watch.error(reason));
                self.fail(waiters, end, &error, taken)
            }
        };
        ServeEnd {
            copy,
            answered: Some(answered),
        }
    }

    fn answer(
        &self,
        waiters: Waiters,
        jobs: &[Box<Job>],
        executed: ExecutedBatch,
        size: usize,
        end: BatchEnd,
    ) {
        // Before the responses leave, so that statistics never lag behind what a client has seen.
        let arrivals = waiters.iter().map(|waiter| waiter.arrived);
        let inferences = jobs.iter().map(|job| job.prepared.batch_size).sum();
        let batch = ExecutedSize {
            rows: size,
            inferences,
        };
        let is_too_slow = self
            .runner
            .recorder
            .executed(batch, Some(end), &executed.at, arrivals);
        if is_too_slow {
            tracing::warn!(
                "instance `{}`: executions of one inference take longer than `slo_latency_ms` allows, the last one {:.3} ms: requests will be late or given up",
                self.runner.name,
                executed.at.ended.since(executed.at.taken).as_secs_f64() * 1e3
            );
        }
        let states = executed.states;
        let charged = charge_outputs(jobs, &executed.outputs).and_then(|shared| {
            // Only for requests that succeed, and before the driver hears of the end, after which the sequences' next
            // requests may run.
            states.map_or(Ok(()), |states| states.put(jobs))?;
            Ok(shared)
        });
        let at = executed.at;
        for ((waiter, job), outputs) in waiters.into_iter().zip(jobs).zip(executed.outputs) {
            let timing = Timing {
                queue: at.taken.since(waiter.arrived),
                compute_input: at.gathered.since(at.taken),
                compute_infer: at.ran.since(at.gathered),
                compute_output: at.ended.since(at.ran),
                batch_size: size,
                batch_end: end.name(),
            };
            let response = charged.clone().map(|shared| InferResponse {
                model: self.runner.interface.model.clone(),
                version: self.runner.interface.version,
                outputs,
                timing: Some(timing),
                parameters: Vec::new(),
                charge: shared.or_else(|| job.prepared.charge.clone()),
            });
            self.runner.driver.answer(waiter, response);
        }
    }

    /// Answers a failed batch. Returns when it ended.
    fn fail(&self, waiters: Waiters, end: BatchEnd, error: &RuntimeError, taken: Time) -> Time {
        let ended = clock::now();
        self.runner.recorder.failed(end, taken, ended);
        self.runner.driver.fail(waiters, error, ended);
        if error.kind() == ErrorKind::Exhausted {
            // The memory of the failed run is still in the allocators' caches.
            give_back_freed_memory();
        }
        ended
    }
}
