//! Writes tensor data as JSON, straight from its bytes.

use skep_tensor::TensorView;
use skep_types::DataType;

use super::special::SPECIALS;
use crate::error::WireError;

/// Makes room for the given number of further bytes, or fails with [`WireError::NoRoom`].
pub type Room<'a> = dyn FnMut(&mut Vec<u8>, usize) -> Result<(), WireError> + 'a;

/// Elements for which room is made at a time.
const CHUNK: usize = 256;

/// The longest number or boolean, with the comma after it, in bytes.
const MAX_NUMBER_BYTES: usize = 32;

/// The longest form of a byte in a string: `\u001f`.
const MAX_ESCAPE_BYTES: usize = 6;

/// Appends a tensor's elements as a flat array. NaN and infinities are written bare, as Triton writes them.
///
/// # Errors
/// [`WireError::NoJsonForm`] for FP16 and BF16; [`WireError::NotUtf8`] for a `BYTES` element that JSON would change;
/// `json` is incomplete then.
pub fn write(tensor: TensorView<'_>, json: &mut Vec<u8>) -> Result<(), WireError> {
    write_within(tensor, json, &mut |_, _| Ok(()))
}

/// As [`write()`], within a limit on memory: `room` is called before anything is written.
///
/// # Errors
/// As [`write()`], and those of `room`.
pub fn write_within(
    tensor: TensorView<'_>,
    json: &mut Vec<u8>,
    room: &mut Room<'_>,
) -> Result<(), WireError> {
    macro_rules! numbers {
        ($type:ty) => {
            list(json, tensor.data().as_chunks().0, room, |json, bytes| {
                put!(json, <$type>::from_le_bytes(*bytes))
            })
        };
    }
    macro_rules! floats {
        ($type:ty) => {
            list(json, tensor.data().as_chunks().0, room, |json, bytes| {
                let value = <$type>::from_le_bytes(*bytes);
                if value.is_finite() {
                    // The digits of a double, for FP32 too, as Triton writes them: a client then reads exactly the
                    // model's value, not only the nearest one.
                    return put!(json, f64::from(value));
                }
                let same = |(_, special): &&(&str, f32)| <$type>::from(*special) == value;
                let (name, _) = SPECIALS.iter().find(same).unwrap_or(&SPECIALS[0]);
                json.extend_from_slice(name.as_bytes());
                Ok(())
            })
        };
    }
    macro_rules! put {
        ($json:ident, $value:expr) => {{
            serde_json::to_writer(&mut *$json, &$value)
                .expect("numbers and strings have a JSON form, and a vector takes all");
            Ok(())
        }};
    }
    match tensor.datatype() {
        DataType::Bool => list(json, tensor.data(), room, |json, byte| {
            put!(json, *byte != 0)
        }),
        DataType::Uint8 => numbers!(u8),
        DataType::Uint16 => numbers!(u16),
        DataType::Uint32 => numbers!(u32),
        DataType::Uint64 => numbers!(u64),
        DataType::Int8 => numbers!(i8),
        DataType::Int16 => numbers!(i16),
        DataType::Int32 => numbers!(i32),
        DataType::Int64 => numbers!(i64),
        DataType::Fp32 => floats!(f32),
        DataType::Fp64 => floats!(f64),
        DataType::Bytes => {
            room(json, 2)?;
            json.push(b'[');
            for (index, element) in tensor.strings().enumerate() {
                let text = str::from_utf8(element).map_err(|_| WireError::NotUtf8)?;
                room(
                    json,
                    text.len()
                        .saturating_mul(MAX_ESCAPE_BYTES)
                        .saturating_add(4),
                )?;
                if index > 0 {
                    json.push(b',');
                }
                put!(json, text)?;
            }
            json.push(b']');
            Ok(())
        }
        datatype @ (DataType::Fp16 | DataType::Bf16) => Err(WireError::NoJsonForm(datatype)),
    }
}

fn list<T>(
    json: &mut Vec<u8>,
    elements: &[T],
    room: &mut Room<'_>,
    put: impl Fn(&mut Vec<u8>, &T) -> Result<(), WireError>,
) -> Result<(), WireError> {
    room(json, 2)?;
    json.push(b'[');
    for (number, chunk) in elements.chunks(CHUNK).enumerate() {
        // Including the closing bracket.
        room(json, chunk.len() * MAX_NUMBER_BYTES + 1)?;
        for (index, element) in chunk.iter().enumerate() {
            if number > 0 || index > 0 {
                json.push(b',');
            }
            put(json, element)?;
        }
    }
    json.push(b']');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use DataType as D;
    use skep_types::Shape;

    fn written(datatype: DataType, count: usize, data: &[u8]) -> Result<String, WireError> {
        let shape = Shape::new(&[count]).expect("shape");
        let tensor = TensorView::new(datatype, &shape, data).expect("tensor");
        let mut json = b">".to_vec();
        write(tensor, &mut json)?;
        Ok(String::from_utf8(json).expect("text"))
    }

    #[test]
    fn every_datatype_is_written_in_its_form() {
        for (datatype, data, expected) in [
            (D::Bool, &[0, 2][..], ">[false,true]"),
            (D::Uint8, &[0, 255], ">[0,255]"),
            (D::Uint16, &[0, 1, 255, 255], ">[256,65535]"),
            (
                D::Uint32,
                &[255, 255, 255, 255, 1, 0, 0, 0],
                ">[4294967295,1]",
            ),
            (
                D::Uint64,
                &[255; 16],
                ">[18446744073709551615,18446744073709551615]",
            ),
            (D::Int8, &[0, 255], ">[0,-1]"),
            (D::Int16, &[0, 128, 255, 127], ">[-32768,32767]"),
            (D::Int32, &[255, 255, 255, 255, 1, 0, 0, 0], ">[-1,1]"),
            (D::Int64, &[255; 16], ">[-1,-1]"),
            (
                D::Fp32,
                &[205, 204, 204, 61, 0, 0, 0, 128],
                ">[0.10000000149011612,-0.0]",
            ),
            (D::Bytes, &[1, 0, 0, 0, b'"', 0, 0, 0, 0], r#">["\"",""]"#),
        ] {
            assert_eq!(written(datatype, 2, data).as_deref(), Ok(expected));
        }
        assert_eq!(written(D::Int32, 0, &[]).as_deref(), Ok(">[]"));
        let double = [0.1f64.to_le_bytes(), 1e300f64.to_le_bytes()].concat();
        assert_eq!(written(D::Fp64, 2, &double).as_deref(), Ok(">[0.1,1e+300]"));
    }

    #[test]
    fn nan_and_infinity_are_written_as_triton_does() {
        let values = [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1.0];
        let data: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let expected = ">[NaN,NaN,Infinity,-Infinity,1.0]";
        assert_eq!(written(D::Fp64, 5, &data).as_deref(), Ok(expected));
        #[expect(clippy::cast_possible_truncation, reason = "values that FP32 holds")]
        let data: Vec<u8> = values
            .iter()
            .flat_map(|v| (*v as f32).to_le_bytes())
            .collect();
        assert_eq!(written(D::Fp32, 5, &data).as_deref(), Ok(expected));
    }

    #[test]
    fn values_without_a_json_form_are_refused() {
        assert_eq!(
            written(D::Bf16, 1, &[0, 0]),
            Err(WireError::NoJsonForm(D::Bf16))
        );
        let data = skep_tensor::encode_strings([b"a".as_slice(), b"\xff"]);
        assert_eq!(written(D::Bytes, 2, &data), Err(WireError::NotUtf8));
    }
}
