//! What names stand for while a graph or a function is walked.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use skep_onnx::dimension_name;
use skep_proto::onnx::{
    GraphProto, NodeProto, OperatorSetIdProto, TensorProto, ValueInfoProto,
    tensor_shape_proto::dimension,
};
use skep_types::Shape;

use crate::{
    call::{CallerAttributes, Datum},
    declaration::{NamedDims, tensor_type},
    element::ElementType,
    error::{InferError, RuleRefusal},
    fact::Fact,
    limits::addressable,
};

/// Versions of operator sets by domain, the default one's under "".
pub(super) type OpsetVersions<'a> = HashMap<&'a str, i64>;

/// The names of one graph or function, over those of the graphs around it.
pub(super) struct NameScope<'a, 's> {
    pub(super) data: HashMap<&'a str, Datum<'a>>,
    pub(super) outer: Option<&'s Self>,
    pub(super) versions: Rc<OpsetVersions<'a>>,
    /// What a function's caller gives as attributes.
    pub(super) frame: Option<Rc<CallerAttributes<'a>>>,
    /// Declared types of tensors in between.
    pub(super) declared: HashMap<&'a str, &'a ValueInfoProto>,
    /// Whether the names are the file's own, which a caller can state shapes of; those of functions are not.
    pub(super) is_stated: bool,
    /// Inputs of a function that its caller leaves out.
    pub(super) left_out: HashSet<&'a str>,
    /// How many graphs and functions are around this one.
    pub(super) depth: usize,
}

impl<'a> NameScope<'a, '_> {
    pub(super) fn find(&self, name: &str) -> Option<&Datum<'a>> {
        let own = self.data.get(name);
        own.or_else(|| self.outer?.find(name))
    }

    /// Whether a name may be read: it stands for something, or for an input that a function's caller leaves out.
    pub(super) fn is_readable(&self, name: &str) -> bool {
        let own = self.data.contains_key(name) || self.left_out.contains(name);
        own || self.outer.is_some_and(|outer| outer.is_readable(name))
    }

    /// Adds what a graph brings along: initializers and declarations.
    ///
    /// # Errors
    /// [`InferError::Twice`] for two initializers of one name, [`InferError::ElementType`], [`InferError::TooLarge`].
    pub(super) fn add_graph(&mut self, graph: &'a GraphProto) -> Result<(), InferError> {
        for tensor in &graph.initializer {
            self.add_initializer(tensor.name(), tensor, &tensor.dims)?;
        }
        for sparse in &graph.sparse_initializer {
            if let Some(values) = &sparse.values {
                self.add_initializer(values.name(), values, &sparse.dims)?;
            }
        }
        let declared = graph.value_info.iter().chain(&graph.output);
        self.declared = declared.map(|value| (value.name(), value)).collect();
        Ok(())
    }

    fn add_initializer(
        &mut self,
        name: &'a str,
        tensor: &'a TensorProto,
        dims: &'a [i64],
    ) -> Result<(), InferError> {
        let too_large = |limit: String| InferError::TooLarge {
            tensor: name.to_owned(),
            shape: format!("{dims:?}").replace(' ', ""),
            limit,
        };
        let fact = if std::ptr::eq(tensor.dims.as_slice(), dims) {
            Fact::of_file(tensor).map_err(|error| match error {
                RuleRefusal::Invalid(why) | RuleRefusal::Open(why) => too_large(why),
            })?
        } else {
            let shape = Shape::from_wire(dims).map_err(|error| too_large(error.to_string()))?;
            Fact::of_constant(ElementType(tensor.data_type()), shape)
        };
        addressable(name, fact.element, &fact.shape)?;
        if self.data.insert(name, Datum::Tensor(fact)).is_some() {
            return Err(InferError::Twice {
                tensor: name.to_owned(),
                second: "an initializer".to_owned(),
            });
        }
        Ok(())
    }

    /// The version of the operator set that a node's operator comes from; 0 where the file names none.
    pub(super) fn version(&self, node: &NodeProto) -> i64 {
        let version = self.versions.get(domain(node));
        version.copied().unwrap_or(0)
    }

    /// The declared element type and, where each of its dimensions has a known size, shape of a tensor.
    pub(super) fn declaration(
        &self,
        name: &str,
        named: &NamedDims<'_>,
    ) -> Option<(ElementType, Option<Shape>)> {
        let tensor = tensor_type(self.declared.get(name)?)?;
        let size = |value: &Option<dimension::Value>| match value.as_ref()? {
            dimension::Value::DimValue(size) => {
                usize::try_from(*size).ok().filter(|&size| size > 0)
            }
            param @ dimension::Value::DimParam(_) => named.get(dimension_name(Some(param))?),
        };
        let dims = tensor.shape.as_ref().and_then(|shape| {
            let sizes = shape.dim.iter().map(|dim| size(&dim.value));
            sizes.collect::<Option<Vec<_>>>()
        });
        let shape = dims.and_then(|dims| Shape::new(&dims).ok());
        Some((ElementType(tensor.elem_type()), shape))
    }
}

/// A node's domain, the default one as "".
pub(crate) fn domain(node: &NodeProto) -> &str {
    domain_name(node.domain())
}

/// A domain's name, that of the default one as "".
pub(crate) fn domain_name(name: &str) -> &str {
    match name {
        "ai.onnx" => "",
        other => other,
    }
}

/// The versions that a model or a function imports.
pub(super) fn versions(imports: &[OperatorSetIdProto]) -> OpsetVersions<'_> {
    let named = imports.iter().map(|import| match import.domain() {
        "ai.onnx" => ("", import.version()),
        other => (other, import.version()),
    });
    named.collect()
}
