//! ResNet-50 (He and others 2015), with the stride in the 3x3 convolution, as today's implementations have it.

use skep_types::DataType;

use crate::{
    graph::{Dim, GraphBuilder, GraphValue, int},
    layers::{Conv, KernelWindow},
    weights::WeightFill,
};

/// Blocks and inner channels of the four stages; a block gives four times its inner channels.
const STAGES: [(usize, usize); 4] = [(3, 64), (4, 128), (6, 256), (3, 512)];
/// How much of the second moment a block adds to its shortcut: 0.5 squared, so that 16 blocks stay within bounds.
const BRANCH_SCALE: f32 = 0.5;

/// `data` [batch, 3, 224, 224] to `output` [batch, classes].
pub(super) fn build(classes: usize, batch: Dim) -> GraphBuilder {
    let mut b = GraphBuilder::new("resnet50");
    let mut x = b.input(
        "data",
        DataType::Fp32,
        &[batch, Dim::Fixed(3), Dim::Fixed(224), Dim::Fixed(224)],
    );
    x = b.conv_norm_relu("conv1", &x, Conv::new(3, 64, KernelWindow::same(7, 2)));
    x = b.max_pool(&x, KernelWindow::same(3, 2));
    let mut channels = 64;
    for (stage, (blocks, inner)) in STAGES.into_iter().enumerate() {
        for block in 0..blocks {
            b.next_block();
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            x = bottleneck(
                &mut b,
                &format!("layer{}.{block}", stage + 1),
                &x,
                channels,
                inner,
                stride,
            );
            channels = 4 * inner;
        }
    }
    b.next_block();
    x = b.global_average(&x);
    x = b.gemm("fc", &x, channels, classes, WeightFill::linear(channels));
    b.output(
        &x,
        "output",
        DataType::Fp32,
        &[batch, Dim::Fixed(int(classes))],
    );
    b
}

fn bottleneck(
    b: &mut GraphBuilder,
    name: &str,
    x: &GraphValue,
    channels: usize,
    inner: usize,
    stride: usize,
) -> GraphValue {
    let outputs = 4 * inner;
    let y = b.conv_norm_relu(
        &format!("{name}.conv1"),
        x,
        Conv::new(channels, inner, KernelWindow::same(1, 1)),
    );
    let y = b.conv_norm_relu(
        &format!("{name}.conv2"),
        &y,
        Conv::new(inner, inner, KernelWindow::same(3, stride)),
    );
    let last = Conv::new(inner, outputs, KernelWindow::same(1, 1))
        .linear()
        .scaled(BRANCH_SCALE);
    let y = b.conv_norm(&format!("{name}.conv3"), &y, last);
    let shortcut = if channels == outputs {
        x.clone()
    } else {
        b.conv_norm(
            &format!("{name}.downsample"),
            x,
            Conv::new(channels, outputs, KernelWindow::same(1, stride)).linear(),
        )
    };
    let sum = b.add(&y, &shortcut);
    b.relu(&sum)
}
