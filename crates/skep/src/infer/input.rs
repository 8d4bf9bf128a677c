//! Inputs that the command line gives: JSON, NumPy's files, raw bytes.

use std::{
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::Value;
use skep_client::TensorMetadata;
use skep_tensor::{Tensor, encode_strings};
use skep_types::{DataType, Dims, Shape};
use skep_wire::{
    json::{self, Document},
    npy,
};

/// Servers refuse a longer request, so a longer file is refused here.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// What a flag gives of an input.
#[derive(Debug, Clone)]
pub(super) enum Data {
    /// As it stands there.
    Text(String),
    /// What a file holds.
    File(PathBuf),
}

const DATA_EXPECTED: &str = "expected an input's name and data, as in `x=[1,2,3]` or `x=@file.npy`";
const SHAPE_EXPECTED: &str = "expected an input's name and its dimensions, as in `x=1,3,224,224`";
const FILE_EXPECTED: &str = "expected the name of a file behind `@`";

/// `name=[1,2]`, `name=@file`, as far as it can be checked before the model's inputs are known.
pub(super) fn given(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        None | Some(("", _)) => Err(DATA_EXPECTED.to_owned()),
        Some((_, "@")) => Err(FILE_EXPECTED.to_owned()),
        Some(_) => Ok(text.to_owned()),
    }
}

/// `name=1,3,224,224`; nothing behind the sign for a scalar. As far as it can be checked before the inputs are known.
pub(super) fn given_shape(text: &str) -> Result<String, String> {
    let (name, dims) = text.rsplit_once('=').ok_or(SHAPE_EXPECTED)?;
    if name.is_empty() {
        return Err(SHAPE_EXPECTED.to_owned());
    }
    shape(dims).map(|_| text.to_owned())
}

/// Takes `name=rest` apart. Names may hold the sign themselves: the longest input's name with the sign behind it counts.
pub(super) fn named<'a>(text: &'a str, inputs: &'a [TensorMetadata]) -> Option<(&'a str, &'a str)> {
    let fitting = inputs.iter().filter_map(|input| {
        let rest = text.strip_prefix(&input.name)?.strip_prefix('=')?;
        Some((input.name.as_str(), rest))
    });
    fitting.max_by_key(|(name, _)| name.len())
}

/// `[1,2]`, `@file`.
pub(super) fn data(text: &str) -> Result<Data, String> {
    match text.strip_prefix('@') {
        Some("") => Err(FILE_EXPECTED.to_owned()),
        Some(path) => Ok(Data::File(path.into())),
        None => Ok(Data::Text(text.to_owned())),
    }
}

/// `1,3,224,224`.
pub(super) fn shape(dims: &str) -> Result<Shape, String> {
    let dims = dims.trim_start_matches('[').trim_end_matches(']');
    let dims = if dims.trim().is_empty() {
        Vec::new()
    } else {
        let dims = dims.split(',').map(|dim| dim.trim().parse::<usize>());
        dims.collect::<Result<_, _>>()
            .map_err(|_| format!("{SHAPE_EXPECTED}: numbers from 0"))?
    };
    Shape::new(&dims).map_err(|error| error.to_string())
}

/// Zeros or empty strings; variable dimensions that nobody gives are 1.
pub(super) fn zeros(input: &TensorMetadata, shape: Option<&Shape>) -> anyhow::Result<Tensor> {
    let dims = input.shape.as_slice().iter();
    let dims: Vec<usize> = dims.map(|dim| usize::try_from(*dim).unwrap_or(1)).collect();
    let shape = shape.map_or_else(|| Shape::new(&dims), |shape| Ok(shape.clone()))?;
    Ok(Tensor::zeros(input.datatype, shape))
}

/// The tensor of an input. Its shape is the one that is given, that of the data where it has as many dimensions as the
/// model's, or the model's with its one variable dimension filled.
pub(super) fn tensor(
    input: &TensorMetadata,
    data: &Data,
    shape: Option<&Shape>,
) -> anyhow::Result<Tensor> {
    match data {
        Data::Text(text) => {
            // Text for a string needs no quotes.
            let is_json = text.trim_start().starts_with(['[', '"']);
            if input.datatype == DataType::Bytes && !is_json {
                let data = encode_strings([text.as_bytes()]).into();
                return whole(input, shape, &[], 1, data);
            }
            let tensor = of_json(input, text, shape);
            if tensor.is_err() && is_file(text) {
                bail!(
                    "`{text}` is not JSON, but the name of a file\n  try: `--input {}=@{text}`",
                    input.name
                );
            }
            tensor
        }
        Data::File(path) => {
            let file = read(path)?;
            of_file(input, path, &file, shape).with_context(|| format!("`{}`", path.display()))
        }
    }
}

/// Whether a text names a file rather than being data: its user forgot the `@`.
fn is_file(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_err() && Path::new(text).is_file()
}

/// Whether an input can hold a picture as its file has it, for a model that decodes it: strings, or a row of bytes.
fn takes_encoded(input: &TensorMetadata) -> bool {
    let is_row = matches!(input.shape.as_slice(), [-1] | [_, -1]);
    input.datatype == DataType::Bytes || (input.datatype == DataType::Uint8 && is_row)
}

/// What a file is that holds a picture, by its first bytes.
fn picture(file: &[u8]) -> Option<&'static str> {
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

fn of_file(
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
            "holds {} bytes, expected a multiple of {size}: elements of {} (a file of another name than `.json` or `.npy` is taken as they are)",
            file.len(),
            input.datatype
        ),
    }
}

fn read(path: &Path) -> anyhow::Result<Bytes> {
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

fn of_json(input: &TensorMetadata, text: &str, shape: Option<&Shape>) -> anyhow::Result<Tensor> {
    let document = Document::new(text.as_bytes());
    let value: Value = document
        .parse(serde_json::from_slice)
        .map_err(|error| anyhow::anyhow!("is not JSON: {error}"))?;
    let dims = nested(&value)?;
    let count = dims.iter().product();
    let data = match input.datatype {
        DataType::Fp16 => halves(text, count, |value| {
            let half = half::f16::from_f64(value);
            (half.is_finite() || !value.is_finite()).then(|| half.to_le_bytes())
        })?,
        DataType::Bf16 => halves(text, count, |value| {
            let half = half::bf16::from_f64(value);
            (half.is_finite() || !value.is_finite()).then(|| half.to_le_bytes())
        })?,
        datatype => json::read(text, datatype, count)?,
    };
    whole(input, shape, &dims, count, data)
}

/// Elements of 16 bits, which JSON has no form for: numbers as any others.
fn halves(
    text: &str,
    count: usize,
    half: impl Fn(f64) -> Option<[u8; 2]>,
) -> anyhow::Result<Bytes> {
    let doubles = json::read(text, DataType::Fp64, count)?;
    let (doubles, _) = doubles.as_chunks::<8>();
    let mut bytes = Vec::with_capacity(2 * doubles.len());
    for double in doubles {
        let value = f64::from_le_bytes(*double);
        let half = half(value).with_context(|| format!("{value} is too large"))?;
        bytes.extend_from_slice(&half);
    }
    Ok(bytes.into())
}

/// The dimensions of arrays within arrays; none for a bare value.
fn nested(value: &Value) -> anyhow::Result<Vec<usize>> {
    let Value::Array(elements) = value else {
        return Ok(Vec::new());
    };
    let mut inner: Option<Vec<usize>> = None;
    for element in elements {
        let dims = nested(element)?;
        match &inner {
            None => inner = Some(dims),
            Some(first) if *first == dims => {}
            Some(first) => bail!(
                "has rows of different shapes, {} and {}",
                Shape::new(first)?,
                Shape::new(&dims)?
            ),
        }
    }
    let mut dims = inner.unwrap_or_default();
    dims.insert(0, elements.len());
    Ok(dims)
}

/// A tensor of data in which only the count is sure.
fn whole(
    input: &TensorMetadata,
    given: Option<&Shape>,
    dims: &[usize],
    count: usize,
    data: Bytes,
) -> anyhow::Result<Tensor> {
    let shape = match given {
        Some(shape) => shape.clone(),
        None if dims.len() == input.shape.rank() => Shape::new(dims)?,
        None => fill(&input.name, &input.shape, count)?,
    };
    check_count(&shape, count)?;
    Ok(Tensor::new(input.datatype, shape, data)?)
}

fn check_count(shape: &Shape, count: usize) -> anyhow::Result<()> {
    let expected = shape.element_count();
    if expected == count {
        return Ok(());
    }
    let elements = if count == 1 { "element" } else { "elements" };
    bail!("has {count} {elements}, expected {expected} for shape {shape}")
}

/// The model's dimensions, the variable one as large as the elements make it.
fn fill(name: &str, declared: &Dims, count: usize) -> anyhow::Result<Shape> {
    let mut fixed = declared.as_slice().iter().filter(|dim| **dim >= 0);
    let fixed = fixed.try_fold(1usize, |product, dim| {
        product.checked_mul(usize::try_from(*dim).ok()?)
    });
    let fixed = fixed.context("the model's shape has more elements than can be addressed")?;
    let variable = declared.as_slice().iter().filter(|dim| **dim < 0).count();
    let size = match variable {
        0 => 1,
        1 if fixed > 0 && count.is_multiple_of(fixed) => count / fixed,
        1 => bail!("has {count} elements, which do not fit into shape {declared}"),
        _ => bail!(
            "has {count} elements, and the model's shape {declared} has several variable dimensions\n  say them: `--shape {name}=...`, or nest the arrays"
        ),
    };
    let dims = declared.as_slice().iter();
    let dims: Vec<usize> = dims
        .map(|dim| usize::try_from(*dim).unwrap_or(size))
        .collect();
    Ok(Shape::new(&dims)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(datatype: DataType, shape: &[i64]) -> TensorMetadata {
        TensorMetadata {
            name: "x".to_owned(),
            datatype,
            shape: Dims::new(shape).expect("dims"),
        }
    }

    fn made(
        datatype: DataType,
        declared: &[i64],
        text: &str,
        dims: Option<&[usize]>,
    ) -> Result<Vec<usize>, String> {
        let shape = dims.map(|dims| Shape::new(dims).expect("shape"));
        tensor(
            &input(datatype, declared),
            &Data::Text(text.to_owned()),
            shape.as_ref(),
        )
        .map(|tensor| tensor.shape().dims().to_vec())
        .map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn shapes_come_from_the_flag_the_data_or_the_model() {
        let int = DataType::Int32;
        for (declared, text, flag, shape) in [
            (&[-1, 4][..], "[1,2,3,4]", None, &[1, 4][..]),
            (&[-1, 2], "[1,2,3,4]", None, &[2, 2]),
            (&[-1, -1], "[[1,2],[3,4],[5,6]]", None, &[3, 2]),
            (&[-1, -1], "[1,2]", Some(&[2, 1][..]), &[2, 1]),
            (&[2, 2], "[1,2,3,4]", None, &[2, 2]),
            (&[-1], "7", None, &[1]),
            (&[], "7", None, &[]),
            (&[-1, 3], "[]", None, &[0, 3]),
            // The server says that this is wrong, and what it expects.
            (&[-1, 4], "[[1,2]]", None, &[1, 2]),
        ] {
            assert_eq!(
                made(int, declared, text, flag).as_deref(),
                Ok(shape),
                "{text}"
            );
        }
    }

    #[test]
    fn data_that_does_not_fit_is_told_apart() {
        let int = DataType::Int32;
        for (declared, text, flag, why) in [
            (
                &[-1, 4][..],
                "[1,2,3]",
                None,
                "has 3 elements, which do not fit into shape [-1,4]",
            ),
            (&[-1, -1], "[1,2]", None, "--shape x=..."),
            (
                &[-1, -1],
                "[[1,2],[3]]",
                None,
                "rows of different shapes, [2] and [1]",
            ),
            (
                &[-1],
                "[1,2]",
                Some(&[3][..]),
                "has 2 elements, expected 3 for shape [3]",
            ),
            (
                &[4],
                "[[1],[2]]",
                None,
                "has 2 elements, expected 4 for shape [4]",
            ),
            (&[-1], "[1,", None, "is not JSON: EOF"),
            (&[-1], "[1.5]", None, "1.5 is not a valid INT32"),
            (&[-1], "[-3000000000]", None, "is not a valid INT32"),
            (&[-1], "{}", None, "got an object"),
            (&[-1], "abc", None, "is not JSON"),
            (&[-1], "", None, "is not JSON"),
        ] {
            let error = made(int, declared, text, flag).expect_err(text);
            assert!(error.contains(why), "{text}: {error}");
        }
        let error = made(DataType::Fp16, &[-1], "[1e6]", None).expect_err("too large");
        assert!(error.contains("1000000 is too large"), "{error}");
    }

    #[test]
    fn text_for_a_string_needs_no_quotes() {
        let one = |text: &str| {
            let data = Data::Text(text.to_owned());
            let tensor = tensor(&input(DataType::Bytes, &[-1]), &data, None).expect("tensor");
            let elements = tensor.view().strings().map(<[u8]>::to_vec);
            elements.collect::<Vec<_>>()
        };
        assert_eq!(one("a, b=c"), [b"a, b=c".to_vec()]);
        assert_eq!(
            one("[\"a\",\"é\"]"),
            [b"a".to_vec(), "é".as_bytes().to_vec()]
        );
        assert_eq!(one("\"[\""), [b"[".to_vec()]);
        assert_eq!(one(""), [b"".to_vec()]);
    }

    #[test]
    fn pictures_are_known_by_their_first_bytes() {
        for (bytes, kind) in [
            (&b"\x89PNG\r\n\x1a\n..."[..], Some("PNG")),
            (b"\xff\xd8\xff\xe0", Some("JPEG")),
            (b"GIF89a", Some("GIF")),
            (b"GIF87a", Some("GIF")),
            (b"RIFF\x10\0\0\0WEBPVP8 ", Some("WebP")),
            // Sound.
            (b"RIFF\x10\0\0\0WAVEfmt ", None),
            (b"RIFF", None),
            (b"\x89PNG", None),
            (b"", None),
        ] {
            assert_eq!(picture(bytes), kind, "{bytes:?}");
        }
    }

    #[test]
    fn flags_are_a_name_and_more() {
        assert!(matches!(data("a=b"), Ok(Data::Text(text)) if text == "a=b"));
        assert!(matches!(data("@f.npy"), Ok(Data::File(path)) if path == Path::new("f.npy")));
        assert!(data("@").is_err());
        for wrong in ["x", "=1", "x=@"] {
            assert!(given(wrong).is_err(), "{wrong}");
        }
        assert_eq!(shape("[2,0]").expect("a shape").dims(), [2, 0]);
        assert_eq!(shape("").expect("a scalar").rank(), 0);
        assert!(given_shape("a=b=1, 3").is_ok() && given_shape("x=").is_ok());
        for wrong in [
            "x",
            "=1",
            "x=1,,2",
            "x=-1,2",
            "x=1x2",
            "x=9999999999999,9999999999999",
        ] {
            assert!(given_shape(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_longest_name_of_an_input_counts() {
        let inputs = |names: &[&str]| -> Vec<TensorMetadata> {
            let named = |name: &&str| TensorMetadata {
                name: (*name).to_owned(),
                ..input(DataType::Int32, &[1])
            };
            names.iter().map(named).collect()
        };
        for (text, names, expected) in [
            ("a=b=1", &["a", "a=b"][..], Some(("a=b", "1"))),
            ("a=b=1", &["a=b", "a"], Some(("a=b", "1"))),
            ("a=b=1", &["a"], Some(("a", "b=1"))),
            ("a=b", &["a", "a=b"], Some(("a", "b"))),
            ("ab=1", &["a"], None),
            ("a", &["a"], None),
        ] {
            assert_eq!(named(text, &inputs(names)), expected, "{text} {names:?}");
        }
    }
}
