//! Classical machine learning, `ai.onnx.ml`: a row in, labels, scores or features out. What has one dimension is one
//! row.

use std::rc::Rc;

use super::{OutputShapes, one};
use crate::{
    call::{Datum, OperatorCall, size},
    element::ElementType,
    error::RuleRefusal,
};
use skep_proto::onnx::tensor_proto::DataType as Onnx;

fn rows(call: &OperatorCall<'_, '_>) -> Result<usize, RuleRefusal> {
    match call.dims(0)? {
        [] | [_] => Ok(1),
        [rows, ..] => Ok(*rows),
    }
}

/// How many strings, or else whole numbers, the attributes of these names list.
fn listed(call: &OperatorCall<'_, '_>, strings: &str, ints: &str) -> usize {
    let strings = call.attribute(strings).map_or(0, |a| a.strings.len());
    if strings > 0 {
        return strings;
    }
    call.ints(ints).map_or(0, <[i64]>::len)
}

fn labels_and_scores(call: &OperatorCall<'_, '_>, scores: usize) -> OutputShapes {
    let rows = rows(call)?;
    Ok(vec![vec![rows], vec![rows, scores]])
}

fn columns(call: &OperatorCall<'_, '_>, columns: i64) -> OutputShapes {
    one([rows(call)?, size(i128::from(columns))?])
}

/// Labels of classifiers: strings where the file has such.
pub(crate) fn class_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    let are_strings = call
        .attribute("classlabels_strings")
        .is_some_and(|a| !a.strings.is_empty());
    let element = if are_strings {
        Onnx::String
    } else {
        Onnx::Int64
    };
    Some(ElementType(element as i32))
}

/// `TreeEnsembleClassifier`: a score for each class.
pub(crate) fn tree_classifier(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let classes = listed(call, "classlabels_strings", "classlabels_int64s");
    labels_and_scores(call, classes)
}

/// `LinearClassifier`: a score for each intercept; one alone is that of the second of two classes.
pub(crate) fn linear_classifier(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let labels = listed(call, "classlabels_strings", "classlabels_ints");
    let intercepts = call.attribute("intercepts").map_or(0, |a| a.floats.len());
    let scores = match intercepts {
        0 => labels,
        1 if labels == 2 => 2,
        count => count,
    };
    labels_and_scores(call, scores)
}

/// `SVMClassifier`: a probability for each class, else a vote for each pair of them; with linear kernels, which have no
/// support vectors, a score for each class.
pub(crate) fn svm_classifier(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let classes = listed(call, "classlabels_strings", "classlabels_ints");
    let has = |name: &str| call.attribute(name).is_some_and(|a| !a.floats.is_empty());
    let has_vectors = call
        .ints("vectors_per_class")
        .is_some_and(|vectors| !vectors.is_empty());
    let scores = match classes {
        _ if has("prob_a") || !has_vectors => classes,
        0..=2 => 2,
        classes => classes.saturating_mul(classes - 1) / 2,
    };
    labels_and_scores(call, scores)
}

/// `TreeEnsemble` and `TreeEnsembleRegressor`: a number for each target.
pub(crate) fn trees(call: &OperatorCall<'_, '_>) -> OutputShapes {
    columns(call, call.int("n_targets", 1))
}

/// `LinearRegressor`: a number for each target.
pub(crate) fn linear_regressor(call: &OperatorCall<'_, '_>) -> OutputShapes {
    columns(call, call.int("targets", 1))
}

/// `SVMRegressor`: one number.
pub(crate) fn svm_regressor(call: &OperatorCall<'_, '_>) -> OutputShapes {
    columns(call, 1)
}

/// `FeatureVectorizer`: as many columns as the attribute says in all.
pub(crate) fn feature_vectorizer(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let widths = call.ints("inputdimensions").unwrap_or_default();
    let total = widths
        .iter()
        .try_fold(0_i64, |sum, &width| sum.checked_add(width))
        .ok_or_else(|| RuleRefusal::invalid("has too many columns"))?;
    columns(call, total)
}

/// `OneHotEncoder`: a new last axis, of as many as there are categories.
pub(crate) fn one_hot_encoder(call: &OperatorCall<'_, '_>) -> OutputShapes {
    let categories = listed(call, "cats_strings", "cats_int64s");
    one([call.dims(0)?, &[categories]].concat())
}

/// `CategoryMapper`, and `LabelEncoder` as it was first: strings become numbers, and numbers strings.
pub(crate) fn mapped_type(call: &OperatorCall<'_, '_>) -> Option<ElementType> {
    let is_text = call.optional(0)?.element == ElementType(Onnx::String as i32);
    let element = if is_text { Onnx::Int64 } else { Onnx::String };
    Some(ElementType(element as i32))
}

/// `ZipMap`: a map for each row, which no tensor holds.
pub(crate) fn zip_map<'a>(call: &OperatorCall<'a, '_>) -> Result<Vec<Datum<'a>>, RuleRefusal> {
    call.input(0)?;
    Ok(vec![Datum::Sequence(Rc::new(Vec::new()))])
}
