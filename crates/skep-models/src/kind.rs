//! The kinds of models, by name and parameters: `resnet50`, `mlp:layers=16x8,softmax=true`, `identity-fp16:width=4`.

use std::{fmt, str::FromStr};

use skep_types::DataType;

use crate::error::GenerateError;

/// The most that any size may be: keeps every product of a few sizes within 64 bits, and is far above real models.
const SIZE_LIMIT: usize = 1 << 20;
/// The most layers: a file of a hundred thousand nodes already strains every reader.
const LAYER_LIMIT: usize = 1000;

/// Which network to generate.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Fully connected layers: `input` FP32 [-1, first] to `output` [-1, last]. The kind where batching pays most.
    Mlp {
        /// Sizes from the input to the output, two at least.
        layers: Vec<usize>,
        /// Whether the output goes through a softmax.
        softmax: bool,
    },
    /// A small convolution net: `input` FP32 [-1,3,32,32] to `output` [-1, classes].
    Cnn {
        /// Size of the output.
        classes: usize,
    },
    /// A line of text read by a ResNet of 512 channels and CTC: `input.1` FP32 [-1,1,32,100] to `308` [-1,26,37].
    TextRecogniser,
    /// ResNet-50: `data` FP32 [-1,3,224,224] to `output` [-1, classes].
    Resnet50 {
        /// Size of the output.
        classes: usize,
    },
    /// MobileNetV2: `data` FP32 [-1,3,224,224] to `output` [-1, classes].
    Mobilenetv2 {
        /// Size of the output.
        classes: usize,
    },
    /// BERT: `input_ids`, `attention_mask`, `token_type_ids` INT64 [-1,-1] to `last_hidden_state` and `pooler_output`.
    Bert(BertSize),
    /// `OUTPUT0` is `INPUT0`, [-1, width].
    Identity {
        /// Of input and output.
        datatype: DataType,
        /// Elements a row.
        width: usize,
    },
    /// `OUTPUT0` is `INPUT0 + INPUT1`, `OUTPUT1` is `INPUT0 - INPUT1`, [-1, width].
    ///
    /// BYTES hold decimal integers, as in Triton's `simple_string`. BOOL goes through INT32: the sum is true where any
    /// input is, the difference where they differ.
    AddSub {
        /// Of inputs and outputs.
        datatype: DataType,
        /// Elements a row.
        width: usize,
    },
}

/// The sizes of a BERT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BertSize {
    /// Encoder layers.
    pub layers: usize,
    /// Numbers a token.
    pub hidden: usize,
    /// Attention heads; divides `hidden`.
    pub heads: usize,
    /// Size of the feed-forward layer.
    pub intermediate: usize,
    /// Different tokens.
    pub vocab: usize,
    /// Longest sequence.
    pub positions: usize,
}

impl BertSize {
    /// BERT-base.
    pub const BASE: Self = Self {
        layers: 12,
        hidden: 768,
        heads: 12,
        intermediate: 3072,
        vocab: 30522,
        positions: 512,
    };
    /// Small enough for any test.
    pub const TINY: Self = Self {
        layers: 2,
        hidden: 128,
        heads: 2,
        intermediate: 512,
        vocab: 1000,
        positions: 128,
    };
}

impl Kind {
    /// Every kind with its usual parameters: each network once, identity and addsub once a datatype.
    #[must_use]
    pub fn all() -> Vec<Self> {
        let networks = [
            Self::Mlp {
                layers: vec![256, 512, 512, 10],
                softmax: false,
            },
            Self::Cnn { classes: 10 },
            Self::TextRecogniser,
            Self::Resnet50 { classes: 1000 },
            Self::Mobilenetv2 { classes: 1000 },
            Self::Bert(BertSize::BASE),
            Self::Bert(BertSize::TINY),
        ];
        let identities = DataType::ALL.map(|datatype| Self::Identity {
            datatype,
            width: 16,
        });
        let add_subs = DataType::ALL.map(|datatype| Self::AddSub {
            datatype,
            width: 16,
        });
        networks
            .into_iter()
            .chain(identities)
            .chain(add_subs)
            .collect()
    }

    /// The name without parameters, as [`Kind::from_str`] takes it.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Mlp { .. } => "mlp".to_owned(),
            Self::Cnn { .. } => "cnn".to_owned(),
            Self::TextRecogniser => "text-recogniser".to_owned(),
            Self::Resnet50 { .. } => "resnet50".to_owned(),
            Self::Mobilenetv2 { .. } => "mobilenetv2".to_owned(),
            Self::Bert(size) if *size == BertSize::BASE => "bert-base".to_owned(),
            Self::Bert(_) => "bert-tiny".to_owned(),
            Self::Identity { datatype, .. } => {
                format!("identity-{}", datatype.protocol_name().to_lowercase())
            }
            Self::AddSub { datatype, .. } => {
                format!("addsub-{}", datatype.protocol_name().to_lowercase())
            }
        }
    }

    /// The parameters in effect, by name.
    #[must_use]
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Mlp { layers, softmax } => {
                let sizes: Vec<String> = layers.iter().map(ToString::to_string).collect();
                vec![
                    ("layers", sizes.join("x")),
                    ("softmax", softmax.to_string()),
                ]
            }
            Self::TextRecogniser => vec![],
            Self::Cnn { classes } | Self::Resnet50 { classes } | Self::Mobilenetv2 { classes } => {
                vec![("classes", classes.to_string())]
            }
            Self::Bert(size) => vec![
                ("layers", size.layers.to_string()),
                ("hidden", size.hidden.to_string()),
                ("heads", size.heads.to_string()),
                ("intermediate", size.intermediate.to_string()),
                ("vocab", size.vocab.to_string()),
                ("positions", size.positions.to_string()),
            ],
            Self::Identity { width, .. } | Self::AddSub { width, .. } => {
                vec![("width", width.to_string())]
            }
        }
    }

    /// What its [blocks](crate::Variant::blocks) are called; `None` where it has no weights.
    pub(crate) fn block_word(&self) -> Option<&'static str> {
        match self {
            Self::Mlp { .. } | Self::Bert(_) => Some("layer"),
            Self::Cnn { .. }
            | Self::TextRecogniser
            | Self::Resnet50 { .. }
            | Self::Mobilenetv2 { .. } => Some("block"),
            Self::Identity { .. } | Self::AddSub { .. } => None,
        }
    }

    /// Whether the parameters make a network.
    ///
    /// # Errors
    /// [`GenerateError::InvalidParameter`] names the first that does not.
    pub fn check(&self) -> Result<(), GenerateError> {
        if let Self::Mlp { layers, .. } = self
            && (layers.len() < 2 || layers.len() > LAYER_LIMIT)
        {
            let given = match layers.len() {
                1 => layers[0].to_string(),
                count => format!("{count} sizes"),
            };
            let expected = format!("2 to {LAYER_LIMIT} sizes, as in 256x512x10");
            return Err(self.invalid("layers", given, expected));
        }
        if let Self::Bert(size) = self {
            if size.layers > LAYER_LIMIT {
                return Err(self.invalid("layers", size.layers, format!("at most {LAYER_LIMIT}")));
            }
            if size.heads == 0 || size.hidden % size.heads != 0 {
                return Err(self.invalid(
                    "heads",
                    size.heads,
                    format!("a divisor of hidden {}", size.hidden),
                ));
            }
        }
        for (name, text) in self.parameters() {
            // `softmax` is the only parameter that is not a size.
            for size in text
                .split('x')
                .filter_map(|size| size.parse::<usize>().ok())
            {
                if size == 0 || size > SIZE_LIMIT {
                    let sizes = if text.contains('x') { "sizes of " } else { "" };
                    return Err(self.invalid(name, &text, format!("{sizes}1 to {SIZE_LIMIT}")));
                }
            }
        }
        Ok(())
    }

    fn set(&mut self, parameter: &str, text: &str) -> Result<(), GenerateError> {
        let size = |text: &str| text.parse::<usize>().ok();
        let known = match (&mut *self, parameter) {
            (Self::Mlp { layers, .. }, "layers") => {
                let sizes: Option<Vec<usize>> = text.split('x').map(size).collect();
                sizes.map(|sizes| *layers = sizes)
            }
            (Self::Mlp { softmax, .. }, "softmax") => {
                text.parse().ok().map(|given| *softmax = given)
            }
            (
                Self::Cnn { classes: place }
                | Self::Resnet50 { classes: place }
                | Self::Mobilenetv2 { classes: place },
                "classes",
            )
            | (Self::Identity { width: place, .. } | Self::AddSub { width: place, .. }, "width")
            | (Self::Bert(BertSize { layers: place, .. }), "layers")
            | (Self::Bert(BertSize { hidden: place, .. }), "hidden")
            | (Self::Bert(BertSize { heads: place, .. }), "heads")
            | (
                Self::Bert(BertSize {
                    intermediate: place,
                    ..
                }),
                "intermediate",
            )
            | (Self::Bert(BertSize { vocab: place, .. }), "vocab")
            | (
                Self::Bert(BertSize {
                    positions: place, ..
                }),
                "positions",
            ) => size(text).map(|given| *place = given),
            _ => {
                let names: Vec<&str> = self.parameters().iter().map(|(name, _)| *name).collect();
                let expected = if names.is_empty() {
                    "no parameters".to_owned()
                } else {
                    names.join(", ")
                };
                return Err(self.invalid(
                    parameter,
                    text,
                    format!("the parameters to be: {expected}"),
                ));
            }
        };
        let expected = match parameter {
            "softmax" => "true or false",
            "layers" if matches!(self, Self::Mlp { .. }) => {
                "sizes separated by `x`, as in 256x512x10"
            }
            _ => "a positive number",
        };
        known.ok_or_else(|| self.invalid(parameter, text, expected.to_owned()))
    }

    pub(crate) fn invalid(
        &self,
        parameter: &str,
        given: impl fmt::Display,
        expected: String,
    ) -> GenerateError {
        GenerateError::InvalidParameter {
            kind: self.name(),
            parameter: parameter.to_owned(),
            given: given.to_string(),
            expected,
        }
    }

    /// The error of a variant that has more of the last blocks than there are, in the words that name variants.
    pub(crate) fn too_many_blocks(&self, blocks: usize, most: usize) -> GenerateError {
        let word = self.block_word().unwrap_or("block");
        let given = match blocks {
            1 => format!("last-{word}"),
            count => format!("last-{count}-{word}s"),
        };
        let expected = match most {
            0 => format!("head: no {word} is before it"),
            1 => format!("head or last-{word}: one {word} is before the head"),
            most => format!("head, last-{word} or last-N-{word}s with N of at most {most}"),
        };
        self.invalid("variant", given, expected)
    }

    fn by_name(name: &str) -> Option<Self> {
        match name {
            "identity" => Some(Self::Identity {
                datatype: DataType::Fp32,
                width: 16,
            }),
            // The datatype of Triton's `simple` example.
            "addsub" => Some(Self::AddSub {
                datatype: DataType::Int32,
                width: 16,
            }),
            "bert" => Some(Self::Bert(BertSize::BASE)),
            _ => Self::all().into_iter().find(|kind| kind.name() == name),
        }
    }
}

impl FromStr for Kind {
    type Err = GenerateError;

    /// A name, then `:parameter=value,...` where the usual parameters shall not be. `identity` alone is FP32, `addsub`
    /// INT32, `bert` BERT-base.
    fn from_str(text: &str) -> Result<Self, GenerateError> {
        let (name, parameters) = text.split_once(':').unwrap_or((text, ""));
        let mut kind = Self::by_name(name).ok_or_else(|| GenerateError::UnknownKind {
            given: name.to_owned(),
            known: Self::all()
                .iter()
                .map(Self::name)
                .collect::<Vec<_>>()
                .join(", "),
        })?;
        for parameter in parameters
            .split(',')
            .filter(|parameter| !parameter.is_empty())
        {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            kind.set(key, value)?;
        }
        kind.check()?;
        Ok(kind)
    }
}

impl fmt::Display for Kind {
    /// What [`Kind::from_str`] reads back: the name, and the parameters that are not the usual ones.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name();
        let usual = Self::by_name(&name)
            .map(|kind| kind.parameters())
            .unwrap_or_default();
        f.write_str(&name)?;
        let mut separator = ':';
        for parameter in self
            .parameters()
            .iter()
            .filter(|parameter| !usual.contains(parameter))
        {
            write!(f, "{separator}{}={}", parameter.0, parameter.1)?;
            separator = ',';
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_read_back_from_their_text() {
        for kind in Kind::all() {
            assert_eq!(kind.to_string().parse::<Kind>().expect("reads back"), kind);
            assert_eq!(
                kind.to_string(),
                kind.name(),
                "usual parameters are not printed"
            );
        }
        for text in [
            "mlp:layers=16x4,softmax=true",
            "identity-fp16:width=3",
            "resnet50:classes=7",
            "bert-tiny:layers=4",
        ] {
            assert_eq!(text.parse::<Kind>().expect("valid").to_string(), text);
        }
        assert_eq!(
            "bert:layers=2,hidden=64,heads=4"
                .parse::<Kind>()
                .expect("valid")
                .parameters()[2]
                .1,
            "4"
        );
    }

    #[test]
    fn errors_say_what_exists_and_what_was_expected() {
        let message = |text: &str| text.parse::<Kind>().expect_err(text).to_string();
        assert!(
            message("resnet").contains("resnet50, mobilenetv2, bert-base"),
            "{}",
            message("resnet")
        );
        assert_eq!(
            message("mlp:depth=3"),
            "parameter `depth` of model kind `mlp` is `3`, expected the parameters to be: layers, softmax"
        );
        assert_eq!(
            message("mlp:layers=3xa"),
            "parameter `layers` of model kind `mlp` is `3xa`, expected sizes separated by `x`, as in 256x512x10"
        );
        assert_eq!(
            message("bert-tiny:heads=3"),
            "parameter `heads` of model kind `bert-tiny` is `3`, expected a divisor of hidden 128"
        );
        assert_eq!(
            message("cnn:classes=0"),
            "parameter `classes` of model kind `cnn` is `0`, expected 1 to 1048576"
        );
        assert_eq!(
            message("mlp:layers=0"),
            "parameter `layers` of model kind `mlp` is `0`, expected 2 to 1000 sizes, as in 256x512x10"
        );
        assert_eq!(
            message("mlp:layers=4x0"),
            "parameter `layers` of model kind `mlp` is `4x0`, expected sizes of 1 to 1048576"
        );
        for text in [
            "",
            "mlp:layers=8",
            "mlp:layers",
            "text-recogniser:classes=2",
            "identity-fp32:width=99999999999",
        ] {
            assert!(text.parse::<Kind>().is_err(), "{text}");
        }
    }
}
