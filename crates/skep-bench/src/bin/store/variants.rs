//! Ten variants of a model as ten models of one server, against ten that share nothing.
//!
//! The bound is arithmetic: `1 - distinct bytes / all bytes` of the variants' tensors (`skep_models::Sharing`).
//! Measured memory has the server and each model's own besides, so *saved* stays below it; *saved of models* leaves out
//! what the same server holds with a model of no size.

use anyhow::Result;
use serde_json::json;
use skep_models::{Kind, Options, Sharing, Variant};

use crate::{
    StoreBenchArgs,
    node::{BenchIsolation, BenchNode, Copies, WeightSetup, median_of},
};

const ROUNDS: usize = 3;
const MODELS: u64 = 10;
const VARIANTS: [(&str, [&str; 3]); 2] = [
    ("resnet50", ["head", "last-block", "last-3-blocks"]),
    ("bert-base", ["head", "last-2-layers", "last-6-layers"]),
];

pub(crate) fn measure(copies: &Copies, plan: &StoreBenchArgs) -> Result<()> {
    let rounds = plan.rounds.unwrap_or(ROUNDS);
    let empty = {
        let node = BenchNode::new(copies)?;
        let kind: Kind = "identity".parse()?;
        node.model(
            "identity",
            &kind,
            &Options::default(),
            1,
            BenchIsolation::Thread,
        )?;
        median_of(&node.held(WeightSetup::Plain, rounds)?, |held| held.all)
    };
    for (kind, names) in VARIANTS {
        if plan.kinds(&[kind]).is_empty() {
            continue;
        }
        for name in names {
            let node = BenchNode::new(copies)?;
            let sharing = write(&node, kind, name)?;
            let cache = node.cache();
            let shared = node.held(WeightSetup::Shared(&cache), rounds)?;
            let apart = node.held(WeightSetup::Plain, rounds)?;
            let all = |rounds: &[_]| median_of(rounds, |held: &crate::node::HeldMemory| held.all);
            let (shared_mib, apart_mib) = (all(&shared), all(&apart));
            println!(
                "{}",
                json!({
                    "table": "Ten variants in one server",
                    "model": kind, "variant": name,
                    "identical_percent": 100.0 * sharing.fraction(),
                    "shared_mib": shared_mib,
                    "shared_mib_rounds": shared.iter().map(|held| held.all).collect::<Vec<f64>>(),
                    "apart_mib": apart_mib,
                    "apart_mib_rounds": apart.iter().map(|held| held.all).collect::<Vec<f64>>(),
                    "tensors_mib": median_of(&shared, |held| held.tensors),
                    "distinct_mib": sharing.distinct_bytes(MODELS) as f64 / f64::from(1 << 20),
                    "saved_percent": 100.0 * (1.0 - shared_mib / apart_mib),
                    "empty_mib": empty,
                    "saved_models_percent": 100.0 * (1.0 - (shared_mib - empty) / (apart_mib - empty)),
                    "bound_percent": 100.0 * sharing.saving(MODELS),
                })
            );
        }
    }
    Ok(())
}

/// Writes a model and nine variants of it.
fn write(node: &BenchNode<'_>, kind: &str, name: &str) -> Result<Sharing> {
    let kind: Kind = kind.parse()?;
    let options = |number: u64| -> Result<Options> {
        // Number 0 is the model itself.
        let variant = (number > 0)
            .then(|| Variant::named(&kind, name, number))
            .transpose()?;
        Ok(Options {
            variant,
            ..Options::default()
        })
    };
    for number in 0..MODELS {
        let model = format!("variant-{number}");
        node.model(&model, &kind, &options(number)?, 1, BenchIsolation::Thread)?;
    }
    Ok(skep_models::generate(&kind, &options(1)?)?.sharing())
}
