//! Graphs within graphs.

use std::collections::BTreeMap;

use super::build::{Onnx, TestGraph, inner, ints};
use crate::given::GivenShapes;

/// PyTorch's `squeeze` of a dimension that may be one: the shape decides the branch.
#[test]
fn a_known_condition_chooses() {
    let graph = |size: &str| {
        TestGraph::new(
            &[("x", &["2", size])],
            "s = Shape(x) start=1
             c = Equal(s, one)
             c0 = Squeeze(c)
             y = If(c0)",
        )
        .with([ints("one", &[1], &[1])])
        .inner(
            "y",
            "then_branch",
            inner(&[], "a = Squeeze(x, one)", &["a"]),
        )
        .inner("y", "else_branch", inner(&[], "b = Identity(x)", &["b"]))
    };
    assert_eq!(graph("1").shape("y"), "[2]");
    assert_eq!(graph("3").shape("y"), "[2,3]");
}

#[test]
fn branches_that_agree_need_no_condition() {
    let graph = |other: &str| {
        TestGraph::new(&[("x", &["2", "3"]), ("c", &[])], "y = If(c)")
            .typed("c", Onnx::Bool)
            .with([ints("one", &[1], &[1])])
            .inner("y", "then_branch", inner(&[], "a = Relu(x)", &["a"]))
            .inner("y", "else_branch", inner(&[], other, &["b"]))
    };
    assert_eq!(graph("b = Neg(x)").shape("y"), "[2,3]");
    let error = graph("b = Flatten(x) axis=0").shape("y");
    assert!(
        error.contains("its branches give different shapes, and `c` chooses"),
        "{error}"
    );
    assert!(error.contains("`--tensor y:1,2`"), "{error}");
    // Three columns cannot be squeezed, so no run goes there.
    assert_eq!(graph("b = Squeeze(x, one)").shape("y"), "[2,3]");
}

/// A loop that adds to what it carries, and stacks a row a round.
fn counted(body: &str) -> TestGraph {
    TestGraph::new(&[("x", &["2", "3"]), ("m", &[])], "y rows = Loop(m, , x)")
        .typed("m", Onnx::Int64)
        .inner(
            "y",
            "body",
            inner(&["i", "go", "v"], body, &["go", "w", "row"]),
        )
}

#[test]
fn a_loop_that_keeps_its_shapes() {
    let body = "w = Add(v, v)\nrow = Relu(v)";
    let error = counted(body).shape("y");
    assert!(error.contains("the number of its rounds"), "{error}");
    let mut known = counted(body).with([ints("m", &[], &[7])]);
    known.graph().input.pop();
    let inferred = known.infer(&GivenShapes::default()).expect("inferred");
    assert_eq!(inferred.tensors["y"].shape.dims(), [2, 3]);
    assert_eq!(inferred.tensors["rows"].shape.dims(), [7, 2, 3]);
}

#[test]
fn a_loop_that_grows_is_followed_round_by_round() {
    let body = "w = Concat(v, v) axis=0\nrow = ReduceSum(v) keepdims=0";
    let mut known = counted(body).with([ints("m", &[], &[4])]);
    known.graph().input.pop();
    let inferred = known.infer(&GivenShapes::default()).expect("inferred");
    assert_eq!(inferred.tensors["y"].shape.dims(), [32, 3]);
    assert_eq!(inferred.tensors["rows"].shape.dims(), [4]);
    let error = counted(body).shape("y");
    assert!(
        error.contains("`x` changes its shape from round to round"),
        "{error}"
    );
}

#[test]
fn a_scan_takes_its_inputs_apart() {
    let graph = TestGraph::new(
        &[("s", &["3"]), ("x", &["4", "5", "3"])],
        "t rows = Scan(s, x) num_scan_inputs=1 scan_input_axes=1, scan_output_axes=-1,",
    )
    .inner(
        "t",
        "body",
        inner(
            &["a", "b"],
            "c = Add(a, d)\nd = ReduceSum(b, axes) keepdims=0\ne = Relu(b)",
            &["c", "e"],
        ),
    )
    .with([ints("axes", &[1], &[0])]);
    let inferred = graph.infer(&GivenShapes::default()).expect("inferred");
    assert_eq!(inferred.tensors["t"].shape.dims(), [3]);
    assert_eq!(inferred.tensors["rows"].shape.dims(), [4, 3, 5]);
}

#[test]
fn tensors_that_inner_graphs_read_come_first() {
    let graph = TestGraph::new(
        &[("x", &["2"]), ("c", &[])],
        "y = If(c)
         late = Concat(x, x) axis=0",
    )
    .typed("c", Onnx::Bool)
    .inner("y", "then_branch", inner(&[], "a = Relu(late)", &["a"]))
    .inner("y", "else_branch", inner(&[], "b = Neg(late)", &["b"]));
    let inferred = graph.infer(&GivenShapes::default()).expect("inferred");
    assert_eq!(inferred.order, [1, 0]);
    assert_eq!(inferred.tensors["y"].shape.dims(), [4]);
}

#[test]
fn inner_tensors_can_be_stated() {
    let graph = || {
        TestGraph::new(&[("x", &["2", "3"]), ("c", &[])], "y = If(c)")
            .typed("c", Onnx::Bool)
            .inner("y", "then_branch", inner(&[], "a = NonZero(x)", &["a"]))
            .inner("y", "else_branch", inner(&[], "b = NonZero(x)", &["b"]))
    };
    let error = graph().error(&GivenShapes::default());
    assert!(error.contains("`a` (output of NonZero"), "{error}");
    let tensors = |names: &[&str]| GivenShapes {
        tensors: names
            .iter()
            .map(|name| ((*name).to_owned(), vec![2, 5]))
            .collect::<BTreeMap<_, _>>(),
        ..GivenShapes::default()
    };
    let inferred = graph().infer(&tensors(&["a", "b"])).expect("inferred");
    assert_eq!(inferred.tensors["y"].shape.dims(), [2, 5]);
    let inferred = graph().infer(&tensors(&["y"])).expect("inferred");
    assert_eq!(inferred.tensors["y"].shape.dims(), [2, 5]);
}
