//! Instances that are processes of their own: what they hold with one copy of each weight, and with their own.
//!
//! Three figures for as many instances that share nothing. *Bare* are as many processes that load the model with ONNX
//! Runtime by themselves, as a program does that never asks the heap to give back what loading freed. *Apart* is
//! measured: one server without shared weights whose instances are processes; they still share the server, the binary
//! and the library. *I x one* is what as many servers of one instance would take. Where the machine has no room for the
//! first it is extrapolated, by what each further instance took so far, and said to be.
//!
//! The formula is `1 - (T + I O) / (I (T + O))`: `T` bytes of tensors that are kept, `O` bytes that an instance's
//! process has beside them (the mean over processes), both measured at the same number of instances. It knows no
//! server, so it is compared with the saving without the server's own process on either side. It stands twice: with the
//! kept tensors alone as `T`, against *apart*; and with everything that the processes share (their library's code as
//! well), against *I x one*, in which nothing is shared.

use anyhow::{Context, Result, ensure};
use serde_json::json;
use skep_models::{Kind, Options};

use crate::{
    KINDS, StoreBenchArgs, bare,
    node::{BenchIsolation, BenchNode, Copies, HeldMemory, WeightSetup, has_room, median_of},
};

const ROUNDS: usize = 3;
const MODEL: &str = "model";
const INSTANCES: [usize; 5] = [1, 2, 4, 8, 16];

pub(crate) fn measure(copies: &Copies, plan: &StoreBenchArgs) -> Result<()> {
    for kind in plan.kinds(&KINDS) {
        let node = BenchNode::new(copies)?;
        let parsed: Kind = kind.parse()?;
        node.model(
            MODEL,
            &parsed,
            &Options::default(),
            1,
            BenchIsolation::Process,
        )?;
        let cache = node.cache();
        // (instances, MiB) of the last two that were measured.
        let mut apart: Vec<(usize, f64)> = Vec::new();
        let mut plain_server_mib = 0.0;
        for instances in INSTANCES {
            node.configure(MODEL, &parsed, instances, BenchIsolation::Process)?;
            let rounds = plan.rounds.unwrap_or(ROUNDS);
            let shared = node.held(WeightSetup::Shared(&cache), rounds)?;
            for held in &shared {
                ensure!(
                    held.others.len() >= instances,
                    "the server has {} processes beside its own, expected one for each of {instances} instances",
                    held.others.len()
                );
            }
            let predicted = extrapolated(&apart, instances);
            // While it loads, an instance may have its weights twice: as they are in the file, and packed.
            let (apart_mib, from) = if has_room(2.0 * predicted.unwrap_or(0.0))? {
                let plain = node.held(WeightSetup::Plain, rounds)?;
                let measured = median_of(&plain, |held| held.all);
                apart.push((instances, measured));
                plain_server_mib = median_of(&plain, |held| held.server);
                (measured, "measured")
            } else {
                (predicted.unwrap_or(f64::NAN), "extrapolated")
            };
            let one_mib = apart.first().context("one instance always fits")?.1;
            let file = node.repository().join(MODEL).join("1/model.onnx");
            // Some twice to four times what the same takes trimmed.
            let bare_mib = match has_room(4.0 * apart_mib)? {
                true => Some(bare::held(copies, &file, kind, instances)?),
                false => None,
            };
            let formula = median_of(&shared, |held| formula(held, instances));
            let shared_mib = median_of(&shared, |held| held.all);
            let server_mib = median_of(&shared, |held| held.server);
            let saved = 1.0 - (shared_mib - server_mib) / (apart_mib - plain_server_mib);
            let count = instances as f64;
            let others_mib = median_of(&shared, mean_others);
            let all_shared_mib = shared_mib - server_mib - count * others_mib;
            let saved_of_alone =
                1.0 - (shared_mib - server_mib) / (count * (one_mib - plain_server_mib));
            let formula_of_all = arithmetic(all_shared_mib, others_mib, count);
            println!(
                "{}",
                json!({
                    "table": "Instances in processes of their own",
                    "model": kind, "instances": instances,
                    "shared_mib": shared_mib,
                    "shared_mib_rounds": shared.iter().map(|held| held.all).collect::<Vec<f64>>(),
                    "tensors_mib": median_of(&shared, |held| held.tensors),
                    "others_mib": others_mib,
                    "apart_mib": apart_mib, "apart_from": from,
                    "saved_percent": 100.0 * (1.0 - shared_mib / apart_mib),
                    "server_mib": server_mib, "plain_server_mib": plain_server_mib,
                    "saved_instances_percent": 100.0 * saved,
                    "times_one_mib": one_mib * instances as f64,
                    "saved_times_one_percent": 100.0 * (1.0 - shared_mib / (one_mib * instances as f64)),
                    "bare_mib": bare_mib,
                    "saved_bare_percent": bare_mib.map(|bare| 100.0 * (1.0 - shared_mib / bare)),
                    "formula_percent": 100.0 * formula,
                    "difference_points": 100.0 * (saved - formula),
                    "all_shared_mib": all_shared_mib,
                    "saved_of_alone_percent": 100.0 * saved_of_alone,
                    "formula_of_all_percent": 100.0 * formula_of_all,
                    "difference_of_all_points": 100.0 * (saved_of_alone - formula_of_all),
                })
            );
        }
    }
    Ok(())
}

fn mean_others(held: &HeldMemory) -> f64 {
    held.others.iter().sum::<f64>() / held.others.len() as f64
}

fn formula(held: &HeldMemory, instances: usize) -> f64 {
    arithmetic(held.tensors, mean_others(held), instances as f64)
}

/// What is saved where `instances` hold `tensors` once and `others` each.
fn arithmetic(tensors: f64, others: f64, instances: f64) -> f64 {
    1.0 - (tensors + instances * others) / (instances * (tensors + others))
}

/// What `instances` take if each takes what the last ones took; `None` before two were measured.
fn extrapolated(measured: &[(usize, f64)], instances: usize) -> Option<f64> {
    let [.., (fewer, less), (more, most)] = measured else {
        return None;
    };
    let each = (most - less) / (more - fewer) as f64;
    Some(most + each * (instances - more) as f64)
}
