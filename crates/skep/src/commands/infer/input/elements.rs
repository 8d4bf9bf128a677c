//! Elements of an input, and the shape that they have: the flag's, their own, or the model's.

use anyhow::{Context, bail};
use bytes::Bytes;
use serde_json::Value;
use skep_client::TensorMetadata;
use skep_tensor::Tensor;
use skep_types::{DataType, Dims, Shape};
use skep_wire::json::{self, Document};

pub(super) fn of_json(
    input: &TensorMetadata,
    text: &str,
    shape: Option<&Shape>,
) -> anyhow::Result<Tensor> {
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
pub(super) fn whole(
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

pub(super) fn check_count(shape: &Shape, count: usize) -> anyhow::Result<()> {
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
            "has {count} elements, and the model's shape {declared} has several variable dimensions\n  try: `--shape {name}=...`, or nest the arrays"
        ),
    };
    let dims = declared.as_slice().iter();
    let dims: Vec<usize> = dims
        .map(|dim| usize::try_from(*dim).unwrap_or(size))
        .collect();
    Ok(Shape::new(&dims)?)
}
