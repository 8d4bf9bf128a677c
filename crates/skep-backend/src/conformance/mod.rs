//! A test suite for any backend: one model, its inputs and expected outputs, and everything that callers rely on.
//!
//! [`Case::run`] panics with what failed, as a test does. It checks that
//! - the signature names the expected tensors, and every output is correct, in any order and any subset,
//! - prepared and unprepared slots give the same result, and the backend writes into prepared memory if it says so,
//! - runs repeat, alone, from several instances at once over one model, and after all other holders dropped the model,
//! - wrong numbers of inputs, datatypes, shapes and output indices are errors, after which the instance still works.

#![allow(
    clippy::expect_used,
    clippy::missing_panics_doc,
    reason = "a test suite states what it expects"
)]

mod graph;

use std::{num::NonZeroUsize, sync::Arc, thread};

pub use graph::{Attribute, Graph, initializer};
use skep_config::{Completion, ConfigContext, ModelConfig};
use skep_tensor::{AlignedBuffer, Tensor, TensorView};
use skep_types::{DataType, DeviceId, MemoryKind, ModelName, Shape, TensorSpec};

use crate::{
    Backend, BackendError, ErrorKind, Instance, LoadRequest, Model, ModelFile, OutputSlot,
};

/// How close an output must be to the expected one: `|got - expected| <= absolute + relative * |expected|`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// As a share of the expected value.
    pub relative: f64,
    /// In units of the value.
    pub absolute: f64,
}

impl Tolerance {
    /// Equal to the bit.
    pub const EXACT: Self = Self {
        relative: 0.0,
        absolute: 0.0,
    };

    fn accepts(self, got: f64, expected: f64) -> bool {
        got == expected
            || (got.is_nan() && expected.is_nan())
            || (got - expected).abs() <= self.absolute + self.relative * expected.abs()
    }
}

/// One run: inputs in the signature's order and the expected outputs.
#[derive(Debug, Clone)]
pub struct Example {
    /// The inputs.
    pub inputs: Vec<Tensor>,
    /// The outputs, in the signature's order.
    pub outputs: Vec<Tensor>,
}

/// A model with examples of its inputs and outputs.
pub struct Case<'a> {
    /// The backend under test.
    pub backend: &'a dyn Backend,
    /// The model's file.
    pub file: &'a ModelFile,
    /// Its configuration.
    pub config: &'a ModelConfig,
    /// Names of inputs.
    pub input_names: &'a [&'a str],
    /// Names of outputs.
    pub output_names: &'a [&'a str],
    /// At least one run. Several batch sizes test more, one of them zero if the model allows it.
    pub examples: &'a [Example],
    /// How close outputs must be.
    pub tolerance: Tolerance,
}

/// Instances that run at once over one model.
const INSTANCES: usize = 4;
/// Rounds of all examples on each of them.
const ROUNDS: usize = 8;

impl Case<'_> {
    /// Runs all checks.
    pub fn run(&self) {
        let model = self.load().expect("the model loads");
        let other = Arc::clone(&model).instance(DeviceId::Gpu(0));
        let error = other
            .map(drop)
            .expect_err("an instance on a device that no test has");
        assert_eq!(error.kind(), ErrorKind::Unsupported, "{error}");
        self.signature(model.as_ref());
        let mut instance = Arc::clone(&model)
            .instance(DeviceId::default())
            .expect("an instance");
        for example in self.examples {
            self.orders_and_subsets(model.as_ref(), instance.as_mut(), example);
        }
        self.wrong_runs(instance.as_mut());
        self.concurrent(&model);
        // An instance keeps the parts of its model that it needs.
        drop(model);
        for example in self.examples {
            self.all_outputs(instance.as_mut(), example);
        }
    }

    /// Loads the model with one thread.
    ///
    /// # Errors
    /// Errors of the backend.
    pub fn load(&self) -> Result<Arc<dyn Model>, BackendError> {
        self.backend.load(&LoadRequest {
            file: self.file,
            config: self.config,
            threads: NonZeroUsize::MIN,
            weights: None,
            request_memory: None,
            device: DeviceId::default(),
            cpus: None,
        })
    }

    fn signature(&self, model: &dyn Model) {
        let signature = model.signature();
        assert_eq!(names(&signature.inputs), self.input_names, "inputs");
        assert_eq!(names(&signature.outputs), self.output_names, "outputs");
        let served = self.backend.capabilities().datatypes;
        for spec in signature.inputs.iter().chain(&signature.outputs) {
            assert!(
                served.contains(&spec.datatype),
                "{spec:?} is not in the capabilities"
            );
        }
        for example in self.examples {
            let shapes: Vec<&Shape> = example.inputs.iter().map(Tensor::shape).collect();
            if let Some(known) = model.output_shapes(&shapes) {
                let expected: Vec<&Shape> = example.outputs.iter().map(Tensor::shape).collect();
                assert_eq!(known.iter().collect::<Vec<_>>(), expected, "output_shapes");
            }
        }
    }

    fn all_outputs(&self, instance: &mut dyn Instance, example: &Example) {
        let wanted: Vec<usize> = (0..example.outputs.len()).collect();
        self.wanted(instance, example, &wanted, OutputSlot::new);
    }

    /// Every single output, all of them in both orders, prepared and not.
    fn orders_and_subsets(
        &self,
        model: &dyn Model,
        instance: &mut dyn Instance,
        example: &Example,
    ) {
        let count = example.outputs.len();
        let mut selections: Vec<Vec<usize>> = (0..count).map(|i| vec![i]).collect();
        selections.push((0..count).collect());
        selections.push((0..count).rev().collect());
        let shapes: Vec<&Shape> = example.inputs.iter().map(Tensor::shape).collect();
        let known = model.output_shapes(&shapes).is_some();
        for wanted in &selections {
            self.wanted(instance, example, wanted, OutputSlot::new);
            let prepared = |index: usize| {
                let output = &example.outputs[index];
                OutputSlot::prepared(index, output.datatype(), output.shape().clone())
                    .expect("there is memory")
            };
            self.wanted(instance, example, wanted, prepared);
            if known && self.backend.capabilities().prepared_outputs {
                self.written_in_place(instance, example, wanted);
            }
        }
    }

    fn wanted(
        &self,
        instance: &mut dyn Instance,
        example: &Example,
        wanted: &[usize],
        slot: impl Fn(usize) -> OutputSlot,
    ) {
        let inputs: Vec<TensorView<'_>> = example.inputs.iter().map(Tensor::view).collect();
        let mut slots: Vec<OutputSlot> = wanted.iter().map(|&i| slot(i)).collect();
        instance
            .execute(&inputs, &mut slots)
            .expect("the run succeeds");
        for (&index, slot) in wanted.iter().zip(slots) {
            let got = slot.into_tensor().expect("the slot is filled");
            let name = self.output_names[index];
            compare(name, &got, &example.outputs[index], self.tolerance);
        }
    }

    /// The prepared memory itself becomes the output.
    fn written_in_place(&self, instance: &mut dyn Instance, example: &Example, wanted: &[usize]) {
        let inputs: Vec<TensorView<'_>> = example.inputs.iter().map(Tensor::view).collect();
        let mut slots: Vec<OutputSlot> = Vec::new();
        let mut places = Vec::new();
        for &index in wanted {
            let output = &example.outputs[index];
            let mut slot = OutputSlot::prepared(index, output.datatype(), output.shape().clone())
                .expect("there is memory");
            places.push(
                slot.prepared_mut()
                    .map(|(_, _, memory)| memory.as_ptr().addr()),
            );
            slots.push(slot);
        }
        instance
            .execute(&inputs, &mut slots)
            .expect("the run succeeds");
        for (place, slot) in places.into_iter().zip(slots) {
            let got = slot.into_tensor().expect("the slot is filled");
            if let Some(place) = place.filter(|_| !got.data().is_empty()) {
                assert_eq!(got.data().as_ptr().addr(), place, "not written in place");
            }
        }
    }

    fn concurrent(&self, model: &Arc<dyn Model>) {
        thread::scope(|scope| {
            for offset in 0..INSTANCES {
                let mut instance = Arc::clone(model)
                    .instance(DeviceId::default())
                    .expect("an instance");
                scope.spawn(move || {
                    for round in 0..ROUNDS * self.examples.len() {
                        // Different batch sizes on different instances at the same time.
                        let example = &self.examples[(round + offset) % self.examples.len()];
                        self.all_outputs(instance.as_mut(), example);
                    }
                });
            }
        });
    }

    /// Arguments that a correct caller never passes must give an error.
    fn wrong_runs(&self, instance: &mut dyn Instance) {
        let example = &self.examples[0];
        let views: Vec<TensorView<'_>> = example.inputs.iter().map(Tensor::view).collect();
        let mut invalid = |what: &str, inputs: &[TensorView<'_>], index: usize| {
            let mut slots = [OutputSlot::new(index)];
            let error = instance.execute(inputs, &mut slots).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{what}: {error}");
        };
        invalid(
            "an output that the model lacks",
            &views,
            example.outputs.len(),
        );
        if let Some((first, rest)) = views.split_first() {
            invalid("an input too few", rest, 0);
            let more: Vec<_> = views.iter().copied().chain([*first]).collect();
            invalid("an input too many", &more, 0);
            let other = other_datatype(first.datatype());
            let shape = Shape::new(&[0]).expect("a shape");
            let empty = TensorView::new(other, &shape, &[]).expect("a tensor");
            let wrong: Vec<_> = [empty].into_iter().chain(rest.iter().copied()).collect();
            invalid("another datatype", &wrong, 0);
            if first.shape().rank() > 0 {
                self.wrong_rank(instance, example);
            }
            self.wrong_memory(instance, example);
        }
        self.all_outputs(instance, example);
    }

    /// Tensors in memory that a run on the CPU cannot reach.
    fn wrong_memory(&self, instance: &mut dyn Instance, example: &Example) {
        let elsewhere = MemoryKind::Device(DeviceId::Gpu(0));
        let views: Vec<TensorView<'_>> = example.inputs.iter().map(Tensor::view).collect();
        let moved = example.inputs[0].clone().in_memory(elsewhere);
        let mut wrong = views.clone();
        wrong[0] = moved.view();
        let runs = [
            ("an input", wrong, OutputSlot::new(0)),
            ("an output", views, OutputSlot::new(0).in_memory(elsewhere)),
        ];
        for (what, inputs, slot) in runs {
            let error = instance.execute(&inputs, &mut [slot]).expect_err(what);
            assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{what}: {error}");
        }
    }

    /// The first input with one more dimension of size 1 in front.
    fn wrong_rank(&self, instance: &mut dyn Instance, example: &Example) {
        let first = &example.inputs[0];
        let dims: Vec<usize> = [1]
            .into_iter()
            .chain(first.shape().dims().iter().copied())
            .collect();
        let deeper = first
            .clone()
            .reshape(Shape::new(&dims).expect("a shape"))
            .expect("reshapes");
        let views: Vec<TensorView<'_>> = [&deeper]
            .into_iter()
            .chain(&example.inputs[1..])
            .map(Tensor::view)
            .collect();
        let error = instance
            .execute(&views, &mut [OutputSlot::new(0)])
            .expect_err("another rank");
        assert_eq!(error.kind(), ErrorKind::InvalidArgument, "{error}");
    }
}

/// Runs that need more memory than they may take: each is an error, and the instance still works afterwards. Works
/// with the models of [`sized_by_value`], and others with one INT64 input of one element and one output of that many
/// elements.
pub fn too_much_memory(model: &Arc<dyn Model>) {
    let mut instance = Arc::clone(model)
        .instance(DeviceId::default())
        .expect("an instance");
    let mut execute = |count: i64| {
        let count = int64(&[1], &[count]);
        let mut slots = [OutputSlot::new(0)];
        instance.execute(&[count.view()], &mut slots)?;
        let [slot] = slots;
        Ok::<_, BackendError>(slot.into_tensor().expect("the slot is filled"))
    };
    for count in TOO_MANY {
        let got = execute(3).expect("the run succeeds");
        assert_eq!(got.shape().dims(), [3]);
        let error = execute(count).expect_err("more than any machine has");
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{count}: {error}");
    }
    assert!(execute(3).is_ok());
}

/// Numbers of FP32 elements that no machine has memory for, up to the largest whose size in bytes does not overflow.
const TOO_MANY: [i64; 3] = [1 << 40, 10_000_000_000_000, 1 << 58];

/// A model whose output has as many elements as its input says; `computed` adds an intermediate tensor of that size.
#[must_use]
pub fn sized_by_value(computed: bool) -> Graph {
    let graph =
        Graph::new()
            .input("n", DataType::Int64, &["1"])
            .output("y", DataType::Fp32, &["?"]);
    let made = |graph: Graph, name| graph.node("ConstantOfShape", &["n"], &[name], &[]);
    if computed {
        made(graph, "x").node("Relu", &["x"], &["y"], &[])
    } else {
        made(graph, "y")
    }
}

const fn other_datatype(datatype: DataType) -> DataType {
    match datatype {
        DataType::Fp32 => DataType::Int32,
        _ => DataType::Fp32,
    }
}

fn names(specs: &[TensorSpec]) -> Vec<&str> {
    specs.iter().map(|spec| spec.name.as_str()).collect()
}

/// Compares an output with the expected one.
///
/// # Panics
/// With the first difference.
pub fn compare(name: &str, got: &Tensor, expected: &Tensor, tolerance: Tolerance) {
    if let Some(difference) = difference(got, expected, tolerance) {
        panic!("output `{name}`: {difference}");
    }
}

/// The first difference between an output and the expected one; `None` if they agree.
#[must_use]
pub fn difference(got: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Option<String> {
    if got.datatype() != expected.datatype() || got.shape() != expected.shape() {
        return Some(format!(
            "got {} {}, expected {} {}",
            got.datatype(),
            got.shape(),
            expected.datatype(),
            expected.shape()
        ));
    }
    let (Some(left), Some(right)) = (numbers(got), numbers(expected)) else {
        return (got.data() != expected.data())
            .then(|| "the bytes differ from the expected ones".to_owned());
    };
    let mut pairs = left.iter().zip(&right);
    let index = pairs.position(|(&got, &expected)| !tolerance.accepts(got, expected))?;
    Some(format!(
        "got {} at index {index}, expected {}",
        left[index], right[index]
    ))
}

/// The elements as floating-point numbers; `None` for datatypes that are compared by their bytes.
fn numbers(tensor: &Tensor) -> Option<Vec<f64>> {
    let data = tensor.data();
    match tensor.datatype() {
        DataType::Fp32 => {
            let chunks = data.as_chunks::<4>().0.iter();
            Some(chunks.map(|c| f64::from(f32::from_le_bytes(*c))).collect())
        }
        DataType::Fp64 => {
            let chunks = data.as_chunks::<8>().0.iter();
            Some(chunks.map(|c| f64::from_le_bytes(*c)).collect())
        }
        _ => None,
    }
}

/// The configuration of a model called `test`, from the text of a `config.pbtxt`. A text without tensors gets one
/// input and one output, which backends that read a file ignore.
///
/// # Panics
/// If the text is not a valid configuration.
#[must_use]
pub fn config(backend: &str, pbtxt: &str) -> ModelConfig {
    let name = ModelName::new("test").expect("a name");
    let mut proto =
        skep_config::parse_pbtxt(pbtxt.as_bytes(), "config.pbtxt").expect("a configuration");
    if proto.input.is_empty() && proto.output.is_empty() {
        let tensors = "input { name: 'x' data_type: TYPE_FP32 dims: 1 } output { name: 'y' data_type: TYPE_FP32 dims: 1 }";
        let tensors = skep_config::parse_pbtxt(tensors.as_bytes(), "tensors").expect("tensors");
        (proto.input, proto.output) = (tensors.input, tensors.output);
    }
    let completion = Completion {
        is_unbatched: false,
        model: &name,
        backend,
        model_filename: "",
        default_max_batch_size: 0,
        signature: None,
    };
    skep_config::complete(&mut proto, &completion).expect("a complete configuration");
    ModelConfig::from_proto(proto, &ConfigContext::new(&name)).expect("a valid configuration")
}

/// A tensor of FP32 elements.
#[must_use]
pub fn fp32(dims: &[usize], values: &[f32]) -> Tensor {
    tensor(
        DataType::Fp32,
        dims,
        values.iter().flat_map(|v| v.to_le_bytes()),
    )
}

/// A tensor of INT64 elements.
#[must_use]
pub fn int64(dims: &[usize], values: &[i64]) -> Tensor {
    tensor(
        DataType::Int64,
        dims,
        values.iter().flat_map(|v| v.to_le_bytes()),
    )
}

/// A tensor of any datatype from its bytes.
#[must_use]
pub fn tensor(datatype: DataType, dims: &[usize], bytes: impl IntoIterator<Item = u8>) -> Tensor {
    let bytes: Vec<u8> = bytes.into_iter().collect();
    let mut buffer = AlignedBuffer::zeroed(bytes.len());
    buffer.copy_from_slice(&bytes);
    let shape = Shape::new(dims).expect("a shape");
    Tensor::new(datatype, shape, buffer.freeze()).expect("bytes agree with the shape")
}
