//! Static shape inference: the element type and shape of each tensor of a graph, before anything runs.
//!
//! [`OnnxModel::infer`] walks the main graph in an order in which each node follows what it reads. Each operator has a
//! rule in [`table`]: what types its outputs have, what shapes, and for operators of shape arithmetic what values,
//! since exporters compute the shapes that they hand to `Reshape`, `Expand` and others from `Shape`. Model-local
//! functions and the graphs of `If`, `Loop` and `Scan` are walked as well.
//!
//! What only a run can tell is an error that says what to state instead, unless the caller stated it ([`Given`]) or the
//! file declares it. Time and memory are bounded whatever the file holds.
//!
//! Source of the rules: the operators' specifications of ONNX (operator sets 7 to 24), and for the domain
//! `com.microsoft` those of ONNX Runtime.

mod call;
mod control;
mod element;
mod error;
mod fact;
mod given;
mod order;
mod scope;
mod shapes;
mod table;
#[cfg(test)]
mod tests;
mod values;
mod walk;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    rc::Rc,
};

pub use element::ElementType;
pub use error::{InferError, NodeName};
use skep_proto::onnx::{NodeProto, ValueInfoProto};
use skep_types::Shape;

use crate::OnnxModel;
use call::Datum;
use error::list;
pub(crate) use order::{graphs, reads};
use scope::Scope;
pub(crate) use scope::{domain, domain_name};
use walk::Walk;

/// Truths.
const BOOL: ElementType = ElementType(skep_proto::onnx::tensor_proto::DataType::Bool as i32);

/// What the caller fixes before inference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Given {
    /// The leading dimension of inputs that leave it open.
    pub batch: Option<usize>,
    /// Sizes of named dimensions of inputs.
    pub dims: BTreeMap<String, usize>,
    /// Shapes of inputs; each must be one that the file allows.
    pub inputs: BTreeMap<String, Vec<usize>>,
    /// Shapes of other tensors, such as those that only a run tells. Where neither the operator nor the file says the
    /// type of such a tensor, it is taken to be that of what its node reads.
    pub tensors: BTreeMap<String, Vec<usize>>,
}

/// When the values of a tensor are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Known {
    /// They follow from the file alone: an initializer, a `Constant`, or what is computed from such.
    File,
    /// They follow from the file and the shapes of the inputs.
    Shapes,
    /// Only a run tells.
    Run,
}

/// A tensor of the main graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InferredTensor {
    /// The type of its elements.
    pub element: ElementType,
    /// Its shape.
    pub shape: Shape,
    /// When its values are known.
    pub known: Known,
}

impl InferredTensor {
    /// The bytes of its elements, packed ones to the next full byte; strings count as the handles that ONNX Runtime
    /// keeps.
    ///
    /// # Panics
    /// Never for a tensor that inference gave: it refuses those whose bytes do not fit.
    #[must_use]
    pub fn bytes(&self) -> usize {
        bytes(self.element, &self.shape).expect("checked when inferred")
    }

    /// Whether its values can be computed before a run: from the file, or from the inputs' shapes as well.
    #[must_use]
    pub fn is_constant(&self) -> bool {
        self.known < Known::Run
    }
}

/// The tensors and the order of a main graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inferred {
    /// The nodes, by their index in the file, in an order in which each follows what it reads: the file's own where it
    /// is such an order.
    pub order: Vec<usize>,
    /// Inputs, initializers, and what nodes give, by name. Sequences are left out.
    pub tensors: BTreeMap<String, InferredTensor>,
    /// Outputs whose shape the file declares otherwise; a run gives what inference says, and a warning.
    pub declared_otherwise: Vec<InferError>,
}

/// Whether there is a rule for an operator of ONNX or ONNX Runtime; the model's own functions do not count.
pub(crate) fn is_known(node: &NodeProto) -> bool {
    let (domain, operator) = (domain(node), node.op_type());
    control::rule(domain, operator).is_some() || table::rule(domain, operator).is_some()
}

impl OnnxModel {
    /// The shape of each tensor of the main graph.
    ///
    /// # Errors
    /// [`InferError`]: inputs that nobody gave sizes, shapes that depend on values, unknown operators, shapes that
    /// contradict each other, graphs that are none.
    pub fn infer(&self, given: &Given) -> Result<Inferred, InferError> {
        let graph = self.graph();
        let mut scope = Scope {
            data: HashMap::new(),
            outer: None,
            versions: Rc::new(scope::versions(&self.proto().opset_import)),
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
            walk::checked(value.name(), fact.element, fact.dims())?;
            scope.data.insert(value.name(), Datum::Tensor(fact));
        }
        let order = order::order(&graph.node, &|name| scope.is_readable(name))?;
        let mut walk = Walk::new(&self.proto().functions, &given.tensors, named);
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
        Ok(Inferred {
            order,
            tensors: tensors(&scope),
            declared_otherwise,
        })
    }
}

/// An output must be there. How its shape differs from the declared one, where the file fixes that.
fn check_output(
    scope: &Scope<'_, '_>,
    output: &ValueInfoProto,
) -> Result<Option<InferError>, InferError> {
    match scope.data.get(output.name()) {
        None => Err(InferError::Missing {
            tensor: output.name().to_owned(),
            reader: "the model's outputs".to_owned(),
        }),
        Some(Datum::Tensor(fact)) if !given::accepts(output, fact.dims()) => {
            Ok(Some(InferError::Contradiction {
                role: "output",
                tensor: output.name().to_owned(),
                got: list(fact.dims()),
                by: "the file".to_owned(),
                stated: given::declared(output).unwrap_or_default(),
            }))
        }
        Some(_) => Ok(None),
    }
}

fn tensors(scope: &Scope<'_, '_>) -> BTreeMap<String, InferredTensor> {
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

/// The bytes of a tensor; `None` when they cannot be addressed, or for a type that ONNX does not have.
fn bytes(element: ElementType, shape: &Shape) -> Option<usize> {
    let bits = shape.element_count().checked_mul(element.bits()?)?;
    Some(bits.div_ceil(8))
}
