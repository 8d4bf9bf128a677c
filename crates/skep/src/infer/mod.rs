//! `skep infer MODEL [PICTURE...]`: asks a running server, and prints what it sees.

mod picture;
mod show;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use bytes::Bytes;
use clap::Args;
use skep_client::{Client, InferRequest, ModelMetadata, TensorMetadata};
use skep_tensor::{Tensor, encode_strings};
use skep_types::{DataType, ModelVersion, Shape};

use crate::output::{errln, out, outln};

#[derive(Debug, Args)]
pub(crate) struct InferArgs {
    /// The model to ask
    model: String,
    /// PNG pictures, dark on light, for a model of one FP32 input of [batch,1,N,N]; see examples/README.md for the rule
    #[arg(value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
    /// Send zeros instead of pictures, to any model; variable dimensions become 1
    #[arg(long, conflicts_with = "pictures")]
    zeros: bool,
    /// The server: http://host:port or grpc://host:port
    #[arg(long, value_name = "URL", default_value = "http://localhost:8000")]
    url: String,
    /// The model's version instead of the latest
    #[arg(long, value_name = "VERSION", value_parser = |text: &str| ModelVersion::parse(text))]
    model_version: Option<ModelVersion>,
}

pub(crate) fn run(args: &InferArgs) -> anyhow::Result<ExitCode> {
    if args.pictures.is_empty() && !args.zeros {
        bail!(
            "nothing to send\n  try: skep infer digits examples/digits/*.png\n  or, for any model: skep infer {} --zeros",
            args.model
        );
    }
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    reactor.block_on(ask(args))
}

async fn ask(args: &InferArgs) -> anyhow::Result<ExitCode> {
    let client = Client::connect(&args.url).await?;
    let metadata = client
        .model_metadata(&args.model, args.model_version)
        .await?;
    let mut request = InferRequest::new(&args.model);
    request.version = args.model_version;
    if args.zeros {
        request.inputs = metadata
            .inputs
            .iter()
            .map(zeros)
            .collect::<anyhow::Result<_>>()?;
        out!("{}", show::outputs(&client.infer(&request).await?))?;
        return Ok(ExitCode::SUCCESS);
    }
    let (name, side) = picture_input(&metadata)?;
    let mut failed = false;
    for path in &args.pictures {
        let answer = match picture::read(path, side) {
            Ok(tensor) => {
                request.inputs = vec![(name.clone(), tensor)];
                client.infer(&request).await.map_err(Into::into)
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok(answer) => outln!("{}: {}", path.display(), show::best(&answer))?,
            Err(error) => {
                errln!("{}: {error:#}", path.display());
                failed = true;
            }
        }
    }
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// The input that takes a picture, and its side in cells.
fn picture_input(metadata: &ModelMetadata) -> anyhow::Result<(String, usize)> {
    let expected = "a model for pictures has one FP32 input of shape [-1,1,N,N] or [1,1,N,N]";
    let [input] = metadata.inputs.as_slice() else {
        bail!(
            "model `{}` has {} inputs: {expected}",
            metadata.name,
            metadata.inputs.len()
        );
    };
    match input.shape.as_slice() {
        [-1 | 1, 1, rows, columns]
            if rows == columns && *rows > 0 && input.datatype == DataType::Fp32 =>
        {
            Ok((input.name.clone(), usize::try_from(*rows).context("side")?))
        }
        _ => bail!(
            "input `{}` of model `{}` is {} {}: {expected}",
            input.name,
            metadata.name,
            input.datatype,
            input.shape
        ),
    }
}

fn zeros(input: &TensorMetadata) -> anyhow::Result<(String, Tensor)> {
    let dims: Vec<usize> = input
        .shape
        .as_slice()
        .iter()
        .map(|dim| usize::try_from(*dim).unwrap_or(1))
        .collect();
    let shape = Shape::new(&dims)?;
    let count = shape.element_count();
    let data = match input.datatype.element_size() {
        Some(size) => vec![0; count * size],
        None => encode_strings(std::iter::repeat_n(b"".as_slice(), count)),
    };
    Ok((
        input.name.clone(),
        Tensor::new(input.datatype, shape, Bytes::from(data))?,
    ))
}
