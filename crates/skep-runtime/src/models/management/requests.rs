//! The loads, unloads and indexes that clients request, and what each does on its thread.

use std::sync::Arc;

use skep_types::ModelName;

use crate::{
    error::{ErrorKind, RuntimeError},
    models::{
        management::{CallOutcome, CallTarget, ManagementCall},
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
        self.manage_now([call], true)
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
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
        self.manage(call).await.map(drop)
    }

    fn load_call(
        &self,
        name: &str,
        overrides: LoadOverrides,
    ) -> Result<ManagementCall, RuntimeError> {
        self.check_control()?;
        let model = ModelName::new(name).map_err(|error| not_polled(name, &error.to_string()))?;
        let target = CallTarget::Named(model);
        Ok(ManagementCall::Load { target, overrides })
    }

    /// Unloads a model: it takes no new requests, and its memory is freed when the last one is answered. A model that
    /// is not loaded, or does not exist, counts as unloaded. Blocks until earlier loads of the model have run.
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

    /// [`Self::unload`] without blocking. Dropping the future cancels the unload if it has not begun.
    ///
    /// # Errors
    /// As [`Self::unload`].
    pub async fn request_unload(self: &Arc<Self>, name: &str) -> Result<(), RuntimeError> {
        match self.unload_call(name)? {
            Some(call) => self.manage(call).await.map(drop),
            None => Ok(()),
        }
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
        self.manage(ManagementCall::Index { ready_only }).await
    }

    /// Carries out a management call, on the calling thread.
    pub(super) fn carry_out(self: &Arc<Self>, call: ManagementCall) -> CallOutcome {
        match call {
            ManagementCall::Load { target, overrides } => {
                self.load_all_of(&target, &overrides)?;
                Ok(Arc::from([]))
            }
            ManagementCall::Unload(target) => {
                self.unload_all_of(&target);
                Ok(Arc::from([]))
            }
            ManagementCall::Scale(order) => {
                self.scale_now(&order)?;
                Ok(Arc::from([]))
            }
            ManagementCall::Index { ready_only } => Ok(self.index(ready_only).into()),
        }
    }

    fn load_all_of(
        self: &Arc<Self>,
        target: &CallTarget,
        overrides: &LoadOverrides,
    ) -> Result<(), RuntimeError> {
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
        ids.iter().try_for_each(|id| self.load_now(id, overrides))
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
