//! The usual layers of networks, on top of [`GraphBuilder`].

use skep_types::DataType;

use crate::{
    graph::{GraphBuilder, GraphValue, NodeAttribute, element_type, int},
    weights::WeightFill,
};

/// A convolution or pooling window: size, stride and padding, each as [height, width].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KernelWindow {
    /// Its size.
    pub kernel: [usize; 2],
    /// The distance from one to the next.
    pub stride: [usize; 2],
    /// Padding at both ends.
    pub pad: [usize; 2],
}

impl KernelWindow {
    /// A square window of odd size that, at stride 1, gives as many values as it takes.
    #[must_use]
    pub const fn same(kernel: usize, stride: usize) -> Self {
        let pad = kernel / 2;
        Self {
            kernel: [kernel, kernel],
            stride: [stride, stride],
            pad: [pad, pad],
        }
    }

    fn attributes(self) -> Vec<(&'static str, NodeAttribute)> {
        let [top, left] = self.pad.map(int);
        vec![
            (
                "kernel_shape",
                NodeAttribute::Ints(self.kernel.map(int).to_vec()),
            ),
            (
                "strides",
                NodeAttribute::Ints(self.stride.map(int).to_vec()),
            ),
            ("pads", NodeAttribute::Ints(vec![top, left, top, left])),
        ]
    }
}

/// A convolution followed by batch normalisation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Conv {
    /// Channels in.
    pub inputs: usize,
    /// Channels out.
    pub outputs: usize,
    /// Its window.
    pub window: KernelWindow,
    /// 1, or `inputs` for a depthwise convolution.
    pub groups: usize,
    /// Whether a rectifier follows, which halves the second moment of what it gets.
    pub relu_follows: bool,
    /// The mean scale of the batch normalisation; below 1 in the last convolution of a residual branch, since the sum
    /// with the shortcut would grow by every block.
    pub scale: f32,
}

impl Conv {
    /// A convolution before a rectifier.
    #[must_use]
    pub const fn new(inputs: usize, outputs: usize, window: KernelWindow) -> Self {
        Self {
            inputs,
            outputs,
            window,
            groups: 1,
            relu_follows: true,
            scale: 1.0,
        }
    }

    /// Each channel by itself.
    #[must_use]
    pub const fn depthwise(channels: usize, window: KernelWindow) -> Self {
        Self {
            groups: channels,
            ..Self::new(channels, channels, window)
        }
    }

    /// No rectifier follows.
    #[must_use]
    pub const fn linear(self) -> Self {
        Self {
            relu_follows: false,
            ..self
        }
    }

    /// The last one of a residual branch.
    #[must_use]
    pub const fn scaled(self, scale: f32) -> Self {
        Self { scale, ..self }
    }
}

impl GraphBuilder {
    /// Convolution without bias, then batch normalisation whose statistics fit what the convolution gives.
    pub fn conv_norm(&mut self, name: &str, x: &GraphValue, conv: Conv) -> GraphValue {
        let [height, width] = conv.window.kernel;
        let per_group = conv.inputs / conv.groups;
        let fan_in = per_group * height * width;
        let fill = if conv.relu_follows {
            WeightFill::before_relu(fan_in)
        } else {
            WeightFill::linear(fan_in)
        };
        let weight = self.weight(
            &format!("{name}.weight"),
            &[conv.outputs, per_group, height, width],
            fill,
        );
        let mut attributes = conv.window.attributes();
        attributes.push(("group", NodeAttribute::Int(int(conv.groups))));
        let x = self.node("Conv", &[x, &weight], &attributes);
        self.batch_norm(&format!("{name}.bn"), &x, conv.outputs, conv.scale)
    }

    /// [`GraphBuilder::conv_norm`], then a rectifier.
    pub fn conv_norm_relu(&mut self, name: &str, x: &GraphValue, conv: Conv) -> GraphValue {
        let x = self.conv_norm(name, x, conv);
        self.relu(&x)
    }

    /// BatchDim normalisation with statistics of about zero mean and unit variance, different for each channel.
    pub fn batch_norm(
        &mut self,
        name: &str,
        x: &GraphValue,
        channels: usize,
        scale: f32,
    ) -> GraphValue {
        let scale = self.weight(
            &format!("{name}.weight"),
            &[channels],
            WeightFill {
                centre: scale,
                spread: 0.1 * scale,
            },
        );
        let bias = self.weight(
            &format!("{name}.bias"),
            &[channels],
            WeightFill::around_zero(0.1),
        );
        let mean = self.statistics(
            &format!("{name}.running_mean"),
            &[channels],
            WeightFill::around_zero(0.1),
        );
        let variance = self.statistics(
            &format!("{name}.running_var"),
            &[channels],
            WeightFill {
                centre: 1.0,
                spread: 0.2,
            },
        );
        self.node(
            "BatchNormalization",
            &[x, &scale, &bias, &mean, &variance],
            &[("epsilon", NodeAttribute::Float(1e-5))],
        )
    }

    /// Layer normalisation over the last axis.
    pub fn layer_norm(&mut self, name: &str, x: &GraphValue, size: usize) -> GraphValue {
        let scale = self.weight(
            &format!("{name}.weight"),
            &[size],
            WeightFill {
                centre: 1.0,
                spread: 0.1,
            },
        );
        let bias = self.weight(
            &format!("{name}.bias"),
            &[size],
            WeightFill::around_zero(0.1),
        );
        let attributes = [
            ("axis", NodeAttribute::Int(-1)),
            ("epsilon", NodeAttribute::Float(1e-12)),
        ];
        self.node("LayerNormalization", &[x, &scale, &bias], &attributes)
    }

    /// A fully connected layer on [rows, inputs].
    pub fn gemm(
        &mut self,
        name: &str,
        x: &GraphValue,
        inputs: usize,
        outputs: usize,
        fill: WeightFill,
    ) -> GraphValue {
        let weight = self.weight(&format!("{name}.weight"), &[outputs, inputs], fill);
        let bias = self.weight(
            &format!("{name}.bias"),
            &[outputs],
            WeightFill::around_zero(0.1),
        );
        self.node(
            "Gemm",
            &[x, &weight, &bias],
            &[("transB", NodeAttribute::Int(1))],
        )
    }

    /// A fully connected layer on the last axis of any rank.
    pub fn dense(
        &mut self,
        name: &str,
        x: &GraphValue,
        inputs: usize,
        outputs: usize,
    ) -> GraphValue {
        let weight = self.weight(
            &format!("{name}.weight"),
            &[inputs, outputs],
            WeightFill::linear(inputs),
        );
        let bias = self.weight(
            &format!("{name}.bias"),
            &[outputs],
            WeightFill::around_zero(0.1),
        );
        let x = self.node("MatMul", &[x, &weight], &[]);
        self.node("Add", &[&x, &bias], &[])
    }

    /// `max(x, 0)`.
    pub fn relu(&mut self, x: &GraphValue) -> GraphValue {
        self.node("Relu", &[x], &[])
    }

    /// `x` between 0 and 6.
    pub fn relu6(&mut self, x: &GraphValue) -> GraphValue {
        let low = self.constant_float("relu6.low", 0.0);
        let high = self.constant_float("relu6.high", 6.0);
        self.node("Clip", &[x, &low, &high], &[])
    }

    /// Gaussian error linear unit, exact form: `x / 2 * (1 + erf(x / sqrt(2)))`.
    pub fn gelu(&mut self, x: &GraphValue) -> GraphValue {
        let root = self.constant_float("gelu.root", std::f32::consts::SQRT_2);
        let one = self.constant_float("gelu.one", 1.0);
        let half = self.constant_float("gelu.half", 0.5);
        let scaled = self.node("Div", &[x, &root], &[]);
        let error = self.node("Erf", &[&scaled], &[]);
        let share = self.node("Add", &[&error, &one], &[]);
        let product = self.node("Mul", &[x, &share], &[]);
        self.node("Mul", &[&product, &half], &[])
    }

    /// The largest value of each window.
    pub fn max_pool(&mut self, x: &GraphValue, window: KernelWindow) -> GraphValue {
        self.node("MaxPool", &[x], &window.attributes())
    }

    /// [n, channels, height, width] to [n, channels]: the mean over all positions.
    pub fn global_average(&mut self, x: &GraphValue) -> GraphValue {
        let x = self.node("GlobalAveragePool", &[x], &[]);
        self.flatten(&x)
    }

    /// All axes but the first become one.
    pub fn flatten(&mut self, x: &GraphValue) -> GraphValue {
        self.node("Flatten", &[x], &[("axis", NodeAttribute::Int(1))])
    }

    /// Axes in another order.
    pub fn transpose(&mut self, x: &GraphValue, order: &[i64]) -> GraphValue {
        self.node(
            "Transpose",
            &[x],
            &[("perm", NodeAttribute::Ints(order.to_vec()))],
        )
    }

    /// Another shape; 0 keeps a dimension. `name` is the shape's, one name one shape.
    pub fn reshape(&mut self, x: &GraphValue, name: &str, shape: &[i64]) -> GraphValue {
        let shape = self.constant_ints(name, shape);
        self.node("Reshape", &[x, &shape], &[])
    }

    /// Shares that sum to 1 over `axis`.
    pub fn softmax(&mut self, x: &GraphValue, axis: i64) -> GraphValue {
        self.node("Softmax", &[x], &[("axis", NodeAttribute::Int(axis))])
    }

    /// The same numbers as another datatype.
    pub fn cast(&mut self, x: &GraphValue, to: DataType) -> GraphValue {
        self.node(
            "Cast",
            &[x],
            &[("to", NodeAttribute::Int(i64::from(element_type(to) as i32)))],
        )
    }

    /// `a + b`.
    pub fn add(&mut self, a: &GraphValue, b: &GraphValue) -> GraphValue {
        self.node("Add", &[a, b], &[])
    }
}
