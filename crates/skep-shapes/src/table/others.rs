//! Operators of other domains: ONNX Runtime's, and classical machine learning.

use skep_proto::onnx::tensor_proto::DataType as Onnx;

use super::{OperatorRule, OutputType, rule_of};
use crate::{
    call::OperatorCall,
    rules::{
        OutputShapes, attention, elementwise, index, join, matmul, ml, normalise, quantised, window,
    },
};

/// ONNX Runtime's operators, `com.microsoft`, sorted by name.
pub(super) const MICROSOFT: &[(&str, OperatorRule)] = &[
    (
        "Attention",
        rule_of(&[OutputType::In(0)], attention::attention_ms),
    ),
    ("BiasAdd", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("BiasGelu", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "BiasSoftmax",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "DequantizeLinear",
        rule_of(
            &[OutputType::Special(quantised::dequantised_type)],
            elementwise::same,
        ),
    ),
    (
        "DynamicQuantizeMatMul",
        rule_of(&[OutputType::Is(Onnx::Float)], matmul::plain),
    ),
    (
        "EmbedLayerNormalization",
        rule_of(
            &[
                OutputType::In(2),
                OutputType::Is(Onnx::Int32),
                OutputType::In(2),
            ],
            normalise::embed_layer,
        ),
    ),
    ("FastGelu", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("FusedConv", rule_of(&[OutputType::In(0)], window::conv)),
    ("FusedGemm", rule_of(&[OutputType::In(0)], matmul::gemm)),
    ("FusedMatMul", rule_of(&[OutputType::In(0)], matmul::fused)),
    (
        "FusedMatMulActivation",
        rule_of(&[OutputType::In(0)], matmul::fused),
    ),
    ("Gelu", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "GroupNorm",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "GroupQueryAttention",
        rule_of(&[OutputType::In(0)], attention::group_query),
    ),
    ("Inverse", rule_of(&[OutputType::In(0)], elementwise::same)),
    ("MatMulBnb4", rule_of(&[OutputType::In(0)], matmul::packed)),
    (
        "MatMulIntegerToFloat",
        rule_of(&[OutputType::In(2)], matmul::plain),
    ),
    ("MatMulNBits", rule_of(&[OutputType::In(0)], matmul::packed)),
    (
        "MultiHeadAttention",
        rule_of(&[OutputType::In(0)], attention::multi_head),
    ),
    (
        "QAttention",
        rule_of(&[OutputType::In(3)], attention::quantised_attention),
    ),
    (
        "QGemm",
        rule_of(
            &[OutputType::Special(quantised::gemm_type)],
            matmul::quantised_gemm,
        ),
    ),
    (
        "QLinearAdd",
        rule_of(&[OutputType::In(0)], elementwise::quantised_two),
    ),
    (
        "QLinearAveragePool",
        rule_of(&[OutputType::In(0)], window::pool),
    ),
    (
        "QLinearConcat",
        rule_of(&[OutputType::In(2)], join::quantised_concat),
    ),
    (
        "QLinearConv",
        rule_of(&[OutputType::In(7)], window::quantised_conv),
    ),
    (
        "QLinearGlobalAveragePool",
        rule_of(&[OutputType::In(0)], window::quantised_global_pool),
    ),
    (
        "QLinearLeakyRelu",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "QLinearMul",
        rule_of(&[OutputType::In(0)], elementwise::quantised_two),
    ),
    (
        "QLinearSigmoid",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "QLinearSoftmax",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "QuantizeLinear",
        rule_of(
            &[OutputType::Special(quantised::quantised_type)],
            elementwise::same,
        ),
    ),
    (
        "QuickGelu",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "RotaryEmbedding",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "SkipLayerNormalization",
        rule_of(
            &[
                OutputType::In(0),
                OutputType::Is(Onnx::Float),
                OutputType::Is(Onnx::Float),
                OutputType::In(0),
            ],
            normalise::skip_layer,
        ),
    ),
    (
        "SkipSimplifiedLayerNormalization",
        rule_of(
            &[
                OutputType::In(0),
                OutputType::Is(Onnx::Float),
                OutputType::Is(Onnx::Float),
                OutputType::In(0),
            ],
            normalise::skip_layer,
        ),
    ),
    (
        "TransposeMatMul",
        rule_of(&[OutputType::In(0)], matmul::fused),
    ),
    ("Trilu", rule_of(&[OutputType::In(0)], elementwise::same)),
];

/// Operators of classical machine learning, `ai.onnx.ml`, sorted by name. `CastMap` and `DictVectorizer` read maps,
/// which are no inputs that a request has.
pub(super) const ML: &[(&str, OperatorRule)] = &[
    (
        "ArrayFeatureExtractor",
        rule_of(&[OutputType::In(0)], index::array_feature_extractor),
    ),
    (
        "Binarizer",
        rule_of(&[OutputType::In(0)], elementwise::same),
    ),
    (
        "CategoryMapper",
        rule_of(&[OutputType::Special(ml::mapped_type)], elementwise::same),
    ),
    (
        "FeatureVectorizer",
        rule_of(&[OutputType::Is(Onnx::Float)], ml::feature_vectorizer),
    ),
    ("Imputer", rule_of(&[OutputType::In(0)], elementwise::same)),
    (
        "LabelEncoder",
        rule_of(
            &[OutputType::Special(elementwise::label_type)],
            elementwise::same,
        ),
    ),
    ("LinearClassifier", classifier(ml::linear_classifier)),
    (
        "LinearRegressor",
        rule_of(&[OutputType::Is(Onnx::Float)], ml::linear_regressor),
    ),
    (
        "Normalizer",
        rule_of(&[OutputType::Is(Onnx::Float)], elementwise::same),
    ),
    (
        "OneHotEncoder",
        rule_of(&[OutputType::Is(Onnx::Float)], ml::one_hot_encoder),
    ),
    ("SVMClassifier", classifier(ml::svm_classifier)),
    (
        "SVMRegressor",
        rule_of(&[OutputType::Is(Onnx::Float)], ml::svm_regressor),
    ),
    (
        "Scaler",
        rule_of(&[OutputType::Is(Onnx::Float)], elementwise::same),
    ),
    ("TreeEnsemble", rule_of(&[OutputType::In(0)], ml::trees)),
    ("TreeEnsembleClassifier", classifier(ml::tree_classifier)),
    (
        "TreeEnsembleRegressor",
        rule_of(&[OutputType::Is(Onnx::Float)], ml::trees),
    ),
    ("ZipMap", OperatorRule::Direct(ml::zip_map)),
];

/// Labels of a classifier, and FP32 scores.
const fn classifier(shapes: fn(&OperatorCall<'_, '_>) -> OutputShapes) -> OperatorRule {
    rule_of(
        &[
            OutputType::Special(ml::class_type),
            OutputType::Is(Onnx::Float),
        ],
        shapes,
    )
}
