//! All models of a node: their states, the routing table, load and unload.
//!
//! ```text
//!   load ok                 unload, or another load took over
//! LOADING ----> READY  ----------------> UNLOADING ----> UNAVAILABLE (reason `unloaded`)
//!    |                        the last request is answered, instances and weights are gone
//!    +--> UNAVAILABLE (reason: why the load failed)
//! ```

use std::{
    collections::{BTreeMap, HashMap},
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use skep_types::{ModelName, ModelVersion};
use tokio::sync::Notify;

use crate::{
    Backends, ErrorKind, LoadOptions, LoadedVersion, Repository, RuntimeError,
    loader::{OnGone, Plan},
};

/// What a runtime is made with.
#[derive(Debug)]
pub struct RuntimeOptions {
    /// Where models come from.
    pub repository: Repository,
    /// Settings of every load.
    pub load: LoadOptions,
    /// How many models load at once at the start; at least 1.
    pub load_threads: usize,
    /// Whether models may be loaded and unloaded by request.
    pub explicit_control: bool,
    /// Whether the node is ready only if every model that was asked for is.
    pub strict_readiness: bool,
}

/// The state of a model version, as Triton's index names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VersionState {
    /// Being loaded.
    Loading,
    /// Ready for requests.
    Ready,
    /// No new requests; the last ones are being answered.
    Unloading,
    /// Not loaded.
    Unavailable,
}

impl VersionState {
    /// The name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Loading => "LOADING",
            Self::Ready => "READY",
            Self::Unloading => "UNLOADING",
            Self::Unavailable => "UNAVAILABLE",
        }
    }
}

/// A row of the repository index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexEntry {
    /// The model.
    pub name: ModelName,
    /// Its version and state; `None` for a model that was never loaded.
    pub version: Option<ModelVersion>,
    /// The state; `None` for a model that was never loaded.
    pub state: Option<VersionState>,
    /// Why it is in this state, empty if there is nothing to say.
    pub reason: String,
}

/// What became of the models at the start: one entry a model that was asked for.
pub type StartReport = Vec<(ModelName, Result<(), RuntimeError>)>;

/// The versions of a model that take requests, ascending.
type Routes = HashMap<ModelName, BTreeMap<ModelVersion, Arc<LoadedVersion>>>;

#[derive(Debug, Default)]
struct Record {
    versions: BTreeMap<ModelVersion, Status>,
    /// Why the model as a whole could not be loaded, when no version was reached.
    failure: Option<String>,
    /// Whether it was asked for and should be ready.
    wanted: bool,
    /// How many loads were begun.
    loads: u64,
    /// Serialises loads and unloads of this model.
    turn: Arc<Mutex<()>>,
}

#[derive(Debug)]
struct Status {
    state: VersionState,
    reason: String,
    /// The load that this is about, among all loads of the model.
    generation: u64,
}

/// The models of a node. Cheap to share; every method takes `&self`.
#[derive(Debug)]
pub struct Runtime {
    options: RuntimeOptions,
    backends: Backends,
    routes: ArcSwap<Routes>,
    records: Mutex<BTreeMap<ModelName, Record>>,
    /// Signalled when a version is gone.
    gone: Condvar,
    started: AtomicBool,
    stopping: AtomicBool,
    /// Tells those who wait for a stop.
    stop_begun: Notify,
}

impl Runtime {
    /// A runtime without models.
    #[must_use]
    pub fn new(options: RuntimeOptions, backends: Backends) -> Arc<Self> {
        Arc::new(Self {
            options,
            backends,
            routes: ArcSwap::default(),
            records: Mutex::default(),
            gone: Condvar::new(),
            started: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            stop_begun: Notify::new(),
        })
    }

    /// Loads the models of the start, several at once: those named, or all of the repository. Blocks.
    pub fn start(self: &Arc<Self>, names: Option<&[ModelName]>) -> StartReport {
        let models: Vec<ModelName> = match names {
            Some(names) => names.to_vec(),
            None => self.options.repository.models().into_keys().collect(),
        };
        let pending = Mutex::new(models.into_iter());
        let report = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..self.options.load_threads.max(1) {
                scope.spawn(|| {
                    while let Some(name) = take(&pending) {
                        let outcome = self.load_now(&name);
                        report
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push((name, outcome));
                    }
                });
            }
        });
        self.started.store(true, Ordering::Release);
        let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
        report.sort_by(|a, b| a.0.cmp(&b.0));
        report
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
                .all(|(name, _)| {
                    routes.get(name).is_some_and(|versions| {
                        versions.values().all(|version| version.is_healthy())
                    })
                })
        }
    }

    /// Finds the version that a request goes to: the one asked for, or the latest.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for an unknown model or version, [`ErrorKind::Unavailable`] for one that is not ready.
    pub fn resolve(
        &self,
        name: &str,
        version: Option<&str>,
    ) -> Result<Arc<LoadedVersion>, RuntimeError> {
        let routes = self.routes.load();
        let versions = routes.get(name);
        let found = match version.filter(|v| !v.is_empty()) {
            None => {
                versions.and_then(|versions| versions.last_key_value().map(|(_, loaded)| loaded))
            }
            Some(text) => {
                // Clients may send `-1` for the latest version, as the protocol's numbers have it.
                let asked = match text {
                    "-1" => versions.and_then(|versions| versions.last_key_value().map(|(version, _)| *version)),
                    _ => Some(ModelVersion::parse(text).map_err(|_| {
                        RuntimeError::invalid(format!(
                            "failed to get model version from specified version string '{text}' (details: expected a positive integer)"
                        ))
                    })?),
                };
                asked.and_then(|version| versions?.get(&version))
            }
        };
        found.cloned().ok_or_else(|| self.not_found(name, version))
    }

    /// Why nothing was found, in Triton's words.
    fn not_found(&self, name: &str, version: Option<&str>) -> RuntimeError {
        let records = self.records();
        let error = |kind, rest: String| {
            RuntimeError::new(kind, format!("Request for unknown model: '{name}' {rest}"))
        };
        let Some(record) = records.get(name) else {
            return error(ErrorKind::NotFound, "is not found".to_owned());
        };
        match version.and_then(|text| ModelVersion::parse(text).ok()) {
            Some(version) => match record.versions.get(&version) {
                Some(status) => error(
                    ErrorKind::Unavailable,
                    format!("version {version} is at {} state", status.state.name()),
                ),
                None => error(
                    ErrorKind::NotFound,
                    format!("version {version} is not found"),
                ),
            },
            None => error(ErrorKind::NotFound, "has no available versions".to_owned()),
        }
    }

    /// All versions that take requests, by name and version.
    #[must_use]
    pub fn loaded(&self) -> Vec<Arc<LoadedVersion>> {
        let routes = self.routes.load();
        let mut all: Vec<Arc<LoadedVersion>> = routes
            .values()
            .flat_map(BTreeMap::values)
            .cloned()
            .collect();
        all.sort_by(|a, b| (a.name(), a.version()).cmp(&(b.name(), b.version())));
        all
    }

    /// The versions of one model that take requests, ascending.
    #[must_use]
    pub fn versions(&self, name: &str) -> Vec<ModelVersion> {
        self.routes
            .load()
            .get(name)
            .map(|versions| versions.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Every model seen: those loaded or tried, and those that lie in the repository.
    #[must_use]
    pub fn index(&self, ready_only: bool) -> Vec<IndexEntry> {
        let on_disk = self.options.repository.models();
        let records = self.records();
        let mut names: Vec<&ModelName> = records.keys().chain(on_disk.keys()).collect();
        names.sort();
        names.dedup();
        let mut rows = Vec::new();
        for name in names {
            let row = |version, state, reason: &str| IndexEntry {
                name: name.clone(),
                version,
                state,
                reason: reason.to_owned(),
            };
            match records.get(name) {
                Some(record) if !record.versions.is_empty() => rows.extend(
                    record
                        .versions
                        .iter()
                        .map(|(version, s)| row(Some(*version), Some(s.state), &s.reason)),
                ),
                Some(Record {
                    failure: Some(reason),
                    ..
                }) => {
                    rows.push(row(None, Some(VersionState::Unavailable), reason));
                }
                _ => rows.push(row(None, None, "")),
            }
        }
        rows.retain(|row| !ready_only || row.state == Some(VersionState::Ready));
        rows
    }

    /// Loads a model, or loads it again; the versions that serve now go on until the new ones are ready. Blocks.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] unless models are controlled explicitly; otherwise why the load failed.
    pub fn load(self: &Arc<Self>, name: &str) -> Result<(), RuntimeError> {
        self.explicit()?;
        self.load_now(&model_name(name, "load")?)
    }

    /// Unloads a model: no new requests from now on; memory is given back when the last one is answered.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] unless models are controlled explicitly.
    pub fn unload(&self, name: &str) -> Result<(), RuntimeError> {
        self.explicit()?;
        let name = model_name(name, "unload")?;
        let Some(turn) = self.turn(&name) else {
            // Seen but never loaded: it is unloaded already.
            return self.options.repository.model(&name).map(drop).map_err(|_| {
                RuntimeError::internal(format!(
                    "failed to unload '{name}', failed to poll from model repository"
                ))
            });
        };
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(record) = self.records().get_mut(&name) {
            record.wanted = false;
            record.failure = None;
        }
        self.retire(&name, &BTreeMap::new());
        tracing::info!("unloading model `{name}`");
        Ok(())
    }

    /// Refuses new requests and waits, at most `timeout`, until every model is gone. The versions that still run then.
    pub fn stop(&self, timeout: Duration) -> usize {
        self.begin_stop();
        let deadline = Instant::now() + timeout;
        for loaded in self.loaded() {
            loaded.driver.drain();
        }
        let names: Vec<ModelName> = self.records().keys().cloned().collect();
        for name in names {
            self.retire(&name, &BTreeMap::new());
        }
        let mut records = self.records();
        loop {
            let alive = records.values().flat_map(|record| record.versions.values());
            let alive = alive
                .filter(|status| status.state == VersionState::Unloading)
                .count();
            let left = deadline.saturating_duration_since(Instant::now());
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

    /// Makes the node not ready; requests are still served.
    pub fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.stop_begun.notify_waiters();
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

    fn explicit(&self) -> Result<(), RuntimeError> {
        if self.options.explicit_control {
            return Ok(());
        }
        let text = "explicit model load / unload is not allowed if polling is enabled";
        Err(RuntimeError::new(ErrorKind::Unavailable, text))
    }

    fn load_now(self: &Arc<Self>, name: &ModelName) -> Result<(), RuntimeError> {
        let directory = self.options.repository.model(name).inspect_err(|error| {
            tracing::error!("{error}");
            // Wanted and not there: named for the start and missing, or claimed by several directories.
            let at_start = !self.started.load(Ordering::Acquire);
            if at_start || self.options.repository.models().contains_key(name) {
                let mut records = self.records();
                let record = records.entry(name.clone()).or_default();
                (record.wanted, record.failure) = (true, Some(error.to_string()));
            }
        })?;
        let turn = Arc::clone(&self.records().entry(name.clone()).or_default().turn);
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.with_record(name, |record| record.wanted = true);
        let began = Instant::now();
        let outcome = self.load_versions(name, directory);
        match &outcome {
            Ok(()) => tracing::info!(
                "loaded model `{name}` in {} ms",
                began.elapsed().as_millis()
            ),
            Err(error) => tracing::error!("{error}"),
        }
        outcome
    }

    fn load_versions(
        self: &Arc<Self>,
        name: &ModelName,
        directory: PathBuf,
    ) -> Result<(), RuntimeError> {
        let plan =
            Plan::new(name, &directory, &self.options.load, &self.backends).map_err(|error| {
                self.with_record(name, |record| record.failure = Some(error.to_string()));
                RuntimeError::new(error.kind(), format!("failed to load '{name}': {error}"))
            })?;
        self.with_record(name, |record| record.failure = None);
        let mut loaded = BTreeMap::new();
        let mut failures = Vec::new();
        for &version in &plan.versions {
            let generation = self.mark_loading(name, version);
            match plan.load(
                version,
                &self.options.load,
                self.on_gone(name, version, generation),
            ) {
                Ok(ready) => {
                    loaded.insert(version, (generation, Arc::new(ready)));
                }
                Err(error) => {
                    self.mark_failed(name, version, &error.to_string());
                    failures.push((version, error));
                }
            }
        }
        if loaded.is_empty() {
            let kind = failures
                .first()
                .map_or(ErrorKind::Internal, |(_, error)| error.kind());
            let list: String = failures
                .iter()
                .map(|(version, error)| {
                    format!(" version {version} is at UNAVAILABLE state: {error};")
                })
                .collect();
            return Err(RuntimeError::new(
                kind,
                format!("load failed for model '{name}':{list}"),
            ));
        }
        for (&version, &(generation, _)) in &loaded {
            self.mark_ready(name, version, generation);
        }
        let loaded = loaded
            .into_iter()
            .map(|(version, (_, ready))| (version, ready))
            .collect();
        self.retire(name, &loaded);
        Ok(())
    }

    /// Puts `next` in the place of the versions that take requests now, which finish what they hold.
    fn retire(&self, name: &ModelName, next: &BTreeMap<ModelVersion, Arc<LoadedVersion>>) {
        for version in self.versions(name.as_str()) {
            if !next.contains_key(&version) {
                self.with_record(name, |record| {
                    if let Some(status) = record.versions.get_mut(&version) {
                        status.state = VersionState::Unloading;
                    }
                });
            }
        }
        let previous = self.routes.rcu(|routes| {
            let mut routes = Routes::clone(routes);
            if next.is_empty() {
                routes.remove(name);
            } else {
                routes.insert(name.clone(), next.clone());
            }
            routes
        });
        drop(previous);
    }

    /// Notes that a version is being loaded and gives the load a number. A version that serves stays READY meanwhile.
    fn mark_loading(&self, name: &ModelName, version: ModelVersion) -> u64 {
        let mut records = self.records();
        let record = records.entry(name.clone()).or_default();
        record.loads += 1;
        let generation = record.loads;
        let serving = record
            .versions
            .get(&version)
            .is_some_and(|status| status.state == VersionState::Ready);
        if !serving {
            let status = Status {
                state: VersionState::Loading,
                reason: String::new(),
                generation,
            };
            record.versions.insert(version, status);
        }
        generation
    }

    fn mark_ready(&self, name: &ModelName, version: ModelVersion, generation: u64) {
        let status = Status {
            state: VersionState::Ready,
            reason: String::new(),
            generation,
        };
        self.with_record(name, |record| drop(record.versions.insert(version, status)));
    }

    /// Notes why a version could not be loaded; one that was to be replaced goes on serving.
    fn mark_failed(&self, name: &ModelName, version: ModelVersion, reason: &str) {
        self.with_record(name, |record| {
            if let Some(status) = record.versions.get_mut(&version) {
                reason.clone_into(&mut status.reason);
                if status.state == VersionState::Loading {
                    status.state = VersionState::Unavailable;
                }
            }
        });
    }

    /// What happens when a version's last instance and its weights are gone.
    fn on_gone(
        self: &Arc<Self>,
        name: &ModelName,
        version: ModelVersion,
        generation: u64,
    ) -> OnGone {
        let (runtime, name): (Weak<Self>, ModelName) = (Arc::downgrade(self), name.clone());
        Box::new(move || {
            let Some(runtime) = runtime.upgrade() else {
                return;
            };
            runtime.with_record(&name, |record| {
                if let Some(status) = record.versions.get_mut(&version)
                    && status.generation == generation
                    && status.state == VersionState::Unloading
                {
                    status.state = VersionState::Unavailable;
                    "unloaded".clone_into(&mut status.reason);
                    tracing::info!("unloaded model `{name}` version {version}");
                }
            });
            runtime.gone.notify_all();
        })
    }

    fn turn(&self, name: &ModelName) -> Option<Arc<Mutex<()>>> {
        self.records()
            .get(name)
            .map(|record| Arc::clone(&record.turn))
    }

    fn with_record(&self, name: &ModelName, change: impl FnOnce(&mut Record)) {
        if let Some(record) = self.records().get_mut(name) {
            change(record);
        }
    }

    fn records(&self) -> MutexGuard<'_, BTreeMap<ModelName, Record>> {
        // Each change is a few assignments that cannot panic half-way.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn take(pending: &Mutex<std::vec::IntoIter<ModelName>>) -> Option<ModelName> {
    pending
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .next()
}

fn model_name(name: &str, action: &str) -> Result<ModelName, RuntimeError> {
    ModelName::new(name)
        .map_err(|error| RuntimeError::invalid(format!("failed to {action} '{name}': {error}")))
}
