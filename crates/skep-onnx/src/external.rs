//! Tensors whose data lies in another file. The format names it by text entries: `location`, `offset` and `length`.

use std::ops::Range;

use skep_proto::onnx::{StringStringEntryProto, TensorProto, tensor_proto::DataLocation};

/// Where the data of a tensor lies in another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExternalData<'a> {
    /// The file, as the model's file names it: beside that. Empty where it names none.
    pub location: &'a str,
    /// Bytes before the data.
    pub offset: usize,
    /// Its bytes; the rest of the file where the entry is missing.
    pub length: Option<usize>,
}

impl<'a> ExternalData<'a> {
    /// What a tensor says of its data; `None` where this lies in the model's own file.
    ///
    /// # Errors
    /// A text, when an entry that should be a number is not.
    pub fn of(tensor: &'a TensorProto) -> Result<Option<Self>, String> {
        if !is_external(tensor) {
            return Ok(None);
        }
        let number = |key: &str| {
            let read = |text: &str| {
                let number = text.parse::<usize>();
                number.map_err(|_| format!("`{key}` is `{text}`, expected a number"))
            };
            entry(tensor, key).map(read).transpose()
        };
        Ok(Some(Self {
            location: entry(tensor, "location").unwrap_or_default(),
            offset: number("offset")?.unwrap_or(0),
            length: number("length")?,
        }))
    }

    /// The range of bytes, in a file of this length.
    ///
    /// # Errors
    /// A text, when the file ends before them.
    pub fn range(&self, file_bytes: usize) -> Result<Range<usize>, String> {
        let Self {
            location,
            offset,
            length,
        } = *self;
        let length = length.unwrap_or_else(|| file_bytes.saturating_sub(offset));
        let end = offset.checked_add(length).filter(|&end| end <= file_bytes);
        let end = end.ok_or_else(|| {
            format!(
                "{length} bytes at offset {offset} of `{location}`, which has {file_bytes} bytes"
            )
        })?;
        Ok(offset..end)
    }

    /// The entries that say so, of a tensor whose `data_location` is `EXTERNAL`.
    #[must_use]
    pub fn entries(&self) -> Vec<StringStringEntryProto> {
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.to_owned()),
            value: Some(value),
        };
        let location = entry("location", self.location.to_owned());
        let offset = entry("offset", self.offset.to_string());
        let length = self
            .length
            .map(|length| entry("length", length.to_string()));
        [location, offset].into_iter().chain(length).collect()
    }
}

/// The file that a tensor names for its data, if that lies in another one.
pub(crate) fn location(tensor: &TensorProto) -> Option<&str> {
    entry(tensor, "location").filter(|_| is_external(tensor))
}

/// Whether the data of a tensor lies in another file.
#[must_use]
pub fn is_external(tensor: &TensorProto) -> bool {
    tensor.data_location() == DataLocation::External
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    let entry = tensor.external_data.iter().find(|entry| entry.key() == key);
    entry.map(StringStringEntryProto::value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(entries: &[(&str, &str)]) -> TensorProto {
        let entry = |(key, value): &(&str, &str)| StringStringEntryProto {
            key: Some((*key).to_owned()),
            value: Some((*value).to_owned()),
        };
        TensorProto {
            data_location: Some(DataLocation::External as i32),
            external_data: entries.iter().map(entry).collect(),
            ..Default::default()
        }
    }

    #[test]
    fn entries_are_read_and_written() {
        let whole = ExternalData {
            location: "w.bin",
            offset: 0,
            length: None,
        };
        let part = ExternalData {
            offset: 4096,
            length: Some(10),
            ..whole
        };
        let named = ("location", "w.bin");
        for (entries, expected) in [
            (
                &[][..],
                ExternalData {
                    location: "",
                    ..whole
                },
            ),
            (&[named], whole),
            (
                &[
                    ("checksum", "x"),
                    ("length", "10"),
                    named,
                    ("offset", "4096"),
                ],
                part,
            ),
        ] {
            assert_eq!(ExternalData::of(&tensor(entries)), Ok(Some(expected)));
            let written = TensorProto {
                external_data: expected.entries(),
                ..tensor(&[])
            };
            assert_eq!(ExternalData::of(&written), Ok(Some(expected)));
        }
        assert_eq!(ExternalData::of(&TensorProto::default()), Ok(None));
        // Of a tensor that lies in the model's own file entries say nothing.
        let mut inside = tensor(&[named, ("offset", "x")]);
        assert_eq!(location(&inside), Some("w.bin"));
        inside.data_location = None;
        assert_eq!(ExternalData::of(&inside), Ok(None));
        assert_eq!(location(&inside), None);
        for text in ["x", "-1", "", "1.0"] {
            assert_eq!(
                ExternalData::of(&tensor(&[named, ("length", text)])),
                Err(format!("`length` is `{text}`, expected a number"))
            );
        }
    }

    #[test]
    fn a_range_lies_in_its_file() {
        let of = |offset, length, file_bytes| {
            let data = ExternalData {
                location: "w",
                offset,
                length,
            };
            data.range(file_bytes)
        };
        assert_eq!(of(0, None, 10), Ok(0..10));
        assert_eq!(of(4, None, 10), Ok(4..10));
        assert_eq!(of(4, Some(6), 10), Ok(4..10));
        assert_eq!(of(10, Some(0), 10), Ok(10..10));
        for (offset, length) in [(4, Some(7)), (11, None), (1, Some(usize::MAX))] {
            let error = of(offset, length, 10).expect_err("too long");
            assert!(error.ends_with(&format!("at offset {offset} of `w`, which has 10 bytes")));
        }
    }
}
