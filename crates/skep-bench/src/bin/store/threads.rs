//! Instances that are threads share one loaded model: what the second to the fourth cost.

use anyhow::Result;
use serde_json::json;
use skep_models::{Kind, Options};

use crate::{
    KINDS, StoreBenchArgs,
    node::{BenchIsolation, BenchNode, Copies, WeightSetup, median_of},
};

const ROUNDS: usize = 3;
const MODEL: &str = "model";
const MANY: usize = 4;

pub(crate) fn measure(copies: &Copies, plan: &StoreBenchArgs) -> Result<()> {
    for kind in plan.kinds(&KINDS) {
        let node = BenchNode::new(copies)?;
        let parsed: Kind = kind.parse()?;
        node.model(
            MODEL,
            &parsed,
            &Options::default(),
            1,
            BenchIsolation::Thread,
        )?;
        let cache = node.cache();
        for (name, weights) in [
            ("shared", WeightSetup::Shared(&cache)),
            ("plain", WeightSetup::Plain),
        ] {
            let held = |instances| -> Result<Vec<f64>> {
                node.configure(MODEL, &parsed, instances, BenchIsolation::Thread)?;
                let rounds = node.held(weights, plan.rounds.unwrap_or(ROUNDS))?;
                Ok(rounds.iter().map(|held| held.all).collect())
            };
            let (one, many) = (held(1)?, held(MANY)?);
            let (one_mib, many_mib) = (median_of(&one, |m| *m), median_of(&many, |m| *m));
            println!(
                "{}",
                json!({
                    "table": "One and four instances as threads, PSS",
                    "model": kind, "weights": name,
                    "one_mib": one_mib, "one_mib_rounds": one,
                    "four_mib": many_mib, "four_mib_rounds": many,
                    "four_to_one": many_mib / one_mib,
                })
            );
        }
    }
    Ok(())
}
