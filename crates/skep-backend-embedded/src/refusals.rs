//! Operators that the engine is known to compute wrongly.
//!
//! The table comes from ONNX's own node tests (`examples/node_tests.rs`) and from comparisons with ONNX Runtime over
//! older opsets, attributes and edge values. It refuses everything that gave wrong values there instead of an error.
//! Each row says what is refused and why. Two known deviations are accepted: `Relu` and `Clip` give 0 or a bound for
//! NaN, and a `Cast` of a number that its target cannot represent saturates, which ONNX leaves undefined.

use skep_proto::onnx::{AttributeProto, NodeProto, tensor_proto::DataType as Onnx};

use crate::audit::DeclaredTensors;

/// A row: an operator, when it is refused, and why.
struct OperatorRefusal {
    operator: &'static str,
    when: fn(&NodeContext<'_>) -> bool,
    why: &'static str,
}

/// A node, the operator set, and the declarations of tensors.
struct NodeContext<'a> {
    node: &'a NodeProto,
    opset: i64,
    declared: &'a DeclaredTensors<'a>,
}

/// The table.
const REFUSALS: &[OperatorRefusal] = &[
    OperatorRefusal {
        operator: "Sign",
        when: always,
        why: "its engine gives 1 for 0",
    },
    OperatorRefusal {
        operator: "NonMaxSuppression",
        when: always,
        why: "its engine compares boxes across classes and batches, and misreads flipped coordinates",
    },
    OperatorRefusal {
        operator: "Resize",
        when: |c| c.text_is("mode", "cubic"),
        why: "its engine interpolates linearly where `mode` is `cubic`",
    },
    OperatorRefusal {
        operator: "Upsample",
        when: |c| c.text_is("mode", "cubic"),
        why: "its engine interpolates linearly where `mode` is `cubic`",
    },
    OperatorRefusal {
        operator: "QuantizeLinear",
        when: always,
        why: QUANTIZATION,
    },
    OperatorRefusal {
        operator: "DynamicQuantizeLinear",
        when: always,
        why: QUANTIZATION,
    },
    OperatorRefusal {
        operator: "Softmax",
        when: flattens,
        why: FLATTENING,
    },
    OperatorRefusal {
        operator: "LogSoftmax",
        when: flattens,
        why: FLATTENING,
    },
    OperatorRefusal {
        operator: "AveragePool",
        when: same_lower,
        why: SAME_LOWER,
    },
    OperatorRefusal {
        operator: "Conv",
        when: same_lower,
        why: SAME_LOWER,
    },
    OperatorRefusal {
        operator: "ConvInteger",
        when: same_lower,
        why: SAME_LOWER,
    },
    OperatorRefusal {
        operator: "ConvTranspose",
        when: same_lower,
        why: SAME_LOWER,
    },
    OperatorRefusal {
        operator: "MaxPool",
        when: same_lower,
        why: SAME_LOWER,
    },
    OperatorRefusal {
        operator: "ArgMax",
        when: always,
        why: "its engine gives the last of several equal maxima, not the first",
    },
    OperatorRefusal {
        operator: "CastLike",
        when: may_cast_to_bool,
        why: "its engine cannot tell BOOL from integers",
    },
    OperatorRefusal {
        operator: "GRU",
        when: has_sequence_lengths,
        why: SEQUENCE_LENGTHS,
    },
    OperatorRefusal {
        operator: "LSTM",
        when: has_sequence_lengths,
        why: SEQUENCE_LENGTHS,
    },
    OperatorRefusal {
        operator: "Resize",
        when: |c| c.text_is("nearest_mode", "round_prefer_ceil"),
        why: "its engine rounds differently where `nearest_mode` is `round_prefer_ceil`",
    },
];

const SEQUENCE_LENGTHS: &str = "its engine ignores `sequence_lens`";
const SAME_LOWER: &str =
    "its engine puts the odd row of padding at the end where `auto_pad` is `SAME_LOWER`";
const QUANTIZATION: &str = "its engine multiplies by the reciprocal of the scale, which is one step off where a quotient ends in one half";
const FLATTENING: &str =
    "before opset 13 it normalises over all axes from `axis` on, its engine over that axis only";

fn has_sequence_lengths(context: &NodeContext<'_>) -> bool {
    context
        .node
        .input
        .get(4)
        .is_some_and(|name| !name.is_empty())
}

/// Whether the tensor that gives the datatype is BOOL, or its datatype is not declared.
fn may_cast_to_bool(context: &NodeContext<'_>) -> bool {
    let like = context.node.input.get(1).map_or("", String::as_str);
    let datatype = context.declared.types.get(like);
    datatype.is_none_or(|&t| t == Onnx::Bool as i32 || t == Onnx::Undefined as i32)
}

fn same_lower(context: &NodeContext<'_>) -> bool {
    context.text_is("auto_pad", "SAME_LOWER")
}

fn always(_: &NodeContext<'_>) -> bool {
    true
}

/// Before opset 13, the operator treated all axes from `axis` (default 1) on as one. Only for the last axis that
/// makes no difference.
fn flattens(context: &NodeContext<'_>) -> bool {
    if context.opset >= 13 {
        return false;
    }
    let tensors = context.node.input.iter().chain(&context.node.output);
    let rank = tensors
        .filter_map(|t| context.declared.ranks.get(t.as_str()))
        .next();
    let rank = rank.and_then(|&rank| i64::try_from(rank).ok());
    match (context.int("axis"), rank) {
        (Some(-1), _) | (None, Some(2)) => false,
        (Some(axis), Some(rank)) => axis != rank - 1,
        (_, None) | (None, Some(_)) => true,
    }
}

/// Refuses a node that a row of the table matches.
///
/// # Errors
/// A text that names the operator, the node and the reason.
pub(crate) fn check(
    node: &NodeProto,
    opset: i64,
    declared: &DeclaredTensors<'_>,
) -> Result<(), String> {
    let context = NodeContext {
        node,
        opset,
        declared,
    };
    let row = REFUSALS
        .iter()
        .find(|row| row.operator == node.op_type() && (row.when)(&context));
    match row {
        Some(row) => Err(format!(
            "operator `{}` of node `{}` is not served by the embedded backend: {}",
            row.operator,
            node.name(),
            row.why
        )),
        None => Ok(()),
    }
}

impl NodeContext<'_> {
    fn attribute(&self, name: &str) -> Option<&AttributeProto> {
        self.node.attribute.iter().find(|a| a.name() == name)
    }

    fn int(&self, name: &str) -> Option<i64> {
        self.attribute(name).map(AttributeProto::i)
    }

    fn text_is(&self, name: &str, text: &str) -> bool {
        self.attribute(name)
            .is_some_and(|a| a.s() == text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(operator: &str, attributes: Vec<AttributeProto>) -> NodeProto {
        NodeProto {
            op_type: Some(operator.to_owned()),
            name: Some("n".to_owned()),
            input: vec!["x".to_owned()],
            attribute: attributes,
            ..NodeProto::default()
        }
    }

    fn axis(axis: i64) -> AttributeProto {
        AttributeProto {
            name: Some("axis".to_owned()),
            i: Some(axis),
            ..AttributeProto::default()
        }
    }

    #[test]
    fn a_refusal_names_operator_node_and_reason() {
        let error =
            check(&node("Sign", Vec::new()), 22, &DeclaredTensors::default()).expect_err("wrong");
        assert_eq!(
            error,
            "operator `Sign` of node `n` is not served by the embedded backend: its engine gives 1 for 0"
        );
    }

    #[test]
    fn cubic_interpolation_is_refused_and_linear_is_not() {
        let mode = |mode: &str| AttributeProto {
            name: Some("mode".to_owned()),
            s: Some(mode.to_owned().into()),
            ..AttributeProto::default()
        };
        let resize =
            |attributes| check(&node("Resize", attributes), 22, &DeclaredTensors::default());
        assert!(resize(vec![mode("cubic")]).is_err());
        assert!(resize(vec![mode("linear")]).is_ok());
        assert!(resize(Vec::new()).is_ok());
    }

    #[test]
    fn a_cast_like_to_bool_or_an_unknown_datatype_is_refused() {
        let like = |datatype: Option<Onnx>| {
            let mut cast = node("CastLike", Vec::new());
            cast.input.push("like".to_owned());
            let declared = DeclaredTensors {
                types: datatype.map(|t| ("like", t as i32)).into_iter().collect(),
                ..DeclaredTensors::default()
            };
            check(&cast, 22, &declared).is_ok()
        };
        assert!(like(Some(Onnx::Float)));
        assert!(!like(Some(Onnx::Bool)));
        assert!(!like(None));
    }

    #[test]
    fn sequence_lengths_are_refused_where_they_are_given() {
        let mut gru = node("GRU", Vec::new());
        gru.input = ["x", "w", "r", "b", ""].map(str::to_owned).to_vec();
        assert!(check(&gru, 22, &DeclaredTensors::default()).is_ok());
        gru.input[4] = "lengths".to_owned();
        assert!(check(&gru, 22, &DeclaredTensors::default()).is_err());
    }

    #[test]
    fn old_softmax_is_served_over_the_last_axis_only() {
        let softmax = |opset, attributes, rank: Option<usize>| {
            let ranks = rank.map(|r| ("x", r)).into_iter().collect();
            let declared = DeclaredTensors {
                ranks,
                ..DeclaredTensors::default()
            };
            check(&node("Softmax", attributes), opset, &declared).is_ok()
        };
        assert!(softmax(13, vec![axis(1)], Some(4)));
        assert!(softmax(11, Vec::new(), Some(2)));
        assert!(softmax(11, vec![axis(2)], Some(3)));
        assert!(softmax(11, vec![axis(-1)], None));
        assert!(!softmax(11, Vec::new(), Some(3)));
        assert!(!softmax(11, vec![axis(1)], Some(4)));
        assert!(!softmax(11, vec![axis(1)], None));
    }
}
