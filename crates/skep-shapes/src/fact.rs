//! What is known of a tensor before a run: element type, shape, and the values of small ones.

use std::rc::Rc;

use skep_onnx::is_external;
use skep_proto::onnx::{TensorProto, tensor_proto::DataType as Onnx};
use skep_types::Shape;

use crate::{element::ElementType, error::RuleRefusal};

/// Whole numbers beyond this many are not followed: shapes, indices and masks of exported models are far below.
pub(super) const MAX_INTS: usize = 64 << 10;
/// Floats matter as scales and sizes alone; weights must not be computed with.
pub(super) const MAX_FLOATS: usize = 1 << 10;

/// When the values of a tensor are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum KnownFrom {
    /// They follow from the file alone: an initializer, a `Constant`, or what is computed from such.
    File,
    /// They follow from the file and the shapes of the inputs.
    Shapes,
    /// They are known only in a run.
    Run,
}

/// Values in row-major order.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum ElementValues {
    /// Of an integer type; truths are 0 and 1, UINT64 above `i64::MAX` is not followed.
    Ints(Vec<i64>),
    /// Of FP32, rounded to it, or of FP64.
    Floats(Vec<f64>),
}

impl ElementValues {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Ints(values) => values.len(),
            Self::Floats(values) => values.len(),
        }
    }

    /// The elements at these places; `None` where one is outside.
    pub(super) fn pick(&self, places: impl Iterator<Item = usize>) -> Option<Self> {
        Some(match self {
            Self::Ints(values) => Self::Ints(
                places
                    .map(|at| values.get(at).copied())
                    .collect::<Option<_>>()?,
            ),
            Self::Floats(values) => Self::Floats(
                places
                    .map(|at| values.get(at).copied())
                    .collect::<Option<_>>()?,
            ),
        })
    }
}

/// Where a tensor's values are.
#[derive(Debug, Clone)]
pub(super) enum FactValue<'a> {
    Unknown,
    /// In the file, read when somebody asks.
    File(&'a TensorProto),
    Held(Rc<ElementValues>),
}

/// A tensor.
#[derive(Debug, Clone)]
pub(super) struct Fact<'a> {
    pub(super) element: ElementType,
    pub(super) shape: Shape,
    pub(super) value: FactValue<'a>,
    pub(super) known: KnownFrom,
}

impl<'a> Fact<'a> {
    /// A tensor whose values are known only in a run.
    pub(super) const fn of_run(element: ElementType, shape: Shape) -> Self {
        Self {
            element,
            shape,
            value: FactValue::Unknown,
            known: KnownFrom::Run,
        }
    }

    /// A tensor of the file whose values are not followed.
    pub(super) const fn of_constant(element: ElementType, shape: Shape) -> Self {
        Self {
            element,
            shape,
            value: FactValue::Unknown,
            known: KnownFrom::File,
        }
    }

    /// A tensor of the file.
    pub(super) fn of_file(tensor: &'a TensorProto) -> Result<Self, RuleRefusal> {
        let shape = Shape::from_wire(&tensor.dims)
            .map_err(|error| RuleRefusal::Invalid(format!("holds a tensor whose {error}")))?;
        let element = ElementType(tensor.data_type());
        Ok(Self {
            element,
            value: if followed(element, &shape) {
                FactValue::File(tensor)
            } else {
                FactValue::Unknown
            },
            shape,
            known: KnownFrom::File,
        })
    }

    /// A tensor of these values.
    pub(super) fn of_values(element: ElementType, shape: Shape, values: ElementValues) -> Self {
        Self {
            element,
            shape,
            value: FactValue::Held(Rc::new(values)),
            known: KnownFrom::File,
        }
    }

    pub(super) fn dims(&self) -> &[usize] {
        self.shape.dims()
    }

    /// Whether its values are known.
    pub(super) const fn has_value(&self) -> bool {
        !matches!(self.value, FactValue::Unknown)
    }

    /// Its values, if they are known and well-formed.
    pub(super) fn elements(&self) -> Option<Rc<ElementValues>> {
        match &self.value {
            FactValue::Unknown => None,
            FactValue::Held(values) => Some(Rc::clone(values)),
            FactValue::File(tensor) => {
                read(tensor, self.element, self.shape.element_count()).map(Rc::new)
            }
        }
    }

    /// Its values as whole numbers.
    pub(super) fn ints(&self) -> Option<Vec<i64>> {
        match &*self.elements()? {
            ElementValues::Ints(values) => Some(values.clone()),
            ElementValues::Floats(_) => None,
        }
    }

    /// Its values as floats.
    pub(super) fn floats(&self) -> Option<Vec<f64>> {
        match &*self.elements()? {
            ElementValues::Floats(values) => Some(values.clone()),
            ElementValues::Ints(_) => None,
        }
    }

    /// The one whole number that it holds.
    pub(super) fn int(&self) -> Option<i64> {
        match self.shape.element_count() {
            1 => self.ints()?.first().copied(),
            _ => None,
        }
    }

    /// The one float that it holds.
    pub(super) fn float(&self) -> Option<f64> {
        match self.shape.element_count() {
            1 => self.floats()?.first().copied(),
            _ => None,
        }
    }

    /// The same tensor in a run with other values.
    pub(super) fn without_value(&self) -> Self {
        Fact::of_run(self.element, self.shape.clone())
    }
}

/// Whether values of a tensor like this are followed.
pub(super) fn followed(element: ElementType, shape: &Shape) -> bool {
    let count = shape.element_count();
    (element.is_integer() && count <= MAX_INTS) || (element.is_float() && count <= MAX_FLOATS)
}

/// The values of a tensor in the file; `None` when they lie elsewhere or are not as many as its shape says.
fn read(tensor: &TensorProto, element: ElementType, count: usize) -> Option<ElementValues> {
    if is_external(tensor) {
        return None;
    }
    let values = match tensor.raw_data.as_deref() {
        Some(raw) if !raw.is_empty() => raw_values(raw, element)?,
        _ => typed_values(tensor, element)?,
    };
    (values.len() == count).then_some(values)
}

fn raw_values(raw: &[u8], element: ElementType) -> Option<ElementValues> {
    /// Little-endian numbers of `N` bytes.
    fn numbers<const N: usize, T>(raw: &[u8], number: impl Fn([u8; N]) -> T) -> Option<Vec<T>> {
        let (chunks, []) = raw.as_chunks::<N>() else {
            return None;
        };
        Some(chunks.iter().map(|chunk| number(*chunk)).collect())
    }
    let ints = match Onnx::try_from(element.0).ok()? {
        Onnx::Float => {
            return numbers(raw, |b| f64::from(f32::from_le_bytes(b))).map(ElementValues::Floats);
        }
        Onnx::Double => return numbers(raw, f64::from_le_bytes).map(ElementValues::Floats),
        Onnx::Bool => numbers(raw, |[b]| i64::from(b != 0)),
        Onnx::Uint8 => numbers(raw, |[b]| i64::from(b)),
        Onnx::Int8 => numbers(raw, |b| i64::from(i8::from_le_bytes(b))),
        Onnx::Uint16 => numbers(raw, |b| i64::from(u16::from_le_bytes(b))),
        Onnx::Int16 => numbers(raw, |b| i64::from(i16::from_le_bytes(b))),
        Onnx::Uint32 => numbers(raw, |b| i64::from(u32::from_le_bytes(b))),
        Onnx::Int32 => numbers(raw, |b| i64::from(i32::from_le_bytes(b))),
        Onnx::Int64 => numbers(raw, i64::from_le_bytes),
        Onnx::Uint64 => {
            let values = numbers(raw, |b| i64::try_from(u64::from_le_bytes(b)))?;
            values.into_iter().collect::<Result<_, _>>().ok()
        }
        _ => None,
    };
    ints.map(ElementValues::Ints)
}

fn typed_values(tensor: &TensorProto, element: ElementType) -> Option<ElementValues> {
    Some(match Onnx::try_from(element.0).ok()? {
        Onnx::Float => {
            ElementValues::Floats(tensor.float_data.iter().map(|&v| f64::from(v)).collect())
        }
        Onnx::Double => ElementValues::Floats(tensor.double_data.clone()),
        Onnx::Int64 => ElementValues::Ints(tensor.int64_data.clone()),
        Onnx::Uint32 | Onnx::Uint64 => {
            let values = tensor.uint64_data.iter().map(|&v| i64::try_from(v));
            ElementValues::Ints(values.collect::<Result<_, _>>().ok()?)
        }
        Onnx::Bool => ElementValues::Ints(
            tensor
                .int32_data
                .iter()
                .map(|&v| i64::from(v != 0))
                .collect(),
        ),
        Onnx::Uint8 | Onnx::Int8 | Onnx::Uint16 | Onnx::Int16 | Onnx::Int32 => {
            ElementValues::Ints(tensor.int32_data.iter().map(|&v| i64::from(v)).collect())
        }
        _ => return None,
    })
}
