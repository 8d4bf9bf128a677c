//! A placement in words, as a picture of bars, and in JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use skep_perf::profile::MeasuredConfiguration;
use skep_placer::packing::Resources;

use super::{SelectedModel, place::PlacedInstances};
use crate::{
    colour::Colours,
    output::{OutputError, out, outln},
    table::{TextCell, TextTable},
    units::human,
};

pub(super) fn configuration(one: &MeasuredConfiguration) -> String {
    let plural = |count: u32, what: &str| {
        let end = if count == 1 { "" } else { "s" };
        format!("{count} {what}{end}")
    };
    format!(
        "{}, {}, batch {}",
        plural(one.cpus, "core"),
        plural(one.instances, "instance"),
        one.batch
    )
}

pub(super) fn text(
    models: &[SelectedModel<'_>],
    names: &[String],
    devices: &[Resources],
    placed: &PlacedInstances,
) -> Result<(), OutputError> {
    let colours = Colours::of_output();
    out!("{}", of_models(models, names, placed).lines(colours))?;
    outln!()?;
    out!("{}", of_devices(names, devices, placed).lines(colours))?;
    outln!()?;
    let sums = Sums::of(devices, placed);
    outln!(
        "devices  {} used, at least {} needed, {} there",
        sums.used,
        placed.least_devices,
        devices.len()
    )?;
    outln!(
        "memory   {}; {} if nothing were shared; {} of the used devices stay empty",
        human(sums.taken.bytes),
        human(placed.unshared),
        human(sums.empty.bytes)
    )?;
    outln!(
        "cores    {}; {} of the used devices stay empty",
        sums.taken.millicores / 1000,
        sums.empty.millicores / 1000
    )
}

struct Sums {
    used: usize,
    taken: Resources,
    empty: Resources,
}

impl Sums {
    fn of(devices: &[Resources], placed: &PlacedInstances) -> Self {
        let mut sums = Self {
            used: 0,
            taken: Resources::default(),
            empty: Resources::default(),
        };
        for (device, taken) in devices.iter().zip(&placed.taken) {
            if *taken != Resources::default() {
                sums.used += 1;
                sums.taken = sums.taken.plus(*taken);
                sums.empty = sums.empty.plus(device.less(*taken));
            }
        }
        sums
    }
}

fn of_models(
    models: &[SelectedModel<'_>],
    names: &[String],
    placed: &PlacedInstances,
) -> TextTable {
    let mut table = TextTable::new(&[0, 3, 6]);
    let heading = [
        "model",
        "requests/s",
        "objective",
        "instances",
        "serve/s",
        "memory",
        "on",
    ];
    table.row(heading.map(TextCell::from).into());
    for (number, model) in models.iter().enumerate() {
        let instances = model.selection.instances.iter().map(|(index, count)| {
            let one = &model.profile.configurations[*index];
            format!("{count} x ({})", configuration(one))
        });
        let instances: Vec<String> = instances.collect();
        let mut on: BTreeMap<usize, usize> = BTreeMap::new();
        let own = placed.instances.iter().filter(|one| one.model == number);
        for device in own.filter_map(|one| one.device) {
            *on.entry(device).or_default() += 1;
        }
        let on: Vec<String> = on
            .into_iter()
            .map(|(device, count)| match count {
                1 => names[device].clone(),
                _ => format!("{} ({count})", names[device]),
            })
            .collect();
        table.row(vec![
            model.profile.name.clone().into(),
            format!("{:.1}", model.rate).into(),
            format!("{:.1} ms", model.objective.as_secs_f64() * 1e3).into(),
            match instances.is_empty() {
                true => "none".into(),
                false => instances.join(" + ").into(),
            },
            format!("{:.1}", model.selection.throughput).into(),
            human(model.selection.bytes).into(),
            on.join(", ").into(),
        ]);
    }
    table
}

/// How long a bar is.
const BAR: usize = 20;

fn of_devices(names: &[String], devices: &[Resources], placed: &PlacedInstances) -> TextTable {
    let mut table = TextTable::new(&[0, 2, 4]);
    let heading = ["device", "memory", "", "cores", ""];
    table.row(heading.map(TextCell::from).into());
    for ((name, device), taken) in names.iter().zip(devices).zip(&placed.taken) {
        if *taken == Resources::default() {
            continue;
        }
        table.row(vec![
            name.clone().into(),
            format!("{} of {}", human(taken.bytes), human(device.bytes)).into(),
            bar(taken.bytes, device.bytes).into(),
            format!(
                "{} of {}",
                taken.millicores / 1000,
                device.millicores / 1000
            )
            .into(),
            bar(taken.millicores, device.millicores).into(),
        ]);
    }
    table
}

fn bar(part: u64, all: u64) -> String {
    let steps = BAR as u128;
    let all = u128::from(all.max(1));
    let filled = (u128::from(part) * steps + all / 2) / all;
    let filled = usize::try_from(filled).map_or(BAR, |filled| filled.min(BAR));
    format!("{}{}", "█".repeat(filled), "░".repeat(BAR - filled))
}

pub(super) fn document(
    models: &[SelectedModel<'_>],
    names: &[String],
    devices: &[Resources],
    placed: &PlacedInstances,
) -> Value {
    let sums = Sums::of(devices, placed);
    let of_model = |(number, model): (usize, &SelectedModel<'_>)| {
        let instances: Vec<Value> = placed
            .instances
            .iter()
            .filter(|one| one.model == number)
            .map(|one| {
                let measured = &model.profile.configurations[one.configuration];
                json!({
                    "cpus": measured.cpus,
                    "instances": measured.instances,
                    "threads": measured.threads,
                    "batch": measured.batch,
                    "device": one.device.map(|device| &names[device]),
                })
            })
            .collect();
        json!({
            "name": model.profile.name,
            "rate": model.rate,
            "objective_ms": model.objective.as_secs_f64() * 1e3,
            "serves": model.selection.throughput,
            "bytes": model.selection.bytes,
            "cpus": model.selection.cpus,
            "weight": model.selection.weight,
            "weight_bound": model.selection.weight_bound,
            "instances": instances,
        })
    };
    let of_device = |((name, device), taken): ((&String, &Resources), &Resources)| {
        json!({
            "name": name,
            "bytes": device.bytes,
            "cpus": device.millicores / 1000,
            "bytes_taken": taken.bytes,
            "cpus_taken": taken.millicores / 1000,
        })
    };
    json!({
        "models": models.iter().enumerate().map(of_model).collect::<Vec<_>>(),
        "devices": names.iter().zip(devices).zip(&placed.taken).map(of_device).collect::<Vec<_>>(),
        "devices_used": sums.used,
        "devices_needed_at_least": placed.least_devices,
        "bytes": sums.taken.bytes,
        "bytes_without_sharing": placed.unshared,
        "bytes_empty": sums.empty.bytes,
        "cpus_empty": sums.empty.millicores / 1000,
    })
}
