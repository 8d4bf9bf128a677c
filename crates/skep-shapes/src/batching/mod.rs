//! Whether a model's first dimensions are a batch, by their names and by what the graph computes.
//!
//! A model whose inputs and outputs all begin with an open dimension looks as if it could batch. The names of these
//! dimensions say more: recurrent networks often have time first, and detectors give as many rows as they find boxes.
//! But converters also give every tensor names of its own, or none; where names differ or are missing, the graph
//! decides.
//!
//! Nothing detects a mistake later. An output whose first dimension happens to be as long as the batch is split among
//! requests; if the model's data decided its rows, each client gets rows of another. So a model does not batch in case
//! of doubt. One that batches without proof has names that do not contradict it, a graph that none of the tried sizes
//! fits, and no operator that could give any number of rows.

use std::collections::BTreeSet;

use skep_onnx::{OnnxModel, dimension_name, dimensions, is_undeclared, known_dimension_name};
use skep_proto::onnx::ValueInfoProto;
use skep_types::{DimensionNames, ModelSignature, TensorSpec};

use crate::trial::{FirstDimension, first_dimensions};

/// A tensor, and what the file calls its dimensions.
struct DimNames<'a> {
    tensor: &'a str,
    dims: Vec<Option<&'a str>>,
}

impl<'a> DimNames<'a> {
    fn of_value(value: &'a ValueInfoProto) -> Self {
        let dims = dimensions(value).into_iter().flatten();
        Self {
            tensor: value.name(),
            dims: dims.map(dimension_name).collect(),
        }
    }

    fn of_spec(spec: &'a TensorSpec, names: &'a DimensionNames) -> Self {
        let dims = names.get(&spec.name).into_iter().flatten();
        Self {
            tensor: &spec.name,
            dims: dims.map(|name| known_dimension_name(name)).collect(),
        }
    }

    fn first(&self) -> Option<&'a str> {
        self.dims.first().copied().flatten()
    }

    /// Why an input does not begin with the batch: a later dimension is called that.
    fn later_batch(&self) -> Option<String> {
        let first = self.first();
        if first.is_some_and(is_batch) {
            return None;
        }
        let mut later = self.dims.iter().enumerate().skip(1);
        let (axis, symbol) =
            later.find_map(|(axis, name)| Some((axis, name.filter(|name| is_batch(name))?)))?;
        let first = first.map_or_else(|| "has no name".to_owned(), |name| format!("is `{name}`"));
        let input = self.tensor;
        Some(format!(
            "dimension {axis} of input `{input}` is `{symbol}`, its first one {first}"
        ))
    }
}

/// The name that all of these begin with.
fn shared<'a>(tensors: &[DimNames<'a>]) -> Option<&'a str> {
    let first = tensors.first()?.first()?;
    let is_same = |tensor: &DimNames<'_>| tensor.first() == Some(first);
    tensors.iter().all(is_same).then_some(first)
}

/// Why a model does not batch, by the names of its dimensions alone, although every input and output begins with an
/// open one; `None` where all inputs and all served outputs begin with the same name.
#[must_use]
pub fn why_names_do_not_batch(
    signature: &ModelSignature,
    names: &DimensionNames,
    is_served: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let of = |spec| DimNames::of_spec(spec, names);
    let inputs: Vec<DimNames<'_>> = signature.inputs.iter().map(of).collect();
    if let Some(why) = inputs.iter().find_map(DimNames::later_batch) {
        return Some(why);
    }
    let Some(batch) = shared(&inputs) else {
        return Some(
            "the names of its dimensions do not tell whether its inputs begin with the same one"
                .to_owned(),
        );
    };
    let outputs = signature.outputs.iter();
    let mut outputs = outputs.filter(|spec| is_served(&spec.name)).map(of);
    let other = outputs.find(|output| output.first() != Some(batch))?;
    Some(match other.first() {
        Some(first) => begins_otherwise(batch, other.tensor, first),
        None => begins_not(batch, other.tensor),
    })
}

/// Why a model does not batch although every input and output begins with an open dimension; `None` where its file
/// shows that it does, and where nothing contradicts it. Outputs that are not served do not matter.
#[must_use]
pub fn why_not_batched(model: &OnnxModel, is_served: &dyn Fn(&str) -> bool) -> Option<String> {
    let inputs = model.given_inputs().into_iter();
    let inputs: Vec<DimNames<'_>> = inputs.map(DimNames::of_value).collect();
    if let Some(why) = inputs.iter().find_map(DimNames::later_batch) {
        return Some(why);
    }
    let rule = BatchRule {
        batch: shared(&inputs),
        are_named: inputs.iter().all(|input| input.first().is_some()),
        symbols: inputs.iter().filter_map(DimNames::first).collect(),
    };
    let outputs = model.graph().output.iter();
    let outputs = outputs.filter(|value| is_served(value.name()));
    let named = outputs.map(|value| (DimNames::of_value(value), is_undeclared(value)));
    let open =
        |(names, _): &(DimNames<'_>, bool)| names.first().is_none() || names.first() != rule.batch;
    let outputs: Vec<(DimNames<'_>, bool)> = named.filter(open).collect();
    if outputs.is_empty() {
        return None;
    }
    let names: Vec<&str> = outputs.iter().map(|(names, _)| names.tensor).collect();
    let told = first_dimensions(model, &names, &rule.symbols);
    let mut told = outputs.iter().zip(told);
    told.find_map(|((output, is_undeclared), told)| rule.why_not(output, *is_undeclared, told))
}

/// What the names of the inputs' first dimensions say.
struct BatchRule<'a> {
    /// The one of all.
    batch: Option<&'a str>,
    /// Whether each has one.
    are_named: bool,
    symbols: BTreeSet<&'a str>,
}

impl BatchRule<'_> {
    /// Why an output does not begin with the batch that does not begin with the name of all inputs.
    fn why_not(
        &self,
        output: &DimNames<'_>,
        is_undeclared: bool,
        told: FirstDimension,
    ) -> Option<String> {
        let name = output.tensor;
        let named = output.first();
        match (told, self.batch, named) {
            (FirstDimension::Batch, ..) => None,
            (_, Some(batch), Some(other)) => Some(begins_otherwise(batch, name, other)),
            (FirstDimension::Other, Some(batch), None) => Some(begins_not(batch, name)),
            (FirstDimension::Other, None, _) => Some(format!(
                "its output `{name}` does not begin with the batch that its inputs begin with"
            )),
            // An input's own name.
            (_, None, Some(named)) if self.symbols.contains(named) => None,
            (FirstDimension::Values(node), ..) => Some(format!(
                "the size of its output `{name}` depends on values that are known only in a run ({node})"
            )),
            (FirstDimension::Unknown(node), ..) => Some(format!(
                "the operator of {node} is not known, so its output `{name}` may begin with anything"
            )),
            (FirstDimension::Unclear, None, Some(other)) if self.are_named => Some(format!(
                "its output `{name}` begins with dimension `{other}`, none of its inputs does"
            )),
            (FirstDimension::Unclear, ..) => is_undeclared.then(|| {
                format!("the graph does not show whether its output `{name}` begins with the batch")
            }),
        }
    }
}

fn begins_otherwise(batch: &str, output: &str, first: &str) -> String {
    format!("its inputs begin with dimension `{batch}`, its output `{output}` with `{first}`")
}

fn begins_not(batch: &str, output: &str) -> String {
    format!("its inputs begin with dimension `{batch}`, its output `{output}` does not")
}

fn is_batch(symbol: &str) -> bool {
    symbol.to_ascii_lowercase().contains("batch")
}

#[cfg(test)]
mod tests;
