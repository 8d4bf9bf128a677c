//! Operators that ONNX's node tests cover poorly, or not at all.

use super::build::{Onnx, TestGraph, ints, weight};
use crate::given::GivenShapes;

/// Inputs, a line, and the shapes of what it gives.
type Case<'a> = (
    &'a [(&'a str, &'a [&'a str])],
    &'a str,
    &'a [(&'a str, &'a [usize])],
);

#[test]
fn shapes_follow() {
    let image: &[(&str, &[&str])] = &[("x", &["2", "6", "11", "12"])];
    let text: &[(&str, &[&str])] = &[("x", &["2", "9", "24"])];
    let cases: &[Case<'_>] = &[
        (
            image,
            "y = MaxPool(x) kernel_shape=3,3 strides=2,2 ceil_mode=1",
            &[("y", &[2, 6, 5, 6])],
        ),
        // The last window would begin in the padding.
        (
            image,
            "y = MaxPool(x) kernel_shape=3,3 strides=2,2 ceil_mode=1 pads=0,0,0,2",
            &[("y", &[2, 6, 5, 6])],
        ),
        (
            image,
            "y = MaxPool(x) kernel_shape=3,3 strides=2,2 auto_pad=SAME_UPPER",
            &[("y", &[2, 6, 6, 6])],
        ),
        (
            image,
            "y i = MaxPool(x) kernel_shape=3,3 dilations=2,3",
            &[("y", &[2, 6, 7, 6]), ("i", &[2, 6, 7, 6])],
        ),
        (
            image,
            "p1 p2 p3 p4 = Split(x) axis=1 num_outputs=4",
            &[("p1", &[2, 2, 11, 12]), ("p4", &[2, 0, 11, 12])],
        ),
        (image, "y = Upsample(x, s)", &[("y", &[2, 6, 22, 6])]),
        (
            image,
            "y = Einsum(x) equation=abij->bji",
            &[("y", &[6, 12, 11])],
        ),
        (
            image,
            "y = Einsum(x,x) equation=...ij,...kj->...ik",
            &[("y", &[2, 6, 11, 11])],
        ),
        (
            image,
            "y = Einsum(x) equation=b...a",
            &[("y", &[6, 11, 12, 2])],
        ),
        (
            text,
            "y m = com.microsoft::SkipLayerNormalization(x,x,g) ",
            &[("y", &[2, 9, 24]), ("m", &[2, 9, 1])],
        ),
        (
            text,
            "y p = com.microsoft::Attention(x,qkv,b) num_heads=4",
            &[("y", &[2, 9, 24]), ("p", &[2, 2, 4, 9, 6])],
        ),
        (
            text,
            "y k = com.microsoft::MultiHeadAttention(x,x,x) num_heads=4",
            &[("y", &[2, 9, 24]), ("k", &[2, 4, 9, 6])],
        ),
        (
            text,
            "y = com.microsoft::GroupQueryAttention(x,x,x) num_heads=4 kv_num_heads=4",
            &[("y", &[2, 9, 24])],
        ),
        (
            text,
            "y k = Attention(x,x,x) q_num_heads=4 kv_num_heads=2",
            &[("y", &[2, 9, 48]), ("k", &[2, 2, 9, 12])],
        ),
        (
            text,
            "y = com.microsoft::MatMulNBits(x,b) N=7 K=24 bits=4",
            &[("y", &[2, 9, 7])],
        ),
        (
            text,
            "y = com.microsoft::FusedMatMul(x,x) transA=1",
            &[("y", &[2, 24, 24])],
        ),
        (
            text,
            "y h c = LSTM(x,w,r) hidden_size=5 direction=bidirectional",
            &[("y", &[2, 2, 9, 5]), ("c", &[2, 9, 5])],
        ),
        (
            text,
            "y = SequenceAt(s1,one)\ns1 = SplitToSequence(x,two) axis=1",
            &[("y", &[2, 2, 24])],
        ),
        (
            text,
            "y = ConcatFromSequence(s1) axis=0 new_axis=1\ns1 = SequenceConstruct(x,x)",
            &[("y", &[2, 2, 9, 24])],
        ),
        (text, "y = Reshape(x,keep)", &[("y", &[2, 216])]),
        (
            &[("x", &["1", "2", "1"])],
            "y = Squeeze(x,none)",
            &[("y", &[2])],
        ),
    ];
    for (inputs, lines, expected) in cases {
        let graph = TestGraph::new(inputs, lines).with([
            scales("s", &[1.0, 1.0, 2.0, 0.5]),
            weight("g", &[24]),
            weight("b", &[72]),
            weight("qkv", &[24, 72]),
            weight("w", &[2, 20, 24]),
            weight("r", &[2, 20, 5]),
            ints("one", &[], &[1]),
            ints("two", &[], &[2]),
            ints("none", &[0], &[]),
            ints("keep", &[2], &[0, -1]),
        ]);
        let inferred = graph
            .infer(&GivenShapes::default())
            .unwrap_or_else(|e| panic!("{lines}: {e}"));
        for (name, dims) in *expected {
            assert_eq!(
                inferred.tensors[*name].shape.dims(),
                *dims,
                "{name} of {lines}"
            );
        }
    }
}

/// What ONNX Runtime gives for models of scikit-learn, LightGBM and the like.
#[test]
fn classical_models() {
    const TREES: &str = "l s = ai.onnx.ml::TreeEnsembleClassifier(x) classlabels_int64s=";
    const LINEAR: &str = "l s = ai.onnx.ml::LinearClassifier(x) classlabels_ints=";
    const SVM: &str = "l s = ai.onnx.ml::SVMClassifier(x) classlabels_ints=";
    let scores: [(String, usize); 12] = [
        (format!("{TREES}0,1,2"), 3),
        (format!("{TREES}0,1"), 2),
        (format!("{LINEAR}0,1,2 intercepts=1;2;3"), 3),
        (format!("{LINEAR}0,1 intercepts=1;2"), 2),
        (format!("{LINEAR}0,1 intercepts=1;"), 2),
        (format!("{LINEAR}0,1,2"), 3),
        (format!("{SVM}0,1 vectors_per_class=3,3"), 2),
        (format!("{SVM}0,1,2 vectors_per_class=3,3,1"), 3),
        (format!("{SVM}0,1,2,3 vectors_per_class=3,3,1,2"), 6),
        (
            format!("{SVM}0,1,2,3 vectors_per_class=3,3,1,2 prob_a=1;2;3;4;5;6"),
            4,
        ),
        (format!("{SVM}0,1,2,3"), 4),
        (
            "l s = ai.onnx.ml::LinearClassifier(x) classlabels_strings=a;b;c intercepts=1;2;3"
                .to_owned(),
            3,
        ),
    ];
    for (lines, scores) in scores {
        for (dims, rows) in [(&["5", "4"][..], 5), (&["4"], 1)] {
            let graph = TestGraph::new(&[("x", dims)], &lines);
            let tensors = graph
                .infer(&GivenShapes::default())
                .expect("inferred")
                .tensors;
            assert_eq!(tensors["l"].shape.dims(), [rows], "{lines}");
            assert_eq!(tensors["s"].shape.dims(), [rows, scores], "{lines}");
            let is_text = lines.contains("strings");
            let label = if is_text { Onnx::String } else { Onnx::Int64 };
            assert_eq!(tensors["l"].element.0, label as i32, "{lines}");
        }
    }
    let others: [(&str, &[usize], Onnx); 13] = [
        ("TreeEnsemble(d) n_targets=7", &[5, 7], Onnx::Double),
        ("TreeEnsembleRegressor(d)", &[5, 1], Onnx::Float),
        ("LinearRegressor(x) targets=2", &[5, 2], Onnx::Float),
        ("SVMRegressor(x)", &[5, 1], Onnx::Float),
        (
            "FeatureVectorizer(x,x) inputdimensions=4,4",
            &[5, 8],
            Onnx::Float,
        ),
        ("Scaler(d)", &[5, 4], Onnx::Float),
        ("Normalizer(d)", &[5, 4], Onnx::Float),
        ("Imputer(d)", &[5, 4], Onnx::Double),
        (
            "OneHotEncoder(k) cats_int64s=1,2,3",
            &[5, 4, 3],
            Onnx::Float,
        ),
        ("CategoryMapper(k) cats_int64s=1,2", &[5, 4], Onnx::String),
        ("LabelEncoder(k)", &[5, 4], Onnx::String),
        ("ArrayFeatureExtractor(x,two)", &[5, 1], Onnx::Float),
        ("Binarizer(d)", &[5, 4], Onnx::Double),
    ];
    for (line, dims, element) in others {
        let lines = format!(
            "d = Cast(x) to=11
             k = Cast(x) to=7
             y = ai.onnx.ml::{line}"
        );
        let graph = TestGraph::new(&[("x", &["5", "4"])], &lines).with([ints("two", &[1], &[2])]);
        let tensors = graph.infer(&GivenShapes::default()).expect(line).tensors;
        assert_eq!(tensors["y"].shape.dims(), dims, "{line}");
        assert_eq!(tensors["y"].element.0, element as i32, "{line}");
    }
    // A map for each row is not a tensor.
    let zipped = TestGraph::new(&[("x", &["5", "2"])], "y = ai.onnx.ml::ZipMap(x)");
    let tensors = zipped
        .infer(&GivenShapes::default())
        .expect("inferred")
        .tensors;
    assert!(!tensors.contains_key("y"));
}

fn scales(name: &str, values: &[f32]) -> skep_proto::onnx::TensorProto {
    skep_proto::onnx::TensorProto {
        name: Some(name.to_owned()),
        dims: vec![4],
        data_type: Some(Onnx::Float as i32),
        float_data: values.to_vec(),
        ..Default::default()
    }
}

#[test]
fn types_follow() {
    let graph = TestGraph::new(
        &[("x", &["2", "3"])],
        "a = Cast(x) to=10
         b = Shape(a)
         c = Greater(a, a)
         d e f = DynamicQuantizeLinear(x)
         g = QuantizeLinear(x, e)
         h i = Dropout(x)
         j = Cast(x) to=22
         k = ArgMax(x)
         y = EyeLike(x) dtype=11",
    );
    let inferred = graph.infer(&GivenShapes::default()).expect("inferred");
    let expected = [
        ("a", Onnx::Float16, 12),
        ("b", Onnx::Int64, 16),
        ("c", Onnx::Bool, 6),
        ("d", Onnx::Uint8, 6),
        ("e", Onnx::Float, 4),
        ("g", Onnx::Uint8, 6),
        ("i", Onnx::Bool, 6),
        ("j", Onnx::Int4, 3),
        ("k", Onnx::Int64, 24),
        ("y", Onnx::Double, 48),
    ];
    for (name, element, bytes) in expected {
        let tensor = &inferred.tensors[name];
        assert_eq!(
            (tensor.element.0, tensor.bytes()),
            (element as i32, bytes),
            "{name}"
        );
    }
}

/// Values of small tensors, seen by using them as a shape.
#[test]
fn values_follow() {
    let cases = [
        ("v = Add(a, b)", "[5,7]"),
        ("v = Mul(a, b)", "[6,10]"),
        ("v = Div(b, a)", "[1,2]"),
        ("v = Sub(b, a)", "[1,3]"),
        ("v = Mod(b, a)", "[1,1]"),
        ("v = Max(a, b)", "[3,5]"),
        ("v = Min(a, b)", "[2,2]"),
        ("v = Pow(a, b)", "[8,32]"),
        ("v = Neg(n)\nn = Neg(b)", "[3,5]"),
        ("v = Concat(a, b) axis=0", "[2,2,3,5]"),
        ("v = Gather(c, d) axis=0", "[5,3,3]"),
        ("v = Gather(m, one) axis=1", "[2,5]"),
        ("v = Slice(c, big, small, zero, minus)", "[5,3,2]"),
        ("v = Squeeze(u)\nu = Unsqueeze(a, zero)", "[2,2]"),
        ("v = Reshape(t, minus)\nt = Transpose(m)", "[1,4,2,5,3,6]"),
        ("v = ReduceSum(m, one1) keepdims=0", "[6,15]"),
        ("v = ReduceMax(m, zero) keepdims=0", "[4,5,6]"),
        ("v = ReduceProd(m, one1) keepdims=0", "[6,120]"),
        ("v = ReduceMin(m, one1) keepdims=0", "[1,4]"),
        ("v = Expand(one1, two1)", "[1,1]"),
        ("v = Tile(a, two1)", "[2,2,2,2]"),
        ("v = Range(one, six, two)", "[1,3,5]"),
        ("u v = Split(c, s) axis=0", "[5]"),
        ("v = Where(g, a, b)\ng = Less(a, lim)", "[3,5]"),
        (
            "v = Cast(f) to=7\nf = Ceil(q)\nq = Div(af, bf)\naf = Cast(b) to=1\nbf = Cast(a) to=1",
            "[2,3]",
        ),
        ("v = Shape(m)", "[2,3]"),
        ("v = Unsqueeze(z, zero)\nz = Size(m)", "[6]"),
        ("v = Clip(c, three)", "[3,3,5]"),
        ("v = Abs(n)\nn = Sub(a, b)", "[1,3]"),
    ];
    for (lines, expected) in cases {
        let lines = format!("{lines}\ny = ConstantOfShape(v)");
        let graph = TestGraph::new(&[], &lines).with([
            ints("a", &[2], &[2, 2]),
            ints("b", &[2], &[3, 5]),
            ints("c", &[3], &[2, 3, 5]),
            ints("d", &[3], &[-1, 1, 1]),
            ints("m", &[2, 3], &[1, 2, 3, 4, 5, 6]),
            ints("s", &[2], &[2, 1]),
            ints("zero", &[1], &[0]),
            ints("one", &[], &[1]),
            ints("two", &[], &[2]),
            ints("three", &[], &[3]),
            ints("six", &[], &[6]),
            ints("one1", &[1], &[1]),
            ints("two1", &[1], &[2]),
            ints("lim", &[1], &[2]),
            ints("minus", &[1], &[-1]),
            ints("big", &[1], &[99]),
            ints("small", &[1], &[-99]),
        ]);
        assert_eq!(graph.shape("y"), expected, "{lines}");
    }
}
