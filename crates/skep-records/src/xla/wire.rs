//! Protocol buffers' wire format: fields of a message, one after the other, nothing kept and no length believed.

use crate::error::RecordsError;

/// Wire types, as the low three bits of a tag have them.
pub(crate) const VARINT: u8 = 0;
pub(crate) const BYTES: u8 = 2;
const FIXED64: u8 = 1;
const FIXED32: u8 = 5;

/// A field's value. Fixed-width numbers are skipped, since no message here has one that matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WireValue<'a> {
    Varint(u64),
    /// A string, or a message whose first byte is `at` in the file.
    Bytes {
        bytes: &'a [u8],
        at: usize,
    },
    Fixed {
        wire_type: u8,
    },
}

impl WireValue<'_> {
    pub(crate) const fn wire_type(&self) -> u8 {
        match self {
            Self::Varint(_) => VARINT,
            Self::Bytes { .. } => BYTES,
            Self::Fixed { wire_type } => *wire_type,
        }
    }
}

/// A field of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WireField<'a> {
    pub(crate) number: u32,
    pub(crate) value: WireValue<'a>,
}

/// The fields of a message; ends after an error.
pub(crate) struct WireFields<'a> {
    rest: &'a [u8],
    /// Position of `rest` in the file.
    at: usize,
}

impl<'a> WireFields<'a> {
    /// The fields of `message`, which begins at byte `at` of the file.
    pub(crate) fn new(message: &'a [u8], at: usize) -> Self {
        Self { rest: message, at }
    }

    fn take(&mut self, count: u64) -> Option<&'a [u8]> {
        let count = usize::try_from(count)
            .ok()
            .filter(|count| *count <= self.rest.len())?;
        let (taken, rest) = self.rest.split_at(count);
        self.rest = rest;
        self.at += count;
        Some(taken)
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for (index, byte) in self.rest.iter().take(10).enumerate() {
            let bits = u64::from(byte & 0x7f);
            // Of the tenth byte one bit fits.
            if index == 9 && bits > 1 {
                return None;
            }
            value |= bits << (7 * index);
            if byte & 0x80 == 0 {
                self.take(index as u64 + 1)?;
                return Some(value);
            }
        }
        None
    }

    fn field(&mut self) -> Result<WireField<'a>, RecordsError> {
        let byte = self.at;
        let wrong = |expected| RecordsError::Wire { byte, expected };
        let tag = self.varint().ok_or_else(|| wrong("a field's number"))?;
        let number = u32::try_from(tag >> 3)
            .ok()
            .filter(|number| (1..1 << 29).contains(number));
        let number = number.ok_or_else(|| wrong("a field's number from 1 to 2^29 - 1"))?;
        let wire_type = (tag & 7) as u8;
        let fixed = WireValue::Fixed { wire_type };
        let value = match wire_type {
            VARINT => self.varint().map(WireValue::Varint),
            FIXED64 => self.take(8).map(|_| fixed),
            FIXED32 => self.take(4).map(|_| fixed),
            BYTES => self.varint().and_then(|length| {
                let at = self.at;
                self.take(length)
                    .map(|bytes| WireValue::Bytes { bytes, at })
            }),
            _ => return Err(wrong("a field of wire type 0, 1, 2 or 5")),
        };
        let value = value.ok_or_else(|| wrong("a whole field before the message ends"))?;
        Ok(WireField { number, value })
    }
}

/// The numbers of a packed field, which begins at byte `at` of the file.
pub(crate) fn packed(bytes: &[u8], at: usize) -> Result<Vec<u64>, RecordsError> {
    let mut rest = WireFields::new(bytes, at);
    let mut numbers = Vec::new();
    while !rest.rest.is_empty() {
        let byte = rest.at;
        let expected = "packed whole numbers";
        numbers.push(rest.varint().ok_or(RecordsError::Wire { byte, expected })?);
    }
    Ok(numbers)
}

impl<'a> Iterator for WireFields<'a> {
    type Item = Result<WireField<'a>, RecordsError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_read_with_their_positions() {
        let message = [
            0x08, 0x96, 0x01, 0x12, 2, 7, 8, 0x19, 0, 0, 0, 0, 0, 0, 0, 0, 0x25, 0, 0, 0, 0,
        ];
        let fields: Vec<WireField<'_>> = WireFields::new(&message, 100)
            .map(|field| field.expect("valid"))
            .collect();
        let values: Vec<(u32, WireValue<'_>)> = fields
            .iter()
            .map(|field| (field.number, field.value))
            .collect();
        assert_eq!(
            values,
            [
                (1, WireValue::Varint(150)),
                (
                    2,
                    WireValue::Bytes {
                        bytes: &[7, 8],
                        at: 105
                    }
                ),
                (3, WireValue::Fixed { wire_type: 1 }),
                (4, WireValue::Fixed { wire_type: 5 }),
            ]
        );
        let largest = [
            0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ];
        assert_eq!(
            WireFields::new(&largest, 0)
                .next()
                .expect("one")
                .expect("valid")
                .value,
            WireValue::Varint(u64::MAX)
        );
    }

    #[test]
    fn a_malformed_field_ends_the_message() {
        for message in [
            &[0x80][..],
            &[0x00, 0x00],
            &[0x0b],
            &[0x08],
            &[0x12, 3, 0, 0],
            &[
                0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
            ],
            &[
                0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02,
            ],
            &[0x09, 0],
            &[0xff; 11],
        ] {
            let mut fields = WireFields::new(message, 0);
            let error = fields.next().expect("a field").expect_err("wrong");
            assert!(
                matches!(error, RecordsError::Wire { byte: 0, .. }),
                "{message:?}: {error}"
            );
            assert!(fields.next().is_none());
        }
    }
}
