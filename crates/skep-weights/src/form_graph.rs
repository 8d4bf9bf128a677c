//! Checks a form's graph against the form's tensors before a library reads it.
//!
//! A graph may refer to tensors in other files, and a library follows such references with the rights of its process:
//! in the server, to every file that the server can read. So a form's graph, whatever process made it, may refer to
//! the form's own tensors only, which the library gets in memory.

use std::collections::HashMap;

use skep_cache::{Form, FormTensor, Role};
use skep_onnx::{ExternalData, OnnxModel};
use skep_proto::onnx::TensorProto;

/// Checks that a form's graph can be read and refers to the form's own weights only, each with its datatype and dims.
/// `part_of` maps a tensor's name and the file that the graph names for its data to the name of a part; `None` if no
/// part matches.
///
/// # Errors
/// A text that names the first tensor that does not match.
pub fn check_graph(
    form: &Form,
    part_of: impl Fn(&str, &str) -> Option<String>,
) -> Result<(), String> {
    let onnx = OnnxModel::decode(form.graph().clone());
    let onnx = onnx.map_err(|error| format!("its graph cannot be read: {error}"))?;
    check(&onnx, form.parts(), part_of)
}

fn check(
    onnx: &OnnxModel,
    parts: &[FormTensor],
    part_of: impl Fn(&str, &str) -> Option<String>,
) -> Result<(), String> {
    let weights = parts.iter().filter(|part| part.role != Role::Packed);
    let weights: HashMap<&str, &FormTensor> = weights.map(|part| (&*part.name, part)).collect();
    let mut checked = Ok(());
    onnx.for_each_tensor(&mut |tensor| {
        if checked.is_ok() {
            checked = check_tensor(tensor, &weights, &part_of);
        }
    });
    checked
}

fn check_tensor(
    tensor: &TensorProto,
    weights: &HashMap<&str, &FormTensor>,
    part_of: &impl Fn(&str, &str) -> Option<String>,
) -> Result<(), String> {
    let name = tensor.name();
    let Some(external) =
        ExternalData::of(tensor).map_err(|why| format!("tensor `{name}` of its graph: {why}"))?
    else {
        return Ok(());
    };
    let location = external.location;
    let part = part_of(name, location).and_then(|part| weights.get(&*part));
    let Some(part) = part else {
        return Err(format!(
            "tensor `{name}` of its graph refers to `{location}`, expected one of the form's own tensors"
        ));
    };
    let description = &part.tensor.description;
    let dims: Option<Vec<u64>> = tensor.dims.iter().map(|&dim| dim.try_into().ok()).collect();
    let elements = description
        .dims
        .iter()
        .try_fold(1_u64, |product, &extent| product.checked_mul(extent));
    let element_bytes = description.datatype.element_size().unwrap_or(0) as u64;
    let bytes = elements.and_then(|elements| elements.checked_mul(element_bytes));
    let is_same = dims.as_ref() == Some(&description.dims)
        && skep_onnx::datatype(tensor.data_type()) == Some(description.datatype)
        && bytes == Some(part.tensor.length);
    if is_same {
        return Ok(());
    }
    Err(format!(
        "tensor `{name}` of its graph has dims {:?}, expected {description} of {} bytes",
        tensor.dims, part.tensor.length
    ))
}

#[cfg(test)]
mod tests {
    use prost::Message as _;
    use skep_onnx::element_type;
    use skep_proto::onnx::{
        AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto,
        ValueInfoProto, tensor_proto::DataLocation,
    };
    use skep_store::{Description, Digest, Wanted};
    use skep_types::DataType;

    use super::*;

    const LOCATION: &str = "graph";

    fn part(role: Role, name: &str, dims: &[u64], length: u64) -> FormTensor {
        FormTensor {
            role,
            name: name.to_owned(),
            tensor: Wanted {
                digest: Digest([0; 32]),
                description: Description {
                    datatype: DataType::Fp32,
                    dims: dims.to_vec(),
                    layout: "plain".into(),
                },
                length,
            },
        }
    }

    fn external(name: &str, location: &str, dims: &[i64]) -> TensorProto {
        let data = ExternalData {
            location,
            offset: 0,
            length: None,
        };
        TensorProto {
            name: Some(name.to_owned()),
            data_type: Some(element_type(DataType::Fp32)),
            dims: dims.to_vec(),
            data_location: Some(DataLocation::External as i32),
            external_data: data.entries(),
            ..TensorProto::default()
        }
    }

    fn checked(model: ModelProto) -> Result<(), String> {
        let onnx = OnnxModel::decode(model.encode_to_vec().into()).expect("a model");
        let parts = [
            part(Role::Weight, "w", &[2, 3], 24),
            part(Role::Source, "s", &[4], 16),
            part(Role::Packed, "", &[4], 16),
            part(Role::Weight, "short", &[4], 8),
        ];
        check(&onnx, &parts, |name, location| {
            (location == LOCATION).then(|| name.to_owned())
        })
    }

    fn model(graph: GraphProto) -> ModelProto {
        let output = ValueInfoProto::default();
        ModelProto {
            graph: Some(GraphProto {
                output: vec![output],
                ..graph
            }),
            ..ModelProto::default()
        }
    }

    fn initializers(tensors: Vec<TensorProto>) -> ModelProto {
        model(GraphProto {
            initializer: tensors,
            ..GraphProto::default()
        })
    }

    #[test]
    fn a_graph_that_refers_to_its_own_weights_is_fine() {
        let inside = TensorProto {
            name: Some("small".to_owned()),
            ..TensorProto::default()
        };
        let tensors = vec![
            external("w", LOCATION, &[2, 3]),
            external("s", LOCATION, &[4]),
            inside,
        ];
        assert_eq!(checked(initializers(tensors)), Ok(()));
    }

    #[test]
    fn a_graph_that_refers_to_anything_else_is_refused() {
        let elsewhere = |location: &str| {
            format!(
                "tensor `w` of its graph refers to `{location}`, expected one of the form's own tensors"
            )
        };
        for location in [
            "/etc/passwd",
            "../../tensors/00/0",
            "",
            "graph/../x",
            "manifest",
        ] {
            let tensor = external("w", location, &[2, 3]);
            assert_eq!(
                checked(initializers(vec![tensor])),
                Err(elsewhere(location))
            );
        }
        for name in ["other", ""] {
            let unknown = external(name, LOCATION, &[2, 3]);
            assert!(checked(initializers(vec![unknown])).is_err(), "`{name}`");
        }
        let dims = |tensor| checked(initializers(vec![tensor])).expect_err("refused");
        assert_eq!(
            dims(external("w", LOCATION, &[2, 4])),
            "tensor `w` of its graph has dims [2, 4], expected FP32[2,3] plain of 24 bytes"
        );
        assert!(dims(external("w", LOCATION, &[-2, -3])).contains("[-2, -3]"));
        assert!(dims(external("short", LOCATION, &[4])).contains("8 bytes"));
        let mut halves = external("w", LOCATION, &[2, 3]);
        halves.data_type = Some(element_type(DataType::Fp16));
        assert!(dims(halves).contains("expected FP32"));
    }

    #[test]
    fn references_are_found_in_attributes_inner_graphs_and_functions() {
        let hidden = || external("w", "/etc/passwd", &[2, 3]);
        let attribute = |attribute: AttributeProto| NodeProto {
            attribute: vec![attribute],
            ..NodeProto::default()
        };
        let constant = || {
            attribute(AttributeProto {
                t: Some(hidden()),
                ..AttributeProto::default()
            })
        };
        let sparse = || SparseTensorProto {
            values: Some(hidden()),
            ..SparseTensorProto::default()
        };
        let inner = GraphProto {
            node: vec![constant()],
            ..GraphProto::default()
        };
        let graphs = [
            GraphProto {
                node: vec![constant()],
                ..GraphProto::default()
            },
            GraphProto {
                node: vec![attribute(AttributeProto {
                    g: Some(inner),
                    ..AttributeProto::default()
                })],
                ..GraphProto::default()
            },
            GraphProto {
                sparse_initializer: vec![sparse()],
                ..GraphProto::default()
            },
            GraphProto {
                node: vec![attribute(AttributeProto {
                    sparse_tensors: vec![sparse()],
                    ..AttributeProto::default()
                })],
                ..GraphProto::default()
            },
        ];
        for (index, graph) in graphs.into_iter().enumerate() {
            assert!(checked(model(graph)).is_err(), "{index}");
        }
        let function = FunctionProto {
            node: vec![constant()],
            ..FunctionProto::default()
        };
        let in_function = ModelProto {
            functions: vec![function],
            ..model(GraphProto::default())
        };
        assert!(checked(in_function).is_err());
    }
}
