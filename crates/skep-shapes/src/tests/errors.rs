//! What inference says when it cannot go on.

use skep_proto::onnx::{tensor_shape_proto::dimension::Value as Dimension, type_proto::Value};
use skep_types::DataType;

use super::build::{Onnx, TestGraph, ints};
use crate::{given::GivenShapes, test_values::tensor};

fn tensors(name: &str, dims: &[usize]) -> GivenShapes {
    GivenShapes {
        tensors: [(name.to_owned(), dims.to_vec())].into(),
        ..GivenShapes::default()
    }
}

fn inputs(name: &str, dims: &[usize]) -> GivenShapes {
    GivenShapes {
        inputs: [(name.to_owned(), dims.to_vec())].into(),
        ..GivenShapes::default()
    }
}

#[test]
fn open_inputs_say_what_to_pass() {
    let graph = |dims: &[&str]| TestGraph::new(&[("x", dims)], "y = Relu(x)");
    assert_eq!(
        graph(&["batch", "3", "_", "_"]).error(&GivenShapes::default()),
        "input `x` has shape [batch,3,?,?], whose size is not known; pass `--input x:1,3,224,224`"
    );
    assert_eq!(
        graph(&["batch", "3"]).error(&GivenShapes::default()),
        "input `x` has shape [batch,3], whose size is not known; pass `--batch N` or `--input x:1,3`"
    );
    assert_eq!(
        graph(&["1", "3"]).error(&GivenShapes {
            batch: Some(4),
            ..GivenShapes::default()
        }),
        "batch size 4 was given, but no input's leading dimension is open"
    );
    assert_eq!(
        graph(&["1", "3"])
            .infer(&GivenShapes {
                batch: Some(1),
                ..GivenShapes::default()
            })
            .map(|_| ()),
        Ok(())
    );
}

#[test]
fn an_example_has_the_batch_where_a_state_has_it() {
    for (dims, expected) in [
        (&["2", "_", "128"][..], "pass `--input s:2,3,128`"),
        // The name has a size already, which another input gives it.
        (&["2", "n", "_"], "pass `--input s:2,5,128`"),
        (
            &["2", "batch", "steps"],
            "pass `--dim batch=3 --dim steps=128` or `--input s:2,3,128`",
        ),
        // One text, whose length is open.
        (&["1", "_"], "pass `--input s:1,128`"),
    ] {
        let graph = TestGraph::new(&[("x", &["_", "n", "_"]), ("s", dims)], "y = Relu(s)");
        let given = GivenShapes {
            batch: Some(3),
            ..inputs("x", &[3, 5, 7])
        };
        let error = graph.error(&given);
        assert!(error.ends_with(expected), "{error}");
    }
}

#[test]
fn anonymous_dimensions_do_not_share_a_size() {
    let graph = |anonymous: &str| {
        let mut graph = TestGraph::new(&[("x", &["_", "3", "a", "b"])], "y = Relu(x)");
        let Some(Value::TensorType(tensor)) = graph.graph().input[0]
            .r#type
            .as_mut()
            .and_then(|kind| kind.value.as_mut())
        else {
            panic!("a tensor");
        };
        for dim in &mut tensor.shape.as_mut().expect("a shape").dim[2..] {
            dim.value = Some(Dimension::DimParam(anonymous.to_owned()));
        }
        graph
    };
    for anonymous in ["?", "None", "-1"] {
        let given = inputs("x", &[1, 3, 48, 192]);
        let inferred = graph(anonymous).infer(&given).expect("shapes");
        assert_eq!(inferred.tensors["y"].shape.dims(), [1, 3, 48, 192]);
        assert_eq!(
            graph(anonymous).error(&GivenShapes {
                batch: Some(1),
                ..GivenShapes::default()
            }),
            "input `x` has shape [?,3,?,?], whose size is not known; pass `--input x:1,3,224,224`"
        );
    }
}

#[test]
fn stated_shapes_must_fit() {
    let graph = |dims: &[&str]| {
        TestGraph::new(
            &[("x", dims), ("z", &["n", "k"])],
            "w = Relu(x)\ny = NonZero(w)",
        )
    };
    let cases = [
        (
            inputs("x", &[1]),
            "input `x` has shape [1], but the file says [n,3]",
        ),
        (
            inputs("x", &[1, 4]),
            "input `x` has shape [1,4], but the file says [n,3]",
        ),
        (
            inputs("q", &[1]),
            "input `q` was given, but the model has none of that name",
        ),
        (
            GivenShapes {
                dims: [("q".to_owned(), 1)].into(),
                inputs: [("x".to_owned(), vec![1, 3]), ("z".to_owned(), vec![1, 3])].into(),
                ..GivenShapes::default()
            },
            "dimension `q` was given, but the model has none of that name",
        ),
        (
            GivenShapes {
                inputs: [("x".to_owned(), vec![1, 3]), ("z".to_owned(), vec![2, 3])].into(),
                ..GivenShapes::default()
            },
            "dimension `n` is 1 in input `x`, but 2 in input `z`",
        ),
        (
            GivenShapes {
                batch: Some(2),
                inputs: [("x".to_owned(), vec![1, 3])].into(),
                ..GivenShapes::default()
            },
            "dimension `n` is 1 in input `x`, but 2 in the batch size",
        ),
    ];
    for (given, expected) in cases {
        assert_eq!(graph(&["n", "3"]).error(&given), expected);
    }
    let both = GivenShapes {
        dims: [("k".to_owned(), 1)].into(),
        ..GivenShapes::default()
    };
    let with = |name: &str, dims: &[usize]| GivenShapes {
        batch: Some(2),
        ..tensors(name, dims)
    };
    let stated = |given: GivenShapes| GivenShapes {
        dims: both.dims.clone(),
        ..given
    };
    assert_eq!(
        graph(&["n", "3"]).error(&stated(with("w", &[2, 4]))),
        "tensor `w` has shape [2,3], but what was given says [2,4]"
    );
    let ok = graph(&["n", "3"])
        .infer(&stated(with("y", &[2, 6])))
        .expect("stated");
    assert_eq!(ok.tensors["y"].shape.dims(), [2, 6]);
    let both = GivenShapes {
        batch: Some(2),
        dims: both.dims,
        tensors: [("y".to_owned(), vec![2, 1]), ("none".to_owned(), vec![])].into(),
        ..GivenShapes::default()
    };
    assert_eq!(
        graph(&["n", "3"]).error(&both),
        "tensor `none` was given, but the model has none of that name"
    );
}

#[test]
fn shapes_known_only_in_a_run_are_named() {
    let graph = TestGraph::new(&[("x", &["2", "3"])], "i = NonZero(x)\ny = Transpose(i)");
    assert_eq!(
        graph.error(&GivenShapes::default()),
        "shape of tensor `i` (output of NonZero that gives `i`) depends on values that are known only in a run: those \
         of `x`; pass its shape with `--tensor i:1,2`"
    );
    let mut graph = TestGraph::new(&[("x", &["2", "3"]), ("to", &["2"])], "y = Reshape(x, to)")
        .typed("to", Onnx::Int64);
    graph.graph().node[0].name = Some("view".to_owned());
    assert_eq!(
        graph.error(&GivenShapes::default()),
        "shape of tensor `y` (output of Reshape `view`) depends on values that are known only in a run: those of `to`; \
         pass its shape with `--tensor y:1,2`"
    );
}

#[test]
fn unknown_operators_are_named_and_can_be_stated() {
    let graph = || {
        TestGraph::new(
            &[("x", &["2", "3"])],
            "a = com.example::Frob(x)\ny = Relu(a)",
        )
    };
    assert_eq!(
        graph().error(&GivenShapes::default()),
        "shape of tensor `a` (output of Frob that gives `a`) is not known: there is no such operator in operator set 0 \
         of domain `com.example`; pass its shape with `--tensor a:1,2`"
    );
    let inferred = graph().infer(&tensors("a", &[5])).expect("stated");
    assert_eq!(
        inferred.tensors["a"].element.datatype(),
        Some(DataType::Fp32)
    );
    let mut declared = graph();
    declared
        .graph()
        .value_info
        .push(tensor("a", Onnx::Int64, &["_"]));
    let inferred = declared.infer(&tensors("a", &[5])).expect("stated");
    assert_eq!(inferred.tensors["y"].shape.dims(), [5]);
    assert_eq!(
        inferred.tensors["y"].element.datatype(),
        Some(DataType::Int64)
    );
}

/// What such files give in a run, with a warning.
#[test]
fn contradicting_declarations_of_outputs_are_reported() {
    let otherwise = |dims: &[&str]| {
        let mut graph = TestGraph::new(&[("x", &["2", "3"])], "y = Relu(x)");
        graph.graph().output = vec![tensor("y", Onnx::Float, dims)];
        let inferred = graph.infer(&GivenShapes::default()).expect("inferred");
        assert_eq!(inferred.tensors["y"].shape.dims(), [2, 3]);
        let otherwise = inferred.declared_otherwise.iter();
        otherwise.map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(otherwise(&["other", "3"]), Vec::<String>::new());
    assert_eq!(
        otherwise(&["2", "4"]),
        ["output `y` has shape [2,3], but the file says [2,4]"]
    );
    assert_eq!(
        otherwise(&["2"]),
        ["output `y` has shape [2,3], but the file says [2]"]
    );
}

#[test]
fn invalid_graphs_are_refused() {
    let graph = |lines: &str| TestGraph::new(&[("x", &["2"])], lines);
    assert_eq!(
        graph("a = Relu(c)\nb = Relu(a)\nc = Neg(b)\ny = Abs(c)").shape("y"),
        "Relu that gives `a` is on a cycle: it waits for a tensor that depends on its own output"
    );
    // What merely waits for a cycle is not on it.
    let behind = graph("y = Abs(b)\na = Relu(b)\nb = Neg(a)").shape("y");
    assert!(
        !behind.starts_with("Abs") && behind.contains("is on a cycle"),
        "{behind}"
    );
    assert_eq!(
        graph("y = Relu(x)\ny = Neg(x)").shape("y"),
        "tensor `y` is produced twice, the second time by Neg that gives `y`"
    );
    assert_eq!(
        graph("x = Relu(x)").shape("x"),
        "Relu that gives `x` is on a cycle: it waits for a tensor that depends on its own output"
    );
    assert_eq!(
        graph("y = Relu(nowhere)").shape("y"),
        "tensor `nowhere` is read by Relu that gives `y`, but nothing produces it"
    );
    let twice = graph("y = Relu(w)").with([ints("w", &[1], &[1]), ints("w", &[1], &[1])]);
    assert_eq!(
        twice.shape("y"),
        "tensor `w` is produced twice, the second time by an initializer"
    );
}

#[test]
fn nodes_with_inputs_that_do_not_fit() {
    let graph =
        |lines: &str| TestGraph::new(&[("x", &["2", "3"]), ("z", &["4", "5"])], lines).shape("y");
    let cases = [
        (
            "y = Add(x, z)",
            "Add that gives `y` combines shapes [2,3] and [4,5], which do not broadcast",
        ),
        (
            "y = MatMul(x, z)",
            "MatMul that gives `y` multiplies shapes [2,3] and [4,5], whose inner sizes differ",
        ),
        (
            "y = Concat(x, z) axis=0",
            "Concat that gives `y` joins shapes [2,3] and [4,5] along axis 0",
        ),
        (
            "y = Softmax()",
            "Softmax that gives `y` has no input 1, expected one",
        ),
        (
            "y = Flatten(x) axis=7",
            "Flatten that gives `y` names axis 7 of a tensor of 3 dimensions",
        ),
        (
            "y a = Relu(x)",
            "Relu that gives `y` has 2 outputs, expected 1",
        ),
        (
            "y = AveragePool(i) kernel_shape=3,3\ni = Unsqueeze(x) axes=0,1",
            "AveragePool that gives `y` slides a window of 3 over 2 padded by 0",
        ),
    ];
    for (lines, expected) in cases {
        assert_eq!(graph(lines), expected);
    }
}
