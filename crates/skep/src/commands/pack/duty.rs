//! `--place squishy`: models that take turns on whole devices, instead of instances with cores of their own.

use std::{collections::BTreeMap, time::Duration};

use anyhow::bail;
use serde_json::{Value, json};
use skep_perf::profile::ModelProfile;
use skep_placer::packing::{
    Resources,
    squishy::{DutyCycle, Session, SquishyError, pack},
};

use crate::{
    colour::Colours,
    table::{TextCell, TextTable},
    units::human,
};

/// A model with its rate and objective.
pub(super) struct Rated<'a> {
    pub(super) profile: &'a ModelProfile,
    pub(super) rate: f64,
    pub(super) objective: Duration,
}

/// What each used device does over and over.
pub(super) struct DutyPlan<'a> {
    models: &'a [Rated<'a>],
    cycles: Vec<DutyCycle>,
    device: Resources,
    there: usize,
}

/// Batches that one instance has on all cores of the device, and what they take: latencies that increase.
fn latencies(profile: &ModelProfile, cores: u32) -> (Vec<(u32, Duration)>, u64) {
    let single = || {
        profile
            .configurations
            .iter()
            .filter(|one| one.instances == 1 && one.cpus <= cores)
    };
    let widest = single().map(|one| one.cpus).max();
    let by_batch: BTreeMap<u32, (f64, u64)> = single()
        .filter(|one| Some(one.cpus) == widest)
        .map(|one| (one.batch, (one.latency.p95_ms, one.private_bytes)))
        .collect();
    let mut rows: Vec<(u32, Duration)> = Vec::new();
    let mut private = 0;
    for (batch, (ms, bytes)) in by_batch {
        let takes = Duration::from_secs_f64(ms / 1e3);
        // A larger batch that was faster was measured while the machine had more to give.
        let takes = rows.last().map_or(takes, |(_, before)| takes.max(*before));
        rows.push((batch, takes));
        private = bytes.max(private);
    }
    (rows, private + profile.tensor_bytes())
}

impl<'a> DutyPlan<'a> {
    /// # Errors
    /// Devices differ, or a model cannot be packed: which, and why.
    pub(super) fn new(models: &'a [Rated<'a>], devices: &[Resources]) -> anyhow::Result<Self> {
        let device = devices[0];
        if devices.iter().any(|other| *other != device) {
            bail!(
                "--place squishy: all devices have to be equal, expected one --device with count=N"
            );
        }
        let cores = u32::try_from(device.millicores / 1000).unwrap_or(u32::MAX);
        let profiles: Vec<_> = models
            .iter()
            .map(|model| latencies(model.profile, cores))
            .collect();
        let sessions: Vec<Session<'_>> = models
            .iter()
            .zip(&profiles)
            .map(|(model, (latencies, bytes))| Session {
                rate: model.rate,
                objective: model.objective,
                latencies,
                bytes: *bytes,
            })
            .collect();
        let cycles = pack(&sessions, device.bytes);
        let cycles = match cycles {
            Ok(cycles) => cycles,
            Err(SquishyError::Rate { session }) => {
                let Rated { profile, rate, .. } = &models[session];
                bail!("model `{}`: a rate of {rate}", profile.name)
            }
            Err(SquishyError::Memory { session }) => bail!(
                "model `{}` needs {}, and a device has {}",
                models[session].profile.name,
                human(sessions[session].bytes),
                human(device.bytes)
            ),
            Err(SquishyError::Objective { session, shortest }) => {
                let Rated {
                    profile, objective, ..
                } = &models[session];
                let name = &profile.name;
                match shortest {
                    Some(shortest) => bail!(
                        "model `{name}`: taking turns keeps no {:.1} ms\n  the closest keeps {:.1} ms: a cycle, and a batch of one",
                        objective.as_secs_f64() * 1e3,
                        shortest.as_secs_f64() * 1e3
                    ),
                    None => bail!(
                        "model `{name}`: its profile has no configuration of one instance on up to {cores} cores"
                    ),
                }
            }
        };
        Ok(Self {
            models,
            cycles,
            device,
            there: devices.len(),
        })
    }

    /// How many devices are missing.
    pub(super) fn missing(&self) -> usize {
        self.cycles.len().saturating_sub(self.there)
    }

    fn name(&self, session: usize) -> &str {
        &self.models[session].profile.name
    }

    pub(super) fn text(&self) -> String {
        let mut table = TextTable::new(&[0, 2]);
        let heading = [
            "device",
            "cycle",
            "model",
            "batch",
            "takes",
            "requests/s",
            "busy",
            "memory",
        ];
        table.row(heading.map(TextCell::from).into());
        let ms = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
        for (number, cycle) in self.cycles.iter().enumerate() {
            for (place, turn) in cycle.turns.iter().enumerate() {
                let first = |text: String| if place == 0 { text } else { String::new() };
                table.row(vec![
                    first(number.to_string()).into(),
                    first(ms(cycle.cycle)).into(),
                    self.name(turn.session).into(),
                    turn.batch.to_string().into(),
                    ms(turn.latency).into(),
                    format!("{:.1}", turn.rate).into(),
                    first(format!("{:.0} %", cycle.occupancy() * 100.0)).into(),
                    first(human(cycle.bytes)).into(),
                ]);
            }
        }
        format!(
            "{}\ndevices  {} used, {} there\n",
            table.lines(Colours::of_output()),
            self.cycles.len(),
            self.there
        )
    }

    pub(super) fn document(&self) -> Value {
        let cycles: Vec<Value> = self
            .cycles
            .iter()
            .map(|cycle| {
                let turns: Vec<Value> = cycle
                    .turns
                    .iter()
                    .map(|turn| {
                        json!({
                            "model": self.name(turn.session),
                            "batch": turn.batch,
                            "latency_ms": turn.latency.as_secs_f64() * 1e3,
                            "rate": turn.rate,
                        })
                    })
                    .collect();
                json!({
                    "cycle_ms": cycle.cycle.as_secs_f64() * 1e3,
                    "occupancy": cycle.occupancy(),
                    "bytes": cycle.bytes,
                    "turns": turns,
                })
            })
            .collect();
        json!({
            "devices": cycles,
            "devices_used": self.cycles.len(),
            "devices_there": self.there,
            "device_bytes": self.device.bytes,
            "device_cpus": self.device.millicores / 1000,
        })
    }
}
