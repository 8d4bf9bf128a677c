//! BERT (Devlin and others 2018): encoder and pooler, batch and sequence length variable.

use skep_types::DataType;

use crate::{
    graph::{Dim, GraphBuilder, GraphValue, NodeAttribute, int},
    kind::BertSize,
    weights::WeightFill,
};

/// What a masked token's attention score becomes: low enough that its softmax is zero in FP32.
const MASKED_SCORE: f32 = -10_000.0;

/// `input_ids`, `attention_mask`, `token_type_ids` [batch, sequence] to `last_hidden_state` [batch, sequence, hidden]
/// and `pooler_output` [batch, hidden].
pub(super) fn build(size: BertSize, batch: Dim) -> GraphBuilder {
    let mut b = GraphBuilder::new("bert");
    let sequence = Dim::Variable("sequence");
    let [ids, mask, types] = ["input_ids", "attention_mask", "token_type_ids"]
        .map(|name| b.input(name, DataType::Int64, &[batch, sequence]));
    let mut x = embeddings(&mut b, size, &ids, &types);
    let bias = mask_bias(&mut b, &mask);
    for layer in 0..size.layers {
        b.next_block();
        x = encoder_layer(&mut b, size, &format!("encoder.{layer}"), &x, &bias);
    }
    b.next_block();
    let first = b.constant("first", DataType::Int64, &[], 0i64.to_le_bytes().to_vec());
    let token = b.node("Gather", &[&x, &first], &[("axis", NodeAttribute::Int(1))]);
    let pooled = b.gemm(
        "pooler",
        &token,
        size.hidden,
        size.hidden,
        WeightFill::linear(size.hidden),
    );
    let pooled = b.node("Tanh", &[&pooled], &[]);
    let hidden = Dim::Fixed(int(size.hidden));
    b.output(
        &x,
        "last_hidden_state",
        DataType::Fp32,
        &[batch, sequence, hidden],
    );
    b.output(&pooled, "pooler_output", DataType::Fp32, &[batch, hidden]);
    b
}

/// Token, type and position tables, summed and normalised.
fn embeddings(
    b: &mut GraphBuilder,
    size: BertSize,
    ids: &GraphValue,
    types: &GraphValue,
) -> GraphValue {
    let tables = [
        ("word", size.vocab),
        ("position", size.positions),
        ("token_type", 2),
    ];
    let [words, positions, kinds] = tables.map(|(name, rows)| {
        // The layer normalisation that follows takes any scale; this is the original's standard deviation.
        b.weight(
            &format!("embeddings.{name}"),
            &[rows, size.hidden],
            WeightFill::around_zero(0.035),
        )
    });
    let axis = || [("axis", NodeAttribute::Int(0))];
    let word = b.node("Gather", &[&words, ids], &axis());
    let kind = b.node("Gather", &[&kinds, types], &axis());
    let length = b.node(
        "Shape",
        &[ids],
        &[
            ("start", NodeAttribute::Int(1)),
            ("end", NodeAttribute::Int(2)),
        ],
    );
    let zero = b.constant_ints("zero", &[0]);
    let position = b.node("Slice", &[&positions, &zero, &length, &zero], &[]);
    let sum = b.add(&word, &kind);
    let sum = b.add(&sum, &position);
    b.layer_norm("embeddings.norm", &sum, size.hidden)
}

/// [batch, 1, 1, sequence]: zero where attention may go, very low where not.
fn mask_bias(b: &mut GraphBuilder, mask: &GraphValue) -> GraphValue {
    let axes = b.constant_ints("mask.axes", &[1, 2]);
    let one = b.constant_float("mask.one", 1.0);
    let low = b.constant_float("mask.low", MASKED_SCORE);
    let mask = b.node("Unsqueeze", &[mask, &axes], &[]);
    let mask = b.cast(&mask, DataType::Fp32);
    let hidden = b.node("Sub", &[&one, &mask], &[]);
    b.node("Mul", &[&hidden, &low], &[])
}

fn encoder_layer(
    b: &mut GraphBuilder,
    size: BertSize,
    name: &str,
    x: &GraphValue,
    bias: &GraphValue,
) -> GraphValue {
    let hidden = size.hidden;
    let attended = attention(b, size, &format!("{name}.attention"), x, bias);
    let attended = b.dense(
        &format!("{name}.attention.output"),
        &attended,
        hidden,
        hidden,
    );
    let sum = b.add(&attended, x);
    let x = b.layer_norm(&format!("{name}.attention.norm"), &sum, hidden);
    let y = b.dense(
        &format!("{name}.intermediate"),
        &x,
        hidden,
        size.intermediate,
    );
    let y = b.gelu(&y);
    let y = b.dense(&format!("{name}.output"), &y, size.intermediate, hidden);
    let sum = b.add(&y, &x);
    b.layer_norm(&format!("{name}.norm"), &sum, hidden)
}

fn attention(
    b: &mut GraphBuilder,
    size: BertSize,
    name: &str,
    x: &GraphValue,
    bias: &GraphValue,
) -> GraphValue {
    let head = size.hidden / size.heads;
    let [query, key, value] = [
        ("query", [0, 2, 1, 3]),
        ("key", [0, 2, 3, 1]),
        ("value", [0, 2, 1, 3]),
    ]
    .map(|(part, order)| {
        let y = b.dense(&format!("{name}.{part}"), x, size.hidden, size.hidden);
        let y = b.reshape(&y, "heads.split", &[0, 0, int(size.heads), int(head)]);
        b.transpose(&y, &order)
    });
    let scores = b.node("MatMul", &[&query, &key], &[]);
    let scale = b.constant_float("heads.scale", (head as f32).sqrt());
    let scores = b.node("Div", &[&scores, &scale], &[]);
    let scores = b.add(&scores, bias);
    let shares = b.softmax(&scores, -1);
    let y = b.node("MatMul", &[&shares, &value], &[]);
    let y = b.transpose(&y, &[0, 2, 1, 3]);
    b.reshape(&y, "heads.join", &[0, 0, int(size.hidden)])
}
