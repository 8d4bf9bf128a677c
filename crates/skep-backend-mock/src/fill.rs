//! The content of scripted outputs.

use half::{bf16, f16};
use skep_types::DataType;

/// Writes 0, 1, 2, ... into fixed-size elements: `BOOL` alternates, integers wrap around at their width, and
/// floating-point numbers are rounded.
pub(crate) fn ramp(datatype: DataType, memory: &mut [u8]) {
    let size = datatype.element_size().unwrap_or(1);
    for (index, element) in (0u64..).zip(memory.chunks_exact_mut(size)) {
        match datatype {
            DataType::Bool => element[0] = u8::from(index % 2 == 1),
            DataType::Fp16 => element.copy_from_slice(&f16::from_f64(float(index)).to_le_bytes()),
            DataType::Bf16 => element.copy_from_slice(&bf16::from_f64(float(index)).to_le_bytes()),
            DataType::Fp32 => element.copy_from_slice(&single(index).to_le_bytes()),
            DataType::Fp64 => element.copy_from_slice(&float(index).to_le_bytes()),
            _ => element.copy_from_slice(&index.to_le_bytes()[..size]),
        }
    }
}

/// 0, 1, 2, ... as decimal strings, in the protocol's encoding.
pub(crate) fn ramp_strings(elements: usize) -> Vec<u8> {
    let texts: Vec<String> = (0..elements).map(|i| i.to_string()).collect();
    skep_tensor::encode_strings(texts.iter().map(String::as_bytes))
}

/// Empty strings, in the protocol's encoding: each is its length, four zero bytes.
pub(crate) fn empty_strings(elements: usize) -> Vec<u8> {
    vec![0; 4 * elements]
}

fn float(index: u64) -> f64 {
    // Tensors have far fewer elements than 2^53.
    index as f64
}

fn single(index: u64) -> f32 {
    index as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp_of(datatype: DataType, elements: usize) -> Vec<u8> {
        let mut memory = vec![9; elements * datatype.element_size().expect("fixed")];
        ramp(datatype, &mut memory);
        memory
    }

    #[test]
    fn ramps_count_in_every_datatype() {
        for datatype in DataType::ALL
            .into_iter()
            .filter(|d| d.element_size().is_some())
        {
            let two: Vec<u8> = match datatype {
                DataType::Bool => vec![0],
                DataType::Fp16 => f16::from_f32(2.0).to_le_bytes().to_vec(),
                DataType::Bf16 => bf16::from_f32(2.0).to_le_bytes().to_vec(),
                DataType::Fp32 => 2f32.to_le_bytes().to_vec(),
                DataType::Fp64 => 2f64.to_le_bytes().to_vec(),
                _ => 2u64.to_le_bytes()[..datatype.element_size().expect("fixed")].to_vec(),
            };
            let ramp = ramp_of(datatype, 3);
            assert_eq!(ramp[ramp.len() / 3 * 2..], two, "{datatype}");
        }
        assert_eq!(ramp_of(DataType::Uint8, 258)[255..], [255, 0, 1]);
        assert_eq!(ramp_strings(2), [1, 0, 0, 0, b'0', 1, 0, 0, 0, b'1']);
    }
}
