//! All models of a node: the routing table, readiness, start and stop. [`loading`](crate::loading) changes them.

mod changes;
mod management;
mod poll;
mod records;

pub use records::{IndexEntry, VersionState};

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use skep_host::lock;
use skep_store::{Stat, Tenant};
use skep_types::{ModelName, ModelVersion};
use tokio::sync::Notify;

use crate::{
    Backends, ErrorKind, LayoutFinding, LoadOptions, LoadOverrides, LoadedVersion, Repository,
    RuntimeError, baking,
    models::{
        management::{CallTarget, Management, ManagementCall},
        poll::{PollFailures, StopSignal},
        records::ModelRecord,
    },
    repository::{ModelId, scan::RepositoryScan, source::ModelSource},
};

/// How long a stop waits for what baking left to be removed: files of some GiB at most.
const BAKERY_LIMIT: Duration = Duration::from_secs(5);

/// What a runtime is made with.
#[derive(Debug)]
pub struct RuntimeOptions {
    /// Where models come from.
    pub repository: Repository,
    /// Settings of every load.
    pub load: LoadOptions,
    /// How many models load at once; at least 1.
    pub load_threads: usize,
    /// How many loads, unloads and indexes of clients may wait for others.
    pub max_waiting_loads: usize,
    /// Who decides which models are loaded.
    pub control: Control,
    /// Whether the node is ready only if every model that was asked for is.
    pub strict_readiness: bool,
}

/// Who decides which models are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// Nobody after the start.
    None,
    /// The repository: it is looked at again after each interval, and what changed is loaded or unloaded.
    Poll(Duration),
    /// Requests.
    Explicit,
}

/// What became of the models at the start: one entry a model that was asked for.
pub type StartReport = Vec<(ModelName, Result<(), RuntimeError>)>;

/// How far a start is.
#[derive(Debug, Default)]
enum StartPhase {
    /// It comes next, and nobody knows yet which models it loads.
    Announced,
    /// These models are still to be loaded.
    Loading(BTreeSet<ModelId>),
    /// It is over, or nobody has announced one.
    #[default]
    Over,
}

/// The versions of the models of a name; of one model, unless names need not be unique.
pub(crate) type Routes = HashMap<ModelName, Vec<Route>>;

/// The versions of a model that take requests, ascending.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) namespace: Option<Arc<str>>,
    pub(crate) versions: BTreeMap<ModelVersion, Arc<LoadedVersion>>,
}

/// The models of a node. Cheap to share; every method takes `&self`.
#[derive(Debug)]
pub struct Runtime {
    pub(crate) options: RuntimeOptions,
    pub(crate) backends: Backends,
    /// Changed under the lock of the records.
    pub(crate) routes: ArcSwap<Routes>,
    records: Mutex<BTreeMap<ModelId, ModelRecord>>,
    pub(crate) management: Management,
    /// What was loaded from files that clients sent.
    sent: Mutex<Vec<Weak<ModelSource>>>,
    /// Signalled when a version is gone.
    pub(crate) gone: Condvar,
    pub(crate) started: AtomicBool,
    /// What the log said last of readiness, so that it says each change once.
    said_ready: Mutex<bool>,
    /// How far the start is, for requests that come meanwhile.
    start_phase: Mutex<StartPhase>,
    stopping: AtomicBool,
    /// Tells the poller.
    pub(crate) stop: Arc<StopSignal>,
    pub(crate) poll_failures: PollFailures,
    /// Tells those who wait for a stop.
    stop_begun: Notify,
}

impl Runtime {
    /// A runtime without models.
    #[must_use]
    pub fn new(options: RuntimeOptions, backends: Backends) -> Arc<Self> {
        let management = Management::new(options.load_threads, options.max_waiting_loads);
        Arc::new(Self {
            options,
            backends,
            management,
            sent: Mutex::default(),
            routes: ArcSwap::default(),
            records: Mutex::default(),
            gone: Condvar::new(),
            started: AtomicBool::new(false),
            said_ready: Mutex::new(false),
            start_phase: Mutex::default(),
            stopping: AtomicBool::new(false),
            stop: Arc::default(),
            poll_failures: PollFailures::default(),
            stop_begun: Notify::new(),
        })
    }

    /// The figures of this process's tensor store, by tenant; nothing where models are loaded each for itself, or with a
    /// store of the node.
    #[must_use]
    pub fn stores(&self) -> Vec<(Tenant, Stat)> {
        let weights = self.options.load.weights.as_ref();
        let figures = weights.and_then(|weights| weights.store.own_figures());
        figures.unwrap_or_default()
    }

    /// Loads the models of the start, several at once: those named, or all of the repository. Blocks.
    pub fn start(self: &Arc<Self>, names: Option<&[ModelName]>) -> StartReport {
        let ids: Vec<ModelId> = match names {
            Some(names) => names.iter().flat_map(|name| self.ids(name)).collect(),
            None => self.options.repository.models().into_keys().collect(),
        };
        // Before the loads: what changes meanwhile is seen by the first poll.
        let polling = match self.options.control {
            Control::Poll(interval) => Some((
                interval,
                RepositoryScan::default().again(&self.options.repository),
            )),
            _ => None,
        };
        *lock(&self.start_phase) = StartPhase::Loading(ids.iter().cloned().collect());
        let mut report = self.load_all(ids, &LoadOverrides::default());
        {
            // Held over both: a load that ends in between compares with what the start says.
            let mut said_ready = lock(&self.said_ready);
            self.started.store(true, Ordering::Release);
            *said_ready = self.is_ready();
        }
        *lock(&self.start_phase) = StartPhase::Over;
        if let Some((interval, files)) = polling
            && let Err(error) = poll::start(self, interval, files)
        {
            tracing::error!("{error}");
        }
        report.sort_by(|a, b| a.0.cmp(&b.0));
        report
    }

    /// Loads models, several at once, and waits for the outcomes.
    pub(crate) fn load_all(
        self: &Arc<Self>,
        ids: Vec<ModelId>,
        overrides: &LoadOverrides,
    ) -> StartReport {
        let load = |id: &ModelId| ManagementCall::Load {
            target: CallTarget::One(id.clone()),
            overrides: overrides.clone(),
        };
        let outcomes = self.manage_now(ids.iter().map(load), false);
        let names = ids.into_iter().map(|id| id.name);
        let outcomes = outcomes.into_iter().map(|outcome| outcome.map(drop));
        names.zip(outcomes).collect()
    }

    /// Unloads models, and waits until they take no more requests.
    pub(crate) fn unload_all(self: &Arc<Self>, ids: Vec<ModelId>) {
        let unload = |id| ManagementCall::Unload(CallTarget::One(id));
        drop(self.manage_now(ids.into_iter().map(unload), false));
    }

    /// Whether the node takes requests: started, not stopping, and (if strict) every wanted model ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        if !self.started.load(Ordering::Acquire) || self.stopping.load(Ordering::Acquire) {
            return false;
        }
        !self.options.strict_readiness || {
            let records = self.records();
            let routes = self.routes.load();
            records
                .iter()
                .filter(|(_, record)| record.wanted)
                .all(|(id, _)| {
                    let routes = routes.get(&id.name).map_or(&[][..], Vec::as_slice);
                    let route = routes.iter().find(|route| route.namespace == id.namespace);
                    route.is_some_and(|route| {
                        route.versions.values().all(|version| version.is_healthy())
                    })
                })
        }
    }

    /// What looks odd about the repositories as a whole.
    #[must_use]
    pub fn layout(&self) -> Vec<LayoutFinding> {
        self.options.repository.layout()
    }

    /// Logs once each change of what `is_ready` says, after a load or an unload. `failed` is a model whose load failed: a
    /// model that is still being loaded is no reason to say anything yet.
    pub(crate) fn say_readiness(&self, failed: Option<&ModelId>) {
        let mut said_ready = lock(&self.said_ready);
        if !self.started.load(Ordering::Acquire) || self.is_stopping() {
            return;
        }
        let is_ready = self.is_ready();
        if is_ready && !*said_ready {
            *said_ready = true;
            tracing::info!("ready for requests: every model that was asked for is loaded");
        } else if !is_ready
            && *said_ready
            && let Some(id) = failed.filter(|id| self.serving(id).is_empty())
        {
            *said_ready = false;
            tracing::warn!(
                "not ready any more: model `{id}` failed to load; the others are served, and `/v2/health/ready` answers 400 until \
                 every model is loaded; with `--strict-readiness=false` the server is ready without it"
            );
        }
    }

    /// Says that [`start`](Self::start) comes next: until it knows which models it loads, every name may be one of them.
    pub fn announce_start(&self) {
        *lock(&self.start_phase) = StartPhase::Announced;
    }

    /// Notes that the start is done with a model, whatever came of it.
    pub(crate) fn start_is_done_with(&self, id: &ModelId) {
        if let StartPhase::Loading(ids) = &mut *lock(&self.start_phase) {
            ids.remove(id);
        }
    }

    /// Whether the start has still to load a model of this name.
    fn start_will_load(&self, name: &str) -> bool {
        if self.is_stopping() {
            return false;
        }
        match &*lock(&self.start_phase) {
            StartPhase::Announced => true,
            StartPhase::Loading(ids) => ids.iter().any(|id| id.name.as_str() == name),
            StartPhase::Over => false,
        }
    }

    /// How many loads of each model that should be loaded failed, first ones and later ones: namespace, name, count.
    #[must_use]
    pub fn load_failures(&self) -> Vec<(Option<Arc<str>>, ModelName, u64)> {
        let records = self.records();
        let wanted = records.iter().filter(|(_, record)| record.wanted);
        wanted
            .map(|(id, record)| (id.namespace.clone(), id.name.clone(), record.failed_loads))
            .collect()
    }

    /// Finds the version that a request goes to: the one asked for, or the latest.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown model or version, [`ErrorKind::Unavailable`] for one that is not ready, or that
    /// the start has still to load.
    pub fn resolve(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        let routes = self.routes.load();
        let versions = match routes.get(name).map(Vec::as_slice) {
            None | Some([]) => None,
            Some([route]) => Some(&route.versions),
            Some(several) => {
                return Err(RuntimeError::invalid(format!(
                    "There are {} identifiers of model '{name}' in global map, model namespace must be provided to resolve ambiguity.",
                    several.len()
                )));
            }
        };
        let found = match version.filter(|v| !v.is_empty()) {
            None => {
                versions.and_then(|versions| versions.last_key_value().map(|(_, loaded)| loaded))
            }
            Some(text) => {
                let asked = match asked_version(text)? {
                    RequestedVersion::Latest => versions.and_then(|versions| {
                        versions.last_key_value().map(|(version, _)| *version)
                    }),
                    RequestedVersion::Number(number) => ModelVersion::new(number).ok(),
                };
                asked.and_then(|version| versions?.get(&version))
            }
        };
        found.cloned().ok_or_else(|| self.not_found(name, version))
    }

    /// Why nothing was found, in Triton's words; during the start in Skep's, since Triton opens its ports after it.
    fn not_found(&self, name: &str, version: Option<&str>) -> RuntimeError {
        if self.start_will_load(name) {
            let text = format!("model '{name}' is not loaded yet: the server is starting");
            return RuntimeError::new(ErrorKind::Unavailable, text);
        }
        let records = self.records();
        let error = |kind, rest: String| {
            RuntimeError::new(kind, format!("Request for unknown model: '{name}' {rest}"))
        };
        let record = records.iter().find(|(id, _)| id.name.as_str() == name);
        let Some((_, record)) = record else {
            return error(ErrorKind::NotFound, "is not found".to_owned());
        };
        match version.and_then(|text| asked_version(text).ok()) {
            Some(RequestedVersion::Number(version)) => match ModelVersion::new(version)
                .ok()
                .and_then(|version| record.versions.get(&version))
            {
                Some(status) => error(
                    ErrorKind::Unavailable,
                    format!("version {version} is at {} state", status.state.name()),
                ),
                None => error(
                    ErrorKind::NotFound,
                    format!("version {version} is not found"),
                ),
            },
            Some(RequestedVersion::Latest) | None => {
                error(ErrorKind::NotFound, "has no available versions".to_owned())
            }
        }
    }

    /// All versions that take requests, by name and version.
    #[must_use]
    pub fn loaded(&self) -> Vec<Arc<LoadedVersion>> {
        let routes = self.routes.load();
        let mut all: Vec<Arc<LoadedVersion>> = routes
            .values()
            .flatten()
            .flat_map(|route| route.versions.values())
            .cloned()
            .collect();
        all.sort_by(|a, b| {
            let key = |loaded: &'_ LoadedVersion| {
                (loaded.version(), loaded.namespace().map(str::to_owned))
            };
            a.name().cmp(b.name()).then_with(|| key(a).cmp(&key(b)))
        });
        all
    }

    /// The versions of one model that take requests, ascending.
    #[must_use]
    pub fn versions(&self, name: &str) -> Vec<ModelVersion> {
        let routes = self.routes.load();
        let of_name = routes.get(name).into_iter().flatten();
        of_name
            .flat_map(|route| route.versions.keys().copied())
            .collect()
    }

    /// Every model seen: those loaded or tried, and those that lie in the repository.
    #[must_use]
    pub fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let routes = self.routes.load();
        let why_not = |id: &ModelId, version: ModelVersion| {
            let mut routes = routes.get(&id.name)?.iter();
            let route = routes.find(|route| route.namespace == id.namespace)?;
            route.versions.get(&version)?.why_unhealthy()
        };
        let repository = &self.options.repository;
        records::index(&self.records(), repository, &why_not, ready_only)
    }

    /// Refuses new requests and waits, at most `timeout`, until every model is gone. The versions that still run then.
    pub fn stop(&self, timeout: Duration) -> usize {
        self.begin_stop();
        // A deadline that cannot be represented means no deadline.
        let deadline = Instant::now().checked_add(timeout);
        for loaded in self.loaded() {
            loaded.responder.drain();
        }
        let ids: Vec<ModelId> = self.records().keys().cloned().collect();
        for id in ids {
            self.retire(&id);
            let source = self.with_record(&id, |record| record.source.take());
            drop(source);
        }
        let bakery = Instant::now() + BAKERY_LIMIT;
        baking::stop(deadline.map_or(bakery, |deadline| deadline.min(bakery)));
        let alive = self.wait_until_gone(deadline);
        self.remove_temporary_files();
        alive
    }

    /// Removes files that clients sent, although models may still be loaded from them: the process is about to end,
    /// without their owners' ends.
    pub fn remove_temporary_files(&self) {
        let sent = std::mem::take(&mut *lock(&self.sent));
        for source in sent.iter().filter_map(Weak::upgrade) {
            source.remove_temporary();
        }
    }

    /// Remembers a source if its files go with the process.
    pub(crate) fn remember_sent(&self, source: &Arc<ModelSource>) {
        if source.is_temporary() {
            let mut sent = lock(&self.sent);
            sent.retain(|other| other.strong_count() > 0);
            sent.push(Arc::downgrade(source));
        }
    }

    /// What has not ended yet: versions of models, and management calls that run.
    #[must_use]
    pub fn left_at_stop(&self) -> (usize, usize) {
        let versions = self.loaded().len() + Self::unloading(&self.records());
        (versions, self.management.running())
    }

    fn wait_until_gone(&self, deadline: Option<Instant>) -> usize {
        let mut records = self.records();
        loop {
            let alive = Self::unloading(&records);
            let now = Instant::now();
            let left = deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(now));
            if alive == 0 || left.is_zero() {
                return alive;
            }
            records = self
                .gone
                .wait_timeout(records, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Makes the node not ready; requests are still served. Loads that wait are given up, and whoever waits for one that
    /// runs is answered: it comes to nothing.
    pub fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.management.close();
        self.stop.set();
        self.stop_begun.notify_waiters();
        for loaded in self.loaded() {
            loaded.responder.hurry();
        }
    }

    /// Done when a stop has begun: for what would otherwise go on as long as its client likes.
    pub async fn stop_begun(&self) {
        // Before the look: a stop in between is noticed.
        let begun = self.stop_begun.notified();
        if !self.is_stopping() {
            begun.await;
        }
    }

    /// Whether a stop has begun.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Does something with what is known of a model, if anything is.
    pub(crate) fn with_record<T>(
        &self,
        id: &ModelId,
        act: impl FnOnce(&mut ModelRecord) -> T,
    ) -> Option<T> {
        self.records().get_mut(id).map(act)
    }

    pub(crate) fn records(&self) -> MutexGuard<'_, BTreeMap<ModelId, ModelRecord>> {
        // Each change is a few assignments that cannot panic half-way.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The version that a client names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RequestedVersion {
    /// `-1`, as the protocol's numbers have it.
    Latest,
    /// A number that need not be one that versions can have.
    Number(u64),
}

/// Reads a version as C's `stol` does, and with it Triton: white space, a sign, digits; what follows is passed over, so that
/// `1.0.0` is 1.
fn asked_version(text: &str) -> Result<RequestedVersion, RuntimeError> {
    let is_space = |c| matches!(c, ' ' | '\t'..='\r');
    let number = text.trim_start_matches(is_space);
    let digits = number.strip_prefix(['-', '+']).unwrap_or(number);
    let is_digit = |c: &char| c.is_ascii_digit();
    let length = number.len() - digits.len() + digits.chars().take_while(is_digit).count();
    match number[..length].parse::<i64>() {
        Ok(-1) => Ok(RequestedVersion::Latest),
        Ok(number @ 0..) => Ok(RequestedVersion::Number(number.unsigned_abs())),
        _ => Err(RuntimeError::invalid(format!(
            "failed to get model version from specified version string '{text}' (details: stol), version should be an integral value > 0"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_stol_reads_them() {
        for (text, expected) in [
            ("1", Some(RequestedVersion::Number(1))),
            ("007", Some(RequestedVersion::Number(7))),
            ("1.0.0", Some(RequestedVersion::Number(1))),
            (" 1", Some(RequestedVersion::Number(1))),
            ("\t\n\x0b\x0c\r+2 ", Some(RequestedVersion::Number(2))),
            ("3rd", Some(RequestedVersion::Number(3))),
            ("0", Some(RequestedVersion::Number(0))),
            ("-0", Some(RequestedVersion::Number(0))),
            (
                "9223372036854775807",
                Some(RequestedVersion::Number(i64::MAX.unsigned_abs())),
            ),
            ("-1", Some(RequestedVersion::Latest)),
            (" -1.0", Some(RequestedVersion::Latest)),
            ("9223372036854775808", None),
            ("-2", None),
            ("--1", None),
            ("+-1", None),
            ("- 1", None),
            ("v1", None),
            (".5", None),
            (" ", None),
            ("\u{a0}1", None),
            ("\u{661}", None),
        ] {
            assert_eq!(asked_version(text).ok(), expected, "{text:?}");
        }
    }
}
