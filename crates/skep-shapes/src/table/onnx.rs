//! ONNX's own operators.

use skep_proto::onnx::tensor_proto::DataType as Onnx;

use super::{Rule, Ty, folded, from_shapes, rule_of};
use crate::{
    call::Call,
    element::ElementType,
    rules::{
        attention, create, elementwise, image, index, join, matmul, normalise, quantised,
        recurrent, reduce, reshape, sequence, signal, slice, window,
    },
    values::{self, arithmetic, create as create_values, layout},
};

/// The mask of `Dropout` was of the input's type in the first operator sets.
fn mask_type(call: &Call<'_, '_>) -> Option<ElementType> {
    if call.version < 10 && call.version > 0 {
        return call.optional(0).map(|fact| fact.element);
    }
    Some(ElementType::BOOL)
}

/// The samples of `Multinomial`: INT32 unless an attribute says otherwise.
fn sample_type(call: &Call<'_, '_>) -> Option<ElementType> {
    Some(
        call.element("dtype")
            .unwrap_or(ElementType(Onnx::Int32 as i32)),
    )
}

/// ONNX's own operators, sorted by name.
pub(super) const ONNX: &[(&str, Rule)] = &[
    (
        "Abs",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::abs),
    ),
    ("Acos", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Acosh", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Add",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::add),
    ),
    ("AffineGrid", rule_of(&[Ty::In(0)], image::affine_grid)),
    (
        "And",
        folded(&[Ty::Is(Onnx::Bool)], elementwise::two, arithmetic::and),
    ),
    ("ArgMax", rule_of(&[Ty::Is(Onnx::Int64)], reduce::arg)),
    ("ArgMin", rule_of(&[Ty::Is(Onnx::Int64)], reduce::arg)),
    ("Asin", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Asinh", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Atan", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Atanh", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Attention", rule_of(&[Ty::In(0)], attention::attention)),
    ("AveragePool", rule_of(&[Ty::In(0)], window::pool)),
    (
        "BatchNormalization",
        rule_of(&[Ty::In(0)], normalise::batch),
    ),
    (
        "Bernoulli",
        rule_of(&[Ty::AttributeOr("dtype", 0)], elementwise::same),
    ),
    ("BitShift", rule_of(&[Ty::In(0)], elementwise::all)),
    ("BitwiseAnd", rule_of(&[Ty::In(0)], elementwise::all)),
    ("BitwiseNot", rule_of(&[Ty::In(0)], elementwise::same)),
    ("BitwiseOr", rule_of(&[Ty::In(0)], elementwise::all)),
    ("BitwiseXor", rule_of(&[Ty::In(0)], elementwise::all)),
    (
        "BlackmanWindow",
        rule_of(&[Ty::Attribute("output_datatype")], signal::window),
    ),
    (
        "Cast",
        folded(&[Ty::Attribute("to")], elementwise::same, arithmetic::cast),
    ),
    (
        "CastLike",
        folded(&[Ty::In(1)], elementwise::same, arithmetic::cast),
    ),
    (
        "Ceil",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::ceil),
    ),
    ("Celu", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "CenterCropPad",
        rule_of(&[Ty::In(0)], slice::center_crop_pad),
    ),
    (
        "Clip",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::clip),
    ),
    ("Col2Im", rule_of(&[Ty::In(0)], image::col_to_im)),
    ("Compress", rule_of(&[Ty::In(0)], index::compress)),
    ("Concat", folded(&[Ty::In(0)], join::concat, layout::concat)),
    ("ConcatFromSequence", Rule::Direct(sequence::concat)),
    ("Constant", Rule::Direct(create::constant)),
    (
        "ConstantOfShape",
        folded(
            &[Ty::Special(create::value_type)],
            create::constant_of_shape,
            create_values::constant_of_shape,
        ),
    ),
    ("Conv", rule_of(&[Ty::In(0)], window::conv)),
    ("ConvInteger", rule_of(&[Ty::Is(Onnx::Int32)], window::conv)),
    (
        "ConvTranspose",
        rule_of(&[Ty::In(0)], window::conv_transpose),
    ),
    ("Cos", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Cosh", rule_of(&[Ty::In(0)], elementwise::same)),
    ("CumProd", rule_of(&[Ty::In(0)], elementwise::same)),
    ("CumSum", rule_of(&[Ty::In(0)], elementwise::same)),
    ("DFT", rule_of(&[Ty::In(0)], signal::dft)),
    ("DeformConv", rule_of(&[Ty::In(0)], window::deform_conv)),
    (
        "DepthToSpace",
        rule_of(&[Ty::In(0)], reshape::depth_to_space),
    ),
    (
        "DequantizeLinear",
        rule_of(
            &[Ty::Special(quantised::dequantised_type)],
            elementwise::same,
        ),
    ),
    ("Det", rule_of(&[Ty::In(0)], reduce::determinant)),
    (
        "Div",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::div),
    ),
    (
        "Dropout",
        rule_of(&[Ty::In(0), Ty::Special(mask_type)], elementwise::dropout),
    ),
    (
        "DynamicQuantizeLinear",
        rule_of(
            &[
                Ty::Is(Onnx::Uint8),
                Ty::Is(Onnx::Float),
                Ty::Is(Onnx::Uint8),
            ],
            quantised::dynamic,
        ),
    ),
    ("Einsum", rule_of(&[Ty::In(0)], matmul::einsum)),
    ("Elu", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Equal",
        folded(&[Ty::Is(Onnx::Bool)], elementwise::two, arithmetic::equal),
    ),
    ("Erf", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Exp", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Expand",
        folded(&[Ty::In(0)], reshape::expand, layout::expand),
    ),
    (
        "EyeLike",
        rule_of(&[Ty::AttributeOr("dtype", 0)], create::eye_like),
    ),
    (
        "Flatten",
        folded(&[Ty::In(0)], reshape::flatten, layout::keep),
    ),
    (
        "Floor",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::floor),
    ),
    ("GRU", rule_of(&[Ty::In(0)], recurrent::recurrent)),
    (
        "Gather",
        folded(&[Ty::In(0)], index::gather, layout::gather),
    ),
    (
        "GatherElements",
        rule_of(&[Ty::In(0)], index::gather_elements),
    ),
    ("GatherND", rule_of(&[Ty::In(0)], index::gather_nd)),
    ("Gelu", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Gemm", rule_of(&[Ty::In(0)], matmul::gemm)),
    (
        "GlobalAveragePool",
        rule_of(&[Ty::In(0)], window::global_pool),
    ),
    ("GlobalLpPool", rule_of(&[Ty::In(0)], window::global_pool)),
    ("GlobalMaxPool", rule_of(&[Ty::In(0)], window::global_pool)),
    (
        "Greater",
        folded(&[Ty::Is(Onnx::Bool)], elementwise::two, arithmetic::greater),
    ),
    (
        "GreaterOrEqual",
        folded(
            &[Ty::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::greater_or_equal,
        ),
    ),
    ("GridSample", rule_of(&[Ty::In(0)], image::grid_sample)),
    (
        "GroupNormalization",
        rule_of(&[Ty::In(0)], elementwise::same),
    ),
    (
        "HammingWindow",
        rule_of(&[Ty::Attribute("output_datatype")], signal::window),
    ),
    (
        "HannWindow",
        rule_of(&[Ty::Attribute("output_datatype")], signal::window),
    ),
    ("HardSigmoid", rule_of(&[Ty::In(0)], elementwise::same)),
    ("HardSwish", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Hardmax", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Identity", Rule::Direct(sequence::identity)),
    (
        "ImageDecoder",
        rule_of(&[Ty::Is(Onnx::Uint8)], image::image_decoder),
    ),
    (
        "InstanceNormalization",
        rule_of(&[Ty::In(0)], elementwise::same),
    ),
    ("IsInf", rule_of(&[Ty::Is(Onnx::Bool)], elementwise::same)),
    ("IsNaN", rule_of(&[Ty::Is(Onnx::Bool)], elementwise::same)),
    ("LRN", rule_of(&[Ty::In(0)], elementwise::same)),
    ("LSTM", rule_of(&[Ty::In(0)], recurrent::recurrent)),
    (
        "LayerNormalization",
        rule_of(&[Ty::In(0), Ty::Attribute("stash_type")], normalise::layer),
    ),
    ("LeakyRelu", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Less",
        folded(&[Ty::Is(Onnx::Bool)], elementwise::two, arithmetic::less),
    ),
    (
        "LessOrEqual",
        folded(
            &[Ty::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::less_or_equal,
        ),
    ),
    ("Log", rule_of(&[Ty::In(0)], elementwise::same)),
    ("LogSoftmax", rule_of(&[Ty::In(0)], elementwise::same)),
    ("LpNormalization", rule_of(&[Ty::In(0)], elementwise::same)),
    ("LpPool", rule_of(&[Ty::In(0)], window::pool)),
    ("MatMul", rule_of(&[Ty::In(0)], matmul::plain)),
    (
        "MatMulInteger",
        rule_of(&[Ty::Is(Onnx::Int32)], matmul::plain),
    ),
    (
        "Max",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::max),
    ),
    (
        "MaxPool",
        rule_of(&[Ty::In(0), Ty::Is(Onnx::Int64)], window::pool),
    ),
    ("MaxRoiPool", rule_of(&[Ty::In(0)], image::max_roi_pool)),
    ("MaxUnpool", rule_of(&[Ty::In(0)], window::max_unpool)),
    ("Mean", rule_of(&[Ty::In(0)], elementwise::all)),
    (
        "MeanVarianceNormalization",
        rule_of(&[Ty::In(0)], elementwise::same),
    ),
    (
        "MelWeightMatrix",
        rule_of(&[Ty::Attribute("output_datatype")], signal::mel),
    ),
    (
        "Min",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::min),
    ),
    ("Mish", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Mod",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::modulo),
    ),
    (
        "Mul",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::mul),
    ),
    (
        "Multinomial",
        rule_of(&[Ty::Special(sample_type)], create::multinomial),
    ),
    (
        "Neg",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::neg),
    ),
    (
        "NegativeLogLikelihoodLoss",
        rule_of(&[Ty::In(0)], reduce::loss),
    ),
    (
        "NonMaxSuppression",
        rule_of(&[Ty::Is(Onnx::Int64)], index::counted),
    ),
    (
        "NonZero",
        folded(
            &[Ty::Is(Onnx::Int64)],
            index::non_zero,
            create_values::non_zero,
        ),
    ),
    (
        "Not",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::not),
    ),
    ("OneHot", rule_of(&[Ty::In(2)], index::one_hot)),
    ("OptionalGetElement", Rule::Direct(sequence::identity)),
    (
        "OptionalHasElement",
        rule_of(&[Ty::Is(Onnx::Bool)], create::scalar),
    ),
    (
        "Or",
        folded(&[Ty::Is(Onnx::Bool)], elementwise::two, arithmetic::or),
    ),
    ("PRelu", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Pad", rule_of(&[Ty::In(0)], slice::pad)),
    (
        "Pow",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::pow),
    ),
    ("QLinearConv", rule_of(&[Ty::In(7)], window::quantised_conv)),
    ("QLinearMatMul", rule_of(&[Ty::In(7)], matmul::quantised)),
    (
        "QuantizeLinear",
        rule_of(&[Ty::Special(quantised::quantised_type)], elementwise::same),
    ),
    ("RMSNormalization", rule_of(&[Ty::In(0)], elementwise::same)),
    ("RNN", rule_of(&[Ty::In(0)], recurrent::recurrent)),
    (
        "RandomNormal",
        rule_of(&[Ty::Attribute("dtype")], create::random),
    ),
    (
        "RandomNormalLike",
        rule_of(&[Ty::AttributeOr("dtype", 0)], elementwise::same),
    ),
    (
        "RandomUniform",
        rule_of(&[Ty::Attribute("dtype")], create::random),
    ),
    (
        "RandomUniformLike",
        rule_of(&[Ty::AttributeOr("dtype", 0)], elementwise::same),
    ),
    (
        "Range",
        folded(&[Ty::In(0)], create::range, create_values::range),
    ),
    (
        "Reciprocal",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::reciprocal),
    ),
    ("ReduceL1", rule_of(&[Ty::In(0)], reduce::reduce)),
    ("ReduceL2", rule_of(&[Ty::In(0)], reduce::reduce)),
    ("ReduceLogSum", rule_of(&[Ty::In(0)], reduce::reduce)),
    ("ReduceLogSumExp", rule_of(&[Ty::In(0)], reduce::reduce)),
    (
        "ReduceMax",
        folded(&[Ty::In(0)], reduce::reduce, values::reduce::max),
    ),
    ("ReduceMean", rule_of(&[Ty::In(0)], reduce::reduce)),
    (
        "ReduceMin",
        folded(&[Ty::In(0)], reduce::reduce, values::reduce::min),
    ),
    (
        "ReduceProd",
        folded(&[Ty::In(0)], reduce::reduce, values::reduce::product),
    ),
    (
        "ReduceSum",
        folded(&[Ty::In(0)], reduce::reduce, values::reduce::sum),
    ),
    ("ReduceSumSquare", rule_of(&[Ty::In(0)], reduce::reduce)),
    (
        "RegexFullMatch",
        rule_of(&[Ty::Is(Onnx::Bool)], elementwise::same),
    ),
    (
        "Relu",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::relu),
    ),
    (
        "Reshape",
        folded(&[Ty::In(0)], reshape::reshape, layout::keep),
    ),
    ("Resize", rule_of(&[Ty::In(0)], image::resize)),
    ("ReverseSequence", rule_of(&[Ty::In(0)], elementwise::same)),
    ("RoiAlign", rule_of(&[Ty::In(0)], image::roi_align)),
    ("RotaryEmbedding", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Round",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::round),
    ),
    ("STFT", rule_of(&[Ty::In(0)], signal::stft)),
    ("Scatter", rule_of(&[Ty::In(0)], elementwise::same)),
    ("ScatterElements", rule_of(&[Ty::In(0)], elementwise::same)),
    ("ScatterND", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Selu", rule_of(&[Ty::In(0)], elementwise::same)),
    ("SequenceAt", Rule::Direct(sequence::at)),
    ("SequenceConstruct", Rule::Direct(sequence::construct)),
    ("SequenceEmpty", Rule::Direct(sequence::empty)),
    ("SequenceErase", Rule::Direct(sequence::erase)),
    ("SequenceInsert", Rule::Direct(sequence::insert)),
    ("SequenceLength", Rule::Direct(sequence::length)),
    (
        "Shape",
        from_shapes(&[Ty::Is(Onnx::Int64)], create::shape, create_values::shape),
    ),
    ("Shrink", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Sigmoid", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Sign",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::sign),
    ),
    (
        "SimplifiedLayerNormalization",
        rule_of(&[Ty::In(0), Ty::Attribute("stash_type")], normalise::layer),
    ),
    ("Sin", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Sinh", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Size",
        from_shapes(&[Ty::Is(Onnx::Int64)], create::scalar, create_values::size),
    ),
    ("Slice", folded(&[Ty::In(0)], slice::slice, layout::slice)),
    ("Softmax", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "SoftmaxCrossEntropyLoss",
        rule_of(&[Ty::In(0)], reduce::loss),
    ),
    ("Softplus", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Softsign", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "SpaceToDepth",
        rule_of(&[Ty::In(0)], reshape::space_to_depth),
    ),
    ("Split", folded(&[Ty::In(0)], join::split, layout::split)),
    ("SplitToSequence", Rule::Direct(sequence::split)),
    (
        "Sqrt",
        folded(&[Ty::In(0)], elementwise::same, arithmetic::sqrt),
    ),
    (
        "Squeeze",
        folded(&[Ty::In(0)], reshape::squeeze, layout::keep),
    ),
    ("StringConcat", rule_of(&[Ty::In(0)], elementwise::all)),
    (
        "StringNormalizer",
        rule_of(&[Ty::In(0)], elementwise::string_normalizer),
    ),
    (
        "StringSplit",
        rule_of(&[Ty::In(0), Ty::Is(Onnx::Int64)], index::counted),
    ),
    (
        "Sub",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::sub),
    ),
    (
        "Sum",
        folded(&[Ty::In(0)], elementwise::all, arithmetic::add),
    ),
    ("Swish", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Tan", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Tanh", rule_of(&[Ty::In(0)], elementwise::same)),
    ("TensorScatter", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "TfIdfVectorizer",
        rule_of(&[Ty::Is(Onnx::Float)], index::tf_idf),
    ),
    ("ThresholdedRelu", rule_of(&[Ty::In(0)], elementwise::same)),
    ("Tile", folded(&[Ty::In(0)], reshape::tile, layout::tile)),
    (
        "TopK",
        rule_of(&[Ty::In(0), Ty::Is(Onnx::Int64)], reduce::top_k),
    ),
    (
        "Transpose",
        folded(&[Ty::In(0)], reshape::transpose, layout::transpose),
    ),
    ("Trilu", rule_of(&[Ty::In(0)], elementwise::same)),
    (
        "Unique",
        rule_of(&[Ty::In(0), Ty::Is(Onnx::Int64)], index::counted),
    ),
    (
        "Unsqueeze",
        folded(&[Ty::In(0)], reshape::unsqueeze, layout::keep),
    ),
    ("Upsample", rule_of(&[Ty::In(0)], image::resize)),
    (
        "Where",
        folded(&[Ty::In(1)], elementwise::all, arithmetic::choose),
    ),
    (
        "Xor",
        folded(&[Ty::Is(Onnx::Bool)], elementwise::two, arithmetic::xor),
    ),
];
