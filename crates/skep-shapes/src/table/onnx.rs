//! ONNX's own operators.

use skep_proto::onnx::tensor_proto::DataType as Onnx;

use super::{OperatorRule, OutputType, folded, from_shapes, rule_of};
use crate::{
    call::OperatorCall,
    element::ElementType,
    rules::{
        attention, create, elementwise, image, index, join, matmul, normalise, quantised,
        recurrent, reduce, reshape, sequence, signal, slice, window,
    },
    values::{self, arithmetic, create as create_values, layout},
};

/// The mask of `Dropout` was of the input's type in the first operator sets.
fn mask_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    if call.version < 10 && call.version > 0 {
        return call.optional(0).map(|fact| fact.element);
    }
    Some(ElementType::BOOL)
}

/// The samples of `Multinomial`: INT32 unless an attribute says otherwise.
fn sample_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    Some(
        call.element("dtype")
            .unwrap_or(ElementType(Onnx::Int32 as i32)),
    )
}

/// ONNX's own operators, sorted by name.
pub(super) const ONNX: &[(&str, OperatorRule)] = &[
    (
        "Abs",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::abs),
    ),
    ("Acos", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Acosh", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "Add",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::add),
    ),
    (
        "AffineGrid",
        rule_of(&[OutputType::In(0)], image::affine_grid),
    ),
    (
        "And",
        folded(
            &[OutputType::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::and,
        ),
    ),
    (
        "ArgMax",
        rule_of(&[OutputType::Is(Onnx::Int64)], reduce::arg),
    ),
    (
        "ArgMin",
        rule_of(&[OutputType::Is(Onnx::Int64)], reduce::arg),
    ),
    ("Asin", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Asinh", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Atan", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Atanh", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "Attention",
        rule_of(&[OutputType::In(0)], attention::attention),
    ),
    ("AveragePool", rule_of(&[OutputType::In(0)], window::pool)),
    (
        "BatchNormalization",
        rule_of(&[OutputType::In(0)], normalise::batch),
    ),
    (
        "Bernoulli",
        rule_of(&[OutputType::AttributeOr("dtype", 0)], elementwise::same),
    ),
    ("BitShift", rule_of(&[OutputType::In(0)], elementwise::all)),
    (
        "BitwiseAnd",
        rule_of(&[OutputType::In(0)], elementwise::all),
    ),
    (
        "BitwiseNot",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    ("BitwiseOr", rule_of(&[OutputType::In(0)], elementwise::all)),
    (
        "BitwiseXor",
        rule_of(&[OutputType::In(0)], elementwise::all),
    ),
    (
        "BlackmanWindow",
        rule_of(&[OutputType::Attribute("output_datatype")], signal::window),
    ),
    (
        "Cast",
        folded(
            &[OutputType::Attribute("to")],
            elementwise::same,
            arithmetic::cast,
        ),
    ),
    (
        "CastLike",
        folded(&[OutputType::In(1)], elementwise::same, arithmetic::cast),
    ),
    (
        "Ceil",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::ceil),
    ),
    ("Celu", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "CenterCropPad",
        rule_of(&[OutputType::In(0)], slice::center_crop_pad),
    ),
    (
        "Clip",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::clip),
    ),
    ("Col2Im", rule_of(&[OutputType::In(0)], image::col_to_im)),
    ("Compress", rule_of(&[OutputType::In(0)], index::compress)),
    (
        "Concat",
        folded(&[OutputType::In(0)], join::concat, layout::concat),
    ),
    ("ConcatFromSequence", OperatorRule::Direct(sequence::concat)),
    ("Constant", OperatorRule::Direct(create::constant)),
    (
        "ConstantOfShape",
        folded(
            &[OutputType::Special(create::value_type)],
            create::constant_of_shape,
            create_values::constant_of_shape,
        ),
    ),
    ("Conv", rule_of(&[OutputType::In(0)], window::conv)),
    (
        "ConvInteger",
        rule_of(&[OutputType::Is(Onnx::Int32)], window::conv),
    ),
    (
        "ConvTranspose",
        rule_of(&[OutputType::In(0)], window::conv_transpose),
    ),
    ("Cos", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Cosh", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("CumProd", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("CumSum", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("DFT", rule_of(&[OutputType::In(0)], signal::dft)),
    (
        "DeformConv",
        rule_of(&[OutputType::In(0)], window::deform_conv),
    ),
    (
        "DepthToSpace",
        rule_of(&[OutputType::In(0)], reshape::depth_to_space),
    ),
    (
        "DequantizeLinear",
        rule_of(
            &[OutputType::Special(quantised::dequantised_type)],
            elementwise::same,
        ),
    ),
    ("Det", rule_of(&[OutputType::In(0)], reduce::determinant)),
    (
        "Div",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::div),
    ),
    (
        "Dropout",
        rule_of(
            &[OutputType::In(0), OutputType::Special(mask_type)],
            elementwise::dropout,
        ),
    ),
    (
        "DynamicQuantizeLinear",
        rule_of(
            &[
                OutputType::Is(Onnx::Uint8),
                OutputType::Is(Onnx::Float),
                OutputType::Is(Onnx::Uint8),
            ],
            quantised::dynamic,
        ),
    ),
    ("Einsum", rule_of(&[OutputType::In(0)], matmul::einsum)),
    ("Elu", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "Equal",
        folded(
            &[OutputType::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::equal,
        ),
    ),
    ("Erf", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Exp", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "Expand",
        folded(&[OutputType::In(0)], reshape::expand, layout::expand),
    ),
    (
        "EyeLike",
        rule_of(&[OutputType::AttributeOr("dtype", 0)], create::eye_like),
    ),
    (
        "Flatten",
        folded(&[OutputType::In(0)], reshape::flatten, layout::keep),
    ),
    (
        "Floor",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::floor),
    ),
    ("GRU", rule_of(&[OutputType::In(0)], recurrent::recurrent)),
    (
        "Gather",
        folded(&[OutputType::In(0)], index::gather, layout::gather),
    ),
    (
        "GatherElements",
        rule_of(&[OutputType::In(0)], index::gather_elements),
    ),
    ("GatherND", rule_of(&[OutputType::In(0)], index::gather_nd)),
    ("Gelu", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Gemm", rule_of(&[OutputType::In(0)], matmul::gemm)),
    (
        "GlobalAveragePool",
        rule_of(&[OutputType::In(0)], window::global_pool),
    ),
    (
        "GlobalLpPool",
        rule_of(&[OutputType::In(0)], window::global_pool),
    ),
    (
        "GlobalMaxPool",
        rule_of(&[OutputType::In(0)], window::global_pool),
    ),
    (
        "Greater",
        folded(
            &[OutputType::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::greater,
        ),
    ),
    (
        "GreaterOrEqual",
        folded(
            &[OutputType::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::greater_or_equal,
        ),
    ),
    (
        "GridSample",
        rule_of(&[OutputType::In(0)], image::grid_sample),
    ),
    (
        "GroupNormalization",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "HammingWindow",
        rule_of(&[OutputType::Attribute("output_datatype")], signal::window),
    ),
    (
        "HannWindow",
        rule_of(&[OutputType::Attribute("output_datatype")], signal::window),
    ),
    (
        "HardSigmoid",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "HardSwish",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    ("Hardmax", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Identity", OperatorRule::Direct(sequence::identity)),
    (
        "ImageDecoder",
        rule_of(&[OutputType::Is(Onnx::Uint8)], image::image_decoder),
    ),
    (
        "InstanceNormalization",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "IsInf",
        rule_of(&[OutputType::Is(Onnx::Bool)], elementwise::same),
    ),
    (
        "IsNaN",
        rule_of(&[OutputType::Is(Onnx::Bool)], elementwise::same),
    ),
    ("LRN", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("LSTM", rule_of(&[OutputType::In(0)], recurrent::recurrent)),
    (
        "LayerNormalization",
        rule_of(
            &[OutputType::In(0), OutputType::Attribute("stash_type")],
            normalise::layer,
        ),
    ),
    (
        "LeakyRelu",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "Less",
        folded(
            &[OutputType::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::less,
        ),
    ),
    (
        "LessOrEqual",
        folded(
            &[OutputType::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::less_or_equal,
        ),
    ),
    ("Log", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "LogSoftmax",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "LpNormalization",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    ("LpPool", rule_of(&[OutputType::In(0)], window::pool)),
    ("MatMul", rule_of(&[OutputType::In(0)], matmul::plain)),
    (
        "MatMulInteger",
        rule_of(&[OutputType::Is(Onnx::Int32)], matmul::plain),
    ),
    (
        "Max",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::max),
    ),
    (
        "MaxPool",
        rule_of(
            &[OutputType::In(0), OutputType::Is(Onnx::Int64)],
            window::pool,
        ),
    ),
    (
        "MaxRoiPool",
        rule_of(&[OutputType::In(0)], image::max_roi_pool),
    ),
    (
        "MaxUnpool",
        rule_of(&[OutputType::In(0)], window::max_unpool),
    ),
    ("Mean", rule_of(&[OutputType::In(0)], elementwise::all)),
    (
        "MeanVarianceNormalization",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "MelWeightMatrix",
        rule_of(&[OutputType::Attribute("output_datatype")], signal::mel),
    ),
    (
        "Min",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::min),
    ),
    ("Mish", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "Mod",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::modulo),
    ),
    (
        "Mul",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::mul),
    ),
    (
        "Multinomial",
        rule_of(&[OutputType::Special(sample_type)], create::multinomial),
    ),
    (
        "Neg",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::neg),
    ),
    (
        "NegativeLogLikelihoodLoss",
        rule_of(&[OutputType::In(0)], reduce::loss),
    ),
    (
        "NonMaxSuppression",
        rule_of(&[OutputType::Is(Onnx::Int64)], index::counted),
    ),
    (
        "NonZero",
        folded(
            &[OutputType::Is(Onnx::Int64)],
            index::non_zero,
            create_values::non_zero,
        ),
    ),
    (
        "Not",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::not),
    ),
    ("OneHot", rule_of(&[OutputType::In(2)], index::one_hot)),
    (
        "OptionalGetElement",
        OperatorRule::Direct(sequence::identity),
    ),
    (
        "OptionalHasElement",
        rule_of(&[OutputType::Is(Onnx::Bool)], create::scalar),
    ),
    (
        "Or",
        folded(
            &[OutputType::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::or,
        ),
    ),
    ("PRelu", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Pad", rule_of(&[OutputType::In(0)], slice::pad)),
    (
        "Pow",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::pow),
    ),
    (
        "QLinearConv",
        rule_of(&[OutputType::In(7)], window::quantised_conv),
    ),
    (
        "QLinearMatMul",
        rule_of(&[OutputType::In(7)], matmul::quantised),
    ),
    (
        "QuantizeLinear",
        rule_of(
            &[OutputType::Special(quantised::quantised_type)],
            elementwise::same,
        ),
    ),
    (
        "RMSNormalization",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    ("RNN", rule_of(&[OutputType::In(0)], recurrent::recurrent)),
    (
        "RandomNormal",
        rule_of(&[OutputType::Attribute("dtype")], create::random),
    ),
    (
        "RandomNormalLike",
        rule_of(&[OutputType::AttributeOr("dtype", 0)], elementwise::same),
    ),
    (
        "RandomUniform",
        rule_of(&[OutputType::Attribute("dtype")], create::random),
    ),
    (
        "RandomUniformLike",
        rule_of(&[OutputType::AttributeOr("dtype", 0)], elementwise::same),
    ),
    (
        "Range",
        folded(&[OutputType::In(0)], create::range, create_values::range),
    ),
    (
        "Reciprocal",
        folded(
            &[OutputType::In(0)],
            elementwise::same,
            arithmetic::reciprocal,
        ),
    ),
    ("ReduceL1", rule_of(&[OutputType::In(0)], reduce::reduce)),
    ("ReduceL2", rule_of(&[OutputType::In(0)], reduce::reduce)),
    (
        "ReduceLogSum",
        rule_of(&[OutputType::In(0)], reduce::reduce),
    ),
    (
        "ReduceLogSumExp",
        rule_of(&[OutputType::In(0)], reduce::reduce),
    ),
    (
        "ReduceMax",
        folded(&[OutputType::In(0)], reduce::reduce, values::reduce::max),
    ),
    ("ReduceMean", rule_of(&[OutputType::In(0)], reduce::reduce)),
    (
        "ReduceMin",
        folded(&[OutputType::In(0)], reduce::reduce, values::reduce::min),
    ),
    (
        "ReduceProd",
        folded(
            &[OutputType::In(0)],
            reduce::reduce,
            values::reduce::product,
        ),
    ),
    (
        "ReduceSum",
        folded(&[OutputType::In(0)], reduce::reduce, values::reduce::sum),
    ),
    (
        "ReduceSumSquare",
        rule_of(&[OutputType::In(0)], reduce::reduce),
    ),
    (
        "RegexFullMatch",
        rule_of(&[OutputType::Is(Onnx::Bool)], elementwise::same),
    ),
    (
        "Relu",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::relu),
    ),
    (
        "Reshape",
        folded(&[OutputType::In(0)], reshape::reshape, layout::keep),
    ),
    ("Resize", rule_of(&[OutputType::In(0)], image::resize)),
    (
        "ReverseSequence",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    ("RoiAlign", rule_of(&[OutputType::In(0)], image::roi_align)),
    (
        "RotaryEmbedding",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "Round",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::round),
    ),
    ("STFT", rule_of(&[OutputType::In(0)], signal::stft)),
    ("Scatter", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "ScatterElements",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "ScatterND",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    ("Selu", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("SequenceAt", OperatorRule::Direct(sequence::at)),
    (
        "SequenceConstruct",
        OperatorRule::Direct(sequence::construct),
    ),
    ("SequenceEmpty", OperatorRule::Direct(sequence::empty)),
    ("SequenceErase", OperatorRule::Direct(sequence::erase)),
    ("SequenceInsert", OperatorRule::Direct(sequence::insert)),
    ("SequenceLength", OperatorRule::Direct(sequence::length)),
    (
        "Shape",
        from_shapes(
            &[OutputType::Is(Onnx::Int64)],
            create::shape,
            create_values::shape,
        ),
    ),
    ("Shrink", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Sigmoid", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "Sign",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::sign),
    ),
    (
        "SimplifiedLayerNormalization",
        rule_of(
            &[OutputType::In(0), OutputType::Attribute("stash_type")],
            normalise::layer,
        ),
    ),
    ("Sin", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Sinh", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "Size",
        from_shapes(
            &[OutputType::Is(Onnx::Int64)],
            create::scalar,
            create_values::size,
        ),
    ),
    (
        "Slice",
        folded(&[OutputType::In(0)], slice::slice, layout::slice),
    ),
    ("Softmax", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "SoftmaxCrossEntropyLoss",
        rule_of(&[OutputType::In(0)], reduce::loss),
    ),
    ("Softplus", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Softsign", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "SpaceToDepth",
        rule_of(&[OutputType::In(0)], reshape::space_to_depth),
    ),
    (
        "Split",
        folded(&[OutputType::In(0)], join::split, layout::split),
    ),
    ("SplitToSequence", OperatorRule::Direct(sequence::split)),
    (
        "Sqrt",
        folded(&[OutputType::In(0)], elementwise::same, arithmetic::sqrt),
    ),
    (
        "Squeeze",
        folded(&[OutputType::In(0)], reshape::squeeze, layout::keep),
    ),
    (
        "StringConcat",
        rule_of(&[OutputType::In(0)], elementwise::all),
    ),
    (
        "StringNormalizer",
        rule_of(&[OutputType::In(0)], elementwise::string_normalizer),
    ),
    (
        "StringSplit",
        rule_of(
            &[OutputType::In(0), OutputType::Is(Onnx::Int64)],
            index::counted,
        ),
    ),
    (
        "Sub",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::sub),
    ),
    (
        "Sum",
        folded(&[OutputType::In(0)], elementwise::all, arithmetic::add),
    ),
    ("Swish", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Tan", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("Tanh", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "TensorScatter",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "TfIdfVectorizer",
        rule_of(&[OutputType::Is(Onnx::Float)], index::tf_idf),
    ),
    (
        "ThresholdedRelu",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "Tile",
        folded(&[OutputType::In(0)], reshape::tile, layout::tile),
    ),
    (
        "TopK",
        rule_of(
            &[OutputType::In(0), OutputType::Is(Onnx::Int64)],
            reduce::top_k,
        ),
    ),
    (
        "Transpose",
        folded(&[OutputType::In(0)], reshape::transpose, layout::transpose),
    ),
    ("Trilu", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "Unique",
        rule_of(
            &[OutputType::In(0), OutputType::Is(Onnx::Int64)],
            index::counted,
        ),
    ),
    (
        "Unsqueeze",
        folded(&[OutputType::In(0)], reshape::unsqueeze, layout::keep),
    ),
    ("Upsample", rule_of(&[OutputType::In(0)], image::resize)),
    (
        "Where",
        folded(&[OutputType::In(1)], elementwise::all, arithmetic::choose),
    ),
    (
        "Xor",
        folded(
            &[OutputType::Is(Onnx::Bool)],
            elementwise::two,
            arithmetic::xor,
        ),
    ),
];
