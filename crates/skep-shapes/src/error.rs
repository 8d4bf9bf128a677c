//! Why shapes could not be inferred: for people (`InferError`), and between the rules and the walk (`Refusal`).

use std::fmt;

use skep_proto::onnx::NodeProto;
use skep_types::Shape;

use crate::element::ElementType;

/// Why a model's shapes could not be inferred, and what the caller can state instead.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InferError {
    /// An input with dimensions that are open in the file and not stated.
    #[error("input `{input}` has shape {declared}, whose size is not known; {hint}")]
    OpenInput {
        /// The input.
        input: String,
        /// Its shape as the file declares it.
        declared: String,
        /// What can be stated.
        hint: String,
    },
    /// An input of a kind that has no shape.
    #[error("input `{input}` is not a tensor, expected one")]
    NotATensor {
        /// The input.
        input: String,
    },
    /// A shape that depends on values known only in a run.
    #[error(
        "shape of tensor `{tensor}` (output of {node}) depends on values that are known only in a run: {why}; pass its shape with `--tensor {tensor}:1,2`"
    )]
    Undetermined {
        /// The tensor.
        tensor: String,
        /// What gives it.
        node: NodeName,
        /// Which values.
        why: String,
    },
    /// An unknown operator.
    #[error(
        "shape of tensor `{tensor}` (output of {node}) is not known: there is no such operator in operator set {version} of domain `{domain}`; pass its shape with `--tensor {tensor}:1,2`"
    )]
    UnknownOperator {
        /// The tensor.
        tensor: String,
        /// What gives it.
        node: NodeName,
        /// The operator's domain, `ai.onnx` for the default one.
        domain: String,
        /// The version of the domain that the file uses; 0 where it names none.
        version: i64,
    },
    /// A tensor whose element type cannot be inferred.
    #[error("element type of tensor `{tensor}` (output of {node}) is not known")]
    UnknownType {
        /// The tensor.
        tensor: String,
        /// What gives it.
        node: NodeName,
    },
    /// A tensor of an element type that there is not.
    #[error("tensor `{tensor}` is of {element}, expected an element type of ONNX")]
    ElementType {
        /// The tensor.
        tensor: String,
        /// Its type.
        element: ElementType,
    },
    /// A node whose inputs or attributes fit neither each other nor its operator.
    #[error("{node} {reason}")]
    Node {
        /// The node.
        node: NodeName,
        /// What is wrong with it.
        reason: String,
    },
    /// A shape that differs from what was stated, by the caller or by the file.
    #[error("{role} `{tensor}` has shape {got}, but {by} says {stated}")]
    Contradiction {
        /// `input`, `output` or `tensor`.
        role: &'static str,
        /// Its name.
        tensor: String,
        /// The shape that it would have.
        got: String,
        /// Where the other shape comes from.
        by: String,
        /// What was stated.
        stated: String,
    },
    /// Two inputs that give one name two sizes.
    #[error("dimension `{name}` is {size} in {first}, but {other} in {second}")]
    Dimension {
        /// The dimension's name.
        name: String,
        /// The size that it has first.
        size: usize,
        /// Where.
        first: String,
        /// The size that it has then.
        other: usize,
        /// Where.
        second: String,
    },
    /// Something stated that the model has no place for.
    #[error("{what} `{name}` was given, but the model has none of that name")]
    NoSuch {
        /// `input`, `dimension` or `tensor`.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// A batch size for a model whose inputs leave none open.
    #[error("batch size {batch} was given, but no input's leading dimension is open")]
    NoBatch {
        /// The batch size.
        batch: usize,
    },
    /// Nodes that wait for each other.
    #[error("{node} is on a cycle: it waits for a tensor that depends on its own output")]
    Cycle {
        /// One of them.
        node: NodeName,
    },
    /// A tensor that is produced twice.
    #[error("tensor `{tensor}` is produced twice, the second time by {second}")]
    Twice {
        /// The tensor.
        tensor: String,
        /// What produces it again.
        second: String,
    },
    /// A tensor that nothing produces.
    #[error("tensor `{tensor}` is read by {reader}, but nothing produces it")]
    Missing {
        /// The tensor.
        tensor: String,
        /// What reads it.
        reader: String,
    },
    /// A tensor of more bytes than can be addressed, or of more dimensions than any has.
    #[error("tensor `{tensor}` of shape {shape} is too large: {limit}")]
    TooLarge {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: String,
        /// What it exceeds.
        limit: String,
    },
    /// Functions or graphs that hold each other deeper, or more often, than is looked at.
    #[error("{node} holds functions and graphs {limit}")]
    Nesting {
        /// The node at which inference stopped.
        node: NodeName,
        /// The limit.
        limit: String,
    },
}

/// A node as messages name it: "Conv `conv1`", or by its first output where it has no name of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeName {
    /// Its operator.
    pub operator: Box<str>,
    /// Its name; `None` where the file gives it none.
    pub name: Option<Box<str>>,
    /// Its first output.
    pub output: Box<str>,
}

impl NodeName {
    pub(crate) fn of(node: &NodeProto) -> Self {
        Self {
            operator: node.op_type().into(),
            name: (!node.name().is_empty()).then(|| node.name().into()),
            output: node
                .output
                .first()
                .map(|name| name.as_str().into())
                .unwrap_or_default(),
        }
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{} `{name}`", self.operator),
            None => write!(f, "{} that gives `{}`", self.operator, self.output),
        }
    }
}

/// Why a rule gives no shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum RuleRefusal {
    /// They depend on values known only in a run; says which.
    Open(String),
    /// The node is wrong; says how, to be read behind its name.
    Invalid(String),
}

impl RuleRefusal {
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        Self::Invalid(reason.into())
    }
}

/// A shape for messages, valid as a [`Shape`] or not.
pub(super) fn list(dims: &[usize]) -> String {
    match Shape::new(dims) {
        Ok(shape) => shape.to_string(),
        Err(_) => format!("{dims:?}").replace(' ', ""),
    }
}
