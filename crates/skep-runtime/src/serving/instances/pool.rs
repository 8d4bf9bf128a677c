//! The instances of a loaded version as one responder.

use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroUsize,
    path::Path,
    sync::{Arc, Mutex, Weak, mpsc},
    time::{Duration, Instant},
};

use skep_backend::Model;
use skep_config::ModelConfig;
use skep_host::lock;
use skep_placer::configuration::RunConfiguration;
use skep_scheduler::{InstanceId, PolicySnapshot, RequestId, ResourceDemand};
use skep_store::Digest;
use skep_tensor::RunBound;
use skep_types::{DeviceId, Time};

use crate::{
    error::RuntimeError,
    repository::ModelId,
    serving::{
        cpu_devices::{CpuDevices, DeviceClaim},
        driver::{Driver, room::QueueRoom},
        instances::{
            copies::{CopyTerms, ModelCopies},
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
        request::InferResponse,
        responder::{Responder, RunShape, Submission},
        response_cache::VersionCacheReport,
    },
    statistics::recorder::Statistics,
};

/// The instances of a version, and the driver that feeds them. Fields are dropped in this order.
pub(crate) struct InstancePool {
    driver: Arc<Driver>,
    interface: Arc<Interface>,
    copies: ModelCopies,
    home: InstanceHome,
    limits: ExecutionLimits,
    members: Arc<InstanceList>,
    /// How the instances were last started.
    shape: Mutex<RunShape>,
    life: Arc<VersionLife>,
}

/// Where a version's instances run.
pub(crate) struct InstanceHome {
    /// The model, as the devices know it.
    pub(crate) model: ModelId,
    pub(crate) device: DeviceId,
    /// The devices that its instances are packed onto; `None` if they run on all CPUs.
    pub(crate) devices: Option<Arc<CpuDevices>>,
}

/// An instance that is about to start: the copy that it runs on, and its place on a device.
struct PlacedInstance {
    wanted: WantedInstance,
    model: Arc<dyn Model>,
    place: Option<DeviceClaim>,
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
        copies: ModelCopies,
        home: InstanceHome,
        limits: ExecutionLimits,
        life: Arc<VersionLife>,
    ) -> Self {
        Self {
            driver,
            interface,
            copies,
            home,
            limits,
            members: Arc::default(),
            shape: Mutex::new(RunShape::of(0)),
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
        let placed = self.place(missing);
        let started = placed.and_then(|placed| self.start(placed, &Arc::new(warmups)));
        let started = started.inspect_err(|_| self.drop_unused_copies(&members))?;
        if let Some(threads) = started.first().and_then(|member| member.wanted.threads) {
            self.driver.assume_threads(threads);
        }
        for member in &leaving {
            self.driver.retire(member.id);
        }
        members.retain(|member| !leaving.iter().any(|leaving| leaving.id == member.id));
        members.extend(started);
        self.drop_unused_copies(&members);
        Ok(())
    }

    fn drop_unused_copies(&self, members: &[InstanceHandle]) {
        let terms: Vec<CopyTerms> = members.iter().map(InstanceHandle::terms).collect();
        self.copies.keep(&terms);
    }

    /// Finds each instance a device, where they are packed onto some, and the copy of the model that it runs on.
    fn place(&self, wanted: Vec<WantedInstance>) -> Result<Vec<PlacedInstance>, RuntimeError> {
        let mut places = self.claim(&wanted)?.into_iter();
        let placed = wanted.into_iter().map(|wanted| {
            let place = wanted.is_auto.then(|| places.next()).flatten();
            let model = self.copies.get(CopyTerms {
                device: place.as_ref().map(|place| place.device),
                threads: wanted.threads,
            })?;
            Ok(PlacedInstance {
                wanted,
                model,
                place,
            })
        });
        placed.collect()
    }

    /// Places on devices for those that are packed onto some. All have the same number of threads.
    fn claim(&self, wanted: &[WantedInstance]) -> Result<Vec<DeviceClaim>, RuntimeError> {
        let packed = wanted.iter().filter(|wanted| wanted.is_auto);
        let (Some(devices), Some(first)) = (&self.home.devices, packed.clone().next()) else {
            return Ok(Vec::new());
        };
        let threads = first.threads.or_else(|| self.cpu_threads());
        let threads = threads.map_or(0, |threads| {
            u32::try_from(threads.get()).unwrap_or(u32::MAX)
        });
        devices.claim(&self.home.model, packed.count(), threads)
    }

    /// Starts a thread for each instance, and waits until each has warmed up or failed.
    fn start(
        &self,
        wanted: Vec<PlacedInstance>,
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

    /// Tells the driver what the executions of an instance need.
    fn limit(
        &self,
        id: InstanceId,
        wanted: &WantedInstance,
        place: Option<&DeviceClaim>,
    ) -> Result<(), RuntimeError> {
        if wanted.passive {
            return Ok(());
        }
        // Without devices of its own the node is one device.
        let device = place.map_or(0, |place| u32::try_from(place.device).unwrap_or(u32::MAX));
        let needs = wanted.resources.iter();
        let demands: Vec<ResourceDemand> = needs
            .map(|need| ResourceDemand {
                name: need.name.clone(),
                device: (!need.global).then_some(device),
                count: need.count,
            })
            .collect();
        self.driver.limit(id, wanted.priority, &demands)
    }

    fn spawn(
        &self,
        placed: PlacedInstance,
        warmups: &Arc<Vec<WarmupRequest>>,
        report: mpsc::SyncSender<StartOutcome>,
    ) -> Result<(), RuntimeError> {
        let PlacedInstance {
            wanted,
            model,
            place,
        } = placed;
        let name = wanted.name.clone();
        let (sender, mailbox) = mpsc::sync_channel(1);
        let id = self.driver.connect(sender, wanted.passive);
        self.limit(id, &wanted, place.as_ref())
            .inspect_err(|_| self.driver.abandon(id))?;
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
            model,
            device: self.home.device,
            interface: Arc::clone(&self.interface),
            driver: Arc::clone(&self.driver),
            recorder,
            bound: self.limits.memory.clone(),
            watch,
        };
        let starting = StartingInstance {
            thread: InstanceThread { id, runner },
            wanted,
            place,
            mailbox,
            overdue,
            members: Arc::clone(&self.members),
            _life: Arc::clone(&self.life),
        };
        starting.spawn(Arc::clone(warmups))
    }
}

impl Responder for InstancePool {
    fn wants_digest(&self) -> bool {
        false
    }

    fn passes_on(&self) -> bool {
        false
    }

    fn submit(&self, job: Box<Job>, priority: u64, timeout: Option<Duration>) -> Submission<'_> {
        let (request, handover) = self.driver.enqueue(job, priority, timeout);
        Submission::new(self, request, Some(handover))
    }

    fn answer_at_once(&self, job: Box<Job>, response: InferResponse, began: Time) {
        self.driver.answer_at_once(job, response, began);
    }

    fn cached(&self) -> Option<VersionCacheReport> {
        None
    }

    fn cancel(&self, request: RequestId) {
        self.driver.cancel(request);
    }

    fn reconfigure(&self, config: &ModelConfig, directory: &Path) -> Result<(), RuntimeError> {
        let shape = *lock(&self.shape);
        if self.run().is_some() {
            // What the server has chosen stays.
            return self.scale(config, directory, shape);
        }
        let configured = active_count(config.instance_groups());
        let (least, most) = config.residency().bounds(configured);
        let shape = RunShape::of(configured.clamp(least, most));
        self.scale(config, directory, shape)
    }

    fn scale(
        &self,
        config: &ModelConfig,
        directory: &Path,
        shape: RunShape,
    ) -> Result<(), RuntimeError> {
        let warmups = warmup::prepare(config, &self.interface, directory)?;
        let groups = config.instance_groups();
        let wanted = wanted_instances(groups, shape.instances, shape.threads);
        self.set_instances(wanted, warmups)?;
        if let Some(batch) = shape.batch {
            self.driver.cap_batches(batch);
        }
        *lock(&self.shape) = shape;
        Ok(())
    }

    fn run(&self) -> Option<RunConfiguration> {
        let shape = *lock(&self.shape);
        let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        Some(RunConfiguration {
            instances: shape.instances,
            threads: count(shape.threads?.get()),
            batch: count(shape.batch?),
        })
    }

    fn active_instances(&self) -> u32 {
        let members = self.members.lock();
        let active = members
            .iter()
            .filter(|member| !member.wanted.passive)
            .count();
        u32::try_from(active).unwrap_or(u32::MAX)
    }

    fn cpu_threads(&self) -> Option<NonZeroUsize> {
        self.copies.any().cpu_threads()
    }

    fn devices(&self) -> Vec<(String, u32)> {
        let Some(devices) = &self.home.devices else {
            return Vec::new();
        };
        let mut counts: BTreeMap<usize, u32> = BTreeMap::new();
        for member in self.members.lock().iter() {
            if let Some(device) = member.device {
                *counts.entry(device).or_default() += 1;
            }
        }
        let named = counts.into_iter();
        named
            .map(|(device, count)| (devices.device(device).name.clone(), count))
            .collect()
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

    fn room(&self) -> Option<&QueueRoom> {
        Some(&self.driver.room)
    }

    fn stored_tensors(&self) -> Vec<(Digest, u64)> {
        self.copies.any().stored_tensors()
    }

    fn is_baked(&self) -> bool {
        self.copies.any().is_baked()
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

    fn wait_until_idle(&self, _deadline: Option<Instant>) {}
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
