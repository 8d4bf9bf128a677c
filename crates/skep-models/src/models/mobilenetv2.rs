//! MobileNetV2 (Sandler and others 2018), width 1.0.

use skep_types::DataType;

use crate::{
    graph::{Dim, GraphBuilder, GraphValue, int},
    layers::{Conv, KernelWindow},
    weights::WeightFill,
};

/// Expansion, channels out, blocks, stride of the first block: table 2 of the paper.
const STAGES: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];
/// Channels before the head.
const LAST: usize = 1280;
/// As in ResNet-50: what a block adds to its shortcut.
const BRANCH_SCALE: f32 = 0.5;

/// `data` [batch, 3, 224, 224] to `output` [batch, classes].
pub(super) fn build(classes: usize, batch: Dim) -> GraphBuilder {
    let mut b = GraphBuilder::new("mobilenetv2");
    let x = b.input(
        "data",
        DataType::Fp32,
        &[batch, Dim::Fixed(3), Dim::Fixed(224), Dim::Fixed(224)],
    );
    let mut x = conv_norm_relu6(
        &mut b,
        "stem",
        &x,
        Conv::new(3, 32, KernelWindow::same(3, 2)),
    );
    let mut channels = 32;
    for (stage, (expansion, outputs, blocks, first_stride)) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            b.next_block();
            let stride = if block == 0 { first_stride } else { 1 };
            let shape = Inverted {
                inputs: channels,
                outputs,
                expansion,
                stride,
            };
            x = inverted_residual(&mut b, &format!("stage{stage}.{block}"), &x, shape);
            channels = outputs;
        }
    }
    b.next_block();
    x = conv_norm_relu6(
        &mut b,
        "last",
        &x,
        Conv::new(channels, LAST, KernelWindow::same(1, 1)),
    );
    x = b.global_average(&x);
    x = b.gemm("classifier", &x, LAST, classes, WeightFill::linear(LAST));
    b.output(
        &x,
        "output",
        DataType::Fp32,
        &[batch, Dim::Fixed(int(classes))],
    );
    b
}

struct Inverted {
    inputs: usize,
    outputs: usize,
    expansion: usize,
    stride: usize,
}

/// Wide inside, narrow at its ends; nothing rectified at the end.
fn inverted_residual(
    b: &mut GraphBuilder,
    name: &str,
    x: &GraphValue,
    shape: Inverted,
) -> GraphValue {
    let inner = shape.inputs * shape.expansion;
    let mut y = x.clone();
    if shape.expansion > 1 {
        y = conv_norm_relu6(
            b,
            &format!("{name}.expand"),
            &y,
            Conv::new(shape.inputs, inner, KernelWindow::same(1, 1)),
        );
    }
    y = conv_norm_relu6(
        b,
        &format!("{name}.depthwise"),
        &y,
        Conv::depthwise(inner, KernelWindow::same(3, shape.stride)),
    );
    let residual = shape.stride == 1 && shape.inputs == shape.outputs;
    let project = Conv::new(inner, shape.outputs, KernelWindow::same(1, 1)).linear();
    let project = if residual {
        project.scaled(BRANCH_SCALE)
    } else {
        project
    };
    y = b.conv_norm(&format!("{name}.project"), &y, project);
    if residual { b.add(x, &y) } else { y }
}

fn conv_norm_relu6(b: &mut GraphBuilder, name: &str, x: &GraphValue, conv: Conv) -> GraphValue {
    let x = b.conv_norm(name, x, conv);
    b.relu6(&x)
}
