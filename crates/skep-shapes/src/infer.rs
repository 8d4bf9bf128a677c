//! Inference of one model: its inputs' shapes, then a walk through its graph, then a check of its outputs.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
};

use skep_onnx::OnnxModel;
use skep_proto::onnx::ValueInfoProto;
use skep_types::Shape;

use crate::{
    call::Datum,
    declaration,
    element::ElementType,
    error::{InferError, list},
    fact::KnownFrom,
    given::{self, GivenShapes},
    limits, order,
    scope::{self, NameScope},
    walk::GraphWalk,
};

/// A tensor of the main graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferredTensor {
    /// The type of its elements.
    pub element: ElementType,
    /// Its shape.
    pub shape: Shape,
    /// When its values are known.
    pub known: KnownFrom,
}

impl InferredTensor {
    /// The bytes of its elements, packed ones to the next full byte; strings count as the handles that ONNX Runtime
    /// keeps.
    ///
    /// # Panics
    /// Never for an inferred tensor: inference refuses tensors that are too large.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.element
            .bytes(&self.shape)
            .expect("checked when inferred")
    }

    /// Whether its values can be computed before a run: from the file, or from the inputs' shapes as well.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.known < KnownFrom::Run
    }
}

/// The tensors and the order of a main graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferredShapes {
    /// The nodes, by their index in the file, in an order in which each follows what it reads: the file's own where it
    /// is such an order.
    pub order: Vec<usize>,
    /// Inputs, initializers, and what nodes give, by name. Sequences are left out.
    pub tensors: BTreeMap<String, InferredTensor>,
    /// Outputs that the file declares with another shape; a run gives the inferred one, and a warning.
    pub declared_otherwise: Vec<InferError>,
}

/// The shape of each tensor of the main graph.
///
/// # Errors
/// [`InferError`]: inputs of unknown size, shapes that depend on values, unknown operators, contradicting shapes,
/// invalid graphs.
pub fn infer_shapes(model: &OnnxModel, given: &GivenShapes) -> Result<InferredShapes, InferError> {
    let graph = model.graph();
    let mut scope = NameScope {
        data: HashMap::new(),
        outer: None,
        versions: Rc::new(scope::versions(&model.proto().opset_import)),
        frame: None,
        declared: HashMap::new(),
        is_stated: true,
        left_out: HashSet::new(),
        depth: 0,
    };
    scope.add_graph(graph)?;
    let inputs: Vec<&ValueInfoProto> = graph
        .input
        .iter()
        .filter(|value| {
            !scope.data.contains_key(value.name()) || given.inputs.contains_key(value.name())
        })
        .collect();
    if let Some(name) = given
        .inputs
        .keys()
        .find(|name| !inputs.iter().any(|input| input.name() == name.as_str()))
    {
        return Err(InferError::NoSuch {
            what: "input",
            name: name.clone(),
        });
    }
    let (facts, named) = given::inputs(&inputs, given)?;
    let mut seen = BTreeSet::new();
    for (value, fact) in inputs.iter().zip(facts) {
        if !seen.insert(value.name()) {
            return Err(InferError::Twice {
                tensor: value.name().to_owned(),
                second: "an input".to_owned(),
            });
        }
        limits::checked(value.name(), fact.element, fact.dims())?;
        scope.data.insert(value.name(), Datum::Tensor(fact));
    }
    let order = order::order(&graph.node, &|name| scope.is_readable(name))?;
    let mut walk = GraphWalk::new(&model.proto().functions, &given.tensors, named);
    walk.nodes(&mut scope, &graph.node, &order)?;
    if let Some(name) = walk.not_met() {
        return Err(InferError::NoSuch {
            what: "tensor",
            name: name.to_owned(),
        });
    }
    let mut declared_otherwise = Vec::new();
    for output in &graph.output {
        declared_otherwise.extend(check_output(&scope, output)?);
    }
    Ok(InferredShapes {
        order,
        tensors: tensors(&scope),
        declared_otherwise,
    })
}

/// An output must be there. How its shape differs from the declared one, where the file fixes that.
fn check_output(
    scope: &NameScope<'_, '_>,
    output: &ValueInfoProto,
) -> Result<Option<InferError>, InferError> {
    match scope.data.get(output.name()) {
        None => Err(InferError::Missing {
            tensor: output.name().to_owned(),
            reader: "the model's outputs".to_owned(),
        }),
        Some(Datum::Tensor(fact)) if !declaration::accepts(output, fact.dims()) => {
            Ok(Some(InferError::Contradiction {
                role: "output",
                tensor: output.name().to_owned(),
                got: list(fact.dims()),
                by: "the file".to_owned(),
                stated: declaration::declared(output).unwrap_or_default(),
            }))
        }
        Some(_) => Ok(None),
    }
}

fn tensors(scope: &NameScope<'_, '_>) -> BTreeMap<String, InferredTensor> {
    let tensor = |(name, datum): (&&str, &Datum<'_>)| match datum {
        Datum::Tensor(fact) => {
            let tensor = InferredTensor {
                element: fact.element,
                shape: fact.shape.clone(),
                known: fact.known,
            };
            Some(((*name).to_owned(), tensor))
        }
        Datum::Sequence(_) => None,
    };
    scope.data.iter().filter_map(tensor).collect()
}
