//! `skep generate KIND OUT`: ONNX models of real architectures with seeded random weights.

use std::{path::PathBuf, process::ExitCode};

use anyhow::bail;
use clap::Args;
use skep_models::{BatchDim, Kind, Options, Sharing, Variant};

use crate::output::{self, outln};

/// Models for which the memory that sharing saves is said: a base and its usual handful of variants.
const MODELS: u64 = 10;

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
    /// Write weights of 1 KiB or more to a separate file
    #[arg(long)]
    external_data: bool,
    /// Write a variant: the last layers have other weights, all others the same bytes. END is `head`, `last-block` or
    /// `last-3-blocks`, for BERT and MLPs also `last-layer` or `last-2-layers`
    #[arg(long, value_name = "END")]
    variant: Option<String>,
    /// The seed of the weights in a variant's last layers; each seed gives another variant
    #[arg(long, value_name = "SEED", default_value_t = 1, requires = "variant")]
    variant_seed: u64,
}

pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<ExitCode> {
    // A repository may be new, but not the directory that holds it: that is a typing error more often than a wish.
    output::check("OUT", Some(&args.out))?;
    let kind: Kind = args.kind.parse()?;
    let variant = args
        .variant
        .as_ref()
        .map(|end| Variant::named(&kind, end, args.variant_seed))
        .transpose()?;
    if variant.is_some_and(|variant| variant.seed == args.seed) {
        bail!(
            "`--variant-seed` and `--seed` are both {}, expected different seeds: the variant would be the model itself",
            args.seed
        );
    }
    let options = Options {
        seed: args.seed,
        batch: args.batch.map_or(BatchDim::Variable, BatchDim::Fixed),
        external_data: args.external_data,
        variant,
    };
    let model = skep_models::generate(&kind, &options)?;
    let place = if let Some(name) = &args.repository {
        model.write_repository(&args.out, name, None)?;
        args.out.join(name)
    } else {
        model.write(&args.out)?;
        args.out.clone()
    };
    outln!(
        "wrote {kind} with {} parameters to {}",
        model.parameter_count(),
        place.display()
    )?;
    if variant.is_some() {
        outln!("{}", shared(model.sharing()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// What a variant has in common with its model, and the bound of what sharing it can save.
fn shared(sharing: Sharing) -> String {
    format!(
        "{} of {} bytes of its tensors are the model's without --variant ({:.1} %): one copy of each tensor of {MODELS} \
         such models takes {:.1} % less memory than {MODELS} models apart",
        sharing.bytes - sharing.own_bytes,
        sharing.bytes,
        100.0 * sharing.fraction(),
        100.0 * sharing.saving(MODELS),
    )
}

fn kinds() -> String {
    let names: Vec<String> = Kind::all().iter().map(Kind::name).collect();
    format!("Kinds: {}", names.join(", "))
}
