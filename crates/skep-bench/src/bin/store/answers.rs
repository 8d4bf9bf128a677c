//! That it makes no difference to an answer, to the bit, where weights lie and where an instance runs.

use anyhow::Result;
use serde_json::json;
use skep_client::Client;
use skep_models::{Kind, Options};
use skep_tensor::Tensor;

use crate::{
    StoreBenchArgs,
    node::{BenchIsolation, BenchNode, Copies, WeightSetup, request},
};

const MODEL: &str = "model";
/// Requests to each server.
const REQUESTS: u64 = 4;
const KINDS: [&str; 7] = [
    "mlp",
    // Large enough to be kept.
    "cnn:classes=4000",
    "bert-tiny",
    "mobilenetv2",
    "text-recogniser",
    "resnet50",
    "bert-base",
];

pub(crate) async fn measure(copies: &Copies, plan: &StoreBenchArgs) -> Result<()> {
    for kind in plan.kinds(&KINDS) {
        let parsed: Kind = kind.parse()?;
        let node = BenchNode::new(copies)?;
        node.model(
            MODEL,
            &parsed,
            &Options::default(),
            1,
            BenchIsolation::Thread,
        )?;
        let expected = answers(&node, &parsed, WeightSetup::Plain).await?;
        let cache = node.cache();
        // The first server fills the cache, the others use it.
        let ways = [
            (
                "filling the cache",
                BenchIsolation::Thread,
                WeightSetup::Shared(&cache),
            ),
            (
                "out of the cache",
                BenchIsolation::Thread,
                WeightSetup::Shared(&cache),
            ),
            (
                "out of the cache",
                BenchIsolation::Process,
                WeightSetup::Shared(&cache),
            ),
            ("its own", BenchIsolation::Process, WeightSetup::Plain),
        ];
        for (weights, isolation, holds) in ways {
            node.configure(MODEL, &parsed, 1, isolation)?;
            let given = answers(&node, &parsed, holds).await?;
            let equal = given.iter().zip(&expected).filter(|(a, b)| a == b).count();
            println!(
                "{}",
                json!({
                    "table": "Answers, beside those of a plain load in the server's process",
                    "model": kind, "weights": weights, "isolation": isolation.name(),
                    "answers": expected.len(), "identical": equal,
                })
            );
        }
    }
    Ok(())
}

/// All outputs of each request.
async fn answers(
    node: &BenchNode<'_>,
    kind: &Kind,
    weights: WeightSetup<'_>,
) -> Result<Vec<Vec<(String, Tensor)>>> {
    let server = node.serve(weights, &[])?;
    let client = Client::connect(server.http()).await?;
    let mut answers = Vec::new();
    for seed in 0..REQUESTS {
        answers.push(client.infer(&request(MODEL, kind, seed)?).await?.outputs);
    }
    Ok(answers)
}
