//! The progress of one request through the steps of an ensemble. Pure: it starts nothing itself.

use skep_tensor::Tensor;

use super::graph::{EnsembleGraph, TensorIndex};

/// What is known of a tensor.
#[derive(Debug, Clone, Default)]
pub(super) enum FlowTensor {
    /// A step has yet to write it.
    #[default]
    Awaited,
    /// Its value, and whether that is alone in its memory.
    Known(Tensor, bool),
    /// The client left it out.
    Omitted,
    /// Every step that would write it was skipped.
    Skipped,
    /// Everything that reads it has it.
    Spent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StepState {
    /// Nothing that the client wants needs it.
    Unneeded,
    Waits,
    Runs,
    /// It has ended, or was skipped.
    IsOver,
}

/// The progress of one request.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    graph: &'a EnsembleGraph,
    tensors: Vec<FlowTensor>,
    /// By tensor: how many steps and outputs still read it.
    readers: Vec<usize>,
    /// By tensor: how many steps may still write it.
    writers: Vec<usize>,
    steps: Vec<StepState>,
}

/// A step that can start: its number, and its inputs.
pub(super) type StartedStep = (usize, Vec<(String, Tensor)>);

impl<'a> Flow<'a> {
    /// A request with these inputs, in the order of the configuration, that wants these of the ensemble's outputs.
    pub(super) fn new(
        graph: &'a EnsembleGraph,
        inputs: impl IntoIterator<Item = FlowTensor>,
        wanted: &[usize],
    ) -> Self {
        let count = graph.names.len();
        let mut flow = Self {
            graph,
            tensors: vec![FlowTensor::Awaited; count],
            readers: vec![0; count],
            writers: vec![0; count],
            steps: vec![StepState::Unneeded; graph.steps.len()],
        };
        for (tensor, value) in graph.inputs.iter().zip(inputs) {
            flow.tensors[tensor.0] = value;
        }
        let mut needed: Vec<TensorIndex> =
            wanted.iter().map(|output| graph.outputs[*output]).collect();
        while let Some(tensor) = needed.pop() {
            flow.readers[tensor.0] += 1;
            if flow.readers[tensor.0] > 1 {
                continue;
            }
            for step in graph.writers(tensor) {
                flow.writers[tensor.0] += 1;
                if flow.steps[step] == StepState::Unneeded {
                    flow.steps[step] = StepState::Waits;
                    needed.extend(graph.steps[step].reads());
                }
            }
        }
        flow
    }

    /// The steps that can start now. They count as started.
    pub(super) fn start(&mut self) -> Vec<StartedStep> {
        let mut started = Vec::new();
        let mut is_settled = false;
        while !is_settled {
            is_settled = true;
            for step in 0..self.steps.len() {
                if self.steps[step] == StepState::Waits && self.is_ready(step) {
                    if self.is_skipped(step) {
                        self.skip(step);
                        // Others may be skipped with it, or have waited for it alone.
                        is_settled = false;
                    } else {
                        let inputs = self.take_inputs(step);
                        self.steps[step] = StepState::Runs;
                        started.push((step, inputs));
                    }
                }
            }
        }
        started
    }

    /// Notes the outputs of a step that has ended: its tensor of each output, in the order of the graph.
    pub(super) fn finish(
        &mut self,
        step: usize,
        outputs: impl IntoIterator<Item = (TensorIndex, Tensor, bool)>,
    ) {
        self.steps[step] = StepState::IsOver;
        for (tensor, value, owns_memory) in outputs {
            if self.readers[tensor.0] > 0 {
                self.tensors[tensor.0] = FlowTensor::Known(value, owns_memory);
            }
        }
    }

    /// What an output of the ensemble is, once no step runs or waits.
    pub(super) fn output(&self, output: usize) -> &FlowTensor {
        &self.tensors[self.graph.outputs[output].0]
    }

    /// The outputs of a step that something reads.
    pub(super) fn wanted_outputs(&self, step: usize) -> impl Iterator<Item = (&str, TensorIndex)> {
        let outputs = self.graph.steps[step].outputs.iter();
        let read = outputs.filter(|output| self.readers[output.tensor.0] > 0);
        read.map(|output| (&*output.of_part, output.tensor))
    }

    fn is_ready(&self, step: usize) -> bool {
        let mut reads = self.graph.steps[step].reads();
        reads.all(|tensor| !matches!(self.tensors[tensor.0], FlowTensor::Awaited))
    }

    /// Whether a step that could run does not: its condition does not hold, or it lacks an input.
    fn is_skipped(&self, step: usize) -> bool {
        let step = &self.graph.steps[step];
        let mut inputs = step.inputs.iter();
        let holds = step.condition.is_none_or(|(tensor, expected)| {
            let is_true = match &self.tensors[tensor.0] {
                FlowTensor::Known(value, _) => is_true(value),
                _ => false,
            };
            is_true == expected
        });
        !holds || inputs.any(|input| matches!(self.tensors[input.tensor.0], FlowTensor::Skipped))
    }

    fn skip(&mut self, step: usize) {
        self.steps[step] = StepState::IsOver;
        let graph = self.graph;
        for tensor in graph.steps[step].reads() {
            self.read(tensor);
        }
        for output in &graph.steps[step].outputs {
            let writers = &mut self.writers[output.tensor.0];
            *writers = writers.saturating_sub(1);
            if *writers == 0 {
                self.tensors[output.tensor.0] = FlowTensor::Skipped;
            }
        }
    }

    fn take_inputs(&mut self, step: usize) -> Vec<(String, Tensor)> {
        let graph = self.graph;
        let step = &graph.steps[step];
        let mut inputs = Vec::with_capacity(step.inputs.len());
        for input in &step.inputs {
            if let FlowTensor::Known(value, _) = &self.tensors[input.tensor.0] {
                inputs.push((input.of_part.clone(), value.clone()));
            }
        }
        for tensor in step.reads() {
            self.read(tensor);
        }
        inputs
    }

    /// Notes that a reader has a tensor. After the last one its memory is not held any longer.
    fn read(&mut self, tensor: TensorIndex) {
        let readers = &mut self.readers[tensor.0];
        *readers = readers.saturating_sub(1);
        if *readers == 0 && matches!(self.tensors[tensor.0], FlowTensor::Known(..)) {
            self.tensors[tensor.0] = FlowTensor::Spent;
        }
    }
}

/// Whether any element of a truth value or an integer is not zero.
fn is_true(value: &Tensor) -> bool {
    value.data().iter().any(|byte| *byte != 0)
}
