//! From what the caller states to the shapes of a model's inputs.

use std::collections::BTreeMap;

use skep_proto::onnx::{TensorShapeProto, ValueInfoProto};
use skep_types::Shape;

use crate::{
    declaration::{NamedDims, accepts, declared, fixed, name, tensor_type},
    element::ElementType,
    error::{InferError, list},
    fact::Fact,
    limits::MAX_RANK,
};

/// What the caller fixes before inference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenShapes {
    /// The leading dimension of inputs that leave it open.
    pub batch: Option<usize>,
    /// Sizes of named dimensions of inputs.
    pub dims: BTreeMap<String, usize>,
    /// Shapes of inputs; each must be one that the file allows.
    pub inputs: BTreeMap<String, Vec<usize>>,
    /// Shapes of other tensors, such as those known only in a run. Where neither the operator nor the file gives the
    /// type of such a tensor, it is the type that its node reads.
    pub tensors: BTreeMap<String, Vec<usize>>,
}

/// The inputs as tensors, in the file's order, and the sizes that their dimensions' names have from now on.
///
/// A stated shape of an input comes first, then stated dimensions, then the batch size.
pub(super) fn inputs<'a>(
    values: &[&'a ValueInfoProto],
    given: &'a GivenShapes,
) -> Result<(Vec<Fact<'a>>, NamedDims<'a>), InferError> {
    let mut named = NamedDims::default();
    for (name, size) in &given.dims {
        named.set(name, *size, &|| "what was given".to_owned())?;
    }
    for value in values {
        if let Some(dims) = given.inputs.get(value.name()) {
            stated(value, dims, &mut named)?;
        }
    }
    let mut batch = BatchSize {
        size: given.batch,
        is_open: false,
    };
    for value in values
        .iter()
        .filter(|v| !given.inputs.contains_key(v.name()))
    {
        batch.name(value, &mut named)?;
    }
    let mut facts = Vec::with_capacity(values.len());
    for value in values {
        let tensor = tensor_type(value).ok_or_else(|| InferError::NotATensor {
            input: value.name().to_owned(),
        })?;
        let dims = match given.inputs.get(value.name()) {
            Some(dims) => dims.clone(),
            None => batch.dims(value, &named)?,
        };
        let shape = Shape::new(&dims)
            .ok()
            .filter(|shape| shape.rank() <= MAX_RANK);
        let shape = shape.ok_or_else(|| InferError::TooLarge {
            tensor: value.name().to_owned(),
            shape: list(&dims),
            limit: "no memory can hold it".to_owned(),
        })?;
        facts.push(Fact::of_run(ElementType(tensor.elem_type()), shape));
    }
    match batch {
        BatchSize {
            size: Some(batch),
            is_open: false,
        } => Err(InferError::NoBatch { batch }),
        _ => {
            known_names(values, given)?;
            Ok((facts, named))
        }
    }
}

/// Each stated dimension must be one of an input.
fn known_names(values: &[&ValueInfoProto], given: &GivenShapes) -> Result<(), InferError> {
    let dims = values
        .iter()
        .filter_map(|value| tensor_type(value)?.shape.as_ref());
    let names: Vec<&str> = dims
        .flat_map(|shape| &shape.dim)
        .map(|dim| name(dim.value.as_ref()))
        .collect();
    let unknown = given
        .dims
        .keys()
        .find(|name| !names.contains(&name.as_str()));
    match unknown {
        None => Ok(()),
        Some(name) => Err(InferError::NoSuch {
            what: "dimension",
            name: name.clone(),
        }),
    }
}

/// Takes over the sizes that a stated shape gives to names, when it is one that the file allows.
fn stated<'a>(
    value: &'a ValueInfoProto,
    dims: &[usize],
    named: &mut NamedDims<'a>,
) -> Result<(), InferError> {
    if !accepts(value, dims) {
        return Err(InferError::Contradiction {
            role: "input",
            tensor: value.name().to_owned(),
            got: list(dims),
            by: "the file".to_owned(),
            stated: declared(value).unwrap_or_default(),
        });
    }
    let shape = tensor_type(value).and_then(|tensor| tensor.shape.as_ref());
    for (dim, &size) in shape.iter().flat_map(|shape| &shape.dim).zip(dims) {
        named.set(name(dim.value.as_ref()), size, &|| {
            format!("input `{}`", value.name())
        })?;
    }
    Ok(())
}

/// The batch size, for leading dimensions that nothing else fixes.
struct BatchSize {
    size: Option<usize>,
    /// Whether there is a leading dimension that it can be the size of.
    is_open: bool,
}

impl BatchSize {
    /// Gives the name of an input's leading dimension the batch size, unless the name has another one.
    fn name<'a>(
        &mut self,
        value: &'a ValueInfoProto,
        named: &mut NamedDims<'a>,
    ) -> Result<(), InferError> {
        let shape = tensor_type(value).and_then(|tensor| tensor.shape.as_ref());
        let first = shape.and_then(|shape| shape.dim.first());
        let (Some(size), Some(first)) = (self.size, first) else {
            return Ok(());
        };
        match fixed(first.value.as_ref()) {
            Some(fixed) => self.is_open |= fixed == size,
            None => {
                self.is_open = true;
                named.set(name(first.value.as_ref()), size, &|| {
                    "the batch size".to_owned()
                })?;
            }
        }
        Ok(())
    }

    /// The dimensions of an input whose shape was not stated.
    fn dims(
        &self,
        value: &ValueInfoProto,
        named: &NamedDims<'_>,
    ) -> Result<Vec<usize>, InferError> {
        let shape = tensor_type(value).and_then(|tensor| tensor.shape.as_ref());
        let Some(shape) = shape else {
            return Err(InferError::OpenInput {
                input: value.name().to_owned(),
                declared: "of any rank".to_owned(),
                hint: format!("pass `--input {}:1,2`", value.name()),
            });
        };
        let size = |(at, dim): (usize, &skep_proto::onnx::tensor_shape_proto::Dimension)| {
            let value = dim.value.as_ref();
            let size = fixed(value).or_else(|| named.get(name(value)));
            size.or(self.size.filter(|_| at == 0))
        };
        let sizes: Vec<Option<usize>> = shape.dim.iter().enumerate().map(size).collect();
        let known: Option<Vec<usize>> = sizes.iter().copied().collect();
        known.ok_or_else(|| InferError::OpenInput {
            input: value.name().to_owned(),
            declared: declared(value).unwrap_or_default(),
            hint: hint(value.name(), shape, &sizes, self.size.unwrap_or(1)),
        })
    }
}

/// What to pass for an input of these sizes: an example. An open dimension that looks like the batch has its size, the
/// others have usual ones.
fn hint(input: &str, shape: &TensorShapeProto, sizes: &[Option<usize>], batch: usize) -> String {
    let name = |at: usize| name(shape.dim.get(at).and_then(|dim| dim.value.as_ref()));
    let others = if sizes.len() == 4 { 224 } else { 128 };
    // States of recurrent networks begin with a fixed number of layers or directions; the batch comes after it.
    let is_behind_fixed = sizes
        .first()
        .is_some_and(|first| first.is_some_and(|size| size > 1));
    let usual = |at: usize| {
        let is_batch = name(at).to_ascii_lowercase().contains("batch");
        let is_first_open = sizes.iter().position(Option::is_none) == Some(at);
        let is_unnamed_batch = name(at).is_empty() && is_behind_fixed && at == 1 && is_first_open;
        if at == 0 || is_batch || is_unnamed_batch {
            batch
        } else {
            others
        }
    };
    let example = sizes.iter().enumerate();
    let example = example.map(|(at, size)| size.unwrap_or_else(|| usual(at)).to_string());
    let example = example.collect::<Vec<_>>().join(",");
    let open = |at: &usize| sizes[*at].is_none();
    let mut flags: Vec<String> = Vec::new();
    if open_first(sizes) {
        flags.push("--batch N".to_owned());
    }
    for at in (1..sizes.len()).filter(open) {
        if name(at).is_empty() {
            // Only the whole shape can be stated.
            return format!("pass `--input {input}:{example}`");
        }
        let flag = format!("--dim {}={}", name(at), usual(at));
        if !flags.contains(&flag) {
            flags.push(flag);
        }
    }
    let flags = flags.join(" ");
    format!("pass `{flags}` or `--input {input}:{example}`")
}

fn open_first(sizes: &[Option<usize>]) -> bool {
    sizes.first().is_some_and(Option::is_none)
}
