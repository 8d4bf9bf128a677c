//! The instances of a loaded version: started, added, taken away.
//!
//! Instances come and go while requests run. New ones are ready before old ones leave, and one that leaves finishes
//! the batch that it has.

mod back_off;
mod profile;
mod thread;
pub(crate) mod warmup;
pub(crate) mod watch;

use std::{
    collections::HashMap,
    fmt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, Weak, mpsc},
    time::Duration,
};

use skep_backend::Model;
use skep_config::{InstanceGroup, ModelConfig};
use skep_host::lock;
use skep_scheduler::{InstanceId, PolicySnapshot, RequestId};
use skep_tensor::RunBound;
use skep_types::DeviceId;

use self::{
    thread::InstanceThread,
    warmup::WarmupRun,
    watch::{GivenUpRun, OverdueListener, Watch},
};
use crate::{
    RuntimeError, clock,
    serving::{
        driver::Driver,
        interface::Interface,
        job::Job,
        origin::Life,
        responder::{Responder, Submission},
    },
    statistics::recorder::{Recorder, Statistics},
};

/// An instance that runs.
#[derive(Debug, Clone)]
struct InstanceHandle {
    /// Triton's name for it, `<group>_<index>`.
    name: String,
    id: InstanceId,
    passive: bool,
}

/// What a configuration asks for: an instance's name, and whether it is passive.
type WantedInstance = (String, bool);

/// The instances of a version, and the driver that feeds them. Fields are dropped in this order.
pub(crate) struct InstancePool {
    driver: Arc<Driver>,
    interface: Arc<Interface>,
    pub(crate) model: Arc<dyn Model>,
    device: DeviceId,
    limits: ExecutionLimits,
    members: Arc<InstanceList>,
    life: Arc<Life>,
}

/// What one execution of a version may take.
#[derive(Debug, Clone)]
pub(crate) struct ExecutionLimits {
    pub(crate) memory: RunBound,
    pub(crate) time: Duration,
}

/// How an instance's start ended: told once, by its thread or by what watches over it.
struct StartReporter(Mutex<Option<mpsc::SyncSender<Result<InstanceHandle, RuntimeError>>>>);

impl StartReporter {
    /// Tells the outcome; whether nobody has told another one before.
    fn tell(&self, outcome: Result<InstanceHandle, RuntimeError>) -> bool {
        let sender = lock(&self.0).take();
        // The start may have been given up meanwhile.
        sender.map(|sender| drop(sender.send(outcome))).is_some()
    }
}

/// What happens to an instance whose execution takes too long.
struct OverdueInstance {
    id: InstanceId,
    name: String,
    driver: Arc<Driver>,
    recorder: Arc<Recorder>,
    report: Arc<StartReporter>,
}

impl OverdueListener for OverdueInstance {
    fn overdue(&self, run: &GivenUpRun) {
        if let Some(end) = run.batch_end {
            self.recorder.gave_up(end, run.since, clock::now());
            self.driver.overdue(self.id, run.since);
        }
    }

    fn answer(&self, run: GivenUpRun) {
        let (name, error) = (&self.name, &run.error);
        if run.batch_end.is_none() {
            // While it starts; what it runs then serves nobody.
            let text = format!("instance `{name}` cannot start: {error}");
            self.report.tell(Err(RuntimeError::internal(text)));
            return;
        }
        self.driver.fail(run.waiters, error, clock::now());
        tracing::error!(
            "instance `{name}` runs no further batch before its execution ends: {error}"
        );
    }
}

/// The instances whose threads have not ended.
#[derive(Default)]
struct InstanceList(Mutex<Vec<InstanceHandle>>);

impl InstanceList {
    fn lock(&self) -> MutexGuard<'_, Vec<InstanceHandle>> {
        lock(&self.0)
    }
}

impl InstancePool {
    /// A pool without instances.
    pub(crate) fn new(
        driver: Arc<Driver>,
        interface: Arc<Interface>,
        model: Arc<dyn Model>,
        device: DeviceId,
        limits: ExecutionLimits,
        life: Arc<Life>,
    ) -> Self {
        Self {
            driver,
            interface,
            model,
            device,
            limits,
            members: Arc::default(),
            life,
        }
    }

    /// Makes the instances those of `groups`: starts what is missing, then takes away what is too many.
    ///
    /// # Errors
    /// Why an instance could not be started; then everything is as it was.
    pub(crate) fn set_instances(
        &self,
        groups: &[InstanceGroup],
        warmups: Vec<WarmupRun>,
    ) -> Result<(), RuntimeError> {
        let wanted = wanted(groups);
        // Held throughout: an instance that ends meanwhile keeps its number until then.
        let mut members = self.members.lock();
        let (missing, leaving) = difference(&members, wanted);
        let started = self.start(missing, &Arc::new(warmups))?;
        for member in &leaving {
            self.driver.retire(member.id);
        }
        members.retain(|member| !leaving.iter().any(|leaving| leaving.id == member.id));
        members.extend(started);
        Ok(())
    }

    /// Starts a thread an instance and waits until each has warmed up or one has failed.
    fn start(
        &self,
        wanted: Vec<WantedInstance>,
        warmups: &Arc<Vec<WarmupRun>>,
    ) -> Result<Vec<InstanceHandle>, RuntimeError> {
        let total = wanted.len();
        let (report, reports) = mpsc::sync_channel(total);
        let mut failure = None;
        for wanted in wanted {
            if let Err(error) = self.spawn(wanted, warmups, report.clone()) {
                failure = Some(error);
            }
        }
        drop(report);
        let mut started = Vec::new();
        for outcome in reports {
            match outcome {
                Ok(member) => started.push(member),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        if started.len() == total {
            return Ok(started);
        }
        let failure = failure.unwrap_or_else(|| {
            let text = format!("{} of {total} instances started", started.len());
            RuntimeError::internal(text)
        });
        for member in &started {
            self.driver.retire(member.id);
        }
        Err(failure)
    }

    fn spawn(
        &self,
        (name, passive): WantedInstance,
        warmups: &Arc<Vec<WarmupRun>>,
        report: mpsc::SyncSender<Result<InstanceHandle, RuntimeError>>,
    ) -> Result<(), RuntimeError> {
        let (mailbox, batches) = mpsc::sync_channel(1);
        let id = self.driver.connect(mailbox, passive);
        let recorder = self.driver.statistics().recorder(&name);
        let report = Arc::new(StartReporter(Mutex::new(Some(report))));
        let late = Arc::new(OverdueInstance {
            id,
            name: name.clone(),
            driver: Arc::clone(&self.driver),
            recorder: Arc::clone(&recorder),
            report: Arc::clone(&report),
        });
        let told: Weak<dyn OverdueListener> =
            Arc::downgrade(&(Arc::clone(&late) as Arc<dyn OverdueListener>));
        let watch = Watch::new(self.limits.time, told).inspect_err(|_| self.driver.abandon(id))?;
        let worker = InstanceThread {
            id,
            recorder,
            name: name.clone(),
            model: Arc::clone(&self.model),
            device: self.device,
            interface: Arc::clone(&self.interface),
            driver: Arc::clone(&self.driver),
            bound: self.limits.memory.clone(),
            watch,
        };
        let (warmups, life) = (Arc::clone(warmups), Arc::clone(&self.life));
        let members = Arc::clone(&self.members);
        let thread = std::thread::Builder::new().name(thread_name(&name));
        let body = move || {
            // Declared first, dropped last: a version is gone when its instances and weights are.
            let _life = life;
            let _late = late;
            let worker = worker;
            let ready = worker.instantiate().and_then(|mut instance| {
                warmup::run(&worker, &mut *instance, &warmups)?;
                if worker.driver.wants_profile() && !profile::measure(&worker, &mut *instance) {
                    instance = worker.instantiate()?;
                }
                Ok(instance)
            });
            drop(warmups);
            let instance = match ready {
                Ok(instance) => instance,
                Err(error) => {
                    worker.recorder.end();
                    worker.driver.abandon(id);
                    report.tell(Err(error));
                    return;
                }
            };
            // Ready before it is reported: a model that is loaded takes its first request at once.
            let first = if passive {
                None
            } else {
                worker.driver.ready(id)
            };
            report.tell(Ok(InstanceHandle { name, id, passive }));
            worker.serve(instance, first, &batches);
            members.lock().retain(|member| member.id != id);
            worker.recorder.end();
            worker.driver.vacate(id);
        };
        thread.spawn(body).map(drop).map_err(|e| {
            self.driver.abandon(id);
            RuntimeError::internal(format!("cannot start an instance's thread: {e}"))
        })
    }
}

impl Responder for InstancePool {
    fn submit(&self, job: Box<Job>, priority: u64, timeout: Option<Duration>) -> Submission<'_> {
        let (request, handover) = self.driver.enqueue(job, priority, timeout);
        Submission::new(self, request, Some(handover))
    }

    fn cancel(&self, request: RequestId) {
        self.driver.cancel(request);
    }

    fn reconfigure(&self, config: &ModelConfig, directory: &Path) -> Result<(), RuntimeError> {
        let warmups = warmup::prepare(config, &self.interface, directory)?;
        self.set_instances(config.instance_groups(), warmups)
    }

    fn statistics(&self) -> &Statistics {
        self.driver.statistics()
    }

    fn policy(&self) -> PolicySnapshot {
        self.driver.policy_snapshot()
    }

    fn pending(&self) -> usize {
        self.driver.waiting()
    }

    fn is_healthy(&self) -> bool {
        self.driver.is_healthy()
    }

    fn why_unhealthy(&self) -> Option<String> {
        self.driver.why_not()
    }

    fn hurry(&self) {
        self.driver.hurry();
    }

    fn drain(&self) {
        self.driver.drain();
    }
}

impl fmt::Debug for InstancePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstancePool")
            .field("driver", &self.driver)
            .finish_non_exhaustive()
    }
}

impl Drop for InstancePool {
    fn drop(&mut self) {
        self.driver.close();
    }
}

/// The instances that a configuration asks for.
fn wanted(groups: &[InstanceGroup]) -> Vec<WantedInstance> {
    let of = |group: &InstanceGroup| {
        let (name, passive) = (group.name.clone(), group.passive);
        (0..group.count).map(move |index| (format!("{name}_{index}"), passive))
    };
    groups.iter().flat_map(of).collect()
}

/// What is wanted and not there, and what is there and not wanted. Groups may share a name.
fn difference(
    members: &[InstanceHandle],
    wanted: Vec<WantedInstance>,
) -> (Vec<WantedInstance>, Vec<InstanceHandle>) {
    let mut there: HashMap<WantedInstance, Vec<&InstanceHandle>> = HashMap::new();
    for member in members {
        let key = (member.name.clone(), member.passive);
        there.entry(key).or_default().push(member);
    }
    let missing = wanted
        .into_iter()
        .filter(|wanted| there.get_mut(wanted).and_then(Vec::pop).is_none())
        .collect();
    let leaving = there.into_values().flatten().cloned().collect();
    (missing, leaving)
}

/// Linux shows 15 bytes of a thread's name: the end tells instances apart.
fn thread_name(instance: &str) -> String {
    let tail: Vec<char> = instance
        .chars()
        .filter(|c| *c != '\0')
        .rev()
        .take(15)
        .collect();
    tail.into_iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_difference_starts_and_leaves() {
        let member = |number: u32, name: &str, passive| InstanceHandle {
            name: name.to_owned(),
            id: InstanceId(number),
            passive,
        };
        let want = |names: &[&str]| -> Vec<WantedInstance> {
            names
                .iter()
                .map(|name| ((*name).to_owned(), false))
                .collect()
        };
        let there = [
            member(0, "g_0", false),
            member(1, "g_1", false),
            member(2, "p_0", true),
        ];
        let check = |wanted: &[&str], missing: &[&str], leaving: &[u32]| {
            let (got, mut left) = difference(&there, want(wanted));
            left.sort_by_key(|member| member.id);
            let left: Vec<u32> = left.iter().map(|member| member.id.0).collect();
            assert_eq!((got, &left[..]), (want(missing), leaving), "{wanted:?}");
        };
        check(&["g_0", "g_1", "g_2"], &["g_2"], &[2]);
        check(&["g_0"], &[], &[1, 2]);
        // Two groups of one name.
        check(&["g_0", "g_0"], &["g_0"], &[1, 2]);
        // From passive to not: another instance.
        check(&["p_0"], &["p_0"], &[0, 1, 2]);
    }
}
