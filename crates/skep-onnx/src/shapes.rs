//! Output shapes that follow from input shapes by the file's own declarations.

use skep_proto::onnx::{ValueInfoProto, tensor_shape_proto::dimension, type_proto};
use skep_types::Shape;

use crate::{OnnxModel, outputs::is_servable};

/// For each output, where its dimensions come from: fixed in the file, or equal to a named dimension of an input.
///
/// A file can lie about its dimensions (names are not checked by anyone), so a shape from here is a good guess that
/// the backend must verify.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShapeRules {
    /// Dimensions of inputs that carry a name which outputs use: all of them must agree.
    names: Vec<Vec<(usize, usize)>>,
    outputs: Vec<Vec<DimensionRule>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DimensionRule {
    Fixed(usize),
    Named(usize),
}

impl ShapeRules {
    /// Reads the rules of `model`'s inputs (without initializers) and outputs, in the order of its
    /// [signature](OnnxModel::signature).
    ///
    /// `None` when the shape of some output does not follow from the declarations, or an output is undeclared.
    #[must_use]
    pub fn of(model: &OnnxModel) -> Option<Self> {
        let graph = model.graph();
        let inputs = model.given_inputs();
        let mut names: Vec<&str> = Vec::new();
        if model.undeclared_outputs().next().is_some() {
            return None;
        }
        let mut outputs = Vec::with_capacity(graph.output.len());
        for output in graph.output.iter().filter(|output| is_servable(output)) {
            let mut rules = Vec::new();
            for dimension in dimensions(output)? {
                rules.push(match (dimension, dimension_name(dimension)) {
                    (Some(dimension::Value::DimValue(size)), _) if *size > 0 => {
                        DimensionRule::Fixed(usize::try_from(*size).ok()?)
                    }
                    (_, Some(name)) => {
                        let known = names.iter().position(|n| *n == name);
                        DimensionRule::Named(known.unwrap_or_else(|| {
                            names.push(name);
                            names.len() - 1
                        }))
                    }
                    _ => return None,
                });
            }
            outputs.push(rules);
        }
        let names: Vec<_> = names.iter().map(|name| places(&inputs, name)).collect();
        let known = names.iter().all(|places| !places.is_empty());
        known.then_some(Self { names, outputs })
    }

    /// The outputs' shapes for inputs of these shapes.
    ///
    /// `None` when inputs disagree about a named dimension, lack it, or the result would be too large.
    #[must_use]
    pub fn output_shapes(&self, inputs: &[&Shape]) -> Option<Vec<Shape>> {
        let mut sizes = Vec::with_capacity(self.names.len());
        for places in &self.names {
            let mut size = None;
            for &(input, axis) in places {
                let here = *inputs.get(input)?.dims().get(axis)?;
                if *size.get_or_insert(here) != here {
                    return None;
                }
            }
            sizes.push(size?);
        }
        let shape = |rules: &Vec<DimensionRule>| {
            let dims = rules.iter().map(|rule| match *rule {
                DimensionRule::Fixed(size) => size,
                DimensionRule::Named(name) => sizes[name],
            });
            Shape::new(&dims.collect::<Vec<_>>()).ok()
        };
        self.outputs.iter().map(shape).collect()
    }
}

/// What exporters write for a dimension that is not known, where a name would stand: PaddlePaddle's `?`, and Python's
/// `None` and -1 as text. Each one is a different unknown.
const ANONYMOUS: [&str; 4] = ["", "?", "None", "-1"];

/// The name of a dimension: all that carry it have one size.
#[must_use]
pub fn dimension_name(dimension: Option<&dimension::Value>) -> Option<&str> {
    match dimension {
        Some(dimension::Value::DimParam(name)) => known_dimension_name(name),
        _ => None,
    }
}

/// A name of a dimension that is one.
#[must_use]
pub fn known_dimension_name(name: &str) -> Option<&str> {
    Some(name).filter(|name| !ANONYMOUS.contains(&name.trim()))
}

/// The declared dimensions of a tensor, `None` when not even its rank is declared.
#[must_use]
pub fn dimensions(
    value: &ValueInfoProto,
) -> Option<impl Iterator<Item = Option<&dimension::Value>> + use<'_>> {
    match value.r#type.as_ref()?.value.as_ref()? {
        type_proto::Value::TensorType(tensor) => {
            Some(tensor.shape.as_ref()?.dim.iter().map(|d| d.value.as_ref()))
        }
        _ => None,
    }
}

/// Where inputs carry the dimension called `name`, as (input, axis).
fn places(inputs: &[&ValueInfoProto], name: &str) -> Vec<(usize, usize)> {
    let mut places = Vec::new();
    for (input, value) in inputs.iter().enumerate() {
        for (axis, dimension) in dimensions(value).into_iter().flatten().enumerate() {
            if dimension_name(dimension) == Some(name) {
                places.push((input, axis));
            }
        }
    }
    places
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use skep_proto::onnx::{GraphProto, ModelProto, TensorProto};

    use super::*;
    use crate::test_values::floats as value;

    fn rules(inputs: &[(&str, &[&str])], outputs: &[&[&str]]) -> Option<ShapeRules> {
        let graph = GraphProto {
            input: inputs.iter().map(|(n, d)| value(n, d)).collect(),
            output: outputs.iter().map(|d| value("y", d)).collect(),
            initializer: vec![TensorProto {
                name: Some("w".into()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let proto = ModelProto {
            graph: Some(graph),
            ..Default::default()
        };
        ShapeRules::of(&OnnxModel::decode(proto.encode_to_vec().into()).expect("decodes"))
    }

    fn shapes(rules: &ShapeRules, inputs: &[&[usize]]) -> Option<Vec<Vec<usize>>> {
        let inputs: Vec<Shape> = inputs
            .iter()
            .map(|d| Shape::new(d).expect("shape"))
            .collect();
        let inputs: Vec<&Shape> = inputs.iter().collect();
        let outputs = rules.output_shapes(&inputs)?;
        Some(outputs.iter().map(|s| s.dims().to_vec()).collect())
    }

    #[test]
    fn named_and_fixed_dimensions_give_shapes() {
        let rules = rules(
            &[("w", &["5"]), ("a", &["n", "3"]), ("b", &["n", "m"])],
            &[&["n", "10"], &["m"], &[]],
        )
        .expect("known");
        assert_eq!(
            shapes(&rules, &[&[2, 3], &[2, 7]]),
            Some(vec![vec![2, 10], vec![7], vec![]])
        );
        assert_eq!(
            shapes(&rules, &[&[0, 3], &[0, 7]]).map(|s| s[0].clone()),
            Some(vec![0, 10])
        );
        assert_eq!(shapes(&rules, &[&[2, 3], &[4, 7]]), None, "inputs disagree");
        assert_eq!(shapes(&rules, &[&[2, 3], &[2]]), None, "too few dimensions");
    }

    #[test]
    fn shapes_that_do_not_follow_are_unknown() {
        assert_eq!(
            rules(&[("a", &["n"])], &[&["k"]]),
            None,
            "a name of no input"
        );
        assert_eq!(rules(&[("a", &["n"])], &[&["_"]]), None, "no name");
        for anonymous in ["?", "None", " -1"] {
            let dims: &[&str] = &[anonymous];
            assert_eq!(rules(&[("a", dims)], &[dims]), None, "`{anonymous}`");
        }
        assert_eq!(rules(&[("w", &["n"])], &[&["n"]]), None, "an initializer's");
        assert_eq!(
            rules(&[("a", &["n"])], &[&["0"]]),
            None,
            "zero means unknown"
        );
    }
}
