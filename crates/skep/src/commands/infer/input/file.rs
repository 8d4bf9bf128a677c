//! Inputs in files: NumPy's, JSON, raw elements, and pictures for models that decode them.

use std::{io, path::Path};

use anyhow::{Context, bail};
use bytes::Bytes;
use skep_client::TensorMetadata;
use skep_tensor::{Tensor, encode_strings};
use skep_types::{DataType, Shape};
use skep_wire::npy;

use super::elements::{check_count, of_json, whole};

/// Servers refuse a longer request, so a longer file is refused here.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// Whether an input can hold a picture as its file has it, for a model that decodes it: strings, or a row of bytes.
fn takes_encoded(input: &TensorMetadata) -> bool {
    let is_row = matches!(input.shape.as_slice(), [-1] | [_, -1]);
    input.datatype == DataType::Bytes || (input.datatype == DataType::Uint8 && is_row)
}

/// What a file is that holds a picture, by its first bytes.
pub(super) fn picture(file: &[u8]) -> Option<&'static str> {
    let is_webp = file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP");
    let kinds = [
        (file.starts_with(b"\x89PNG\r\n\x1a\n"), "PNG"),
        (file.starts_with(b"\xff\xd8\xff"), "JPEG"),
        (
            file.starts_with(b"GIF87a") || file.starts_with(b"GIF89a"),
            "GIF",
        ),
        (is_webp, "WebP"),
    ];
    let kind = kinds.iter().find(|(is_kind, _)| *is_kind)?;
    Some(kind.1)
}

pub(super) fn of_file(
    input: &TensorMetadata,
    path: &Path,
    file: &Bytes,
    shape: Option<&Shape>,
) -> anyhow::Result<Tensor> {
    let extension = path.extension().and_then(|extension| extension.to_str());
    if file.starts_with(b"\x93NUMPY") || extension == Some("npy") {
        return of_npy(input, file, shape);
    }
    if extension == Some("npz") {
        bail!("is an archive of arrays, expected one array as `numpy.save` writes it");
    }
    if extension == Some("json") {
        let text = str::from_utf8(file).context("is not text")?;
        return of_json(input, text, shape);
    }
    if let Some(kind) = picture(file).filter(|_| !takes_encoded(input)) {
        bail!(
            "is a {kind} picture, expected elements of {}: `--input` takes JSON, .npy or raw elements, and decodes no pictures\n  \
             decode it first, as in `numpy.save(\"{}.npy\", array)` with the array that the model expects",
            input.datatype,
            input.name.replace('/', "_"),
        );
    }
    match input.datatype.element_size() {
        // A picture or a text for a model that takes it apart itself.
        None => {
            let data = encode_strings([file.as_ref()]).into();
            whole(input, shape, &[], 1, data)
        }
        Some(size) if file.len().is_multiple_of(size) => {
            let count = file.len() / size;
            whole(input, shape, &[count], count, file.clone())
        }
        Some(size) => bail!(
            "holds {} bytes, expected a multiple of {size}: elements of {} (a file that is not `.json` or `.npy` holds raw elements)",
            file.len(),
            input.datatype
        ),
    }
}

pub(super) fn read(path: &Path) -> anyhow::Result<Bytes> {
    match skep_host::read_named(path, MAX_FILE_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            bail!("`{}` is longer than 4 GiB", path.display())
        }
        outcome => {
            let bytes = outcome.with_context(|| format!("cannot read `{}`", path.display()))?;
            Ok(bytes.into())
        }
    }
}

fn of_npy(input: &TensorMetadata, file: &Bytes, shape: Option<&Shape>) -> anyhow::Result<Tensor> {
    let array = npy::read(file)?;
    let data = match (array.datatype(), input.datatype) {
        (from, to) if from == to => array.data().clone(),
        // NumPy has no BF16 of its own.
        (DataType::Fp32, DataType::Bf16) => {
            let (floats, _) = array.data().as_chunks::<4>();
            let halves = floats
                .iter()
                .map(|bytes| half::bf16::from_f32(f32::from_le_bytes(*bytes)));
            halves
                .flat_map(half::bf16::to_le_bytes)
                .collect::<Vec<u8>>()
                .into()
        }
        (from, to) => bail!("holds {from}, expected {to}{}", conversion(to)),
    };
    let shape = shape.unwrap_or(array.shape());
    check_count(shape, array.shape().element_count())?;
    Ok(Tensor::new(input.datatype, shape.clone(), data)?)
}

/// How NumPy makes a datatype.
fn conversion(to: DataType) -> String {
    let name = match to {
        DataType::Bytes => return "\n  convert it: `array.astype(\"S\")`".to_owned(),
        DataType::Bf16 | DataType::Fp32 => "float32",
        DataType::Fp16 => "float16",
        DataType::Fp64 => "float64",
        DataType::Bool => "bool",
        whole => &whole.protocol_name().to_ascii_lowercase(),
    };
    format!("\n  convert it: `array.astype(\"{name}\")`")
}
