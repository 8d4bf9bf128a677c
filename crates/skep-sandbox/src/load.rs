//! Loads a model in worker processes, and asks one about a model's file.

use std::{
    sync::{Arc, Once},
    time::Duration,
};

use skep_backend::{Backend, BackendError, FileInterface, LoadRequest, Model, ModelFile};
use skep_types::ModelSignature;
use skep_weights::BakingPolicy;

use crate::{bake, model::SandboxedModel, starter::Starter, worker::landlock};

/// Loads a model in a worker process, with the same backend as `backend`. This process and later ones are the model's
/// instances.
///
/// If loads bake ([`BakingPolicy::BeforeLoad`]), a separate process that may write files bakes the model first. Workers read the
/// result, which is the model's own form, and take its weights from the tensor store over a connection restricted to
/// them.
///
/// A process that loads or bakes for longer than `limit` is killed. A worker has to report `signature`, which the
/// server has read from the model's file, if there is one.
///
/// # Errors
/// Those of [`Backend::load`], and [`ErrorKind::Internal`](skep_backend::ErrorKind::Internal) if a process cannot be
/// started, or ends before it has loaded the model.
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
        .is_some_and(|weights| weights.baking == BakingPolicy::BeforeLoad);
    if bakes {
        bake::if_possible(backend, request, limit);
    }
    starter.key = backend.form_key(request);
    let (mut worker, mut loaded) = starter.start_once()?;
    if loaded.found_damage {
        // The worker cannot repair the form, and has loaded the model without it.
        bake::remove_damage(backend, request);
        if bakes {
            drop(worker);
            bake::if_possible(backend, request, limit);
            (worker, loaded) = starter.start_once()?;
        }
    }
    // Damage does not keep the model from serving.
    loaded.found_damage = false;
    Ok(Arc::new(SandboxedModel::new(starter, worker, loaded)))
}

/// Asks the backend, in a separate process, for the inputs and outputs of a model whose file does not declare them
/// ([`Backend::ask`]). The answer is not trusted: it only decides how requests to this model are checked.
///
/// # Errors
/// Those of [`Backend::ask`], and [`ErrorKind::Internal`](skep_backend::ErrorKind::Internal) if the process ends before
/// it has answered.
pub fn ask(
    backend: &dyn Backend,
    model: &str,
    file: &ModelFile,
    limit: Option<Duration>,
) -> Result<FileInterface, BackendError> {
    say_if_files_are_open();
    Starter::of_file(backend, model, file, limit)?.ask()
}

/// Warns once if workers can open more files than they need.
fn say_if_files_are_open() {
    static SAID: Once = Once::new();
    if landlock::version().is_none() {
        SAID.call_once(|| {
            tracing::warn!(
                "worker processes can read every file that the server's user can, and write files while they bake: the kernel has no Landlock (Linux 5.19 or later), or does not let this process use it"
            );
        });
    }
}
