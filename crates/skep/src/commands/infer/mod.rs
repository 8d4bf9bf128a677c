//! `skep infer MODEL [PICTURE...]`: asks a running server, and prints what it sees.

pub(crate) mod input;
mod picture;
mod save;
mod show;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use clap::Args;
use skep_client::{Client, Error, InferRequest, ModelMetadata, StatusMeaning, TensorMetadata};
use skep_tensor::Tensor;
use skep_types::{DataType, ModelVersion};

use crate::{
    output::{errln, out, outln},
    server_flags::ServerArgs,
};

#[derive(Debug, Args)]
pub(crate) struct InferArgs {
    /// The model's name
    model: String,
    /// PNG pictures, dark on light, for a model of one FP32 input of [batch,1,N,N]; see examples/README.md for the rule
    #[arg(value_name = "PICTURE")]
    pictures: Vec<PathBuf>,
    /// An input's data: JSON as in `x=[[1,2],[3,4]]`, a text for a string, or a file as in `x=@image.npy`: NumPy's
    /// (.npy), JSON (.json), or raw little-endian elements; may be given several times
    #[arg(long, value_name = "NAME=DATA", value_parser = input::given, conflicts_with = "pictures")]
    input: Vec<String>,
    /// An input's shape, as in `x=1,3,224,224`, where data and model leave it open; may be given several times
    #[arg(long, value_name = "NAME=SHAPE", value_parser = input::given_shape, conflicts_with = "pictures")]
    shape: Vec<String>,
    /// Send zeros for every input without data; variable dimensions become 1 unless --shape says otherwise
    #[arg(long, conflicts_with = "pictures")]
    zeros: bool,
    /// The model's version; the latest by default
    #[arg(long, value_name = "VERSION", value_parser = |text: &str| ModelVersion::parse(text))]
    model_version: Option<ModelVersion>,
    /// Print each answer as JSON on one line, with every element
    #[arg(long)]
    json: bool,
    /// Write each output into this directory, as NAME.npy
    #[arg(long, value_name = "DIR", conflicts_with_all = ["pictures", "json"])]
    output: Option<PathBuf>,
    #[command(flatten)]
    server: ServerArgs,
}

pub(crate) fn run(args: &InferArgs) -> anyhow::Result<ExitCode> {
    if let Some(directory) = &args.output {
        save::prepare(directory).context("--output")?;
    }
    let reactor = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    reactor.block_on(ask(args))
}

async fn ask(args: &InferArgs) -> anyhow::Result<ExitCode> {
    let client = args.server.connect().await?;
    let metadata = client.model_metadata(&args.model, args.model_version).await;
    let metadata = metadata.map_err(|error| args.server.explain(error))?;
    let mut request = InferRequest::new(&args.model);
    request.version = args.model_version;
    if !args.pictures.is_empty() {
        return ask_pictures(args, &client, &metadata, request).await;
    }
    request.inputs = inputs(args, &metadata)?;
    let answer = client.infer(&request).await;
    let answer = answer.map_err(|error| explain(args, &metadata, error))?;
    if args.json {
        outln!("{}", show::json(&answer, None)?)?;
    } else {
        out!("{}", show::outputs(&answer))?;
    }
    if let Some(directory) = &args.output {
        for (name, file) in save::outputs(&answer, directory).context("--output")? {
            outln!("wrote `{name}` to {}", file.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One request a picture. One that fails leaves the others.
async fn ask_pictures(
    args: &InferArgs,
    client: &Client,
    metadata: &ModelMetadata,
    mut request: InferRequest,
) -> anyhow::Result<ExitCode> {
    let (name, side) = picture_input(metadata)?;
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
            Ok(answer) if args.json => outln!("{}", show::json(&answer, Some(path))?)?,
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

/// What is sent: the data that is given, and zeros for the rest if they are asked for. Whether an input that is left
/// out may be, the server knows.
fn inputs(args: &InferArgs, metadata: &ModelMetadata) -> anyhow::Result<Vec<(String, Tensor)>> {
    let given = by_name("--input", &args.input, metadata, input::data)?;
    let shapes = by_name("--shape", &args.shape, metadata, input::shape)?;
    if args.input.is_empty() && !args.zeros && !metadata.inputs.is_empty() {
        bail!(
            "nothing to send: model `{}` takes {}\n  try: `--input {}=@FILE.npy`, or `--zeros`",
            args.model,
            list(metadata),
            metadata.inputs[0].name
        );
    }
    let mut inputs = Vec::new();
    for input in &metadata.inputs {
        let shape = shapes.iter().find(|(name, _)| *name == input.name);
        let shape = shape.map(|(_, shape)| shape);
        let data = given.iter().find(|(name, _)| *name == input.name);
        let tensor = match data {
            Some((_, data)) => input::tensor(input, data, shape),
            None if args.zeros => input::zeros(input, shape),
            None if shape.is_some() => bail!(
                "--shape: input `{}` has no data, expected `--input {}=...` or `--zeros`",
                input.name,
                input.name
            ),
            None => continue,
        };
        let tensor = tensor.with_context(|| format!("input `{}`", input.name))?;
        inputs.push((input.name.clone(), tensor));
    }
    Ok(inputs)
}

/// A hint for a refused request of zeros: the sizes that the user did not choose.
fn explain(args: &InferArgs, metadata: &ModelMetadata, error: Error) -> anyhow::Error {
    let Error::Status { code, .. } = &error else {
        return error.into();
    };
    // Other statuses are about the server or the caller.
    let is_about_request = matches!(
        code.meaning(),
        StatusMeaning::InvalidArgument | StatusMeaning::Internal
    );
    let is_given = |name: &String| {
        let mut texts = args.input.iter().chain(&args.shape);
        texts.any(|text| {
            input::named(text, &metadata.inputs).is_some_and(|(given, _)| given == name)
        })
    };
    let mut hint = String::new();
    if args.zeros && is_about_request {
        let inputs = metadata.inputs.iter();
        for input in inputs.filter(|input| !is_given(&input.name)) {
            let Some((sent, dims)) = made_one(input) else {
                continue;
            };
            let name = &input.name;
            hint += &format!(
                "\n  `--zeros` made the variable dimensions of `{name}` 1: {} became [{sent}]; to choose them: `--shape {name}={dims}`",
                input.shape
            );
        }
    }
    anyhow::anyhow!("{error}{hint}")
}

/// The dimensions of an input with variable ones as `--zeros` makes them, and for `--shape`, with `?` for those to
/// choose. Where the first alone of several is variable, it counts as the batch, of which 1 is right.
fn made_one(input: &TensorMetadata) -> Option<(String, String)> {
    let dims = input.shape.as_slice();
    let skip = usize::from(dims.len() > 1);
    if dims.iter().skip(skip).all(|dim| *dim >= 0) {
        return None;
    }
    let joined = |variable: &dyn Fn(usize) -> &'static str| {
        let dims = dims.iter().enumerate().map(|(index, dim)| match dim {
            ..0 => variable(index).to_owned(),
            dim => dim.to_string(),
        });
        dims.collect::<Vec<_>>().join(",")
    };
    let open = |index| if index < skip { "1" } else { "?" };
    Some((joined(&|_| "1"), joined(&open)))
}

/// What a flag gives of inputs. Each name is an input's, and comes once.
fn by_name<'a, T>(
    flag: &str,
    texts: &'a [String],
    metadata: &'a ModelMetadata,
    parse: impl Fn(&str) -> Result<T, String>,
) -> anyhow::Result<Vec<(&'a str, T)>> {
    let mut all: Vec<(&str, T)> = Vec::new();
    for text in texts {
        let Some((name, rest)) = input::named(text, &metadata.inputs) else {
            bail!(
                "{flag}: model `{}` has no input `{}`, it takes {}",
                metadata.name,
                text.split('=').next().unwrap_or_default(),
                list(metadata)
            );
        };
        if all.iter().any(|(known, _)| *known == name) {
            bail!("{flag}: input `{name}` is given twice");
        }
        let parsed = parse(rest).map_err(|error| anyhow::anyhow!("{flag} {text}: {error}"))?;
        all.push((name, parsed));
    }
    Ok(all)
}

/// The inputs, for people.
fn list(metadata: &ModelMetadata) -> String {
    let one =
        |input: &TensorMetadata| format!("`{}` {} {}", input.name, input.datatype, input.shape);
    let inputs: Vec<String> = metadata.inputs.iter().map(one).collect();
    if inputs.is_empty() {
        return "no inputs".to_owned();
    }
    inputs.join(", ")
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

#[cfg(test)]
mod tests {
    use skep_types::Dims;

    use super::*;

    #[test]
    fn variable_dimensions_are_left_to_choose() {
        for (shape, made) in [
            (&[-1, 3, -1, -1][..], Some(("1,3,1,1", "1,3,?,?"))),
            (&[2, -1], Some(("2,1", "2,?"))),
            (&[-1], Some(("1", "?"))),
            // The batch alone, or nothing.
            (&[-1, 3], None),
            (&[2, 3], None),
            (&[], None),
        ] {
            let input = TensorMetadata {
                name: "x".to_owned(),
                datatype: DataType::Fp32,
                shape: Dims::new(shape).expect("dims"),
            };
            let made = made.map(|(sent, dims)| (sent.to_owned(), dims.to_owned()));
            assert_eq!(made_one(&input), made, "{shape:?}");
        }
    }
}
