//! Broken model files, made from a small valid one.

use prost::Message;
use skep_models::{Dim, GraphBuilder, Options, WeightFill};
use skep_proto::onnx::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataLocation,
};
use skep_types::DataType;

use super::{BrokenFile, RefusedBy, refused};

/// Depth of nested `If` graphs: above the 100 levels at which protobuf readers stop.
const NESTING: usize = 400;

/// Name, fault, what a message mentions, and what makes a valid model faulty.
type FaultyModel = (
    &'static str,
    &'static str,
    &'static str,
    fn(&mut ModelProto),
);

/// Model files that must be refused, and the one that only the embedded backend must refuse.
///
/// # Panics
/// Never: the graphs are fixed.
#[must_use]
pub fn onnx_files() -> Vec<BrokenFile> {
    let mut files = vec![
        refused("empty", "a file of no bytes", "", vec![]),
        refused("garbage", "bytes that are no protobuf", "", garbage()),
        refused(
            "web-page",
            "a web page saved as a model",
            "",
            b"<!DOCTYPE html>\n<title>404 Not Found</title>\n".to_vec(),
        ),
        refused(
            "lfs-pointer",
            "a pointer of Git LFS in place of the file",
            "",
            lfs_pointer(),
        ),
        refused(
            "truncated",
            "the first two thirds of a model",
            "",
            truncated(),
        ),
    ];
    let changed: [FaultyModel; 16] = [
        ("no-graph", "a model without a graph", "", |m| {
            m.graph = None
        }),
        ("no-opset", "a model that names no operator set", "", |m| {
            m.opset_import.clear()
        }),
        ("future-opset", "operator set 9999", "9999", |m| {
            m.opset_import[0].version = Some(9999)
        }),
        (
            "unknown-operator",
            "an operator that does not exist",
            "Frobnicate",
            |m| {
                node(m, 0).op_type = Some("Frobnicate".to_owned());
            },
        ),
        ("missing-operator", "a node without an operator", "", |m| {
            node(m, 0).op_type = None
        }),
        (
            "unknown-domain",
            "an operator of an unknown domain",
            "com.example",
            |m| {
                node(m, 0).domain = Some("com.example".to_owned());
            },
        ),
        (
            "undefined-value",
            "a node whose input nobody gives",
            "nowhere",
            |m| node(m, 1).input[0] = "nowhere".to_owned(),
        ),
        (
            "missing-output",
            "an output that no node gives",
            "absent",
            |m| graph(m).output[0].name = Some("absent".to_owned()),
        ),
        (
            "duplicate-value",
            "two nodes that give the same value",
            "",
            |m| {
                let twin = NodeProto {
                    name: Some("twin".to_owned()),
                    ..node(m, 1).clone()
                };
                graph(m).node.push(twin);
            },
        ),
        ("cycle", "two nodes that wait for each other", "", |m| {
            let later = node(m, 1).output[0].clone();
            node(m, 0).input[0] = later;
        }),
        (
            "mixed-types",
            "an INT64 tensor added to an FP32 one",
            "",
            |m| {
                weight(m).data_type = Some(7);
                let doubled = weight(m).raw_data().repeat(2);
                weight(m).raw_data = Some(doubled.into());
            },
        ),
        (
            "wrong-sizes",
            "a weight whose shape does not fit its node",
            "",
            |m| {
                weight(m).dims = vec![3];
                weight(m).raw_data = Some(vec![0; 12].into());
            },
        ),
        (
            "short-data",
            "a weight of fewer bytes than its shape says",
            "",
            |m| {
                weight(m).raw_data = Some(vec![0; 6].into());
            },
        ),
        (
            "huge-claim",
            "a weight that claims 2^60 values and holds 16 bytes",
            "",
            |m| weight(m).dims = vec![1 << 30, 1 << 30],
        ),
        (
            "negative-dim",
            "a weight of a negative dimension",
            "",
            |m| weight(m).dims = vec![-4],
        ),
        (
            "external-missing",
            "weights in a side file that is not there",
            "absent.bin",
            |m| external(m, "absent.bin"),
        ),
    ];
    files.extend(changed.map(|(name, fault, mentions, change)| {
        let mut model = valid();
        change(&mut model);
        refused(name, fault, mentions, model.encode_to_vec())
    }));
    let mut escaping = valid();
    external(&mut escaping, "../../../etc/hostname");
    files.push(refused(
        "external-escape",
        "weights in a file outside the model's directory",
        "",
        escaping.encode_to_vec(),
    ));
    files.push(refused(
        "deep-nesting",
        "graphs within graphs, 400 deep",
        "",
        deep_nesting(NESTING),
    ));
    files.push(BrokenFile {
        name: "int64-constant",
        fault: "the INT64 constant 2^40 + 1, which does not fit 32 bits",
        refused: RefusedBy::ByEmbedded,
        mentions: "INT64",
        bytes: int64_constant(),
    });
    files
}

/// `x` [batch, 4] + weight, rectified.
fn valid() -> ModelProto {
    let mut b = GraphBuilder::new("small");
    let dims = [Dim::Variable("batch"), Dim::Fixed(4)];
    let x = b.input("x", DataType::Fp32, &dims);
    let w = b.weight("w", &[4], WeightFill::around_zero(1.0));
    let sum = b.add(&x, &w);
    let y = b.relu(&sum);
    b.output(&y, "y", DataType::Fp32, &dims);
    built(b)
}

/// `x` INT64 [batch, 4] + (2^40 + 1).
fn int64_constant() -> Vec<u8> {
    let mut b = GraphBuilder::new("int64_constant");
    let dims = [Dim::Variable("batch"), Dim::Fixed(4)];
    let x = b.input("x", DataType::Int64, &dims);
    let large = b.constant_ints("large", &[(1 << 40) + 1]);
    let y = b.add(&x, &large);
    b.output(&y, "y", DataType::Int64, &dims);
    built(b).encode_to_vec()
}

/// Wrapped from the inside out as bytes: encoding messages this deep recurses, and would need the stack of the fault.
fn deep_nesting(levels: usize) -> Vec<u8> {
    let name = |name: &str| {
        GraphProto {
            name: Some(name.to_owned()),
            ..Default::default()
        }
        .encode_to_vec()
    };
    let mut graph = name("innermost");
    for _ in 0..levels {
        let head = AttributeProto {
            name: Some("then_branch".to_owned()),
            r#type: Some(AttributeType::Graph as i32),
            ..Default::default()
        };
        let branch = [head.encode_to_vec(), field(6, &graph)].concat();
        let head = NodeProto {
            op_type: Some("If".to_owned()),
            input: vec!["x".to_owned()],
            ..Default::default()
        };
        let node = [head.encode_to_vec(), field(5, &branch)].concat();
        graph = [name("level"), field(1, &node)].concat();
    }
    [
        ModelProto {
            graph: None,
            ..valid()
        }
        .encode_to_vec(),
        field(7, &graph),
    ]
    .concat()
}

/// A length-delimited protobuf field.
fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

fn built(b: GraphBuilder) -> ModelProto {
    let model = b
        .finish(&Options::default())
        .and_then(|model| model.to_proto());
    model.expect("a small graph without a variant")
}

fn truncated() -> Vec<u8> {
    let mut bytes = valid().encode_to_vec();
    bytes.truncate(bytes.len() * 2 / 3);
    bytes
}

/// Every byte value, from high to low: starts with a tag of wire type 7, which no reader knows.
fn garbage() -> Vec<u8> {
    (0..=255u8).rev().cycle().take(4096).collect()
}

fn lfs_pointer() -> Vec<u8> {
    let digest = "4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393";
    format!("version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 102400\n")
        .into_bytes()
}

fn graph(model: &mut ModelProto) -> &mut GraphProto {
    model.graph.as_mut().expect("`valid` has a graph")
}

fn node(model: &mut ModelProto, number: usize) -> &mut NodeProto {
    &mut graph(model).node[number]
}

fn weight(model: &mut ModelProto) -> &mut TensorProto {
    &mut graph(model).initializer[0]
}

fn external(model: &mut ModelProto, location: &str) {
    let entry = |key: &str, value: &str| skep_proto::onnx::StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value.to_owned()),
    };
    let weight = weight(model);
    weight.raw_data = None;
    weight.external_data = vec![
        entry("location", location),
        entry("offset", "0"),
        entry("length", "16"),
    ];
    weight.data_location = Some(DataLocation::External as i32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_directory_names() {
        let files = onnx_files();
        let mut names: Vec<&str> = files.iter().map(|file| file.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), files.len());
        assert!(
            names
                .iter()
                .all(|name| skep_types::ModelName::new(name).is_ok())
        );
    }

    #[test]
    fn every_file_differs_from_the_valid_one() {
        for file in onnx_files() {
            assert_ne!(file.bytes, valid().encode_to_vec(), "{}", file.name);
        }
    }

    #[test]
    fn nesting_is_the_only_fault_of_deep_nesting() {
        let decoded = ModelProto::decode(&deep_nesting(10)[..]).expect("shallow enough");
        let mut graph = decoded.graph.expect("a graph");
        let mut levels = 0;
        while let Some(mut node) = graph.node.pop() {
            graph = node.attribute.remove(0).g.expect("a branch");
            levels += 1;
        }
        assert_eq!((levels, graph.name()), (10, "innermost"));
        assert!(ModelProto::decode(&deep_nesting(NESTING)[..]).is_err());
    }

    #[test]
    fn files_that_are_no_protobuf_do_not_decode() {
        for name in ["garbage", "web-page", "lfs-pointer", "truncated"] {
            let file = onnx_files()
                .into_iter()
                .find(|file| file.name == name)
                .expect(name);
            assert!(ModelProto::decode(&file.bytes[..]).is_err(), "{name}");
        }
    }
}
