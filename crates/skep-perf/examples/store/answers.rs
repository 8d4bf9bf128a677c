//! That it makes no difference to an answer, to the bit, where weights lie and where an instance runs.

use anyhow::Result;
use serde_json::json;
use skep_client::Client;
use skep_tensor::Tensor;
use skep_testkit::{Kind, Options};

use crate::{
    Plan,
    node::{Copies, Isolation, Node, Weights, request},
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

pub(crate) async fn measure(copies: &Copies, plan: &Plan) -> Result<()> {
    for kind in plan.kinds(&KINDS) {
        let parsed: Kind = kind.parse()?;
        let node = Node::new(copies)?;
        node.model(MODEL, &parsed, &Options::default(), 1, Isolation::Thread)?;
        let expected = answers(&node, &parsed, Weights::Plain).await?;
        let cache = node.cache();
        // The first server fills the cache, the others use it.
        let ways = [
            (
                "filling the cache",
                Isolation::Thread,
                Weights::Shared(&cache),
            ),
            (
                "out of the cache",
                Isolation::Thread,
                Weights::Shared(&cache),
            ),
            (
                "out of the cache",
                Isolation::Process,
                Weights::Shared(&cache),
            ),
            ("its own", Isolation::Process, Weights::Plain),
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
    node: &Node<'_>,
    kind: &Kind,
    weights: Weights<'_>,
) -> Result<Vec<Vec<(String, Tensor)>>> {
    let server = node.serve(weights, &[])?;
    let client = Client::connect(server.http()).await?;
    let mut answers = Vec::new();
    for seed in 0..REQUESTS {
        answers.push(client.infer(&request(MODEL, kind, seed)?).await?.outputs);
    }
    Ok(answers)
}
