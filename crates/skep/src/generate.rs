//! `skep generate KIND OUT`: ONNX models of real architectures with seeded random weights.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::Args;
use skep_testkit::{Batch, Kind, Options, Variant};

#[derive(Debug, Args)]
#[command(after_help = kinds())]
pub(crate) struct GenerateArgs {
    /// What to generate, with parameters: `resnet50`, `mlp:layers=16x8,softmax=true`, `identity-fp16:width=4`
    kind: String,
    /// The file to write, or with `--repository` the model repository
    out: PathBuf,
    /// Write version 1 of this model into the repository OUT instead of a single file
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// The seed of all weights
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// A fixed batch size instead of a variable one
    #[arg(long, value_name = "N")]
    batch: Option<std::num::NonZeroU32>,
    /// Put weights of 1 KiB and more into a side file
    #[arg(long)]
    external_data: bool,
    /// Another seed for the end of the network (head and, with --variant-blocks, the last blocks)
    #[arg(long, value_name = "SEED")]
    variant: Option<u64>,
    /// How many of the last blocks the variant differs in
    #[arg(long, value_name = "N", default_value_t = 0, requires = "variant")]
    variant_blocks: usize,
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    let kind: Kind = args.kind.parse()?;
    let options = Options {
        seed: args.seed,
        batch: args.batch.map_or(Batch::Variable, Batch::Fixed),
        external_data: args.external_data,
        variant: args.variant.map(|seed| Variant {
            seed,
            blocks: args.variant_blocks,
        }),
    };
    let model = skep_testkit::generate(&kind, &options)?;
    let place = if let Some(name) = &args.repository {
        model.write_repository(&args.out, name, None)?;
        args.out.join(name)
    } else {
        if let Some(parent) = args
            .out
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            std::fs::create_dir_all(parent)
                .with_context(|| format!("cannot create `{}`", parent.display()))?;
        }
        model.write(&args.out)?;
        args.out.clone()
    };
    println!(
        "wrote {kind} with {} parameters to {}",
        model.parameter_count(),
        place.display()
    );
    Ok(ExitCode::SUCCESS)
}

fn kinds() -> String {
    let names: Vec<String> = Kind::all().iter().map(Kind::name).collect();
    format!("Kinds: {}", names.join(", "))
}
