//! Defaults that the engine does not know, written into the model.
//!
//! ONNX lets `strides`, `dilations` and `pads` be left out, which then are 1, 1 and 0 along every spatial axis. The engine
//! takes that for some operators only, and fails for the others when they run.

use std::collections::BTreeMap;

use skep_proto::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, attribute_proto::AttributeType,
};

/// Writes the defaults of pooling and convolution attributes where their number of axes is known.
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
        let missing: &[&str] = match node.op_type() {
            "MaxPool" | "AveragePool" => &["strides"],
            "ConvTranspose" | "ConvInteger" => &["strides", "dilations"],
            _ => &[],
        };
        if let (false, Some(axes)) = (missing.is_empty(), spatial_axes(node, ranks)) {
            for name in missing {
                add(node, name, vec![1; axes]);
            }
            // Explicit pads exclude automatic ones.
            if node.op_type().starts_with("Conv") && !has(node, "auto_pad") {
                add(node, "pads", vec![0; 2 * axes]);
            }
        }
        for attribute in &mut node.attribute {
            for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                in_graph(graph, ranks);
            }
        }
    }
}

/// Spatial axes, by the kernel's shape or the weights' rank.
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
    fn what_is_left_out_is_written_and_what_is_there_is_kept() {
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
        assert_eq!(written("Conv", &[]), []);
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
