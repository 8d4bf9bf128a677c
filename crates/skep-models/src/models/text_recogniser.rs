//! A recogniser of one line of text: the ResNet of "What Is Wrong With Scene Text Recognition Model Comparisons?"
//! (Baek and others 2019) with 512 channels, no rectification, no sequence model, CTC.
//!
//! ```text
//! 1x32x100 -> conv -> 64x32x100 -pool-> 16x50 -stage 1-> 128 -pool-> 8x25 -stage 2-> 256
//!          -pool over height-> 4x26 -stage 3-> 512 -stage 4-> 4x26 -conv-> 2x27 -conv-> 512x1x26
//!          -> mean over height -> 26 x 512 -> 26 x 37 (blank, 0-9, a-z)
//! ```

use skep_types::DataType;

use crate::{
    graph::{Dim, GraphBuilder, GraphValue, NodeAttribute, int},
    layers::{Conv, KernelWindow},
};

/// Blocks and channels of the four stages.
const STAGES: [(usize, usize); 4] = [(1, 128), (2, 256), (5, 512), (3, 512)];
/// Blank, ten digits, 26 letters.
const CLASSES: usize = 37;
/// Columns of the last feature map, each read as one character or blank.
const COLUMNS: usize = 26;
/// As in ResNet-50: what a block adds to its shortcut.
const BRANCH_SCALE: f32 = 0.5;
/// Halves the height; the padding keeps the width, plus one column.
const TALL: KernelWindow = KernelWindow {
    kernel: [2, 2],
    stride: [2, 1],
    pad: [0, 1],
};
const HALF: KernelWindow = KernelWindow {
    kernel: [2, 2],
    stride: [2, 2],
    pad: [0, 0],
};
const PAIR: KernelWindow = KernelWindow {
    kernel: [2, 2],
    stride: [1, 1],
    pad: [0, 0],
};

/// `input.1` [batch, 1, 32, 100] to `308` [batch, 26, 37]; the names are those of the published model's export.
pub(super) fn build(batch: Dim) -> GraphBuilder {
    let mut b = GraphBuilder::new("text_recogniser");
    let mut x = b.input(
        "input.1",
        DataType::Fp32,
        &[batch, Dim::Fixed(1), Dim::Fixed(32), Dim::Fixed(100)],
    );
    x = b.conv_norm_relu("conv0_1", &x, Conv::new(1, 32, KernelWindow::same(3, 1)));
    x = b.conv_norm_relu("conv0_2", &x, Conv::new(32, 64, KernelWindow::same(3, 1)));
    let mut channels = 64;
    for (stage, (blocks, outputs)) in STAGES.into_iter().enumerate() {
        x = match stage {
            0 | 1 => b.max_pool(&x, HALF),
            2 => b.max_pool(&x, TALL),
            _ => x,
        };
        for block in 0..blocks {
            b.next_block();
            x = basic_block(
                &mut b,
                &format!("layer{}.{block}", stage + 1),
                &x,
                channels,
                outputs,
            );
            channels = outputs;
        }
        if stage < 3 {
            let conv = Conv::new(channels, channels, KernelWindow::same(3, 1));
            x = b.conv_norm_relu(&format!("conv{}", stage + 1), &x, conv);
        }
    }
    x = b.conv_norm_relu("conv4_1", &x, Conv::new(channels, channels, TALL));
    x = b.conv_norm_relu("conv4_2", &x, Conv::new(channels, channels, PAIR));
    b.next_block();
    x = b.node(
        "ReduceMean",
        &[&x],
        &[
            ("axes", NodeAttribute::Ints(vec![2])),
            ("keepdims", NodeAttribute::Int(0)),
        ],
    );
    x = b.transpose(&x, &[0, 2, 1]);
    x = b.dense("prediction", &x, channels, CLASSES);
    b.output(
        &x,
        "308",
        DataType::Fp32,
        &[batch, Dim::Fixed(int(COLUMNS)), Dim::Fixed(int(CLASSES))],
    );
    b
}

fn basic_block(
    b: &mut GraphBuilder,
    name: &str,
    x: &GraphValue,
    channels: usize,
    outputs: usize,
) -> GraphValue {
    let y = b.conv_norm_relu(
        &format!("{name}.conv1"),
        x,
        Conv::new(channels, outputs, KernelWindow::same(3, 1)),
    );
    let last = Conv::new(outputs, outputs, KernelWindow::same(3, 1))
        .linear()
        .scaled(BRANCH_SCALE);
    let y = b.conv_norm(&format!("{name}.conv2"), &y, last);
    let shortcut = if channels == outputs {
        x.clone()
    } else {
        b.conv_norm(
            &format!("{name}.downsample"),
            x,
            Conv::new(channels, outputs, KernelWindow::same(1, 1)).linear(),
        )
    };
    let sum = b.add(&y, &shortcut);
    b.relu(&sum)
}
