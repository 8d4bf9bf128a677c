//! Tensor data in JSON, both ways: flat or nested arrays, row-major. FP16 and BF16 have no JSON form.
//!
//! Triton and Python's `json` write NaN and infinities bare, which is not JSON. [`Document`] parses text that holds
//! them, [`read()`] reads them for the floating-point datatypes, and [`write()`] writes them.

mod document;
mod read;
mod special;
mod tokens;
mod write;

pub use self::document::Document;
pub use self::read::{ReadingNeeds, needs, read};
pub use self::write::{Room, write, write_within};
pub use crate::error::MAX_DEPTH;

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;
    use serde_json::value::RawValue;
    use skep_tensor::TensorView;
    use skep_types::{DataType, Shape};

    fn written(datatype: DataType, count: usize, data: &[u8]) -> String {
        let shape = Shape::new(&[count]).expect("shape");
        let tensor = TensorView::new(datatype, &shape, data).expect("tensor");
        let mut json = Vec::new();
        write(tensor, &mut json).expect("has a form");
        String::from_utf8(json).expect("text")
    }

    /// Reads the way a receiver does.
    fn received(json: &str, datatype: DataType, count: usize) -> Result<Bytes, String> {
        let document = Document::new(json.as_bytes());
        let raw: &RawValue = document
            .parse(serde_json::from_slice)
            .map_err(|error| error.to_string())?;
        read(document.text(raw), datatype, count).map_err(|error| error.to_string())
    }

    proptest! {
        #[test]
        fn written_data_reads_back(words: Vec<u64>, index in 0usize..14) {
            let datatype = DataType::ALL[index];
            let Some(size) = datatype.element_size() else { return Ok(()) };
            if matches!(datatype, DataType::Fp16 | DataType::Bf16) { return Ok(()) }
            let data: Vec<u8> = words.iter().flat_map(|w| w.to_le_bytes()).collect();
            let data = if datatype == DataType::Bool { data.iter().map(|b| b & 1).collect() } else { data };
            let count = data.len() / size;
            let json = written(datatype, count, &data);
            let back = received(&json, datatype, count).expect("reads");
            // As text: NaN has many bit patterns and one name.
            prop_assert_eq!(written(datatype, count, &back), json);
        }

        #[test]
        fn specials_read_back(which in proptest::collection::vec(0usize..4, 1..9)) {
            let values = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 0.5];
            let data: Vec<u8> = which.iter().flat_map(|i| values[*i].to_le_bytes()).collect();
            let json = written(DataType::Fp64, which.len(), &data);
            prop_assert_eq!(received(&json, DataType::Fp64, which.len()), Ok(Bytes::from(data)));
        }

        #[test]
        fn texts_read_back(texts: Vec<String>) {
            let data = skep_tensor::encode_strings(texts.iter().map(String::as_bytes));
            let json = written(DataType::Bytes, texts.len(), &data);
            prop_assert_eq!(received(&json, DataType::Bytes, texts.len()), Ok(Bytes::from(data)));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}", index in 0usize..14) {
            // Also text that no parser has checked.
            let _ = read(&text, DataType::ALL[index], 2);
            let _ = received(&text, DataType::ALL[index], 2);
        }

        #[test]
        fn no_array_like_text_panics(text in r#"[\[\]{}:",\\NaIinfty0-9.eEé+ -]{0,40}"#, index in 0usize..14) {
            let _ = read(&text, DataType::ALL[index], 2);
            let _ = received(&text, DataType::ALL[index], 2);
        }

        #[test]
        fn plain_json_is_parsed_unchanged(value in r#"[\[\],"NaIinfty0-9.eE -]{0,20}"#) {
            // A document returns any text that the plain parser accepts word for word.
            if let Ok(plain) = serde_json::from_str::<&RawValue>(&value) {
                let document = Document::new(value.as_bytes());
                let raw: &RawValue = document.parse(serde_json::from_slice).expect("as before");
                prop_assert_eq!(document.text(raw), plain.get());
            }
        }
    }
}
