//! Rewrites parts of a model that the engine does not know into equivalent ones that it knows.
//!
//! ONNX models may omit `strides`, `dilations` and `pads`, which are then 1, 1 and 0 along every spatial axis. The
//! engine supports that for some operators only, and the others fail when they run. It also has no BOOL, so casts to
//! BOOL are spelled out.

use std::{collections::BTreeMap, mem};

use skep_proto::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, attribute_proto::AttributeType, tensor_proto,
};

/// Writes the defaults of pooling and convolution attributes, and replaces casts to BOOL.
pub(crate) fn write_defaults(proto: &mut ModelProto) {
    let Some(graph) = &mut proto.graph else {
        return;
    };
    let mut ranks = BTreeMap::new();
    for tensor in &graph.initializer {
        ranks.insert(tensor.name().to_owned(), tensor.dims.len());
    }
    for value in &graph.input {
        let r#type = value.r#type.as_ref().and_then(|t| t.value.as_ref());
        if let Some(skep_proto::onnx::type_proto::Value::TensorType(t)) = r#type
            && let Some(shape) = &t.shape
        {
            ranks.insert(value.name().to_owned(), shape.dim.len());
        }
    }
    in_graph(graph, &ranks);
}

fn in_graph(graph: &mut GraphProto, ranks: &BTreeMap<String, usize>) {
    for node in &mut graph.node {
        spatial_defaults(node, ranks);
        for attribute in &mut node.attribute {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                in_graph(graph, ranks);
            }
        }
    }
    let nodes = mem::take(&mut graph.node);
    graph.node = nodes.into_iter().flat_map(cast_to_bool).collect();
}

/// Writes the omitted attributes if the number of axes is known.
fn spatial_defaults(node: &mut NodeProto, ranks: &BTreeMap<String, usize>) {
    let convolution = matches!(node.op_type(), "Conv" | "ConvTranspose" | "ConvInteger");
    if !convolution && !matches!(node.op_type(), "MaxPool" | "AveragePool") {
        return;
    }
    let Some(axes) = spatial_axes(node, ranks) else {
        return;
    };
    add(node, "strides", vec![1; axes]);
    if convolution {
        add(node, "dilations", vec![1; axes]);
        // Explicit pads exclude automatic ones, unless `auto_pad` means no padding.
        node.attribute.retain(|attribute| {
            attribute.name() != "auto_pad" || !matches!(attribute.s(), b"" | b"NOTSET" | b"VALID")
        });
        if !has(node, "auto_pad") {
            add(node, "pads", vec![0; 2 * axes]);
        }
    }
}

/// Replaces a `Cast` to BOOL by two negations: the engine's own cast keeps 2 as 2 and turns 0.2 into false. For
/// floating-point inputs the engine then refuses to run.
fn cast_to_bool(node: NodeProto) -> Vec<NodeProto> {
    let to = node
        .attribute
        .iter()
        .find(|a| a.name() == "to")
        .map(AttributeProto::i);
    let ([input], [output]) = (node.input.as_slice(), node.output.as_slice()) else {
        return vec![node];
    };
    if node.op_type() != "Cast" || to != Some(tensor_proto::DataType::Bool as i64) {
        return vec![node];
    }
    // No exporter writes such a name; a clash would be a load error.
    let between = format!("{output}\u{1}not");
    vec![
        negation(&node, input, &between),
        negation(&node, &between, output),
    ]
}

/// A `Not` that replaces half of a cast.
fn negation(cast: &NodeProto, input: &str, output: &str) -> NodeProto {
    NodeProto {
        name: Some(format!("{} as Not", cast.name())),
        op_type: Some("Not".to_owned()),
        input: vec![input.to_owned()],
        output: vec![output.to_owned()],
        ..NodeProto::default()
    }
}

/// The number of spatial axes, from the kernel's shape or the weights' rank.
fn spatial_axes(node: &NodeProto, ranks: &BTreeMap<String, usize>) -> Option<usize> {
    let kernel = node.attribute.iter().find(|a| a.name() == "kernel_shape");
    let weights = || ranks.get(node.input.get(1)?)?.checked_sub(2);
    kernel.map(|kernel| kernel.ints.len()).or_else(weights)
}

fn has(node: &NodeProto, attribute: &str) -> bool {
    node.attribute.iter().any(|a| a.name() == attribute)
}

fn add(node: &mut NodeProto, name: &str, ints: Vec<i64>) {
    if has(node, name) {
        return;
    }
    let mut attribute = AttributeProto {
        name: Some(name.to_owned()),
        ints,
        ..AttributeProto::default()
    };
    attribute.set_type(AttributeType::Ints);
    node.attribute.push(attribute);
}

#[cfg(test)]
mod tests {
    use super::*;
    use skep_backend::conformance::{Attribute, Graph, fp32};
    use skep_onnx::OnnxModel;
    use skep_types::DataType;

    fn written(operator: &str, attributes: &[(&str, Attribute)]) -> Vec<(String, Vec<i64>)> {
        let graph = Graph::new()
            .input("x", DataType::Fp32, &["1", "1", "4", "4"])
            .output("y", DataType::Fp32, &["1", "1", "?", "?"])
            .initializer("w", &fp32(&[1, 1, 2, 2], &[1.0; 4]))
            .node(operator, &["x", "w"], &["y"], attributes);
        let mut model = OnnxModel::decode(graph.encode().into()).expect("decodes");
        write_defaults(model.proto_mut());
        let node = &model.graph().node[0];
        node.attribute
            .iter()
            .map(|a| (a.name().to_owned(), a.ints.clone()))
            .collect()
    }

    #[test]
    fn omitted_attributes_are_written_and_present_ones_kept() {
        let strides = ("strides", Attribute::Ints(vec![2, 2]));
        assert_eq!(
            written("ConvTranspose", &[strides]),
            [
                ("strides".to_owned(), vec![2, 2]),
                ("dilations".to_owned(), vec![1, 1]),
                ("pads".to_owned(), vec![0; 4])
            ]
        );
        let kernel = ("kernel_shape", Attribute::Ints(vec![3]));
        assert_eq!(
            written("MaxPool", &[kernel])[1],
            ("strides".to_owned(), vec![1])
        );
        assert_eq!(written("Relu", &[]), []);
    }

    #[test]
    fn automatic_padding_stays_automatic() {
        let automatic = ("auto_pad", Attribute::Text("SAME_UPPER".to_owned()));
        assert!(
            written("ConvTranspose", &[automatic])
                .iter()
                .all(|(name, _)| name != "pads")
        );
    }
}
