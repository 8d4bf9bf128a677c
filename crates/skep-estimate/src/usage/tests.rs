//! Records of generated networks beside what ONNX Runtime 1.31.1 was seen to allocate, and small graphs, one a rule.

use proptest::prelude::*;
use skep_models::{
    Dim, GraphBuilder, GraphValue as Value, NodeAttribute as Attribute, Options,
    WeightFill as Fill, generate,
};
use skep_onnx::OnnxModel;
use skep_planner::{Budget, auto, validate_offsets};
use skep_proto::onnx::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto,
    attribute_proto::AttributeType, tensor_shape_proto::dimension::Value as Dimension, type_proto,
};
use skep_shapes::{GivenShapes, infer_shapes};
use skep_types::DataType;

use super::{
    CpuTraits, GraphUsage, RewriteLevel, graph::TensorOrigin, graph_usage, runtime_graph,
    runtime_weights,
};

const AVX_512: CpuTraits = CpuTraits {
    channel_block: 16,
    cores: 2,
};

fn records(model: &OnnxModel, batch: usize, level: RewriteLevel) -> GraphUsage {
    let given = GivenShapes {
        batch: Some(batch),
        dims: [("sequence".to_owned(), 64)]
            .into_iter()
            .filter(|_| is_bert(model))
            .collect(),
        ..GivenShapes::default()
    };
    let inferred = infer_shapes(model, &given).expect("shapes");
    graph_usage(model, &inferred, level, AVX_512).expect("records")
}

fn is_bert(model: &OnnxModel) -> bool {
    model
        .graph()
        .input
        .iter()
        .any(|input| input.name() == "input_ids")
}

/// Bytes of the best plan, which is checked.
fn planned(usage: &GraphUsage) -> u64 {
    let problem = usage.records.problem();
    let answer = auto(problem, &Budget::nodes(10_000));
    validate_offsets(problem, &answer.plan).expect("a valid plan");
    assert!(
        answer.is_optimal(),
        "{} above {}",
        answer.plan.size,
        answer.lower_bound
    );
    answer.plan.size
}

/// The best plan of each level, in KiB.
fn kib(model: &OnnxModel, batch: usize) -> [u64; 3] {
    RewriteLevel::ALL.map(|level| planned(&records(model, batch, level)).div_ceil(1024))
}

/// The third figure is the peak of the runtime's allocations in one run, observed; the first two follow from the file.
#[test]
fn estimates_match_observed_allocations() {
    let table: [(&str, usize, [u64; 3]); 7] = [
        ("cnn", 1, [128, 80, 80]),
        ("cnn", 8, [1024, 640, 640]),
        ("mlp", 8, [32, 32, 32]),
        ("mobilenetv2", 1, [9408, 5880, 5880]),
        ("resnet50", 1, [9408, 7056, 5096]),
        ("resnet50", 8, [75_264, 56_448, 40_768]),
        ("bert-tiny", 8, [3330, 2306, 3330]),
    ];
    for (kind, batch, expected) in table {
        let model = generate(&kind.parse().expect("a kind"), &Options::default()).expect("a model");
        let model = OnnxModel::decode(model.to_bytes().expect("bytes").into()).expect("decodes");
        assert_eq!(kib(&model, batch), expected, "{kind} at batch {batch}");
    }
}

/// A graph that reads `x`, [n, 3, 32, 32], and gives `y`.
struct Small {
    builder: GraphBuilder,
    next_weight: usize,
}

impl Small {
    fn new() -> (Self, Value) {
        let mut builder = GraphBuilder::new("small");
        let dims = [3, 32, 32].map(Dim::Fixed);
        let dims = [&[Dim::Variable("n")], &dims[..]].concat();
        let x = builder.input("x", DataType::Fp32, &dims);
        (
            Self {
                builder,
                next_weight: 0,
            },
            x,
        )
    }

    /// A 3x3 convolution that keeps the size of its image.
    fn conv(&mut self, x: &Value, outputs: usize, per_group: usize, group: i64) -> Value {
        let weight = self.weight(&[outputs, per_group, 3, 3]);
        let attributes = [
            ("pads", Attribute::Ints(vec![1; 4])),
            ("kernel_shape", Attribute::Ints(vec![3; 2])),
            ("group", Attribute::Int(group)),
        ];
        self.builder.node("Conv", &[x, &weight], &attributes)
    }

    fn weight(&mut self, dims: &[usize]) -> Value {
        self.next_weight += 1;
        let fill = Fill::linear(9);
        self.builder
            .weight(&format!("w{}", self.next_weight), dims, fill)
    }

    fn node(&mut self, op: &str, inputs: &[&Value]) -> Value {
        self.builder.node(op, inputs, &[])
    }

    fn finish(mut self, y: &Value, channels: i64) -> OnnxModel {
        let dims = [
            Dim::Variable("n"),
            Dim::Fixed(channels),
            Dim::Fixed(32),
            Dim::Fixed(32),
        ];
        self.builder.output(y, "y", DataType::Fp32, &dims);
        let model = self.builder.finish(&Options::default()).expect("a model");
        OnnxModel::decode(model.to_bytes().expect("bytes").into()).expect("decodes")
    }
}

/// The plan after fusion at batch 2, in KiB; each figure was observed.
fn fused_kib(model: &OnnxModel) -> u64 {
    kib(model, 2)[2]
}

#[test]
fn channels_are_padded_to_whole_blocks() {
    let (mut g, x) = Small::new();
    let a = g.conv(&x, 24, 3, 1);
    let a = g.node("Relu", &[&a]);
    let b = g.conv(&a, 40, 24, 1);
    let b = g.node("Relu", &[&b]);
    let y = g.conv(&b, 24, 40, 1);
    let model = g.finish(&y, 24);
    // 32 channels and 48; the output is 32 until it is turned back.
    assert_eq!(fused_kib(&model), (32 + 48) * 8);
    let given = GivenShapes {
        batch: Some(2),
        ..GivenShapes::default()
    };
    let weights = runtime_weights(
        &model,
        &infer_shapes(&model, &given).expect("shapes"),
        AVX_512,
    );
    let plain = (24 * 3 + 40 * 24 + 24 * 40) * 9 * 4;
    assert_eq!(weights.plain, plain);
    assert_eq!(
        weights.layouts,
        (32 * 3 + 48 * 32 + 32 * 48) * 9 * 4 - plain
    );
}

#[test]
fn groups_of_partial_blocks_stay_in_the_files_layout() {
    let (mut g, x) = Small::new();
    let a = g.conv(&x, 64, 3, 1);
    let b = g.conv(&a, 40, 16, 4);
    let c = g.conv(&b, 40, 1, 40);
    let y = g.conv(&c, 16, 40, 1);
    let model = g.finish(&y, 16);
    assert_eq!(fused_kib(&model), 1024);
    let usage = records(&model, 2, RewriteLevel::Fused);
    let workspace = usage
        .records
        .names()
        .iter()
        .filter(|name| name.ends_with("(workspace)"));
    assert_eq!(workspace.count(), 1, "{:?}", usage.records.names());
}

#[test]
fn weighted_sigmoids_and_concatenations_stay_in_blocks() {
    let (mut g, x) = Small::new();
    let a = g.conv(&x, 32, 3, 1);
    let s = g.node("Sigmoid", &[&a]);
    let b = g.node("Mul", &[&a, &s]);
    let c = g.conv(&b, 32, 32, 1);
    let s = g.node("Sigmoid", &[&c]);
    let d = g.node("Mul", &[&c, &s]);
    let y = g.conv(&d, 16, 32, 1);
    assert_eq!(fused_kib(&g.finish(&y, 16)), 512);

    let (mut g, x) = Small::new();
    let a = g.conv(&x, 32, 3, 1);
    let b = g.conv(&a, 32, 32, 1);
    let c = g
        .builder
        .node("Concat", &[&a, &b], &[("axis", Attribute::Int(1))]);
    let d = g.node("Relu", &[&c]);
    let y = g.conv(&d, 16, 64, 1);
    assert_eq!(fused_kib(&g.finish(&y, 16)), 1024);
}

#[test]
fn a_transposed_convolution_unfolds_its_input() {
    let (mut g, x) = Small::new();
    let a = g.conv(&x, 32, 3, 1);
    let weight = g.weight(&[32, 16, 3, 3]);
    let attributes = [("pads", Attribute::Ints(vec![1; 4]))];
    let y = g.builder.node("ConvTranspose", &[&a, &weight], &attributes);
    assert_eq!(fused_kib(&g.finish(&y, 16)), 832);
}

/// Sizes in KiB and steps of the blocks after fusion at batch 2; each list was observed.
fn blocks(model: &OnnxModel) -> Vec<(u64, u64, u64)> {
    let usage = records(model, 2, RewriteLevel::Fused);
    let buffers = usage.records.problem().buffers().iter();
    buffers.map(|b| (b.size >> 10, b.start, b.end)).collect()
}

#[test]
fn a_residual_is_added_in_its_own_place_and_dies_there() {
    let residual = |convolutions: usize| {
        let (mut g, x) = Small::new();
        let a = g.conv(&x, 32, 3, 1);
        let mut b = a.clone();
        for _ in 0..convolutions {
            b = g.conv(&b, 32, 32, 1);
        }
        let b = g.node("Add", &[&b, &a]);
        let b = g.node("Relu", &[&b]);
        let y = g.conv(&b, 16, 32, 1);
        g.finish(&y, 16)
    };
    // What the sum gives lies where its second operand lay,
    assert_eq!(
        blocks(&residual(2)),
        [(256, 0, 4), (256, 1, 3), (128, 3, 5)]
    );
    // unless the convolution also reads that as its image.
    assert_eq!(
        blocks(&residual(1)),
        [(256, 0, 2), (256, 1, 3), (128, 2, 4)]
    );
}

/// The first dimension of a tensor.
fn first_of(value: &mut ValueInfoProto) -> &mut Option<Dimension> {
    let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
    match kind {
        Some(type_proto::Value::TensorType(type_proto::Tensor {
            shape: Some(shape), ..
        })) => &mut shape.dim[0].value,
        _ => panic!("a tensor with a shape"),
    }
}

/// A chain of operators that write over nothing, on `x` of the given first dimension; with declared shapes in between
/// or not.
fn chain(first: Dim, declared: Option<&str>) -> Vec<(u64, u64, u64)> {
    let mut builder = GraphBuilder::new("chain");
    let dims = [first, Dim::Fixed(1024)];
    let mut value = builder.input("x", DataType::Fp32, &dims);
    for op in ["Exp", "Sqrt", "Neg", "Exp"] {
        value = builder.node(op, &[&value], &[]);
    }
    builder.output(&value, "y", DataType::Fp32, &dims);
    let model = builder.finish(&Options::default()).expect("a model");
    let mut proto = model.to_proto().expect("a message");
    let graph = proto.graph.as_mut().expect("a graph");
    if let Some(name) = declared {
        // The input's name goes; tensors in between have this one.
        let mut info = graph.input[0].clone();
        *first_of(&mut graph.input[0]) = None;
        for node in &graph.node[..3] {
            info.name = Some(node.output[0].clone());
            *first_of(&mut info) = Some(Dimension::DimParam(name.to_owned()));
            graph.value_info.push(info.clone());
        }
    }
    let bytes = prost::Message::encode_to_vec(&proto);
    let model = OnnxModel::decode(bytes.into()).expect("decodes");
    let given = GivenShapes {
        batch: Some(2),
        ..GivenShapes::default()
    };
    let inferred = infer_shapes(&model, &given).expect("shapes");
    let usage = graph_usage(&model, &inferred, RewriteLevel::Fused, AVX_512).expect("records");
    let buffers = usage.records.problem().buffers().iter();
    buffers.map(|b| (b.size >> 10, b.start, b.end)).collect()
}

/// As observed: a block is kept between two tensors of one shape, where ONNX Runtime knows that it is one.
#[test]
fn blocks_are_taken_over_by_tensors_of_their_shape() {
    let kept = [(8, 0, 4), (8, 1, 3)];
    let own = [(8, 0, 2), (8, 1, 3), (8, 2, 4)];
    assert_eq!(chain(Dim::Fixed(2), None), kept);
    assert_eq!(chain(Dim::Variable("n"), None), kept);
    // An unnamed size may differ each time, unless the file names it in between.
    assert_eq!(chain(Dim::Variable("n"), Some("")), own);
    assert_eq!(chain(Dim::Variable("n"), Some("m")), kept);
}

#[test]
fn a_machine_without_blocks_keeps_the_files_layout() {
    let (mut g, x) = Small::new();
    let a = g.conv(&x, 24, 3, 1);
    let y = g.conv(&a, 24, 24, 1);
    let model = g.finish(&y, 24);
    let given = GivenShapes {
        batch: Some(1),
        ..GivenShapes::default()
    };
    let inferred = infer_shapes(&model, &given).expect("shapes");
    let usage = graph_usage(
        &model,
        &inferred,
        RewriteLevel::Fused,
        CpuTraits {
            channel_block: 1,
            cores: 1,
        },
    )
    .expect("records");
    // The first image, and a scratch buffer for each convolution.
    let sizes: Vec<u64> = usage
        .records
        .problem()
        .buffers()
        .iter()
        .map(|b| b.size >> 10)
        .collect();
    assert_eq!(sizes, [96, 64, 64]);
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        op_type: Some(op.to_owned()),
        input: names(inputs),
        output: names(outputs),
        ..Default::default()
    }
}

/// A model of these nodes that reads `x` and gives `y`, FP32 [256], or for `c` BOOL [].
fn model(nodes: Vec<NodeProto>, initializers: Vec<TensorProto>) -> OnnxModel {
    let mut builder = GraphBuilder::new("g");
    let x = builder.input("x", DataType::Fp32, &[Dim::Fixed(256)]);
    builder.input("c", DataType::Bool, &[]);
    let y = builder.node("Relu", &[&x], &[]);
    builder.output(&y, "y", DataType::Fp32, &[Dim::Fixed(256)]);
    let built = builder.finish(&Options::default()).expect("a model");
    let mut proto: ModelProto = built.to_proto().expect("a message");
    let graph = proto.graph.as_mut().expect("a graph");
    graph.node = nodes;
    graph.initializer.extend(initializers);
    OnnxModel::decode(prost::Message::encode_to_vec(&proto).into()).expect("decodes")
}

/// Name, size and live range of each record, and what it may lie over.
fn lines(model: &OnnxModel, level: RewriteLevel) -> Vec<String> {
    let inferred = infer_shapes(model, &GivenShapes::default()).expect("shapes");
    let usage = graph_usage(model, &inferred, level, AVX_512).expect("records");
    let names = usage.records.names();
    let line = |(name, b): (&String, &skep_planner::Buffer)| {
        let over = b
            .in_place
            .map_or_else(String::new, |input| format!(" over {}", names[input]));
        format!("{name} {} {}..{}{over}", b.size, b.start, b.end)
    };
    names
        .iter()
        .zip(usage.records.problem().buffers())
        .map(line)
        .collect()
}

#[test]
fn buffers_live_from_their_node_to_their_last_reader() {
    let model = model(
        vec![
            node("Exp", &["x"], &["a"]),
            node("Sin", &["a"], &["b"]),
            node("Identity", &["b"], &["v"]),
            node("Cos", &["v"], &["unread"]),
            node("Add", &["a", "v"], &["s"]),
            node("Abs", &["s"], &["y"]),
        ],
        vec![],
    );
    assert_eq!(
        lines(&model, RewriteLevel::AsWritten),
        [
            "a 1024 0..5",
            "b 1024 1..3",
            "v 1024 2..5",
            "unread 1024 3..4",
            "s 1024 4..6"
        ]
    );
    // A view is not a buffer; a sum may lie over whichever of its inputs ends there first in the list.
    assert_eq!(
        lines(&model, RewriteLevel::InPlace),
        [
            "a 1024 0..5",
            "b 1024 1..5",
            "unread 1024 3..4",
            "s 1024 4..6 over a"
        ]
    );
    // What nothing reads is not run.
    assert_eq!(
        lines(&model, RewriteLevel::Fused),
        ["a 1024 0..4", "b 1024 1..4", "s 1024 3..5"]
    );
}

#[test]
fn gelu_and_layer_normalisation_are_found_in_their_formulas() {
    let scalar = |name: &str, number: f32| TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(1),
        raw_data: Some(number.to_le_bytes().to_vec().into()),
        ..Default::default()
    };
    let vector = |name: &str| TensorProto {
        dims: vec![256],
        raw_data: Some(vec![0; 1024].into()),
        ..scalar(name, 0.0)
    };
    let numbers = vec![
        scalar("root", 1.41),
        scalar("one", 1.0),
        scalar("half", 0.5),
        vector("w"),
        vector("b"),
    ];
    let gelu = vec![
        node("Exp", &["x"], &["e"]),
        node("Add", &["e", "b"], &["a"]),
        node("Div", &["a", "root"], &["d"]),
        node("Erf", &["d"], &["f"]),
        node("Add", &["f", "one"], &["o"]),
        node("Mul", &["a", "half"], &["h"]),
        node("Mul", &["h", "o"], &["g"]),
        node("Sin", &["g"], &["y"]),
    ];
    assert_eq!(
        lines(&model(gelu, numbers.clone()), RewriteLevel::Fused),
        ["e 1024 0..2", "g 1024 1..3", "g (workspace) 1024 1..2"]
    );
    let mut mean = node("ReduceMean", &["e"], &["m"]);
    let axes = AttributeProto {
        name: Some("axes".to_owned()),
        r#type: Some(AttributeType::Ints.into()),
        ints: vec![-1],
        ..Default::default()
    };
    mean.attribute.push(axes.clone());
    let mut variance = node("ReduceMean", &["p"], &["v"]);
    variance.attribute.push(axes);
    let norm = vec![
        node("Exp", &["x"], &["e"]),
        mean,
        node("Sub", &["e", "m"], &["u"]),
        node("Pow", &["u", "one"], &["p"]),
        variance,
        node("Add", &["v", "half"], &["z"]),
        node("Sqrt", &["z"], &["r"]),
        node("Div", &["u", "r"], &["q"]),
        node("Mul", &["q", "w"], &["s"]),
        node("Add", &["s", "b"], &["n"]),
        node("Sin", &["n"], &["y"]),
    ];
    assert_eq!(
        lines(&model(norm, numbers), RewriteLevel::Fused),
        ["e 1024 0..2", "n 1024 1..3"]
    );
}

/// ONNX Runtime 1.31.1 makes a `Gemm` of each product and its bias, and shares, behind `Binarizer`; behind `Scaler` it
/// does neither, for it knows no shapes there.
#[test]
fn nothing_is_shared_behind_operators_without_a_known_shape() {
    let weight = |name: &str, dims: &[i64]| TensorProto {
        name: Some(name.to_owned()),
        dims: dims.to_vec(),
        data_type: Some(1),
        float_data: vec![0.0; usize::try_from(dims.iter().product::<i64>()).expect("small")],
        ..Default::default()
    };
    let buffers = |scaler: &str| {
        let mut first = node(scaler, &["x"], &["t1"]);
        first.domain = Some("ai.onnx.ml".to_owned());
        let nodes = vec![
            first,
            node("MatMul", &["t1", "w"], &["t2"]),
            node("Add", &["t2", "b"], &["t3"]),
            node("Relu", &["t3"], &["t4"]),
            node("MatMul", &["t4", "w"], &["t5"]),
            node("Add", &["t5", "b"], &["t6"]),
            node("Exp", &["t6"], &["y"]),
        ];
        let weights = vec![weight("w", &[3, 3]), weight("b", &[3])];
        let mut model = model(nodes, weights);
        let graph = model.proto_mut().graph.as_mut().expect("a graph");
        for value in [&mut graph.input[0], &mut graph.output[0]] {
            let kind = value.r#type.as_mut().and_then(|kind| kind.value.as_mut());
            let Some(type_proto::Value::TensorType(tensor)) = kind else {
                panic!("a tensor");
            };
            let dims = &mut tensor.shape.as_mut().expect("a shape").dim;
            dims.push(dims[0].clone());
            for dim in dims {
                dim.value = Some(Dimension::DimValue(3));
            }
        }
        lines(&model, RewriteLevel::Fused).len()
    };
    assert_eq!(buffers("Binarizer"), 2);
    assert_eq!(buffers("Scaler"), 6);
}

#[test]
fn calls_of_the_files_own_functions_are_named() {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let mut call = node("Twice", &["x"], &["y"]);
    call.domain = Some("own".to_owned());
    let mut model = model(vec![call], vec![]);
    let proto = model.proto_mut();
    let mut opset = proto.opset_import[0].clone();
    proto.functions = vec![FunctionProto {
        name: Some("Twice".to_owned()),
        domain: Some("own".to_owned()),
        input: names(&["a"]),
        output: names(&["c"]),
        node: vec![node("Exp", &["a"], &["b"]), node("Exp", &["b"], &["c"])],
        opset_import: vec![opset.clone()],
        ..Default::default()
    }];
    opset.domain = Some("own".to_owned());
    opset.version = Some(1);
    proto.opset_import.push(opset);
    let inferred = infer_shapes(&model, &GivenShapes::default()).expect("shapes");
    let usage = graph_usage(&model, &inferred, RewriteLevel::AsWritten, AVX_512).expect("records");
    assert_eq!(usage.left_out, ["Twice `y`"]);
}

#[test]
fn inner_graphs_keep_what_they_read_and_are_named() {
    let branch = |reads: &str| GraphProto {
        node: vec![node("Sqrt", &[reads], &["i"])],
        output: vec![ValueInfoProto {
            name: Some("i".to_owned()),
            ..Default::default()
        }],
        name: Some("branch".to_owned()),
        ..Default::default()
    };
    let attribute = |name: &str, graph: GraphProto| AttributeProto {
        name: Some(name.to_owned()),
        r#type: Some(AttributeType::Graph.into()),
        g: Some(graph),
        ..Default::default()
    };
    let mut choice = node("If", &["c"], &["k"]);
    choice.name = Some("choice".to_owned());
    choice.attribute = vec![
        attribute("then_branch", branch("a")),
        attribute("else_branch", branch("x")),
    ];
    let nodes = vec![
        node("Exp", &["x"], &["a"]),
        node("Cos", &["x"], &["d"]),
        choice,
        node("Add", &["k", "d"], &["y"]),
    ];
    let model = model(nodes, vec![]);
    assert_eq!(
        lines(&model, RewriteLevel::AsWritten),
        ["a 1024 0..3", "d 1024 1..4", "k 1024 2..4"]
    );
    let inferred = infer_shapes(&model, &GivenShapes::default()).expect("shapes");
    let usage = graph_usage(&model, &inferred, RewriteLevel::Fused, AVX_512).expect("records");
    assert_eq!(usage.left_out, ["If `choice`"]);
}

/// Operators over what is there already: every graph has records, and each variant's best plan is no larger than the
/// sum of its buffers.
fn any_nodes() -> impl Strategy<Value = Vec<(usize, usize, usize)>> {
    prop::collection::vec(
        (
            0..OPS.len(),
            any::<prop::sample::Index>(),
            any::<prop::sample::Index>(),
        ),
        1..40,
    )
    .prop_map(|nodes| {
        let tensors = |at: usize| at + 1;
        nodes
            .into_iter()
            .enumerate()
            .map(|(at, (op, a, b))| (op, a.index(tensors(at)), b.index(tensors(at))))
            .collect()
    })
}

const OPS: [(&str, usize); 12] = [
    ("Relu", 1),
    ("Exp", 1),
    ("Add", 2),
    ("Mul", 2),
    ("Identity", 1),
    ("Sigmoid", 1),
    ("Erf", 1),
    ("Softmax", 1),
    ("Sqrt", 1),
    ("Sub", 2),
    ("Div", 2),
    ("Sum", 2),
];

proptest! {
    #[test]
    fn every_graph_has_records_that_can_be_planned(nodes in any_nodes()) {
        let name = |at: usize| if at == 0 { "x".to_owned() } else { format!("t{at}") };
        let mut protos: Vec<NodeProto> = nodes
            .iter()
            .enumerate()
            .map(|(at, &(op, a, b))| {
                let inputs = [name(a), name(b)];
                let inputs: Vec<&str> = inputs[..OPS[op].1].iter().map(String::as_str).collect();
                node(OPS[op].0, &inputs, &[&name(at + 1)])
            })
            .collect();
        protos.push(node("Exp", &[&name(nodes.len())], &["y"]));
        let model = model(protos, vec![]);
        let inferred = infer_shapes(&model, &GivenShapes::default()).expect("shapes");
        let sizes = RewriteLevel::ALL.map(|level| {
            let usage = graph_usage(&model, &inferred, level, AVX_512).expect("records");
            let problem = usage.records.problem();
            let plan = auto(problem, &Budget::nodes(1_000)).plan;
            validate_offsets(problem, &plan).expect("a valid plan");
            plan.size
        });
        prop_assert!(sizes[1] <= sizes[0], "{sizes:?}");
    }
}

/// Images of 32x32 in any channels, through convolutions and what stands between them.
fn image_graph(steps: &[(u8, prop::sample::Index, prop::sample::Index)]) -> OnnxModel {
    let (mut g, x) = Small::new();
    let mut images = vec![(x, 3_usize)];
    for (what, first, second) in steps {
        let (a, channels) = images[first.index(images.len())].clone();
        let others: Vec<&(Value, usize)> = images.iter().filter(|(_, c)| *c == channels).collect();
        let b = others[second.index(others.len())].0.clone();
        let any = images[second.index(images.len())].clone();
        let made = match what % 9 {
            0 => (g.conv(&a, 24, channels, 1), 24),
            1 => (g.conv(&a, 32, channels, 1), 32),
            2 => {
                let groups = i64::try_from(channels).expect("few channels");
                (g.conv(&a, channels, 1, groups), channels)
            }
            3 | 4 => (g.node("Add", &[&a, &b]), channels),
            5 => (g.node("Relu", &[&a]), channels),
            6 => (g.node("Mul", &[&a, &b]), channels),
            7 => (g.node("Sigmoid", &[&a]), channels),
            _ => {
                let axis = [("axis", Attribute::Int(1))];
                let made = g.builder.node("Concat", &[&a, &any.0], &axis);
                (made, channels + any.1)
            }
        };
        images.push(made);
    }
    let (last, channels) = images[images.len() - 1].clone();
    let y = g.node("Tanh", &[&last]);
    g.finish(&y, i64::try_from(channels).expect("few channels"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is rewritten: each node runs after what it reads was made, and the output is made.
    #[test]
    fn rewritten_graphs_run(
        steps in prop::collection::vec((any::<u8>(), any::<prop::sample::Index>(), any::<prop::sample::Index>()), 1..16),
        channel_block in prop::sample::select(vec![1_usize, 8, 16]),
    ) {
        let model = image_graph(&steps);
        let given = GivenShapes { batch: Some(2), ..GivenShapes::default() };
        let inferred = infer_shapes(&model, &given).expect("shapes");
        let cpu = CpuTraits { channel_block, cores: 1 };
        let built = runtime_graph(&model, &inferred, cpu);
        let tensors = &built.graph.tensors;
        let mut is_there: Vec<bool> = tensors.iter().map(|tensor| tensor.origin != TensorOrigin::Run).collect();
        prop_assert_eq!(built.order.len(), built.graph.alive().count());
        for &node in &built.order {
            let node = &built.graph.nodes[node];
            for tensor in node.reads() {
                prop_assert!(is_there[tensor], "{} reads `{}`", node.op, tensors[tensor].name);
            }
            node.outputs.iter().flatten().for_each(|&tensor| is_there[tensor] = true);
        }
        for (tensor, there) in tensors.iter().zip(&is_there) {
            prop_assert!(!tensor.is_output || *there, "`{}` is not made", tensor.name);
        }
        let usage = graph_usage(&model, &inferred, RewriteLevel::Fused, cpu).expect("records");
        let problem = usage.records.problem();
        let plan = auto(problem, &Budget::nodes(1_000)).plan;
        validate_offsets(problem, &plan).expect("a valid plan");
    }
}
