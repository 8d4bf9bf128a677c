//! Files that want more time, memory or depth than they should get.

use proptest::prelude::*;
use prost::Message;
use skep_onnx::OnnxModel;
use skep_proto::onnx::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, OperatorSetIdProto, SparseTensorProto,
    TensorProto,
};

use super::build::{Onnx, TestGraph, inner, ints, nodes, weight};
use crate::{given::GivenShapes, infer::infer_shapes};

fn function(name: &str, lines: &str) -> FunctionProto {
    let import = |domain: &str| OperatorSetIdProto {
        domain: Some(domain.to_owned()),
        version: Some(20),
    };
    FunctionProto {
        name: Some(name.to_owned()),
        domain: Some("f".to_owned()),
        input: vec!["i".to_owned()],
        output: vec!["o".to_owned()],
        node: nodes(lines),
        opset_import: vec![import(""), import("f")],
        ..Default::default()
    }
}

#[test]
fn recursive_functions_are_refused() {
    let mut graph = TestGraph::new(&[("x", &["2"])], "y = f::a(x)");
    graph.0.functions = vec![function("a", "o = f::b(i)"), function("b", "o = f::a(i)")];
    let error = graph.shape("y");
    assert!(
        error.ends_with("holds functions and graphs deeper than 40"),
        "{error}"
    );
}

#[test]
fn doubling_functions_are_refused() {
    let mut graph = TestGraph::new(&[("x", &["2"])], "y = f::n0(x)");
    let level = |at: usize| {
        let next = at + 1;
        function(
            &format!("n{at}"),
            &format!("p = f::n{next}(i)\nq = f::n{next}(i)\no = Add(p, q)"),
        )
    };
    graph.0.functions = (0..30).map(level).collect();
    graph.0.functions.push(function("n30", "o = Relu(i)"));
    let error = graph.shape("y");
    assert!(error.contains("that repeat to more than"), "{error}");
}

#[test]
fn loops_in_loops() {
    let mut body: GraphProto = inner(&["i", "go", "v"], "w = Relu(v)", &["go", "w"]);
    for _ in 0..6 {
        let mut outer = inner(&["i", "go", "v"], "w = Loop(m, , v)", &["go", "w"]);
        outer.node[0].attribute.push(AttributeProto {
            name: Some("body".to_owned()),
            g: Some(body),
            ..Default::default()
        });
        body = outer;
    }
    let graph = TestGraph::new(&[("x", &["2"])], "y = Loop(m, , x)")
        .inner("y", "body", body)
        .with([ints("m", &[], &[1000])]);
    let error = graph.shape("y");
    assert!(error.contains("that repeat to more than"), "{error}");
}

#[test]
fn sizes_beyond_memory() {
    let huge = |lines: &str| {
        TestGraph::new(&[("x", &["1"])], lines)
            .with([
                ints("s", &[3], &[1 << 40, 1 << 40, 1 << 40]),
                ints("b", &[2], &[1 << 31, 1 << 31]),
            ])
            .shape("y")
    };
    for lines in [
        "y = Expand(x, s)",
        "y = ConstantOfShape(s)",
        "y = ConstantOfShape(b)",
    ] {
        let error = huge(lines);
        assert!(
            error.contains("is too large: no memory can hold it"),
            "{lines}: {error}"
        );
    }
    let tile = "a = Tile(x, r)\nb = Tile(a, r)\ny = Tile(b, r)";
    let graph = TestGraph::new(&[("x", &["1"])], tile).with([ints("r", &[1], &[i64::MAX])]);
    assert!(graph.shape("y").contains("too large"));
    let negative = TestGraph::new(&[("x", &["4"])], "y = Pad(x) pads=-3,-3").opset(7);
    assert_eq!(
        negative.shape("y"),
        "Pad that gives `y` would give a dimension of -2"
    );
    let rank = vec![1; 100];
    let graph =
        TestGraph::new(&[("x", &["1"])], "y = Expand(x, s)").with([ints("s", &[100], &rank)]);
    assert!(
        graph
            .shape("y")
            .contains("it has 100 dimensions, expected at most 64")
    );
    let graph =
        TestGraph::new(&[("x", &["1"])], "y = Expand(x, s)").with([ints("s", &[1000], &[1; 1000])]);
    assert!(graph.shape("y").contains("expected at most 128 values"));
}

/// Tensors of the file whose types and sizes no rule checks.
#[test]
fn tensors_without_bytes() {
    let typed = |mut tensor: TensorProto, element: i32| {
        tensor.data_type = Some(element);
        tensor
    };
    let odd = || typed(weight("w", &[2]), 48);
    let long = || weight("w", &[1 << 59]);
    let no_type = "is of element type 48, expected an element type of ONNX";
    let no_memory = "of shape [576460752303423488] is too large: no memory can hold it";
    for (tensor, text) in [
        (odd(), no_type),
        (
            typed(weight("w", &[2]), 0),
            "is of UNDEFINED, expected an element type of ONNX",
        ),
        (long(), no_memory),
    ] {
        let initializer = TestGraph::new(&[("x", &["1"])], "y = Relu(x)").with([tensor.clone()]);
        assert_eq!(initializer.shape("y"), format!("tensor `w` {text}"));
        let mut constant = TestGraph::new(&[("x", &["1"])], "w = Constant()\ny = Relu(x)");
        constant.graph().node[0].attribute.push(AttributeProto {
            name: Some("value".to_owned()),
            t: Some(tensor),
            ..Default::default()
        });
        assert_eq!(constant.shape("y"), format!("tensor `w` {text}"));
    }
    let mut sparse = TestGraph::new(&[("x", &["1"])], "y = Relu(x)");
    sparse.graph().sparse_initializer = vec![SparseTensorProto {
        values: Some(odd()),
        dims: vec![2, 2],
        ..Default::default()
    }];
    assert_eq!(sparse.shape("y"), format!("tensor `w` {no_type}"));
}

#[test]
fn many_nodes_in_any_order() {
    let count = 200_000;
    let node = |at: usize| NodeProto {
        input: vec![if at == 0 {
            "x".to_owned()
        } else {
            format!("t{}", at - 1)
        }],
        output: vec![format!("t{at}")],
        op_type: Some("Relu".to_owned()),
        ..Default::default()
    };
    let mut graph = TestGraph::new(&[("x", &["2"])], "");
    graph.graph().node = (0..count).rev().map(node).collect();
    graph.graph().output[0].name = Some(format!("t{}", count - 1));
    let inferred = graph.infer(&GivenShapes::default()).expect("inferred");
    assert_eq!(inferred.order, (0..count).rev().collect::<Vec<_>>());
    assert_eq!(inferred.tensors.len(), count + 1);
}

/// Values are followed up to a bound of steps; beyond it they count as known only in a run.
#[test]
fn values_without_end() {
    let mut graph = TestGraph::new(&[], "").with([ints("t0", &[1 << 15], &[1; 1 << 15])]);
    let node = |at: usize| NodeProto {
        input: vec![format!("t{}", at - 1); 2],
        output: vec![format!("t{at}")],
        op_type: Some("Add".to_owned()),
        ..Default::default()
    };
    graph.graph().node = (1..=2000).map(node).collect();
    graph.graph().output = vec![crate::test_values::tensor("t2000", Onnx::Int64, &["32768"])];
    let inferred = graph.infer(&GivenShapes::default()).expect("inferred");
    assert_eq!(inferred.tensors["t2000"].shape.dims(), [1 << 15]);
}

/// A file with something of most kinds in it.
fn rich() -> Vec<u8> {
    let mut graph = TestGraph::new(
        &[("x", &["n", "3", "8", "8"]), ("c", &[])],
        "s = Shape(x)
         n = Slice(s, zero, one, zero)
         to = Concat(n, minus) axis=0
         k = Conv(x, w) pads=1,1,1,1 strides=2,2
         p = MaxPool(k) kernel_shape=2,2 ceil_mode=1
         f = Reshape(p, to)
         g = f::twice(f)
         h = If(c)
         l r = Loop(two, , h)
         e = Einsum(l, l) equation=ij,kj->ik
         q = Resize(x, , , sizes)
         t i = TopK(e, one)
         y = Range(zs, two, ones)",
    )
    .typed("c", Onnx::Bool)
    .inner("h", "then_branch", inner(&[], "a = Relu(g)", &["a"]))
    .inner("h", "else_branch", inner(&[], "b = Neg(g)", &["b"]))
    .inner(
        "l",
        "body",
        inner(
            &["j", "go", "v"],
            "u = Add(v, v)\nm = ReduceMean(v)",
            &["go", "u", "m"],
        ),
    )
    .with([
        ints("zero", &[1], &[0]),
        ints("one", &[1], &[1]),
        ints("two", &[], &[2]),
        ints("zs", &[], &[0]),
        ints("ones", &[], &[1]),
        ints("minus", &[1], &[-1]),
        ints("sizes", &[4], &[2, 3, 4, 4]),
        weight("w", &[4, 3, 3, 3]),
    ]);
    graph.0.functions = vec![function("twice", "o = Concat(i, i) axis=1")];
    graph.0.encode_to_vec()
}

fn infer(bytes: Vec<u8>) {
    if let Ok(model) = OnnxModel::decode(bytes.into()) {
        for batch in [None, Some(2), Some(usize::MAX)] {
            // An answer or an error.
            let _ = infer_shapes(
                &model,
                &GivenShapes {
                    batch,
                    ..GivenShapes::default()
                },
            )
            .map(|i| i.order.len());
        }
    }
}

#[test]
fn the_rich_file_is_inferred() {
    let model = OnnxModel::decode(rich().into()).expect("decodes");
    let inferred = infer_shapes(
        &model,
        &GivenShapes {
            batch: Some(2),
            ..GivenShapes::default()
        },
    )
    .expect("inferred");
    assert_eq!(inferred.tensors["e"].shape.dims(), [2, 2]);
}

proptest! {
    #[test]
    fn changed_files_give_an_answer_or_an_error(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = rich();
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        infer(bytes);
    }

    /// Every integer that shapes are computed from, replaced by ones at the edges.
    #[test]
    fn odd_numbers_give_an_answer_or_an_error(
        seeds in prop::collection::vec(prop::sample::select(vec![
            0, 1, -1, 2, -2, 3, 7, 64, -64, i64::MAX, i64::MIN, i64::MAX - 1, 1 << 31, 1 << 62, -(1 << 62),
        ]), 64),
        every in 1usize..9,
    ) {
        let mut model = OnnxModel::decode(rich().into()).expect("decodes");
        let mut seeds = seeds.into_iter().cycle();
        let mut counter = 0;
        let mut change = |value: &mut i64| {
            counter += 1;
            if counter % every == 0 {
                *value = seeds.next().unwrap_or_default();
            }
        };
        let graph = model.proto_mut().graph.as_mut().expect("a graph");
        for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
            attribute.ints.iter_mut().for_each(&mut change);
            attribute.i.iter_mut().for_each(&mut change);
        }
        for tensor in &mut graph.initializer {
            tensor.int64_data.iter_mut().for_each(&mut change);
            tensor.dims.iter_mut().for_each(&mut change);
        }
        let bytes = model.into_proto().encode_to_vec();
        infer(bytes);
    }
}
