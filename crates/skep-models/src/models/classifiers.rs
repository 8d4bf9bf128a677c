//! The two small classifiers: fully connected layers, and a small convolution net.

use skep_types::DataType;

use crate::{
    graph::{Dim, GraphBuilder, int},
    layers::{Conv, KernelWindow},
    weights::WeightFill,
};

/// `input` [batch, first] through rectified layers to `output` [batch, last].
pub(super) fn mlp(layers: &[usize], softmax: bool, batch: Dim) -> GraphBuilder {
    let mut b = GraphBuilder::new("mlp");
    let mut x = b.input(
        "input",
        DataType::Fp32,
        &[batch, Dim::Fixed(int(layers[0]))],
    );
    let last = layers.len() - 2;
    for (number, pair) in layers.windows(2).enumerate() {
        b.next_block();
        let [inputs, outputs] = [pair[0], pair[1]];
        let fill = if number < last {
            WeightFill::before_relu(inputs)
        } else {
            WeightFill::linear(inputs)
        };
        x = b.gemm(&format!("layer{number}"), &x, inputs, outputs, fill);
        if number < last {
            x = b.relu(&x);
        }
    }
    if softmax {
        x = b.softmax(&x, 1);
    }
    b.output(
        &x,
        "output",
        DataType::Fp32,
        &[batch, Dim::Fixed(int(layers[last + 1]))],
    );
    b
}

/// `input` [batch, 3, 32, 32] through three convolutions and two fully connected layers to `output` [batch, classes].
pub(super) fn cnn(classes: usize, batch: Dim) -> GraphBuilder {
    let mut b = GraphBuilder::new("cnn");
    let mut x = b.input(
        "input",
        DataType::Fp32,
        &[batch, Dim::Fixed(3), Dim::Fixed(32), Dim::Fixed(32)],
    );
    let half = KernelWindow {
        kernel: [2, 2],
        stride: [2, 2],
        pad: [0, 0],
    };
    for (number, [inputs, outputs]) in [[3, 16], [16, 32], [32, 64]].into_iter().enumerate() {
        b.next_block();
        x = b.conv_norm_relu(
            &format!("conv{number}"),
            &x,
            Conv::new(inputs, outputs, KernelWindow::same(3, 1)),
        );
        x = b.max_pool(&x, half);
    }
    b.next_block();
    // Three halvings leave 4x4 positions.
    x = b.flatten(&x);
    x = b.gemm(
        "hidden",
        &x,
        64 * 4 * 4,
        128,
        WeightFill::before_relu(64 * 4 * 4),
    );
    x = b.relu(&x);
    x = b.gemm("head", &x, 128, classes, WeightFill::linear(128));
    b.output(
        &x,
        "output",
        DataType::Fp32,
        &[batch, Dim::Fixed(int(classes))],
    );
    b
}
