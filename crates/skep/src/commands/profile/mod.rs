//! `skep profile MODEL...`: what a model takes and how fast it is, by cores, instances and batch.

mod kept;
mod report;
mod show;

use std::{
    cell::Cell,
    fs,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Args;
use skep_client::{InferRequest, ModelMetadata};
use skep_perf::profile::{
    Machine, ProfileFailure, ProfileFile, ProfileTask, powers_of_two, profile,
};
use skep_runtime::{DigestedFiles, files_digest};
use skep_types::Shape;

use self::kept::KeptProfile;
use crate::{
    commands::infer::input,
    flag_values::positive_millis,
    measured_model::MeasuredModel,
    origin,
    output::{self, errln, outln},
    progress::Progress,
};

#[derive(Debug, Args)]
pub(crate) struct ProfileArgs {
    /// Model directories or ONNX files
    #[arg(value_name = "MODEL", required = true)]
    models: Vec<PathBuf>,
    /// Write the profiles into this file. What it has already of the same models, measured on the same machine, is kept,
    /// so that an interrupted profile is continued
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write the profiles as a page into this file
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the profiles as one JSON document
    #[arg(long)]
    json: bool,
    /// The time in which a request has to be answered, in milliseconds: batches that take more than half of it end their
    /// direction
    #[arg(long, value_name = "MS", value_parser = positive_millis)]
    objective: Option<Duration>,
    /// The numbers of cores to measure [default: 1, 2, 4, ... up to all]
    #[arg(long, value_name = "N,N", value_delimiter = ',')]
    cpus: Vec<NonZeroUsize>,
    /// The largest batch to measure, if the model takes one as large; for an ONNX file whose first dimensions are
    /// variable also what it takes
    #[arg(long, value_name = "N", default_value = "32")]
    max_batch: NonZeroUsize,
    /// An input's shape, as in `x=1,3,224,224`, its batch dimension included; variable dimensions are 1 otherwise. May be
    /// given several times
    #[arg(long, value_name = "NAME=SHAPE", value_parser = input::given_shape)]
    shape: Vec<String>,
    /// How long a point is measured, in milliseconds; slow batches take longer
    #[arg(long, value_name = "MS", default_value = "500", value_parser = positive_millis)]
    point: Duration,
    /// As for `skep serve`
    #[arg(long, value_name = "PATH")]
    onnxruntime_library: Option<PathBuf>,
    /// As for `skep serve`
    #[arg(long)]
    gpu_as_cpu: bool,
}

/// Thousands of models have room.
pub(crate) const MAX_BYTES: u64 = 256 << 20;

/// Exits with 0 unless a model has no complete profile.
pub(crate) fn run(args: &ProfileArgs) -> anyhow::Result<ExitCode> {
    output::check("--output", args.output.as_deref())?;
    output::check("--html", args.html.as_deref())?;
    let cpus = args.cpus()?;
    let mut file = args.earlier()?;
    // What cannot be written is said before a minute's work.
    if let Some(path) = &args.output {
        kept::write(path, &file)?;
    }
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (mut names, mut has_failed) = (Vec::new(), false);
    for path in &args.models {
        match reactor.block_on(args.profile(path, &cpus, &mut file)) {
            Ok(name) => names.push(name),
            Err(error) => {
                has_failed = true;
                errln!("error: `{}`: {error:#}", path.display());
            }
        }
    }
    output::write("--html", args.html.as_deref(), || {
        report::html(&file, &origin::command())
    })?;
    if args.json {
        outln!("{}", serde_json::to_string_pretty(&file)?)?;
        names.clear();
    }
    for (number, name) in names.iter().enumerate() {
        if number > 0 {
            outln!()?;
        }
        if let Some(profile) = file.models.iter().find(|model| model.name == *name) {
            show::model(profile)?;
        }
    }
    Ok(if has_failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

impl ProfileArgs {
    fn cpus(&self) -> anyhow::Result<Vec<u32>> {
        let all = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        if let Some(more) = self.cpus.iter().find(|cpus| **cpus > all) {
            bail!("--cpus {more}: this process may use {all} cores");
        }
        let count = |cpus: &NonZeroUsize| u32::try_from(cpus.get()).unwrap_or(u32::MAX);
        if self.cpus.is_empty() {
            return Ok(powers_of_two(count(&all)));
        }
        let mut cpus: Vec<u32> = self.cpus.iter().map(count).collect();
        cpus.sort_unstable();
        cpus.dedup();
        Ok(cpus)
    }

    /// What the output file has already. A file that is something else is not overwritten.
    fn earlier(&self) -> anyhow::Result<ProfileFile> {
        let machine = this_machine();
        let empty = ProfileFile::new(machine.clone());
        let Some(path) = &self.output else {
            return Ok(empty);
        };
        let flag = || format!("--output {}", path.display());
        // A pipe or a device has no profiles, and is written as it is.
        if fs::metadata(path).map_or(true, |metadata| !metadata.is_file()) {
            return Ok(empty);
        }
        let text = skep_host::read_text(path, MAX_BYTES).with_context(flag)?;
        let file = ProfileFile::read(&text).with_context(flag)?;
        if file.machine != machine {
            bail!(
                "{}: the file has profiles of another machine or version: {}, and this is {}\n  name another file, or remove this one",
                flag(),
                described(&file.machine),
                described(&machine)
            );
        }
        Ok(file)
    }

    /// Profiles one model, and returns its name.
    async fn profile(
        &self,
        path: &Path,
        cpus: &[u32],
        file: &mut ProfileFile,
    ) -> anyhow::Result<String> {
        let model = MeasuredModel::of(path)?;
        let name = model.name.as_str().to_owned();
        let directory = model.repository.join(&name);
        let digest = |which| {
            let digest = files_digest(&directory, which);
            digest.with_context(|| format!("cannot read `{}`", directory.display()))
        };
        let files = digest(DigestedFiles::All)?;
        let model_files = digest(DigestedFiles::WithoutConfiguration)?;
        let binary = std::env::current_exe().context("where this program lies")?;
        // Baked weights of a measurement are of no use later.
        let cache = tempfile::Builder::new().prefix("skep-profile-").tempdir()?;
        let mut flags = vec![format!("--weight-cache={}", cache.path().display())];
        if let Some(library) = &self.onnxruntime_library {
            flags.push(format!("--onnxruntime-library={}", library.display()));
        }
        if self.gpu_as_cpu {
            flags.push("--gpu-as-cpu".to_owned());
        }
        bake(&binary, &directory, &flags)?;
        let plain = ["--weight-bake=off", "--session-keep-alive-secs=0"];
        flags.extend(plain.map(str::to_owned));
        if model.is_file() {
            let limit = format!("--backend-config=default-max-batch-size={}", self.max_batch);
            flags.push(limit);
        }
        let task = ProfileTask {
            binary: &binary,
            repository: &model.repository,
            model: &name,
            flags: &flags,
            cpus,
            max_batch: u32::try_from(self.max_batch.get()).unwrap_or(u32::MAX),
            objective: self.objective,
            point: self.point,
        };
        let progress = Progress::new("profiling", task.points(), !self.json);
        let has_warned = Cell::new(false);
        let request = |metadata: &ModelMetadata, batches: bool, batch: u32| {
            if !has_warned.replace(true) {
                self.warn_of_guesses(metadata, batches);
            }
            self.request(metadata, batches, batch)
                .map_err(|error| format!("{error:#}"))
        };
        let mut kept = KeptProfile::new(
            file,
            self.output.as_deref(),
            &name,
            (&files, &model_files),
            &progress,
            &request,
        );
        let outcome = profile(&task, &mut kept).await;
        drop(progress);
        match outcome {
            Ok(()) => Ok(name),
            Err(ProfileFailure::Caller(text)) => bail!(text),
            Err(error) => bail!(model.named(&error.to_string(), path)),
        }
    }

    /// Says which dimensions nobody has given: a sequence of one is rarely what a model gets.
    fn warn_of_guesses(&self, metadata: &ModelMetadata, batches: bool) {
        let given: Vec<&str> = self
            .shape
            .iter()
            .filter_map(|text| input::named(text, &metadata.inputs))
            .map(|(name, _)| name)
            .collect();
        let guessed = metadata.inputs.iter().filter(|one| {
            let own = one.shape.as_slice().iter().skip(usize::from(batches));
            !given.contains(&&*one.name) && own.into_iter().any(|dim| *dim < 0)
        });
        let guessed: Vec<&str> = guessed.map(|one| &*one.name).collect();
        if let Some(first) = guessed.first() {
            errln!(
                "warning: variable dimensions of {} are 1\n  `--shape {first}=...` says what a request has, with its batch dimension first",
                guessed.join(", ")
            );
        }
    }

    /// Zeros, in the shapes that the flags give.
    fn request(
        &self,
        metadata: &ModelMetadata,
        batches: bool,
        batch: u32,
    ) -> anyhow::Result<InferRequest> {
        let given: Vec<(&str, &str)> = self
            .shape
            .iter()
            .map(|text| {
                input::named(text, &metadata.inputs).with_context(|| {
                    let names: Vec<&str> = metadata.inputs.iter().map(|one| &*one.name).collect();
                    format!(
                        "--shape {text}: expected one of the inputs {}",
                        names.join(", ")
                    )
                })
            })
            .collect::<anyhow::Result<_>>()?;
        let mut request = InferRequest::new(&metadata.name);
        for one in &metadata.inputs {
            let given = given.iter().find(|(name, _)| *name == one.name);
            let mut dims: Vec<usize> = match given {
                Some((_, dims)) => {
                    let shape = input::shape(dims).map_err(anyhow::Error::msg)?;
                    shape.dims().to_vec()
                }
                None => {
                    let dims = one.shape.as_slice().iter();
                    dims.map(|dim| usize::try_from(*dim).unwrap_or(1)).collect()
                }
            };
            if let Some(first) = dims.first_mut()
                && batches
            {
                *first = usize::try_from(batch)?;
            }
            let shape = Shape::new(&dims)?;
            request
                .inputs
                .push((one.name.clone(), input::zeros(one, Some(&shape))?));
        }
        Ok(request)
    }
}

/// Bakes the model, so that its weights are shared from the first load on. A model that cannot be baked is measured as it
/// is; if it cannot be loaded either, the load says why.
fn bake(binary: &Path, directory: &Path, flags: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new(binary);
    command.arg("bake").arg(directory).args(flags);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command.status().context("cannot run `skep bake`")?;
    Ok(())
}

pub(crate) fn this_machine() -> Machine {
    let cores = thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let mut names = text.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    Machine {
        processor: names
            .next()
            .unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        cores: u32::try_from(cores.get()).unwrap_or(u32::MAX),
        skep: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

pub(crate) fn described(machine: &Machine) -> String {
    let Machine {
        processor,
        cores,
        skep,
    } = machine;
    format!("{processor} with {cores} cores, skep {skep}")
}
