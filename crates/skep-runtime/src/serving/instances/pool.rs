//! The instances of a loaded version as one responder.

use std::{
    fmt,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Weak, mpsc},
    time::Duration,
};

use skep_backend::Model;
use skep_config::ModelConfig;
use skep_scheduler::{PolicySnapshot, RequestId};
use skep_store::Digest;
use skep_tensor::RunBound;
use skep_types::DeviceId;

use crate::{
    error::RuntimeError,
    serving::{
        driver::Driver,
        instances::{
            members::{
                InstanceHandle, InstanceList, WantedInstance, active_count, difference,
                wanted_instances,
            },
            runner::InstanceRunner,
            start::{OverdueInstance, StartOutcome, StartReporter, StartingInstance},
            thread::InstanceThread,
            warmup::{self, WarmupRequest},
            watch::{ExecutionWatch, OverdueListener},
        },
        interface::Interface,
        job::Job,
        origin::VersionLife,
        responder::{Responder, Submission},
    },
    statistics::recorder::Statistics,
};

/// The instances of a version, and the driver that feeds them. Fields are dropped in this order.
pub(crate) struct InstancePool {
    driver: Arc<Driver>,
    interface: Arc<Interface>,
    pub(crate) model: Arc<dyn Model>,
    device: DeviceId,
    limits: ExecutionLimits,
    members: Arc<InstanceList>,
    life: Arc<VersionLife>,
}

/// How much memory and time one execution of a version may take.
#[derive(Debug, Clone)]
pub(crate) struct ExecutionLimits {
    pub(crate) memory: RunBound,
    pub(crate) time: Duration,
}

impl InstancePool {
    /// A pool without instances.
    pub(crate) fn new(
        driver: Arc<Driver>,
        interface: Arc<Interface>,
        model: Arc<dyn Model>,
        device: DeviceId,
        limits: ExecutionLimits,
        life: Arc<VersionLife>,
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

    /// Starts the instances that are missing, then removes the surplus ones.
    ///
    /// # Errors
    /// Why an instance could not be started; the instances are then unchanged.
    fn set_instances(
        &self,
        wanted: Vec<WantedInstance>,
        warmups: Vec<WarmupRequest>,
    ) -> Result<(), RuntimeError> {
        // Locked throughout: an instance that ends meanwhile keeps its number until the list is complete.
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

    /// Starts a thread for each instance, and waits until each has warmed up or failed.
    fn start(
        &self,
        wanted: Vec<WantedInstance>,
        warmups: &Arc<Vec<WarmupRequest>>,
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
        warmups: &Arc<Vec<WarmupRequest>>,
        report: mpsc::SyncSender<StartOutcome>,
    ) -> Result<(), RuntimeError> {
        let (sender, mailbox) = mpsc::sync_channel(1);
        let id = self.driver.connect(sender, passive);
        let recorder = self.driver.statistics().recorder(&name);
        let overdue = Arc::new(OverdueInstance {
            id,
            name: name.clone(),
            driver: Arc::clone(&self.driver),
            recorder: Arc::clone(&recorder),
            report: StartReporter::new(report),
        });
        let listener: Weak<dyn OverdueListener> =
            Arc::downgrade(&(Arc::clone(&overdue) as Arc<dyn OverdueListener>));
        let watch = ExecutionWatch::new(self.limits.time, listener)
            .inspect_err(|_| self.driver.abandon(id))?;
        let runner = InstanceRunner {
            name,
            model: Arc::clone(&self.model),
            device: self.device,
            interface: Arc::clone(&self.interface),
            driver: Arc::clone(&self.driver),
            recorder,
            bound: self.limits.memory.clone(),
            watch,
        };
        let starting = StartingInstance {
            thread: InstanceThread { id, runner },
            passive,
            mailbox,
            overdue,
            members: Arc::clone(&self.members),
            _life: Arc::clone(&self.life),
        };
        starting.spawn(Arc::clone(warmups))
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
        let groups = config.instance_groups();
        let configured = active_count(groups);
        let (least, most) = config.residency().bounds(configured);
        self.scale(config, directory, configured.clamp(least, most))
    }

    fn scale(
        &self,
        config: &ModelConfig,
        directory: &Path,
        active: u32,
    ) -> Result<(), RuntimeError> {
        let warmups = warmup::prepare(config, &self.interface, directory)?;
        let wanted = wanted_instances(config.instance_groups(), active);
        self.set_instances(wanted, warmups)
    }

    fn active_instances(&self) -> u32 {
        let members = self.members.lock();
        let active = members.iter().filter(|member| !member.passive).count();
        u32::try_from(active).unwrap_or(u32::MAX)
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        self.model.cpu_threads()
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

    fn stored_tensors(&self) -> Vec<(Digest, u64)> {
        self.model.stored_tensors()
    }

    fn is_baked(&self) -> bool {
        self.model.is_baked()
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
