//! Tensor data in JSON, both ways. FP16 and BF16 have no JSON form.

use bytes::Bytes;
use serde::Serialize;
use skep_tensor::TensorView;
use skep_types::DataType;

/// How deep arrays may nest, as on Triton.
const MAX_DEPTH: usize = 100;

/// What JSON cannot say and Triton writes bare.
const SPECIALS: [(&str, f64); 3] = [
    ("NaN", f64::NAN),
    ("Infinity", f64::INFINITY),
    ("-Infinity", f64::NEG_INFINITY),
];

fn no_form(datatype: DataType) -> String {
    format!("{datatype} has no JSON form, it travels as binary data only")
}

/// Appends a tensor's elements as a flat array.
pub(super) fn write(tensor: TensorView<'_>, json: &mut Vec<u8>) -> Result<(), String> {
    let data = tensor.data();
    macro_rules! elements {
        ($type:ty) => {
            (data.as_chunks().0.iter()).map(|bytes| <$type>::from_le_bytes(*bytes))
        };
    }
    match tensor.datatype() {
        DataType::Bool => list(json, data.iter().map(|byte| *byte != 0), put),
        DataType::Uint8 => list(json, elements!(u8), put),
        DataType::Uint16 => list(json, elements!(u16), put),
        DataType::Uint32 => list(json, elements!(u32), put),
        DataType::Uint64 => list(json, elements!(u64), put),
        DataType::Int8 => list(json, elements!(i8), put),
        DataType::Int16 => list(json, elements!(i16), put),
        DataType::Int32 => list(json, elements!(i32), put),
        DataType::Int64 => list(json, elements!(i64), put),
        DataType::Fp32 => list(json, elements!(f32), |json, value| {
            put_float(json, value, value.into())
        }),
        DataType::Fp64 => list(json, elements!(f64), |json, value| {
            put_float(json, value, value)
        }),
        DataType::Bytes => {
            return list_strings(tensor, json);
        }
        datatype @ (DataType::Fp16 | DataType::Bf16) => return Err(no_form(datatype)),
    }
    Ok(())
}

fn list<T>(json: &mut Vec<u8>, elements: impl Iterator<Item = T>, put: impl Fn(&mut Vec<u8>, T)) {
    json.push(b'[');
    for (index, element) in elements.enumerate() {
        if index > 0 {
            json.push(b',');
        }
        put(json, element);
    }
    json.push(b']');
}

fn list_strings(tensor: TensorView<'_>, json: &mut Vec<u8>) -> Result<(), String> {
    let texts: Result<Vec<&str>, _> = tensor.strings().map(str::from_utf8).collect();
    // Anything else would arrive as another text than was sent.
    let texts = texts.map_err(|_| {
        "has an element that is not UTF-8, which travels as binary data only".to_owned()
    })?;
    list(json, texts.into_iter(), put);
    Ok(())
}

fn put<T: Serialize>(json: &mut Vec<u8>, value: T) {
    serde_json::to_writer(json, &value).expect("numbers and texts are written to memory");
}

fn put_float<T: Serialize>(json: &mut Vec<u8>, value: T, wide: f64) {
    let special = SPECIALS
        .iter()
        .find(|(_, s)| s.total_cmp(&wide).is_eq() || (s.is_nan() && wide.is_nan()));
    match special {
        Some((name, _)) => json.extend_from_slice(name.as_bytes()),
        None => put(json, value),
    }
}

/// Puts bare `NaN`, `Infinity` and `-Infinity` into quotes, so that the rest can be parsed as JSON; `None` if there
/// are none.
pub(super) fn quote_specials(json: &[u8]) -> Option<Vec<u8>> {
    let mut quoted = Vec::with_capacity(json.len() + json.len() / 4);
    let mut rest = json;
    let mut found = false;
    while let Some(first) = rest.first() {
        let special = SPECIALS
            .iter()
            .find(|(name, _)| rest.starts_with(name.as_bytes()));
        let length = match (first, special) {
            (b'"', _) => string_end(rest),
            (_, Some((name, _))) => name.len(),
            _ => 1,
        };
        let (token, tail) = rest.split_at(length);
        if special.is_some() {
            found = true;
            quoted.push(b'"');
            quoted.extend_from_slice(token);
            quoted.push(b'"');
        } else {
            quoted.extend_from_slice(token);
        }
        rest = tail;
    }
    found.then_some(quoted)
}

/// The length of the string that `text` begins with, quotes included; all of it if the string does not end.
fn string_end(text: &[u8]) -> usize {
    let mut escaped = false;
    for (index, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}

/// Reads `count` elements out of flat or nested arrays, row-major. The text is JSON: a parser has checked it.
pub(super) fn read(text: &str, datatype: DataType, count: usize) -> Result<Bytes, String> {
    if matches!(datatype, DataType::Fp16 | DataType::Bf16) {
        return Err(no_form(datatype));
    }
    // An element takes two bytes of text at least: more than that are not there, whatever the shape says.
    let expected = count.min(text.len() / 2 + 1);
    let mut bytes = Vec::with_capacity(expected * datatype.element_size().unwrap_or(4));
    let (mut rest, mut depth, mut found) = (text.as_bytes(), 0usize, 0usize);
    while let Some(first) = rest.first() {
        let length = match first {
            b'"' => string_end(rest),
            b'[' | b']' | b',' | b' ' | b'\n' | b'\r' | b'\t' => 1,
            b'{' => return Err("its data holds an object".to_owned()),
            _ => rest
                .iter()
                .position(|b| b",] \n\r\t".contains(b))
                .unwrap_or(rest.len()),
        };
        let (token, tail) = rest.split_at(length);
        rest = tail;
        match first {
            b'[' => depth += 1,
            b']' => depth = depth.saturating_sub(1),
            b',' | b' ' | b'\n' | b'\r' | b'\t' => {}
            _ => {
                push(token, datatype, &mut bytes).ok_or_else(|| {
                    format!("`{}` is no {datatype}", String::from_utf8_lossy(token))
                })?;
                found += 1;
            }
        }
        if depth > MAX_DEPTH {
            return Err(format!("its data nests deeper than {MAX_DEPTH} arrays"));
        }
    }
    if found == count {
        return Ok(Bytes::from(bytes));
    }
    Err(format!(
        "its data has {found} elements, expected {count} by its shape"
    ))
}

/// Appends one element; `None` if it is none of the datatype.
fn push(token: &[u8], datatype: DataType, bytes: &mut Vec<u8>) -> Option<()> {
    let text = str::from_utf8(token).ok()?;
    macro_rules! number {
        ($type:ty) => {
            bytes.extend_from_slice(&text.parse::<$type>().ok()?.to_le_bytes())
        };
    }
    match datatype {
        DataType::Bool => bytes.push(match text {
            "true" | "1" => 1,
            "false" | "0" => 0,
            _ => return None,
        }),
        DataType::Uint8 => number!(u8),
        DataType::Uint16 => number!(u16),
        DataType::Uint32 => number!(u32),
        DataType::Uint64 => number!(u64),
        DataType::Int8 => number!(i8),
        DataType::Int16 => number!(i16),
        DataType::Int32 => number!(i32),
        DataType::Int64 => number!(i64),
        DataType::Fp32 => {
            #[expect(clippy::cast_possible_truncation, reason = "NaN and infinities only")]
            let value = special(text)
                .map(|s| s as f32)
                .or_else(|| text.parse().ok().filter(|v: &f32| v.is_finite()));
            bytes.extend_from_slice(&value?.to_le_bytes());
        }
        DataType::Fp64 => {
            let value = special(text).or_else(|| text.parse().ok().filter(|v: &f64| v.is_finite()));
            bytes.extend_from_slice(&value?.to_le_bytes());
        }
        DataType::Bytes => {
            let text: String = serde_json::from_str(text).ok()?;
            bytes.extend_from_slice(&u32::try_from(text.len()).ok()?.to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        DataType::Fp16 | DataType::Bf16 => return None,
    }
    Some(())
}

/// The value of a special that [`quote_specials`] put into quotes.
fn special(text: &str) -> Option<f64> {
    let name = text.strip_prefix('"')?.strip_suffix('"')?;
    let (_, value) = SPECIALS.iter().find(|(special, _)| *special == name)?;
    Some(*value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use skep_types::Shape;

    fn written(datatype: DataType, count: usize, data: &[u8]) -> Result<String, String> {
        let shape = Shape::new(&[count]).expect("shape");
        let mut json = Vec::new();
        write(
            TensorView::new(datatype, &shape, data).expect("tensor"),
            &mut json,
        )?;
        Ok(String::from_utf8(json).expect("text"))
    }

    #[test]
    fn every_datatype_is_written_in_its_form() {
        use DataType as D;
        for (datatype, data, expected) in [
            (D::Bool, &[0, 2][..], "[false,true]"),
            (D::Uint8, &[0, 255], "[0,255]"),
            (D::Int8, &[0, 255], "[0,-1]"),
            (
                D::Uint64,
                &[255; 16],
                "[18446744073709551615,18446744073709551615]",
            ),
            (D::Fp32, &[0, 0, 128, 127, 0, 0, 192, 255], "[Infinity,NaN]"),
            (D::Fp32, &[205, 204, 204, 61, 0, 0, 0, 128], "[0.1,-0.0]"),
            (D::Bytes, &[1, 0, 0, 0, b'"', 0, 0, 0, 0], r#"["\"",""]"#),
        ] {
            assert_eq!(written(datatype, 2, data).as_deref(), Ok(expected));
        }
        assert!(written(D::Bf16, 1, &[0, 0]).is_err());
        assert!(written(D::Bytes, 1, &[1, 0, 0, 0, 255]).is_err());
    }

    #[test]
    fn values_of_another_datatype_are_refused() {
        for (text, datatype) in [
            ("[1.5]", DataType::Int32),
            ("[256]", DataType::Uint8),
            ("[-1]", DataType::Uint32),
            ("[\"1\"]", DataType::Fp32),
            ("[null]", DataType::Fp64),
            ("[1e39]", DataType::Fp32),
            ("[{}]", DataType::Fp32),
            ("[1]", DataType::Fp16),
            ("[1]", DataType::Bytes),
            ("[2]", DataType::Bool),
            ("[]", DataType::Bool),
            ("[1,1]", DataType::Bool),
        ] {
            assert!(read(text, datatype, 1).is_err(), "{text} as {datatype}");
        }
    }

    #[test]
    fn nesting_is_bounded_and_flattened() {
        assert_eq!(
            read("[ [1, 2],\n[3,4] ]", DataType::Uint8, 4).as_deref(),
            Ok(&[1, 2, 3, 4][..])
        );
        let nested = |depth| "[".repeat(depth) + "1" + &"]".repeat(depth);
        assert!(read(&nested(MAX_DEPTH), DataType::Uint8, 1).is_ok());
        assert!(read(&nested(MAX_DEPTH + 1), DataType::Uint8, 1).is_err());
    }

    #[test]
    fn specials_are_quoted_outside_of_strings_only() {
        let quoted = |text: &str| {
            quote_specials(text.as_bytes()).map(|q| String::from_utf8(q).expect("text"))
        };
        assert_eq!(quoted(r#"{"NaN":"\"-Infinity"}"#), None);
        assert_eq!(
            quoted(r#"{"a NaN":[-Infinity,NaN , Infinity]}"#).as_deref(),
            Some(r#"{"a NaN":["-Infinity","NaN" , "Infinity"]}"#)
        );
        assert_eq!(quoted("\"NaN"), None);
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(words: Vec<u64>, index in 0usize..14) {
            let datatype = DataType::ALL[index];
            let Some(size) = datatype.element_size() else { return Ok(()) };
            let data: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let data = if datatype == DataType::Bool { data.iter().map(|b| b & 1).collect() } else { data };
            if let Ok(text) = written(datatype, data.len() / size, &data) {
                let json = quote_specials(text.as_bytes()).unwrap_or(text.into_bytes());
                let back = read(str::from_utf8(&json).expect("text"), datatype, data.len() / size).expect("reads");
                let again = written(datatype, data.len() / size, &back).expect("writes");
                let first = written(datatype, data.len() / size, &data).expect("writes");
                // As text: NaN has many bit patterns and one name.
                prop_assert_eq!(again, first);
            }
        }

        #[test]
        fn texts_read_back(texts: Vec<String>) {
            let data = skep_tensor::encode_strings(texts.iter().map(String::as_bytes));
            let json = written(DataType::Bytes, texts.len(), &data).expect("writes");
            prop_assert_eq!(read(&json, DataType::Bytes, texts.len()), Ok(Bytes::from(data)));
        }
    }
}
