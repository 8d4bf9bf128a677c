//! The profile while it is made: kept in the output file after every point, so that nothing measured is lost.

use std::{
    fs::{self, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use anyhow::Context;
use skep_client::{InferRequest, ModelMetadata, TensorRow};
use skep_perf::profile::{
    Direction, MeasuredConfiguration, ModelProfile, ProfileFile, ProfileObserver, StartTimes,
};

use crate::{output, progress::Progress};

type MakeRequest<'a> = &'a dyn Fn(&ModelMetadata, bool, u32) -> Result<InferRequest, String>;

/// The profile of one model in a file.
pub(super) struct KeptProfile<'a> {
    file: &'a mut ProfileFile,
    model: usize,
    output: Option<&'a Path>,
    progress: &'a Progress,
    request: MakeRequest<'a>,
}

impl<'a> KeptProfile<'a> {
    /// Continues the profile of the same files, if the file has one, or begins it.
    pub(super) fn new(
        file: &'a mut ProfileFile,
        output: Option<&'a Path>,
        name: &str,
        (files, model_files): (&str, &str),
        progress: &'a Progress,
        request: MakeRequest<'a>,
    ) -> Self {
        file.models
            .retain(|model| model.name != name || model.files == files);
        let earlier = file.models.iter().position(|model| model.name == name);
        let model = earlier.unwrap_or_else(|| {
            file.models
                .push(ModelProfile::new(name, files, model_files));
            file.models.len() - 1
        });
        // A file of an earlier version has none.
        file.models[model].model_files = model_files.to_owned();
        Self {
            file,
            model,
            output,
            progress,
            request,
        }
    }

    fn profile(&mut self) -> &mut ModelProfile {
        &mut self.file.models[self.model]
    }

    fn keep(&self) -> Result<(), String> {
        let Some(path) = self.output else {
            return Ok(());
        };
        write(path, self.file).map_err(|error| format!("{error:#}"))
    }
}

/// In place of the file, at once: a reader never sees half of it. What is no file is written as it is.
pub(super) fn write(path: &Path, file: &ProfileFile) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(file)?;
    text.push('\n');
    if fs::metadata(path).is_ok_and(|metadata| !metadata.is_file()) {
        return output::write("--output", Some(path), || text);
    }
    let directory = path.parent();
    let directory = directory.filter(|parent| !parent.as_os_str().is_empty());
    let replaced = || {
        let mut new = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
        new.write_all(text.as_bytes())?;
        // As other files of the user, not for the user alone.
        let mode = Permissions::from_mode(0o644);
        new.as_file().set_permissions(mode)?;
        new.persist(path)?;
        io::Result::Ok(())
    };
    replaced().with_context(|| format!("--output: cannot write `{}`", path.display()))
}

impl ProfileObserver for KeptProfile<'_> {
    fn request(
        &mut self,
        metadata: &ModelMetadata,
        batches: bool,
        batch: u32,
    ) -> Result<InferRequest, String> {
        let request = (self.request)(metadata, batches, batch)?;
        if batch == 1 {
            let inputs = request.inputs.iter();
            let inputs: Vec<String> = inputs
                .map(|(name, tensor)| format!("{name}{:?}", tensor.shape().dims()))
                .collect();
            self.profile().request = inputs.join(" ");
        }
        Ok(request)
    }

    fn earlier(&self) -> &ModelProfile {
        &self.file.models[self.model]
    }

    fn started(&mut self, times: StartTimes, tensors: Vec<TensorRow>) -> Result<(), String> {
        let profile = self.profile();
        (profile.start, profile.tensors) = (Some(times), tensors);
        self.keep()
    }

    fn begins(&mut self, direction: Direction, batch: u32) {
        let Direction { cpus, instances } = direction;
        let name = &self.file.models[self.model].name;
        self.progress.name(format!(
            "{name}: {cpus} cores, {instances} instances, batch {batch}"
        ));
    }

    fn measured(&mut self, configuration: MeasuredConfiguration) -> Result<(), String> {
        self.profile().configurations.push(configuration);
        self.progress.step();
        self.keep()
    }

    fn ends(&mut self, direction: Direction) -> Result<(), String> {
        self.profile().finished.push(direction);
        self.keep()
    }
}
