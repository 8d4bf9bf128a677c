//! Shape arithmetic as exporters write it.

use std::collections::BTreeMap;

use super::build::{Onnx, TestGraph, ints};
use crate::{fact::KnownFrom, given::GivenShapes};

fn given(batch: usize, dims: &[(&str, usize)]) -> GivenShapes {
    GivenShapes {
        batch: Some(batch),
        dims: dims
            .iter()
            .map(|&(name, size)| (name.to_owned(), size))
            .collect(),
        ..GivenShapes::default()
    }
}

/// PyTorch: `x.view(x.size(0), -1)`.
#[test]
fn a_view_of_the_batch_and_the_rest() {
    let graph = TestGraph::new(
        &[("x", &["n", "64", "7", "7"])],
        "s = Shape(x)
         n = Gather(s, zero) axis=0
         n1 = Unsqueeze(n, axes)
         to = Concat(n1, rest) axis=0
         y = Reshape(x, to)",
    )
    .with([
        ints("zero", &[], &[0]),
        ints("axes", &[1], &[0]),
        ints("rest", &[1], &[-1]),
    ]);
    let inferred = graph.infer(&given(5, &[])).expect("inferred");
    assert_eq!(inferred.tensors["y"].shape.dims(), [5, 3136]);
    let known = |name: &str| inferred.tensors[name].known;
    assert_eq!(
        [known("zero"), known("to"), known("y")],
        [KnownFrom::File, KnownFrom::Shapes, KnownFrom::Run]
    );
}

/// PyTorch before operator set 13: axes as attributes, heads out of a hidden size by a division of floats.
#[test]
fn heads_cut_out_of_a_hidden_size() {
    let graph = TestGraph::new(
        &[("x", &["n", "s", "768"])],
        "shape = Shape(x)
         h = Gather(shape, two) axis=0
         c = Constant() value_float=12.0
         f = Cast(h) to=1
         d = Div(f, c)
         e = Floor(d)
         i = Cast(e) to=7
         h1 = Unsqueeze(i) axes=0,
         b = Gather(shape, zero) axis=0
         b1 = Unsqueeze(b) axes=0,
         r = Constant() value_ints=-1,
         k = Constant() value_ints=12,
         to = Concat(b1, r, k, h1) axis=0
         y4 = Reshape(x, to)
         y = Transpose(y4) perm=0,2,1,3",
    )
    .opset(12)
    .with([ints("two", &[], &[2]), ints("zero", &[], &[0])]);
    let inferred = graph.infer(&given(2, &[("s", 9)])).expect("inferred");
    assert_eq!(inferred.tensors["y"].shape.dims(), [2, 12, 9, 64]);
}

/// BERT: a mask [n,s] expanded to [n,1,s,s] through `Where` on a shape that may hold -1.
#[test]
fn a_mask_that_is_expanded() {
    let graph = TestGraph::new(
        &[("mask", &["n", "s"])],
        "m3 = Unsqueeze(mask, one)
         m = Unsqueeze(m3, one)
         shape = Shape(mask)
         n = Gather(shape, i0) axis=0
         s = Gather(shape, i1) axis=0
         n1 = Unsqueeze(n, zero)
         s1 = Unsqueeze(s, zero)
         wanted = Concat(n1, one, minus, s1) axis=0
         ones = ConstantOfShape(four)
         neg = Mul(ones, minus)
         eq = Equal(wanted, neg)
         filled = Concat(n1, one, s1, s1) axis=0
         to = Where(eq, filled, wanted)
         big = Expand(m, to)
         t = Cast(big) to=1
         y = Sub(t, t)",
    )
    .with([
        ints("zero", &[1], &[0]),
        ints("one", &[1], &[1]),
        ints("minus", &[1], &[-1]),
        ints("four", &[1], &[4]),
        ints("i0", &[], &[0]),
        ints("i1", &[], &[1]),
    ]);
    let mut graph = graph;
    let fill = ints("", &[1], &[1]);
    let node = graph
        .graph()
        .node
        .iter_mut()
        .find(|n| n.op_type() == "ConstantOfShape");
    node.expect("there")
        .attribute
        .push(skep_proto::onnx::AttributeProto {
            name: Some("value".to_owned()),
            t: Some(fill),
            ..Default::default()
        });
    let inferred = graph.infer(&given(3, &[("s", 11)])).expect("inferred");
    assert_eq!(inferred.tensors["y"].shape.dims(), [3, 1, 11, 11]);
}

/// GPT: a causal mask cut out of a constant one, by lengths of keys and queries.
#[test]
fn a_causal_mask_cut_by_lengths() {
    let graph = TestGraph::new(
        &[
            ("q", &["n", "12", "s", "64"]),
            ("k", &["n", "12", "t", "64"]),
        ],
        "qs = Shape(q) start=-2 end=-1
         ks = Shape(k) start=-2 end=-1
         from = Sub(ks, qs)
         rows = Slice(bias, from, ks, two, one)
         cut = Slice(rows, zero, ks, three, one)
         p = Transpose(k) perm=0,1,3,2
         scores = MatMul(q, p)
         y = Where(cut, scores, scores)",
    )
    .with([
        ints("bias", &[1, 1, 128, 128], &[1; 128 * 128]),
        ints("zero", &[1], &[0]),
        ints("one", &[1], &[1]),
        ints("two", &[1], &[2]),
        ints("three", &[1], &[3]),
    ]);
    let inferred = graph
        .infer(&given(2, &[("s", 5), ("t", 20)]))
        .expect("inferred");
    assert_eq!(inferred.tensors["cut"].shape.dims(), [1, 1, 5, 20]);
    assert_eq!(inferred.tensors["y"].shape.dims(), [2, 12, 5, 20]);
}

/// PyTorch's `interpolate` to a multiple of the size, and TensorFlow's flattening by `ReduceProd`.
#[test]
fn sizes_computed_in_floats() {
    let graph = TestGraph::new(
        &[("x", &["n", "8", "h", "w"])],
        "shape = Shape(x)
         hw = Slice(shape, two, four, zero)
         f = Cast(hw) to=1
         c = Constant() value_float=1.5
         g = Mul(f, c)
         h = Floor(g)
         i = Cast(h) to=7
         nc = Slice(shape, zero, two, zero)
         to = Concat(nc, i) axis=0
         big = Resize(x, , , to) mode=linear
         all = Shape(big)
         inner = Slice(all, one, big4, zero)
         p = ReduceProd(inner) keepdims=1
         first = Slice(all, zero, one, zero)
         flat = Concat(first, p) axis=0
         y = Reshape(big, flat)",
    )
    .with([
        ints("zero", &[1], &[0]),
        ints("one", &[1], &[1]),
        ints("two", &[1], &[2]),
        ints("four", &[1], &[4]),
        ints("big4", &[1], &[i64::MAX]),
    ]);
    let inferred = graph
        .infer(&given(2, &[("h", 15), ("w", 7)]))
        .expect("inferred");
    assert_eq!(inferred.tensors["big"].shape.dims(), [2, 8, 22, 10]);
    assert_eq!(inferred.tensors["y"].shape.dims(), [2, 8 * 22 * 10]);
}

/// PyTorch's `arange` as `Range`, and as the places of ones in older exports.
#[test]
fn positions_counted() {
    let graph = TestGraph::new(
        &[("x", &["n", "s"])],
        "shape = Shape(x)
         s = Gather(shape, i1) axis=0
         p = Range(i0, s, i1)
         s1 = Unsqueeze(s, axes)
         ones = ConstantOfShape(s1)
         ones1 = Cast(ones) to=9
         ones2 = Not(ones1)
         at = NonZero(ones2)
         t = Transpose(at)
         flat = Squeeze(t, i1s)
         e = Gather(table, flat) axis=0
         y = Add(e, e)",
    )
    .with([
        ints("i0", &[], &[0]),
        ints("i1", &[], &[1]),
        ints("i1s", &[1], &[1]),
        ints("axes", &[1], &[0]),
        super::build::weight("table", &[512, 32]),
    ]);
    let inferred = graph.infer(&given(2, &[("s", 6)])).expect("inferred");
    assert_eq!(inferred.tensors["p"].shape.dims(), [6]);
    assert_eq!(inferred.tensors["at"].shape.dims(), [1, 6]);
    assert_eq!(inferred.tensors["y"].shape.dims(), [6, 32]);
}

/// What the dynamo exporter of PyTorch writes: operators as functions of the file, with attributes handed on.
#[test]
fn functions_with_attributes() {
    use skep_proto::onnx::{AttributeProto, FunctionProto, OperatorSetIdProto};
    let mut graph = TestGraph::new(&[("x", &["n", "3", "4"])], "y = pkg::flat(x) from=2");
    let mut nodes = super::build::nodes("a = Flatten(i)\nb = pkg::twice(a)");
    nodes[0].attribute.push(AttributeProto {
        name: Some("axis".to_owned()),
        ref_attr_name: Some("from".to_owned()),
        ..Default::default()
    });
    let imports = |domain: &str| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(20),
    };
    let function = |name: &str, nodes, output: &str| FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("pkg".to_owned()),
        input: vec!["i".to_owned()],
        output: vec![output.to_owned()],
        attribute: vec!["from".to_owned()],
        node: nodes,
        opset_import: vec![imports(""), imports("pkg")],
        ..Default::default()
    };
    graph.0.functions = vec![
        function("flat", nodes, "b"),
        function("twice", super::build::nodes("o = Concat(i, i) axis=0"), "o"),
    ];
    let inferred = graph.infer(&given(5, &[])).expect("inferred");
    assert_eq!(inferred.tensors["y"].shape.dims(), [30, 4]);
    assert_eq!(inferred.tensors.keys().collect::<Vec<_>>(), ["x", "y"]);
}

/// Names that inputs share have one size, which declarations in between use as well.
#[test]
fn declared_shapes_answer_where_a_run_would() {
    let mut graph = TestGraph::new(
        &[("x", &["n", "s"]), ("m", &["n", "s"])],
        "i = NonZero(x)
         y = Transpose(i)",
    )
    .typed("m", Onnx::Bool);
    graph
        .graph()
        .value_info
        .push(crate::test_values::tensor("i", Onnx::Int64, &["2", "s"]));
    let given = GivenShapes {
        inputs: BTreeMap::from([("x".to_owned(), vec![4, 6])]),
        ..GivenShapes::default()
    };
    let inferred = graph.infer(&given).expect("inferred");
    assert_eq!(inferred.tensors["m"].shape.dims(), [4, 6]);
    assert_eq!(inferred.tensors["y"].shape.dims(), [6, 2]);
}
