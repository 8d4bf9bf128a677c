//! The steps and tensors of an ensemble, by number.

use std::collections::HashMap;

use skep_config::{Ensemble, ModelConfig};

/// A tensor of an ensemble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TensorIndex(pub(super) usize);

/// A tensor of a part, and the tensor of the ensemble that it is.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct MappedTensor {
    pub(super) of_part: String,
    pub(super) tensor: TensorIndex,
}

/// A step.
#[derive(Debug)]
pub(super) struct GraphStep {
    pub(super) inputs: Vec<MappedTensor>,
    pub(super) outputs: Vec<MappedTensor>,
    /// A tensor, and what it has to be.
    pub(super) condition: Option<(TensorIndex, bool)>,
}

impl GraphStep {
    /// The tensors that have to be known before it starts.
    pub(super) fn reads(&self) -> impl Iterator<Item = TensorIndex> {
        let inputs = self.inputs.iter().map(|input| input.tensor);
        inputs.chain(self.condition.map(|(tensor, _)| tensor))
    }
}

/// The steps of an ensemble. `skep-config` has checked that every tensor is written, and that no step waits for itself.
#[derive(Debug)]
pub(super) struct EnsembleGraph {
    pub(super) steps: Vec<GraphStep>,
    /// The names of the tensors.
    pub(super) names: Vec<String>,
    /// By the order of the configuration's inputs.
    pub(super) inputs: Vec<TensorIndex>,
    /// By the order of the configuration's outputs.
    pub(super) outputs: Vec<TensorIndex>,
}

impl EnsembleGraph {
    pub(super) fn new(config: &ModelConfig, ensemble: &Ensemble) -> Self {
        let mut names = TensorNames::default();
        let inputs = config.inputs().iter();
        let inputs = inputs.map(|input| names.index(&input.name)).collect();
        let outputs = config.outputs().iter();
        let outputs = outputs.map(|output| names.index(&output.name)).collect();
        let steps = ensemble.steps.iter().map(|step| GraphStep {
            inputs: names.mapped(step.inputs.iter()),
            outputs: names.mapped(step.outputs.iter()),
            condition: step
                .condition
                .as_ref()
                .map(|condition| (names.index(&condition.tensor), condition.expected)),
        });
        Self {
            steps: steps.collect(),
            inputs,
            outputs,
            names: names.names,
        }
    }

    /// The steps that write a tensor.
    pub(super) fn writers(&self, tensor: TensorIndex) -> impl Iterator<Item = usize> {
        let steps = self.steps.iter().enumerate();
        steps.filter_map(move |(index, step)| {
            let mut outputs = step.outputs.iter();
            outputs
                .any(|output| output.tensor == tensor)
                .then_some(index)
        })
    }
}

/// Numbers tensors in the order in which they are named.
#[derive(Default)]
struct TensorNames {
    names: Vec<String>,
    indices: HashMap<String, TensorIndex>,
}

impl TensorNames {
    fn index(&mut self, name: &str) -> TensorIndex {
        if let Some(index) = self.indices.get(name) {
            return *index;
        }
        let index = TensorIndex(self.names.len());
        self.names.push(name.to_owned());
        self.indices.insert(name.to_owned(), index);
        index
    }

    fn mapped<'a>(
        &mut self,
        map: impl Iterator<Item = (&'a String, &'a String)>,
    ) -> Vec<MappedTensor> {
        map.map(|(of_part, of_ensemble)| MappedTensor {
            of_part: of_part.clone(),
            tensor: self.index(of_ensemble),
        })
        .collect()
    }
}
