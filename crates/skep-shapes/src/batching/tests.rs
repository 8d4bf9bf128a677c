//! Which models batch, by the names of their dimensions and by what their graphs compute.

use prost::Message;
use skep_proto::onnx::{GraphProto, ModelProto, NodeProto, OperatorSetIdProto};
use skep_types::{DataType, Dims};

use super::*;
use crate::test_values::floats as value;
use crate::trial::computed_outputs;

fn undeclared(name: &str) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.to_owned()),
        ..Default::default()
    }
}

/// `operator a b -> y` makes `y`; an operator with a point has a domain.
fn node(text: &str) -> NodeProto {
    let (read, made) = text.split_once(" -> ").expect("an arrow");
    let mut read = read.split(' ');
    let operator = read.next().expect("an operator");
    let (domain, operator) = operator.rsplit_once('.').unwrap_or(("", operator));
    NodeProto {
        domain: Some(domain.to_owned()),
        op_type: Some(operator.to_owned()),
        input: read.map(str::to_owned).collect(),
        output: made.split(' ').map(str::to_owned).collect(),
        ..Default::default()
    }
}

fn model_of(
    inputs: Vec<ValueInfoProto>,
    nodes: &[&str],
    outputs: Vec<ValueInfoProto>,
) -> OnnxModel {
    let graph = GraphProto {
        input: inputs,
        output: outputs,
        node: nodes.iter().map(|text| node(text)).collect(),
        ..Default::default()
    };
    let opset = |domain: &str, version| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(version),
    };
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![opset("", 17), opset("own", 1)],
        graph: Some(graph),
        ..Default::default()
    };
    OnnxModel::decode(proto.encode_to_vec().into()).expect("decodes")
}

/// A model that gives `y` as this operator computes it of the inputs.
fn model(inputs: &[&[&str]], output: Option<&[&str]>, operator: &str) -> OnnxModel {
    let inputs = inputs.iter().enumerate();
    let inputs: Vec<_> = inputs
        .map(|(at, dims)| value(&format!("x{at}"), dims))
        .collect();
    let read: String = inputs.iter().map(|x| format!(" {}", x.name())).collect();
    let output = output.map_or_else(|| undeclared("y"), |dims| value("y", dims));
    model_of(inputs, &[&format!("{operator}{read} -> y")], vec![output])
}

type Case<'a> = (
    &'a [&'a [&'a str]],
    Option<&'a [&'a str]>,
    &'a str,
    Option<&'a str>,
);

fn check(cases: &[Case<'_>]) {
    for (inputs, output, operator, expected) in cases {
        let why = why_not_batched(&model(inputs, *output, operator), &|_| true);
        assert_eq!(
            why.as_deref(),
            *expected,
            "{inputs:?} {output:?} {operator}"
        );
    }
}

#[test]
fn an_output_with_another_first_dimension_does_not_batch() {
    check(&[
        // The number of rows is known only in a run.
        (
            &[&["batch", "100", "4"]],
            Some(&["found", "3"]),
            "NonZero",
            Some("its inputs begin with dimension `batch`, its output `y` with `found`"),
        ),
        (
            &[&["seq", "4"]],
            Some(&["batch", "4"]),
            "NonZero",
            Some("its inputs begin with dimension `seq`, its output `y` with `batch`"),
        ),
        (
            &[&["n", "4"]],
            Some(&["_", "n"]),
            "Transpose",
            Some("its inputs begin with dimension `n`, its output `y` does not"),
        ),
        // The graph shows that it is the batch.
        (&[&["unk__6", "4"]], Some(&["unk__7", "4"]), "Relu", None),
        (&[&["n", "4"]], Some(&["_", "4"]), "Relu", None),
        // The file says that it is.
        (&[&["n", "4"]], Some(&["n", "4"]), "NonZero", None),
    ]);
}

#[test]
fn a_later_dimension_that_is_called_batch_is_the_batch() {
    check(&[
        (
            &[&["seq", "batch", "4"]],
            Some(&["seq", "batch", "4"]),
            "Relu",
            Some("dimension 1 of input `x0` is `batch`, its first one is `seq`"),
        ),
        (
            &[&["batch", "4"], &["_", "batch", "4"]],
            Some(&["_", "batch", "4"]),
            "Add",
            Some("dimension 1 of input `x1` is `batch`, its first one has no name"),
        ),
        (&[&["batch", "batch"]], Some(&["batch", "4"]), "Relu", None),
    ]);
}

#[test]
fn without_one_name_for_all_the_graph_tells() {
    let decided = Some(
        "the size of its output `y` depends on values that are known only in a run (NonZero that gives `y`)",
    );
    let unknown = Some(
        "the operator of Tokens that gives `y` is not known, so its output `y` may begin with anything",
    );
    let other = Some("its output `y` does not begin with the batch that its inputs begin with");
    check(&[
        (&[&["n", "4"]], Some(&["_", "4"]), "NonZero", decided),
        (&[&["_", "4"]], Some(&["_", "4"]), "NonZero", decided),
        (&[&["_", "4"]], Some(&["k", "4"]), "NonZero", decided),
        // Several exporters write what looks like a name.
        (&[&["None", "4"]], Some(&["None", "4"]), "NonZero", decided),
        (&[&["_", "4"]], Some(&["_", "4"]), "own.Tokens", unknown),
        (&[&["_", "4"]], Some(&["_", "_"]), "Transpose", other),
        (&[&["_", "4"]], Some(&["_", "4"]), "Relu", None),
        (
            &[&["unk__1", "4"], &["unk__2", "4"]],
            Some(&["unk__3", "4"]),
            "Add",
            None,
        ),
        (
            &[&["n", "5"], &["m", "6"]],
            Some(&["k", "4"]),
            "MatMul",
            Some("its output `y` begins with dimension `k`, none of its inputs does"),
        ),
        // Graph and names leave it open.
        (&[&["_", "4"]], Some(&["k", "4"]), "MatMul", None),
        (
            &[&["n", "5"], &["m", "6"]],
            Some(&["m", "4"]),
            "MatMul",
            None,
        ),
    ]);
}

#[test]
fn an_undeclared_output_batches_only_where_the_graph_shows_it() {
    check(&[
        (&[&["n", "4"]], None, "Relu", None),
        (
            &[&["n", "4"]],
            None,
            "Transpose",
            Some("its inputs begin with dimension `n`, its output `y` does not"),
        ),
        (
            &[&["n", "4"]],
            None,
            "NonZero",
            Some(
                "the size of its output `y` depends on values that are known only in a run (NonZero that gives `y`)",
            ),
        ),
        (
            &[&["n", "4"]],
            None,
            "MatMul",
            Some("the graph does not show whether its output `y` begins with the batch"),
        ),
    ]);
}

#[test]
fn first_dimensions_are_found_where_no_size_fits_the_graph() {
    // `MatMul` of one tensor stops the walk before it gets to `NonZero`.
    let nodes = ["MatMul x -> a", "NonZero a -> b", "Transpose b -> y"];
    let detector = model_of(
        vec![value("x", &["_", "4"])],
        &nodes,
        vec![value("y", &["_", "2"])],
    );
    assert_eq!(
        why_not_batched(&detector, &|_| true).as_deref(),
        Some(
            "the size of its output `y` depends on values that are known only in a run (NonZero that gives `b`)"
        )
    );
}

#[test]
fn only_outputs_that_are_served_decide() {
    let nodes = ["Relu x -> y", "NonZero x -> b", "Transpose b -> t"];
    let outputs = || vec![value("y", &["_", "4"]), value("t", &["_", "2"])];
    let model = model_of(vec![value("x", &["_", "4"])], &nodes, outputs());
    assert!(why_not_batched(&model, &|_| true).is_some_and(|why| why.contains("`t`")));
    assert_eq!(why_not_batched(&model, &|name| name == "y"), None);
    // Nor does what is not served keep the graph from telling.
    let one = model_of(
        vec![value("x", &["n", "4"])],
        &nodes,
        vec![value("y", &["m", "4"]), undeclared("t")],
    );
    assert_eq!(why_not_batched(&one, &|name| name == "y"), None);
}

#[test]
fn names_decide_for_formats_that_only_their_runtime_reads() {
    let spec = |name: &str| TensorSpec {
        name: name.to_owned(),
        datatype: DataType::Fp32,
        dims: Some(Dims::new(&[-1, 4]).expect("dims")),
    };
    let why = |x: &[&str], k: &[&str], y: &[&str], is_served: bool| {
        let signature = ModelSignature {
            inputs: vec![spec("x"), spec("k")],
            outputs: vec![spec("y")],
        };
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let names =
            [("x", x), ("k", k), ("y", y)].map(|(name, dims)| (name.to_owned(), owned(dims)));
        why_names_do_not_batch(&signature, &names.into(), &|_| is_served)
    };
    assert_eq!(why(&["n", ""], &["n", ""], &["n", ""], true), None);
    assert_eq!(why(&["n"], &["n"], &["found"], false), None);
    for (x, k, y, expected) in [
        (
            &["n"][..],
            &["n"][..],
            &["found"][..],
            "its inputs begin with dimension `n`, its output `y` with `found`",
        ),
        (
            &["n"],
            &["n"],
            &[""],
            "its inputs begin with dimension `n`, its output `y` does not",
        ),
        (
            &["n"],
            &[],
            &["n"],
            "the names of its dimensions do not tell whether its inputs begin with the same one",
        ),
        (
            &["t", "batch"],
            &["t"],
            &["t"],
            "dimension 1 of input `x` is `batch`, its first one is `t`",
        ),
    ] {
        assert_eq!(
            why(x, k, y, true).as_deref(),
            Some(expected),
            "{x:?} {k:?} {y:?}"
        );
    }
}

#[test]
fn undeclared_outputs_follow_from_the_graph() {
    let outputs = computed_outputs(&model(&[&["n", "4"]], None, "Relu"));
    let [y] = outputs.as_slice() else {
        panic!("{outputs:?}");
    };
    assert_eq!(y.datatype, DataType::Fp32);
    assert_eq!(y.dims, Some(Dims::new(&[-1, 4]).expect("dims")));
    assert_eq!(
        computed_outputs(&model(&[&["n", "4"]], None, "NonZero")),
        []
    );
    assert_eq!(
        computed_outputs(&model(&[&["n", "4"]], Some(&["n", "4"]), "Relu")),
        []
    );
}
