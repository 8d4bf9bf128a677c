//! One copy of each weight: what it saves, and that it costs nothing: `cargo xtask bench store [PART...]`.
//!
//! | part | what it compares |
//! |---|---|
//! | `threads` | one and four instances of a model in one process |
//! | `sandboxes` | one to sixteen instances, each in a process of its own, with as many that share nothing |
//! | `variants` | ten variants of a model in one server with ten that share nothing, and with what sharing can save |
//! | `loads` | loads that find a session, weights in memory or weights on disk with a load that finds nothing |
//! | `starts` | twenty sandboxes that start at once with one that starts alone |
//! | `latency` | requests to instances that share weights with requests to instances that have their own |
//! | `answers` | outputs, to the bit, of all ways of holding weights |
//!
//! Without weights shared means `--weight-cache off`. Each server is the only one that has its binary, its library and
//! its files open: they are copies of the benchmark's own, so that PSS is what the server costs by itself. Memory is
//! that of the server and all of its processes (`skep_perf::tree_memory`), after every instance has run twice. Printed:
//! a JSON object a row.

mod answers;
mod bare;
mod latency;
mod loads;
mod node;
mod sandboxes;
mod starts;
mod threads;
mod variants;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use node::Copies;

const PARTS: [&str; 7] = [
    "threads",
    "sandboxes",
    "variants",
    "loads",
    "starts",
    "latency",
    "answers",
];

/// The models that memory and time are measured on.
const KINDS: [&str; 3] = ["text-recogniser", "resnet50", "bert-base"];

/// What to measure.
struct StoreBenchArgs {
    parts: Vec<String>,
    /// Leaves out the other kinds.
    only: Option<String>,
    /// Instead of a part's own number.
    rounds: Option<usize>,
}

impl StoreBenchArgs {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut plan = Self {
            parts: Vec::new(),
            only: None,
            rounds: None,
        };
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--only" => plan.only = Some(arguments.next().context("--only KIND")?),
                "--rounds" => {
                    let rounds: usize = arguments.next().context("--rounds N")?.parse()?;
                    ensure!(rounds > 0, "`--rounds` is 0, expected 1 or more");
                    plan.rounds = Some(rounds);
                }
                part => {
                    let known = PARTS.join(", ");
                    ensure!(
                        PARTS.contains(&part),
                        "unknown part `{part}`, expected {known}"
                    );
                    plan.parts.push(part.to_owned());
                }
            }
        }
        Ok(plan)
    }

    fn has(&self, part: &str) -> bool {
        self.parts.is_empty() || self.parts.iter().any(|wanted| wanted == part)
    }

    /// Those of `kinds` that were not left out.
    fn kinds(&self, kinds: &[&'static str]) -> Vec<&'static str> {
        let is_wanted = |kind: &&&str| self.only.as_deref().is_none_or(|only| only == **kind);
        kinds.iter().filter(is_wanted).copied().collect()
    }
}

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1).peekable();
    if arguments.next_if(|word| word == bare::WORD).is_some() {
        return bare::run(arguments);
    }
    let usage = "usage: store SKEP_BINARY [PART...] [--only KIND] [--rounds N]";
    let binary: PathBuf = arguments.next().context(usage)?.into();
    let plan = StoreBenchArgs::parse(arguments)?;
    let copies = Copies::new(&binary)?;
    // One thread: the client should take as little of the machine as it can.
    let reactor = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()?;
    reactor.block_on(async {
        if plan.has("threads") {
            threads::measure(&copies, &plan)?;
        }
        if plan.has("sandboxes") {
            sandboxes::measure(&copies, &plan)?;
        }
        if plan.has("variants") {
            variants::measure(&copies, &plan)?;
        }
        if plan.has("loads") {
            loads::measure(&copies, &plan).await?;
        }
        if plan.has("starts") {
            starts::measure(&copies, &plan)?;
        }
        if plan.has("latency") {
            latency::measure(&copies, &plan).await?;
        }
        if plan.has("answers") {
            answers::measure(&copies, &plan).await?;
        }
        Ok(())
    })
}
