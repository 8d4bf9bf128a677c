//! Ragged batches: inputs joined flat, inputs computed for a batch, outputs split by an input's shapes.
//!
//! Source: Triton, user guide, "Ragged Batching"; backend utilities (`backend_input_collector`,
//! `backend_output_responder`).

use skep_config::{BatchInputKind, ModelConfig};
use skep_tensor::{Tensor, gather, split};
use skep_types::{DataType, Dims, ModelSignature, Shape};
use smallvec::SmallVec;

use crate::{
    error::RuntimeError,
    serving::{
        batch::BatchRow,
        sequences::{SequenceFeeds, SequenceInput},
    },
};

/// How a model is fed that has ragged inputs or inputs of the server's, and how its outputs are split.
#[derive(Debug)]
pub(crate) struct BatchFeeds {
    /// The model's inputs, in its order.
    feeds: Vec<Feed>,
    /// For each output of the interface: the request's input whose shape it has, if any.
    scatter: Vec<Option<usize>>,
}

/// What the model gets for an input. The inputs of requests are numbered among themselves, in the model's order.
#[derive(Debug)]
enum Feed {
    /// A request's input, joined along the batch dimension.
    Even(usize),
    /// A request's input, joined flat.
    Flat(usize),
    Computed {
        kind: BatchInputKind,
        datatype: DataType,
        /// The request's input whose shapes it describes.
        source: usize,
    },
    /// An input of sequences.
    Sequence(SequenceInput),
}

impl BatchFeeds {
    /// `None` for a model that gets the inputs of requests as they are. `names` are those of the requests' inputs, in the
    /// model's order.
    pub(crate) fn new(
        config: &ModelConfig,
        signature: &ModelSignature,
        names: &[&str],
        sequences: Option<&SequenceFeeds>,
    ) -> Option<Self> {
        let plain = sequences.is_none()
            && config.batch_inputs().is_empty()
            && config.batch_outputs().is_empty()
            && config.inputs().iter().all(|input| !input.ragged);
        if plain {
            return None;
        }
        Some(Self {
            feeds: signature
                .inputs
                .iter()
                .filter_map(|spec| {
                    let input = sequences.and_then(|feeds| feeds.input(&spec.name));
                    let sequence = input.map(Feed::Sequence);
                    sequence.or_else(|| Feed::new(&spec.name, config, names))
                })
                .collect(),
            scatter: config
                .outputs()
                .iter()
                .map(|output| scatter_source(&output.name, config, names))
                .collect(),
        })
    }

    /// The model's inputs for a batch, in its order. `even` joins an input along the batch dimension; `sequence` makes one
    /// of sequences.
    pub(crate) fn feed(
        &self,
        rows: &[BatchRow<'_>],
        even: impl Fn(usize) -> Result<Tensor, RuntimeError>,
        sequence: impl Fn(SequenceInput) -> Result<Tensor, RuntimeError>,
    ) -> Result<SmallVec<[Tensor; 4]>, RuntimeError> {
        let feeds = self.feeds.iter();
        feeds
            .map(|feed| match feed {
                Feed::Even(input) => even(*input),
                Feed::Flat(input) => {
                    let parts = rows.iter().map(|row| flat(&row.input(*input)));
                    gather(&parts.collect::<Result<Vec<_>, _>>()?).map_err(internal)
                }
                Feed::Computed {
                    kind,
                    datatype,
                    source,
                } => {
                    let shapes = rows.iter().map(|row| row.shape(*source));
                    computed(*kind, *datatype, &shapes.collect::<Vec<_>>())
                }
                Feed::Sequence(input) => sequence(*input),
            })
            .collect()
    }

    /// The input whose shapes an output has, if any.
    pub(crate) fn scattered_by(&self, output: usize) -> Option<usize> {
        self.scatter[output]
    }
}

impl Feed {
    fn new(name: &str, config: &ModelConfig, names: &[&str]) -> Option<Self> {
        if let Some(number) = number(name, names) {
            let ragged = config.input(name).is_some_and(|input| input.ragged);
            return Some(if ragged {
                Self::Flat(number)
            } else {
                Self::Even(number)
            });
        }
        let mut computed = config.batch_inputs().iter();
        let input = computed.find(|input| input.name == name)?;
        Some(Self::Computed {
            kind: input.kind,
            datatype: input.datatype,
            source: number(&input.source, names)?,
        })
    }
}

fn number(name: &str, names: &[&str]) -> Option<usize> {
    names.iter().position(|known| *known == name)
}

/// The number of the input whose shapes an output has, if any.
fn scatter_source(output: &str, config: &ModelConfig, names: &[&str]) -> Option<usize> {
    let mut outputs = config.batch_outputs().iter();
    number(&outputs.find(|found| found.name == output)?.source, names)
}

fn internal(error: impl std::fmt::Display) -> RuntimeError {
    RuntimeError::internal(error.to_string())
}

/// A tensor's elements in one dimension, without a copy.
fn flat(tensor: &Tensor) -> Result<Tensor, RuntimeError> {
    let shape = Shape::new(&[tensor.shape().element_count()]).map_err(internal)?;
    tensor.clone().reshape(shape).map_err(internal)
}

/// The computed input of a batch whose requests have inputs of these shapes.
fn computed(
    kind: BatchInputKind,
    datatype: DataType,
    shapes: &[&Shape],
) -> Result<Tensor, RuntimeError> {
    let counts = shapes.iter().map(|shape| shape.element_count());
    let sums = || {
        counts.clone().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        })
    };
    let rank = shapes
        .first()
        .map_or(0, |shape| shape.rank().saturating_sub(1));
    let values: Vec<usize> = match kind {
        BatchInputKind::ElementCount => counts.collect(),
        BatchInputKind::AccumulatedElementCount => sums().collect(),
        BatchInputKind::AccumulatedElementCountWithZero => {
            std::iter::once(0).chain(sums()).collect()
        }
        BatchInputKind::MaxElementCountAsShape => vec![0; counts.max().unwrap_or_default()],
        BatchInputKind::ItemShape | BatchInputKind::ItemShapeFlatten => {
            let rows = shapes.iter().filter_map(|shape| shape.dims().split_first());
            let rows = rows.flat_map(|(batch, dims)| std::iter::repeat_n(dims, *batch));
            rows.flatten().copied().collect()
        }
    };
    let dims: &[usize] = match kind {
        BatchInputKind::ItemShape => &[values.len() / rank.max(1), rank],
        _ => &[values.len()],
    };
    let shape = Shape::new(dims).map_err(internal)?;
    let mut data = Vec::with_capacity(values.len() * size_of::<i32>());
    for value in values {
        let whole = i32::try_from(value).map_err(|_| {
            internal(format!(
                "a batch of {value} elements is more than a batch_input can count"
            ))
        })?;
        match datatype {
            DataType::Fp32 => data.extend((whole as f32).to_le_bytes()),
            _ => data.extend(whole.to_le_bytes()),
        }
    }
    Tensor::new(datatype, shape, data.into()).map_err(internal)
}

/// Splits an output by the shapes of an input: each job's part has the output's `dims`, batch dimension included, with
/// the variable ones taken from the job's input.
pub(crate) fn scatter(
    output: &Tensor,
    dims: &Dims,
    shapes: &[&Shape],
) -> Result<SmallVec<[Tensor; 1]>, String> {
    let wanted = shapes.iter().map(|shape| filled_in(dims, shape));
    let wanted: Vec<Shape> = wanted.collect::<Result<_, _>>()?;
    let counts: Vec<usize> = wanted.iter().map(Shape::element_count).collect();
    let flat = flat(output).map_err(|error| error.to_string())?;
    let parts = split(&flat, &counts).map_err(|error| error.to_string())?;
    let shaped = parts.into_iter().zip(wanted);
    let shaped = shaped.map(|(part, shape)| part.reshape(shape).map_err(|e| e.to_string()));
    shaped.collect()
}

/// `dims` with the variable ones taken from `shape`.
fn filled_in(dims: &Dims, shape: &Shape) -> Result<Shape, String> {
    let sizes = dims.as_slice().iter().enumerate();
    let sizes = sizes.map(|(axis, dim)| match dim {
        -1 => shape.dims().get(axis).copied().unwrap_or(1),
        fixed => usize::try_from(*fixed).unwrap_or_default(),
    });
    Shape::new(&sizes.collect::<Vec<_>>()).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[usize]) -> Shape {
        Shape::new(dims).expect("a shape")
    }

    /// The shape and the values of a computed input.
    fn computed_values(kind: BatchInputKind, shapes: &[Shape]) -> (Vec<usize>, Vec<i32>) {
        let shapes: Vec<&Shape> = shapes.iter().collect();
        let tensor = computed(kind, DataType::Int32, &shapes).expect("computed");
        let values = tensor.data().as_chunks().0.iter();
        let reals = computed(kind, DataType::Fp32, &shapes).expect("computed");
        let reals = reals.data().as_chunks().0.iter();
        let reals: Vec<f32> = reals.map(|bytes| f32::from_le_bytes(*bytes)).collect();
        let values: Vec<i32> = values.map(|bytes| i32::from_le_bytes(*bytes)).collect();
        assert_eq!(reals, values.iter().map(|v| *v as f32).collect::<Vec<_>>());
        (tensor.shape().dims().to_vec(), values)
    }

    /// The examples of `model_config.proto` and of the user guide.
    #[test]
    fn each_kind_of_computed_input_has_its_values() {
        use BatchInputKind as Kind;
        let three = [shape(&[1, 3]), shape(&[1, 4]), shape(&[1, 5])];
        assert_eq!(
            computed_values(Kind::ElementCount, &three),
            (vec![3], vec![3, 4, 5])
        );
        let sums = computed_values(Kind::AccumulatedElementCount, &three);
        assert_eq!(sums, (vec![3], vec![3, 7, 12]));
        let sums = computed_values(Kind::AccumulatedElementCountWithZero, &three);
        assert_eq!(sums, (vec![4], vec![0, 3, 7, 12]));
        let largest = computed_values(Kind::MaxElementCountAsShape, &three);
        assert_eq!(largest, (vec![5], vec![0; 5]));
        let two = [shape(&[2, 3, 1]), shape(&[1, 2, 2])];
        let rows = vec![3, 1, 3, 1, 2, 2];
        assert_eq!(
            computed_values(Kind::ItemShape, &two),
            (vec![3, 2], rows.clone())
        );
        assert_eq!(
            computed_values(Kind::ItemShapeFlatten, &two),
            (vec![6], rows)
        );
        // The batch dimension counts.
        assert_eq!(
            computed_values(Kind::ElementCount, &two),
            (vec![2], vec![6, 4])
        );
    }

    #[test]
    fn an_output_is_split_by_the_shapes_of_an_input() {
        let data: Vec<u8> = (0..8).collect();
        let output = Tensor::new(DataType::Uint8, shape(&[8]), data.into()).expect("a tensor");
        let dims = Dims::new(&[-1, -1, 2]).expect("dims");
        let (one, two) = (shape(&[1, 3]), shape(&[1, 1]));
        let parts = scatter(&output, &dims, &[&one, &two]).expect("fits");
        let shapes: Vec<&[usize]> = parts.iter().map(|part| part.shape().dims()).collect();
        assert_eq!(shapes, [&[1, 3, 2][..], &[1, 1, 2]]);
        assert_eq!(parts[1].data().as_ref(), [6, 7]);
        let error = scatter(&output, &dims, &[&one]).expect_err("two elements are left");
        assert!(error.contains('8') && error.contains('6'), "{error}");
    }
}
