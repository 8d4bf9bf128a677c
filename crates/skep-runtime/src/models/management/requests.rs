//! The loads, unloads and indexes that clients request, and what each does on its thread.

use std::{collections::BTreeSet, sync::Arc};

use skep_types::ModelName;

use crate::{
    error::{ErrorKind, RuntimeError},
    models::{
        ensembles::LoadCall,
        management::{CallDone, CallOutcome, CallTarget, ManagementCall},
        records::IndexEntry,
        runtime::{Control, Runtime},
    },
    repository::{LoadOverrides, ModelId, not_polled},
};

impl Runtime {
    /// Loads or reloads a model. The versions that serve now keep serving until the new ones are ready. Blocks.
    ///
    /// An overriding configuration stays in force for loads without overrides, until the repository's files change or
    /// the model is unloaded. Overriding files last until the next load.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] unless models are controlled explicitly, when too many calls wait, and when the
    /// server stops; otherwise why the load failed.
    pub fn load(
        self: &Arc<Self>,
        name: &str,
        overrides: &LoadOverrides,
    ) -> Result<(), RuntimeError> {
        let call = self.load_call(name, overrides.clone())?;
        self.load_with_parts(vec![call], &mut BTreeSet::new(), true)
            .into_iter()
            .collect()
    }

    /// [`Self::load`] without blocking. It joins the same load if that waits already. Dropping the future cancels the
    /// load if it has not begun.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn request_load(
        self: &Arc<Self>,
        name: &str,
        overrides: LoadOverrides,
    ) -> Result<(), RuntimeError> {
        let call = self.load_call(name, overrides)?;
        let CallDone::LacksParts(parts) = self.manage(call.managed(true)).await? else {
            return Ok(());
        };
        let runtime = Arc::clone(self);
        let parts: BTreeSet<ModelId> = parts.iter().cloned().collect();
        let loading = move || runtime.load_parts(parts, &mut BTreeSet::new());
        // Each failure is recorded where it happens; the ensemble's load names it.
        drop(tokio::task::spawn_blocking(loading).await);
        self.manage(call.managed(false)).await.map(drop)
    }

    fn load_call(&self, name: &str, overrides: LoadOverrides) -> Result<LoadCall, RuntimeError> {
        self.check_control()?;
        let model = ModelName::new(name).map_err(|error| not_polled(name, &error.to_string()))?;
        let target = CallTarget::Named(model);
        Ok(LoadCall { target, overrides })
    }

    /// Unloads a model: it takes no new requests, and its memory is freed when the last one is answered. A model that
    /// is not loaded, or does not exist, counts as unloaded. Ensembles on it stay, and are not ready without it. Blocks
    /// until earlier loads of the model have run.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] unless models are controlled explicitly, when too many calls wait, and when the
    /// server stops.
    pub fn unload(self: &Arc<Self>, name: &str) -> Result<(), RuntimeError> {
        let call = self.unload_call(name)?;
        self.manage_now(call, true)
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
    }

    /// [`Self::unload`] without blocking. With `dependents`, the ensembles on the model are unloaded before it, and after
    /// an ensemble the parts that were loaded for it alone. Dropping the future cancels what has not begun.
    ///
    /// # Errors
    /// As [`Self::unload`].
    pub async fn request_unload(
        self: &Arc<Self>,
        name: &str,
        dependents: bool,
    ) -> Result<(), RuntimeError> {
        let Some(call) = self.unload_call(name)? else {
            return Ok(());
        };
        let (mut before, mut after) = (Vec::new(), Vec::new());
        if dependents && let Ok(name) = ModelName::new(name) {
            (before, after) = (self.ensembles_on(&name), self.parts_only_of(&name));
        }
        let unload = |name| ManagementCall::Unload(CallTarget::Named(name));
        let before = before.into_iter().map(unload);
        let after = after.into_iter().map(unload);
        for call in before.chain([call]).chain(after) {
            self.manage(call).await?;
        }
        Ok(())
    }

    /// `None` if no model can have the name.
    fn unload_call(&self, name: &str) -> Result<Option<ManagementCall>, RuntimeError> {
        self.check_control()?;
        let model = ModelName::new(name).ok();
        Ok(model.map(|model| ManagementCall::Unload(CallTarget::Named(model))))
    }

    /// [`Self::index`] without blocking: the repository is read on another thread.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] when too many calls wait, and when the server stops.
    pub async fn request_index(
        self: &Arc<Self>,
        ready_only: bool,
    ) -> Result<Arc<[IndexEntry]>, RuntimeError> {
        match self.manage(ManagementCall::Index { ready_only }).await? {
            CallDone::Index(rows) => Ok(rows),
            CallDone::Changed | CallDone::LacksParts(_) => Ok(Arc::from([])),
        }
    }

    /// Carries out a management call, on the calling thread.
    pub(super) fn carry_out(self: &Arc<Self>, call: ManagementCall) -> CallOutcome {
        match call {
            ManagementCall::Load {
                target,
                overrides,
                reports_missing,
            } => return self.load_all_of(&target, &overrides, reports_missing),
            ManagementCall::Unload(target) => self.unload_all_of(&target),
            ManagementCall::Scale(order) => self.scale_now(&order)?,
            ManagementCall::Index { ready_only } => {
                return Ok(CallDone::Index(self.index(ready_only).into()));
            }
        }
        Ok(CallDone::Changed)
    }

    fn load_all_of(
        self: &Arc<Self>,
        target: &CallTarget,
        overrides: &LoadOverrides,
        reports_missing: bool,
    ) -> CallOutcome {
        let ids = match target {
            CallTarget::Named(name) => self.ids(name),
            CallTarget::One(id) => vec![id.clone()],
        };
        let is_overridden = overrides.config.is_some() || !overrides.files.is_empty();
        if let [first, _, ..] = &ids[..]
            && is_overridden
        {
            let why = "several repositories have the model, and load parameters cannot select one";
            return Err(not_polled(first.name.as_str(), why));
        }
        if reports_missing {
            let missing = ids.iter().flat_map(|id| self.missing_parts(id, overrides));
            let missing: Vec<ModelId> = missing.collect();
            if !missing.is_empty() {
                return Ok(CallDone::LacksParts(missing.into()));
            }
        }
        for id in &ids {
            let outcome = self.load_now(id, overrides);
            if matches!(target, CallTarget::Named(_)) {
                self.asked_for(id);
            }
            outcome?;
        }
        Ok(CallDone::Changed)
    }

    fn unload_all_of(self: &Arc<Self>, target: &CallTarget) {
        let ids: Vec<ModelId> = match target {
            CallTarget::Named(name) => {
                let records = self.records();
                records
                    .keys()
                    .filter(|id| id.name == *name)
                    .cloned()
                    .collect()
            }
            CallTarget::One(id) => vec![id.clone()],
        };
        ids.iter().for_each(|id| self.unload_now(id));
    }

    /// Checks that clients may load and unload models.
    fn check_control(&self) -> Result<(), RuntimeError> {
        if self.options.control == Control::Explicit {
            return Ok(());
        }
        let text = "explicit model load / unload is not allowed if polling is enabled";
        Err(RuntimeError::new(ErrorKind::Unavailable, text))
    }
}
