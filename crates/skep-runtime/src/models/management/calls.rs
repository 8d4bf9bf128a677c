//! What clients ask for: loads, unloads, the index; and what each then does on its thread.

use std::sync::Arc;

use skep_types::ModelName;

use super::{CallOutcome, CallTarget, ManagementCall};
use crate::{
    ErrorKind, IndexEntry, LoadOverrides, Runtime, RuntimeError,
    models::Control,
    repository::{ModelId, not_polled},
};

impl Runtime {
    /// Loads a model, or loads it again; the versions that serve now go on until the new ones are ready. Blocks.
    ///
    /// `overrides` stay in force over loads without any until the repository's files change or the model is unloaded
    /// (a configuration), or until the next load (files).
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] unless models are controlled explicitly, when too many calls wait, and when the server
    /// stops; otherwise why the load failed.
    pub fn load(
        self: &Arc<Self>,
        name: &str,
        overrides: &LoadOverrides,
    ) -> Result<(), RuntimeError> {
        let work = self.load_of(name, overrides.clone())?;
        self.manage_now([work], true)
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
    }

    /// [`Self::load`] without blocking. Where the same load waits already, this one is that one. Dropping the future takes
    /// the load back if it has not begun.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub async fn request_load(
        self: &Arc<Self>,
        name: &str,
        overrides: LoadOverrides,
    ) -> Result<(), RuntimeError> {
        let work = self.load_of(name, overrides)?;
        self.manage(work).await.map(drop)
    }

    fn load_of(
        &self,
        name: &str,
        overrides: LoadOverrides,
    ) -> Result<ManagementCall, RuntimeError> {
        self.explicit()?;
        let model = ModelName::new(name).map_err(|error| not_polled(name, &error.to_string()))?;
        let target = CallTarget::Named(model);
        Ok(ManagementCall::Load { target, overrides })
    }

    /// Unloads a model: no new requests from now on; memory is given back when the last one is answered. A model that
    /// is not loaded, or not even there, is unloaded already. Blocks, while loads of the model that were asked for before
    /// wait and run.
    ///
    /// # Errors
    /// [`ErrorKind::Unavailable`] unless models are controlled explicitly, when too many calls wait, and when the server
    /// stops.
    pub fn unload(self: &Arc<Self>, name: &str) -> Result<(), RuntimeError> {
        let work = self.unload_of(name)?;
        self.manage_now(work, true)
            .into_iter()
            .try_for_each(|outcome| outcome.map(drop))
    }

    /// [`Self::unload`] without blocking. Dropping the future takes the unload back if it has not begun.
    ///
    /// # Errors
    /// As [`Self::unload`].
    pub async fn request_unload(self: &Arc<Self>, name: &str) -> Result<(), RuntimeError> {
        match self.unload_of(name)? {
            Some(work) => self.manage(work).await.map(drop),
            None => Ok(()),
        }
    }

    /// Nothing where no model can have the name.
    fn unload_of(&self, name: &str) -> Result<Option<ManagementCall>, RuntimeError> {
        self.explicit()?;
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

    /// Does what a management call asks for, on the thread that it was given.
    pub(crate) fn carry_out(self: &Arc<Self>, work: ManagementCall) -> CallOutcome {
        let nothing = || Arc::from([]);
        match work {
            ManagementCall::Load { target, overrides } => {
                self.load_all_of(&target, &overrides).map(|()| nothing())
            }
            ManagementCall::Unload(target) => {
                self.unload_all_of(&target);
                Ok(nothing())
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
            let why = "several repositories have the model, load parameters cannot say which";
            return Err(not_polled(first.name.as_str(), why));
        }
        ids.iter().try_for_each(|id| self.load_now(id, overrides))
    }

    fn unload_all_of(&self, target: &CallTarget) {
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

    fn explicit(&self) -> Result<(), RuntimeError> {
        if self.options.control == Control::Explicit {
            return Ok(());
        }
        let text = "explicit model load / unload is not allowed if polling is enabled";
        Err(RuntimeError::new(ErrorKind::Unavailable, text))
    }
}
