//! Loads a model in worker processes, and asks one about a model's file.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use skep_backend::{Backend, BackendError, Baking, FileInterface, LoadRequest, Model, ModelFile};
use skep_types::ModelSignature;

use crate::{bake, model::SandboxedModel, starter::Starter, worker::landlock};

/// Loads a model in a first worker process, with the backend that `backend` is here. The model's instances are that
/// process and further ones. Where loads bake ([`Baking::First`]), what is to be baked first is baked in a process of
/// its own, which may write files; workers read the result, that model's form alone, and take its weights from the
/// tensor store, by a connection that is good for nothing else. Each process has `limit` for its loading or baking,
/// where there is one, and is ended after that. What a worker says of the model must be `signature`, where there is
/// one: what the model's file says.
///
/// # Errors
/// Those of [`Backend::load`], and [`ErrorKind::Internal`] when a process cannot be started, or ends or is ended before
/// it has loaded the model.
pub fn load(
    backend: &dyn Backend,
    request: &LoadRequest<'_>,
    signature: Option<&ModelSignature>,
    limit: Option<Duration>,
) -> Result<Arc<dyn Model>, BackendError> {
    say_if_files_are_open();
    let mut starter = Starter::new(backend, request, limit)?;
    starter.signature = signature.cloned();
    let bakes = request
        .weights
        .is_some_and(|weights| weights.baking == Baking::First);
    if bakes {
        bake::if_possible(backend, request, limit);
    }
    starter.key = backend.form_key(request);
    let (mut worker, mut loaded) = starter.start_once()?;
    if loaded.found_damage {
        // The worker, which cannot mend it, has loaded the model as it is.
        bake::remove_damage(backend, request);
        if bakes {
            drop(worker);
            bake::if_possible(backend, request, limit);
            (worker, loaded) = starter.start_once()?;
        }
    }
    // Damaged or not, it serves.
    loaded.found_damage = false;
    Ok(Arc::new(SandboxedModel::new(starter, worker, loaded)))
}

/// Asks the backend in a process of its own for the inputs and outputs of a model whose file does not tell
/// ([`Backend::ask`]). What that process says may be anything: it decides how requests to this model are checked, and
/// nothing else.
///
/// # Errors
/// Those of [`Backend::ask`], and [`ErrorKind::Internal`] when the process ends, or is ended, before it has answered.
pub fn ask(
    backend: &dyn Backend,
    model: &str,
    file: &ModelFile,
    limit: Option<Duration>,
) -> Result<FileInterface, BackendError> {
    say_if_files_are_open();
    Starter::of_file(backend, model, file, limit)?.ask()
}

/// Says once that workers can open more files than they need, where that is so.
fn say_if_files_are_open() {
    static SAID: Once = Once::new();
    if landlock::version().is_none() {
        SAID.call_once(|| {
            tracing::warn!(
                "worker processes can read every file that the server's user can, and write where they bake: the kernel has no Landlock of Linux 5.19 or later, or does not let this process use it"
            );
        });
    }
}
