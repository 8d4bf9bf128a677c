//! Input data for generated models, decided by a seed; `crates/skep-testkit/python/skep_inputs.py` computes the same in
//! numpy.
//!
//! Element `i` of input number `k` comes from one 64-bit number, `mix(seed * A + k * B + i * C)`, so that any language
//! can compute any element by itself. Which values it becomes depends on the kind of model, see [`inputs`].

use skep_types::{DataType, Shape};

use crate::kind::{BertSize, Kind};

/// Odd constants, of which no small multiple is close to another's: seeds, inputs and elements do not meet.
const SEED_STEP: u64 = 0xD1B5_4A32_D192_ED03;
const INPUT_STEP: u64 = 0x8CB9_2BA7_2F3D_8DD7;
const ELEMENT_STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// Integers of add/sub stay within this, so that no sum wraps in any datatype.
const SMALL: u64 = 50;

/// Which inputs to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inputs {
    /// Decides the values.
    pub seed: u64,
    /// The first dimension.
    pub batch: usize,
    /// Tokens a row, for BERT; at most its positions.
    pub sequence: usize,
}

/// One input's data as requests carry it: little-endian, row by row; BYTES elements behind a 4-byte length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputTensor {
    /// The input's name.
    pub name: String,
    /// Its datatype.
    pub datatype: DataType,
    /// Its shape, the batch dimension included.
    pub shape: Shape,
    /// Its values.
    pub data: Vec<u8>,
}

/// What values an input takes.
#[derive(Clone, Copy)]
enum Domain {
    /// Floats in `[-1, 1)`; integers of any bits; true or false; texts of 0 to 16 hexadecimal digits.
    Any,
    /// Floats as before; integers from 50 to 99 for the first input and 0 to 49 for the second; decimal texts.
    Operand,
    /// Integers below this.
    Below(u64),
    /// Ones, but for a tail of zeros in each row: of none to half of it.
    Mask,
    /// Zeros, then ones from a random index in the row.
    Segments,
}

/// Inputs for a model of `kind`: all that it needs, of the datatypes and shapes it declares.
///
/// Floats are in `[-1, 1)`; token numbers below the vocabulary's size; operands of add/sub small enough that neither
/// sum nor difference leaves the datatype; what identity gets is arbitrary.
///
/// # Panics
/// When the shape has more elements than can be addressed.
#[must_use]
pub fn inputs(kind: &Kind, wanted: Inputs) -> Vec<InputTensor> {
    let Inputs {
        batch, sequence, ..
    } = wanted;
    let float =
        |name, dims: &[usize]| (name, DataType::Fp32, [&[batch], dims].concat(), Domain::Any);
    let declared = match kind {
        Kind::Mlp { layers, .. } => vec![float("input", &layers[..1])],
        Kind::Cnn { .. } => vec![float("input", &[3, 32, 32])],
        Kind::TextRecogniser => vec![float("input.1", &[1, 32, 100])],
        Kind::Resnet50 { .. } | Kind::Mobilenetv2 { .. } => vec![float("data", &[3, 224, 224])],
        Kind::Bert(BertSize { vocab, .. }) => vec![
            (
                "input_ids",
                DataType::Int64,
                vec![batch, sequence],
                Domain::Below(*vocab as u64),
            ),
            (
                "attention_mask",
                DataType::Int64,
                vec![batch, sequence],
                Domain::Mask,
            ),
            (
                "token_type_ids",
                DataType::Int64,
                vec![batch, sequence],
                Domain::Segments,
            ),
        ],
        Kind::Identity { datatype, width } => {
            vec![("INPUT0", *datatype, vec![batch, *width], Domain::Any)]
        }
        Kind::AddSub { datatype, width } => ["INPUT0", "INPUT1"]
            .map(|name| (name, *datatype, vec![batch, *width], Domain::Operand))
            .into(),
    };
    let make = |(number, (name, datatype, dims, domain)): (
        usize,
        (&str, DataType, Vec<usize>, Domain),
    )| {
        let shape = Shape::new(&dims).expect("a shape that fits memory");
        let nth = |element: usize| InputElement {
            seed: wanted.seed,
            input: number as u64,
            element: element as u64,
            row: dims[1] as u64,
        };
        let mut data =
            Vec::with_capacity(shape.element_count() * datatype.element_size().unwrap_or(12));
        for element in 0..shape.element_count() {
            push(&mut data, datatype, domain, nth(element));
        }
        InputTensor {
            name: name.to_owned(),
            datatype,
            shape,
            data,
        }
    };
    declared.into_iter().enumerate().map(make).collect()
}

/// One element of one input.
#[derive(Clone, Copy)]
struct InputElement {
    seed: u64,
    input: u64,
    element: u64,
    /// Elements a row.
    row: u64,
}

impl InputElement {
    fn bits(self) -> u64 {
        let from_seed = self.seed.wrapping_mul(SEED_STEP);
        let from_input = self.input.wrapping_mul(INPUT_STEP);
        mix(from_seed
            .wrapping_add(from_input)
            .wrapping_add(self.element.wrapping_mul(ELEMENT_STEP)))
    }

    /// The element's index in its row, and a number that its row has in common.
    fn in_row(self) -> (u64, u64) {
        let first = self.element / self.row * self.row;
        (
            self.element - first,
            Self {
                element: first,
                ..self
            }
            .bits(),
        )
    }
}

/// The finaliser of splitmix64 (Steele and others 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn push(data: &mut Vec<u8>, datatype: DataType, domain: Domain, element: InputElement) {
    let bits = element.bits();
    let integer = match domain {
        Domain::Any => bits,
        Domain::Operand => bits % SMALL + if element.input == 0 { SMALL } else { 0 },
        Domain::Below(limit) => bits % limit,
        Domain::Mask => {
            let (at, of_row) = element.in_row();
            u64::from(at < element.row - of_row % (element.row / 2 + 1))
        }
        Domain::Segments => {
            let (at, of_row) = element.in_row();
            u64::from(at > of_row % element.row)
        }
    };
    // The upper 24 bits: exact in FP32.
    let float = (bits >> 40) as f32 * (1.0 / 8_388_608.0) - 1.0;
    match datatype {
        DataType::Bool => data.push((bits & 1) as u8),
        DataType::Fp16 => data.extend(half::f16::from_f32(float).to_le_bytes()),
        DataType::Bf16 => data.extend(half::bf16::from_f32(float).to_le_bytes()),
        DataType::Fp32 => data.extend(float.to_le_bytes()),
        DataType::Fp64 => data.extend(f64::from(float).to_le_bytes()),
        DataType::Bytes => {
            let text = match domain {
                Domain::Operand => integer.to_string(),
                _ => format!("{bits:016x}")
                    .chars()
                    .take((bits % 17) as usize)
                    .collect(),
            };
            data.extend((text.len() as u32).to_le_bytes());
            data.extend(text.as_bytes());
        }
        // Truncation is meant: any bits become any integer.
        DataType::Uint8 | DataType::Int8 => data.push(integer as u8),
        DataType::Uint16 | DataType::Int16 => data.extend((integer as u16).to_le_bytes()),
        DataType::Uint32 | DataType::Int32 => data.extend((integer as u32).to_le_bytes()),
        DataType::Uint64 | DataType::Int64 => data.extend(integer.to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(kind: &str, seed: u64, batch: usize) -> Vec<InputTensor> {
        inputs(
            &kind.parse().expect("a kind"),
            Inputs {
                seed,
                batch,
                sequence: 8,
            },
        )
    }

    #[test]
    fn a_row_does_not_depend_on_the_batch_size() {
        for kind in ["mlp", "bert-tiny", "addsub-bytes"] {
            for (one, four) in of(kind, 3, 1).into_iter().zip(of(kind, 3, 4)) {
                assert_eq!(one.data, four.data[..one.data.len()], "{kind}");
                assert_eq!(four.shape.dims()[0], 4);
            }
        }
    }

    #[test]
    fn bert_inputs_are_tokens_a_mask_and_segments() {
        let tensors = of("bert-tiny", 1, 16);
        let numbers = |t: &InputTensor| -> Vec<i64> {
            t.data
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().expect("eight bytes")))
                .collect()
        };
        assert!(numbers(&tensors[0]).iter().all(|id| (0..1000).contains(id)));
        for row in numbers(&tensors[1]).chunks(8) {
            assert!(
                row[..4].iter().all(|&m| m == 1) && row.is_sorted_by(|a, b| a >= b),
                "{row:?}"
            );
        }
        assert!(
            numbers(&tensors[1]).contains(&0),
            "some rows are shorter than others"
        );
        for row in numbers(&tensors[2]).chunks(8) {
            assert!(row[0] == 0 && row.is_sorted(), "{row:?}");
        }
    }

    #[test]
    fn values_are_the_same_on_every_machine() {
        let tensor = &of("identity-uint32:width=3", 7, 1)[0];
        assert_eq!(
            tensor.data,
            [117, 245, 229, 1, 130, 93, 102, 21, 31, 36, 38, 103]
        );
    }
}
