//! What a file is, by what is in it: names of files are not asked.

use crate::xla::{self, wire};

/// What bytes are, once they are unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Format {
    /// MiniMalloc's CSV or usage records: [`crate::csv::read`].
    Csv,
    /// XLA's `*-buffer-assignment.txt`, which needs the live ranges as well: [`crate::xla::read_text`].
    BufferAssignment,
    /// XLA's `*-live-range.txt`, which says nothing of sizes.
    LiveRange,
    /// XLA's `*.hlo.pb`: [`crate::xla::read_proto`].
    HloProto,
    /// An ONNX model.
    Onnx,
}

/// How far text is looked at to see that it is text.
const SAMPLE_BYTES: usize = 4096;

impl Format {
    /// The format of these bytes, if they look like one. Text is taken for CSV unless it says something else.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        if is_text(bytes) {
            let start = bytes
                .strip_prefix(b"\xef\xbb\xbf")
                .unwrap_or(bytes)
                .trim_ascii_start();
            let begins = |heading: &str| start.starts_with(heading.as_bytes());
            return match () {
                () if start.is_empty() => None,
                () if begins(xla::ASSIGNMENT_HEADING) => Some(Self::BufferAssignment),
                () if begins(xla::LIVE_RANGE_HEADING) => Some(Self::LiveRange),
                () => Some(Self::Csv),
            };
        }
        // Messages of both kinds say what they are in their outermost fields: an ONNX model has its version of the
        // format in field 1 and its graph in 7; XLA has the module in field 1 and the assignment in 3.
        let fields: Vec<(u32, u8)> = wire::WireFields::new(bytes, 0)
            .map_while(Result::ok)
            .map(|field| (field.number, field.value.wire_type()))
            .collect();
        let has = |number, wire_type| fields.contains(&(number, wire_type));
        if has(1, wire::VARINT) && has(7, wire::BYTES) {
            Some(Self::Onnx)
        } else if !fields.is_empty()
            && fields
                .iter()
                .all(|field| [(1, wire::BYTES), (3, wire::BYTES)].contains(field))
        {
            Some(Self::HloProto)
        } else {
            None
        }
    }
}

/// Whether the beginning is UTF-8 without control characters.
fn is_text(bytes: &[u8]) -> bool {
    let sample = &bytes[..bytes.len().min(SAMPLE_BYTES)];
    let valid = match std::str::from_utf8(sample) {
        Ok(_) => true,
        // A character may be cut in two where the sample ends.
        Err(error) => error.error_len().is_none() && sample.len() < bytes.len(),
    };
    valid
        && !sample
            .iter()
            .any(|byte| byte.is_ascii_control() && !b"\t\r\n".contains(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_their_content() {
        let onnx = [&[0x08, 9, 0x3a, 2][..], &[0x0a, 0]].concat();
        let cases: [(&[u8], Option<Format>); 10] = [
            (b"id,lower,upper,size\n", Some(Format::Csv)),
            (
                b"\xef\xbb\xbf\n  BufferAssignment:\nallocation",
                Some(Format::BufferAssignment),
            ),
            (b"HloLiveRange (max 3):\n", Some(Format::LiveRange)),
            (&[0x0a, 1, 0, 0x1a, 0], Some(Format::HloProto)),
            (&[0x1a, 1, 0], Some(Format::HloProto)),
            (&onnx, Some(Format::Onnx)),
            (b"", None),
            (b" \r\n", None),
            (&[0x00, 0x01], None),
            (&[0x0a, 100, 0], None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(Format::of(bytes), expected, "{bytes:?}");
        }
        // Two bytes of a character on either side of the sample's end.
        let cut = ["x".repeat(SAMPLE_BYTES - 1).as_bytes(), "ü".as_bytes()].concat();
        assert_eq!(Format::of(&cut), Some(Format::Csv));
    }
}
