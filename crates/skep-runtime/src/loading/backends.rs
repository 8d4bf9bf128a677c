//! The backends of a node, and the choice of one for a model.

use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

use skep_backend::{Backend, BackendError};

use crate::{ErrorKind, RuntimeError};

/// How a backend is opened.
type OpenBackend = Box<dyn Fn() -> Result<Arc<dyn Backend>, BackendError> + Send + Sync>;

/// A backend that may or may not be available.
pub struct BackendEntry {
    open: OpenBackend,
    opened: OnceLock<Result<Arc<dyn Backend>, BackendError>>,
}

impl BackendEntry {
    /// A backend that `open` opens when the first model needs it, because a library takes tens of milliseconds to open.
    #[must_use]
    pub fn new(
        open: impl Fn() -> Result<Arc<dyn Backend>, BackendError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            open: Box::new(open),
            opened: OnceLock::new(),
        }
    }

    fn get(&self) -> Result<Arc<dyn Backend>, BackendError> {
        self.opened.get_or_init(|| (self.open)()).clone()
    }
}

impl std::fmt::Debug for BackendEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BackendEntry")
            .field("opened", &self.opened.get().is_some())
            .finish()
    }
}

/// The backends of this node.
#[derive(Debug, Default)]
pub struct Backends {
    entries: BTreeMap<&'static str, BackendEntry>,
    preferred: Vec<&'static str>,
    fallback: Option<&'static str>,
    /// Set when the log says that the first choice is not available: once, not for each model.
    second_choice: OnceLock<()>,
}

/// The backend chosen for a model.
pub(crate) struct BackendChoice {
    pub(crate) backend: Arc<dyn Backend>,
    /// Why it differs from the one that the configuration names, for the log.
    pub(crate) note: Option<String>,
}

impl Backends {
    /// Adds a backend under its name in configurations.
    pub fn add(&mut self, name: &'static str, entry: BackendEntry) {
        self.entries.insert(name, entry);
    }

    /// Sets the order in which backends are tried for a model that names none.
    pub fn prefer(&mut self, names: &[&'static str]) {
        names.clone_into(&mut self.preferred);
    }

    /// Sets the backend that stands in for one whose library is missing; none by default.
    pub fn fall_back_to(&mut self, name: &'static str) {
        self.fallback = Some(name);
    }

    /// Chooses the backend for a model whose configuration names `configured`, or none.
    pub(crate) fn choose(&self, configured: Option<&str>) -> Result<BackendChoice, RuntimeError> {
        let Some(name) = configured else {
            return self.choose_preferred();
        };
        let Some(entry) = self.entries.get(name) else {
            let known: Vec<String> = self.entries.keys().map(|k| format!("`{k}`")).collect();
            let message = format!(
                "unknown backend `{name}`, expected one of {}",
                known.join(", ")
            );
            return Err(RuntimeError::invalid(message));
        };
        match (entry.get(), self.fallback) {
            (Ok(backend), _) => Ok(BackendChoice {
                backend,
                note: None,
            }),
            (Err(error), Some(fallback))
                if error.kind() == skep_backend::ErrorKind::Unavailable =>
            {
                let backend = self.entries[fallback].get()?;
                let note =
                    format!("backend `{name}` is not available, `{fallback}` stands in: {error}");
                Ok(BackendChoice {
                    backend,
                    note: Some(note),
                })
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    /// An available backend, for checks that do not depend on the backend.
    pub(crate) fn any(&self) -> Option<Arc<dyn Backend>> {
        let mut preferred = self.preferred.iter();
        preferred.find_map(|name| self.entries[name].get().ok())
    }

    fn choose_preferred(&self) -> Result<BackendChoice, RuntimeError> {
        let mut missing = Vec::new();
        for name in &self.preferred {
            match self.entries[name].get() {
                Ok(backend) => {
                    if !missing.is_empty() {
                        self.second_choice.get_or_init(|| {
                            tracing::info!(
                                "models that name no backend run on `{name}`: {}",
                                missing.join("; ")
                            );
                        });
                    }
                    return Ok(BackendChoice {
                        backend,
                        note: None,
                    });
                }
                Err(error) => missing.push(error.to_string().replace('\n', "; ")),
            }
        }
        let text = format!("no backend is available: {}", missing.join("; "));
        Err(RuntimeError::new(ErrorKind::Unavailable, text))
    }
}
