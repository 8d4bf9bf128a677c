//! `skep pack`: which instances serve the rates of models, and on which devices they fit.
//!
//! ```text
//! profiles, rates, objectives --- selection ---> instances --- placement ---> devices
//!                                 the least memory             where the model's tensors are, then the fullest
//!                                 and cores
//! ```

mod duty;
mod given;
mod place;
mod show;

use std::{collections::BTreeMap, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use skep_perf::profile::{ModelProfile, ProfileFile};
use skep_placer::{
    packing::{PackingRule, Resources, largest},
    selection::{Configuration, Selection, SelectionError, SelectionRule, SelectionTerms, select},
};

pub(crate) use self::place::tensor_key;
use self::{
    duty::{DutyPlan, Rated},
    given::DeviceFlag,
    place::PlacedInstances,
};
use crate::{
    commands::profile::MAX_BYTES,
    output::{errln, out, outln},
    units::human,
};

#[derive(Debug, Args)]
pub(crate) struct PackArgs {
    /// Files that `skep profile` wrote
    #[arg(long, value_name = "FILE", required = true)]
    profiles: Vec<PathBuf>,
    /// A device: its name, its cores and its memory; `count=N` for several equal ones. May be given several times
    #[arg(long, value_name = "name=NAME,cpus=0-3,memory=8G", required = true)]
    device: Vec<DeviceFlag>,
    /// A model and its requests a second, and an objective in milliseconds, as in resnet=40,100; may be given several
    /// times. Models without a rate get no instances
    #[arg(long, value_name = "MODEL=RATE[,MS]", value_parser = given::demand)]
    rate: Vec<(String, given::Demand)>,
    /// A table of models, rates and objectives: MODEL,RATE or MODEL,RATE,MS a line
    #[arg(long, value_name = "FILE")]
    rates: Option<PathBuf>,
    /// The objective of models that have none of their own, in milliseconds
    #[arg(long, value_name = "MS", value_parser = given::millis)]
    objective: Option<Duration>,
    /// How instances are selected
    #[arg(long, value_name = "RULE", default_value = "exact")]
    select: SelectFlag,
    /// How instances are placed
    #[arg(long, value_name = "RULE", default_value = "theta")]
    place: PlaceFlag,
    /// Bytes of memory that a core is worth [default: the memory of all devices over their cores]
    #[arg(long, value_name = "BYTES")]
    bytes_per_cpu: Option<u64>,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

/// [`SelectionRule`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SelectFlag {
    /// The least sum of what instances add to memory, and of their cores' worth
    Exact,
    /// The same, by the cheapest configuration, and the last instances by what they cover
    Tail,
    /// As Tetris: the most throughput by memory, over and over
    Tetris,
}

/// How instances are placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PlaceFlag {
    /// Where most of the model's tensors are, then where the least room is left; tensors count once a device
    Theta,
    /// Where the least room is left, largest first; each instance counts with its tensors
    BestFitDecreasing,
    /// The same in the order of the models' names
    BestFit,
    /// The first device with room, largest first; each instance counts with its tensors
    FirstFitDecreasing,
    /// The fewest devices that a search finds; each instance counts with its tensors
    Search,
    /// Models take turns on whole devices, with the batches that their turns need (Nexus); no instances are selected
    Squishy,
}

impl From<SelectFlag> for SelectionRule {
    fn from(flag: SelectFlag) -> Self {
        match flag {
            SelectFlag::Exact => Self::Exact,
            SelectFlag::Tail => Self::CoveringTail,
            SelectFlag::Tetris => Self::DecreasingThroughput,
        }
    }
}

/// A model with its selected instances.
#[derive(Debug)]
pub(super) struct SelectedModel<'a> {
    profile: &'a ModelProfile,
    rate: f64,
    objective: Duration,
    configurations: Vec<Configuration>,
    selection: Selection,
}

/// Exits with 0 if every instance has a device.
pub(crate) fn run(args: &PackArgs) -> anyhow::Result<ExitCode> {
    let files = args.files()?;
    let profiles = profiles(&files)?;
    let (names, devices) = given::devices(&args.device)?;
    let mut demands = match &args.rates {
        Some(path) => given::table(path)?,
        None => Vec::new(),
    };
    demands.extend(args.rate.iter().cloned());
    let demands = given::by_model(demands)?;
    if demands.is_empty() {
        bail!("no model has a rate, expected --rate MODEL=RATE or --rates FILE");
    }
    let price = args.bytes_per_cpu.unwrap_or_else(|| fair_price(&devices));
    let mut rated = Vec::new();
    for (name, demand) in &demands {
        let Some(profile) = profiles.get(&**name) else {
            let known: Vec<&str> = profiles.keys().copied().collect();
            bail!(
                "model `{name}` has a rate and no profile, expected one of: {}",
                known.join(", ")
            );
        };
        let objective = demand.objective.or(args.objective);
        let objective = objective.with_context(|| {
            format!(
                "model `{name}` has no objective, expected --rate {name}=RATE,MS or --objective MS"
            )
        })?;
        rated.push(Rated {
            profile,
            rate: demand.rate,
            objective,
        });
    }
    let rule = match args.place {
        PlaceFlag::Theta => None,
        PlaceFlag::BestFit => Some(PackingRule::BestFit),
        PlaceFlag::BestFitDecreasing => Some(PackingRule::BestFitDecreasing),
        PlaceFlag::FirstFitDecreasing => Some(PackingRule::FirstFitDecreasing),
        PlaceFlag::Search => Some(PackingRule::Search),
        PlaceFlag::Squishy => return take_turns(&rated, &devices, args.json),
    };
    let mut models = Vec::new();
    let mut is_whole = true;
    for model in &rated {
        match selected(model, price, args.select.into()) {
            Ok(model) => models.push(model),
            Err(error) => {
                errln!("error: {error:#}");
                is_whole = false;
            }
        }
    }
    let placed = place::place(&models, &devices, rule);
    if args.json {
        let document = show::document(&models, &names, &devices, &placed);
        outln!("{}", serde_json::to_string_pretty(&document)?)?;
    } else if !models.is_empty() {
        show::text(&models, &names, &devices, &placed)?;
    }
    for text in unplaced(&models, &devices, &placed) {
        errln!("error: {text}");
        is_whole = false;
    }
    Ok(if is_whole {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Models that take turns on whole devices.
fn take_turns(
    rated: &[Rated<'_>],
    devices: &[Resources],
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    let plan = DutyPlan::new(rated, devices)?;
    if as_json {
        outln!("{}", serde_json::to_string_pretty(&plan.document())?)?;
    } else {
        out!("{}", plan.text())?;
    }
    if plan.missing() > 0 {
        errln!("error: {} more devices are needed", plan.missing());
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

impl PackArgs {
    fn files(&self) -> anyhow::Result<Vec<ProfileFile>> {
        let read = |path: &PathBuf| {
            let flag = || format!("--profiles {}", path.display());
            let text = skep_host::read_named_text(path, MAX_BYTES).with_context(flag)?;
            ProfileFile::read(&text).with_context(flag)
        };
        self.profiles.iter().map(read).collect()
    }
}

/// All models by name. Figures of different machines do not go together.
fn profiles(files: &[ProfileFile]) -> anyhow::Result<BTreeMap<&str, &ModelProfile>> {
    let mut profiles = BTreeMap::new();
    if let Some(other) = files.iter().find(|file| file.machine != files[0].machine) {
        errln!(
            "warning: the profiles are of different machines, {} and {}: the figures of one may not hold on the other",
            files[0].machine.processor,
            other.machine.processor
        );
    }
    for profile in files.iter().flat_map(|file| &file.models) {
        if profiles.insert(&*profile.name, profile).is_some() {
            bail!("two profiles are of a model `{}`", profile.name);
        }
    }
    Ok(profiles)
}

/// What a core is worth if the devices' memory and cores are worth the same.
fn fair_price(devices: &[Resources]) -> u64 {
    let all = devices
        .iter()
        .fold(Resources::default(), |sum, device| sum.plus(*device));
    all.bytes / (all.millicores / 1000).max(1)
}

fn selected<'a>(
    rated: &Rated<'a>,
    bytes_per_cpu: u64,
    rule: SelectionRule,
) -> anyhow::Result<SelectedModel<'a>> {
    let Rated {
        profile,
        rate,
        objective,
    } = *rated;
    let configurations: Vec<Configuration> = profile
        .configurations
        .iter()
        .map(|one| Configuration {
            cpus: one.cpus,
            concurrency: one.instances,
            batch: one.batch,
            latency: Duration::from_secs_f64(one.latency.p95_ms / 1e3),
            private_bytes: one.private_bytes,
        })
        .collect();
    let terms = SelectionTerms {
        objective,
        rate,
        tensor_bytes: profile.tensor_bytes(),
        shares: true,
        bytes_per_cpu,
    };
    let name = &profile.name;
    let selection = match select(&configurations, &terms, rule) {
        Ok(selection) => selection,
        Err(SelectionError::Rate(rate)) => bail!("model `{name}`: a rate of {rate}"),
        Err(SelectionError::Objective(None)) => {
            bail!("model `{name}`: its profile has no configuration")
        }
        Err(SelectionError::Objective(Some((index, shortest)))) => {
            let one = &profile.configurations[index];
            bail!(
                "model `{name}`: no configuration keeps {:.1} ms\n  the closest keeps {:.1} ms: {}",
                objective.as_secs_f64() * 1e3,
                shortest.as_secs_f64() * 1e3,
                show::configuration(one)
            );
        }
    };
    Ok(SelectedModel {
        profile,
        rate,
        objective,
        configurations,
        selection,
    })
}

/// What has no device, a line a model.
fn unplaced(
    models: &[SelectedModel<'_>],
    devices: &[Resources],
    placed: &PlacedInstances,
) -> Vec<String> {
    let mut texts = Vec::new();
    for (number, model) in models.iter().enumerate() {
        let instances = placed.instances.iter();
        let left: Vec<Resources> = instances
            .filter(|one| one.model == number && one.device.is_none())
            .map(|one| one.alone)
            .collect();
        let Some(first) = left.first() else { continue };
        let lacks = first.less(largest(devices));
        let why = match (lacks.bytes, lacks.millicores) {
            (0, 0) => "the devices are full".to_owned(),
            (0, cores) => format!("the largest device has {} cores too few", cores / 1000),
            (bytes, _) => format!("the largest device has {} too little", human(bytes)),
        };
        texts.push(format!(
            "model `{}`: {} of its instances {} no device: one needs {} and {} cores, and {why}",
            model.profile.name,
            left.len(),
            if left.len() == 1 { "has" } else { "have" },
            human(first.bytes),
            first.millicores / 1000
        ));
    }
    texts
}
