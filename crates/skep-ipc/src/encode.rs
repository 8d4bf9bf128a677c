//! Numbers, texts and lists as bytes, and back.
//!
//! Numbers are little-endian. Byte strings, texts and lists begin with their length: four bytes, or two for the *short*
//! ones, whose reader states a bound.

use std::borrow::Cow;

use skep_types::DataType;

/// Why bytes are not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Malformed(Cow<'static, str>);

impl Malformed {
    /// An error with this reason.
    pub fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }

    /// The reason, without context.
    #[must_use]
    pub fn into_reason(self) -> Cow<'static, str> {
        self.0
    }
}

/// Builds a message.
#[derive(Debug, Default)]
pub struct MessageWriter(Vec<u8>);

impl MessageWriter {
    /// The message so far.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The message.
    #[must_use]
    pub fn into_bytes(self) -> Vec<u8> {
        self.0
    }

    /// Starts again, and keeps the memory.
    pub fn clear(&mut self) {
        self.0.clear();
    }

    /// Bytes without a length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// One byte.
    pub fn u8(&mut self, number: u8) {
        self.0.push(number);
    }

    /// Two bytes.
    pub fn u16(&mut self, number: u16) {
        self.raw(&number.to_le_bytes());
    }

    /// Four bytes.
    pub fn u32(&mut self, number: u32) {
        self.raw(&number.to_le_bytes());
    }

    /// Eight bytes.
    pub fn u64(&mut self, number: u64) {
        self.raw(&number.to_le_bytes());
    }

    /// A size of this process, as eight bytes.
    pub fn size(&mut self, number: usize) {
        self.u64(u64::try_from(number).unwrap_or(u64::MAX));
    }

    /// A byte that is 0 or 1.
    pub fn bool(&mut self, flag: bool) {
        self.u8(u8::from(flag));
    }

    /// The position of `item` in a table of at most 255 items, as one byte; 255 if it is not in there.
    pub fn item<T: PartialEq>(&mut self, table: &[T], item: &T) {
        let position = table.iter().position(|other| other == item);
        self.u8(position
            .and_then(|p| u8::try_from(p).ok())
            .unwrap_or(u8::MAX));
    }

    /// A datatype, as one byte.
    pub fn datatype(&mut self, datatype: DataType) {
        self.item(&DataType::ALL, &datatype);
    }

    /// A flag, then the value if there is one.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }

    /// Bytes behind their length, which is below 4 GiB.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.raw(bytes);
    }

    /// A list behind its length.
    pub fn list<T>(
        &mut self,
        items: impl ExactSizeIterator<Item = T>,
        mut write: impl FnMut(&mut Self, T),
    ) {
        self.u32(u32::try_from(items.len()).unwrap_or(u32::MAX));
        for item in items {
            write(self, item);
        }
    }

    /// A list behind its length of two bytes. The caller keeps to the bound that the reader states.
    pub fn short_list<T>(&mut self, items: &[T], mut write: impl FnMut(&mut Self, &T)) {
        self.u16(u16::try_from(items.len()).unwrap_or(u16::MAX));
        for item in items {
            write(self, item);
        }
    }

    /// A text behind its length of two bytes. The caller keeps to the bound that the reader states.
    pub fn short_text(&mut self, text: &str) {
        self.u16(u16::try_from(text.len()).unwrap_or(u16::MAX));
        self.raw(text.as_bytes());
    }
}

/// Reads a message. Every read fails with [`Malformed`] where the bytes end early or do not fit.
#[derive(Debug)]
pub struct MessageReader<'a>(&'a [u8]);

#[allow(clippy::missing_errors_doc, reason = "the type says it for all")]
impl<'a> MessageReader<'a> {
    /// A reader of these bytes.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Fails if bytes are left.
    pub fn end(self) -> Result<(), Malformed> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(Malformed::new(format!("{left} bytes follow its end"))),
        }
    }

    /// Bytes without a length.
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or_else(|| {
            Malformed::new(format!(
                "it ends early: expected {count} more bytes, got {}",
                self.0.len()
            ))
        })?;
        self.0 = rest;
        Ok(bytes)
    }

    /// An array without a length.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut array = [0; N];
        array.copy_from_slice(self.raw(N)?);
        Ok(array)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_le_bytes)
    }

    /// Two bytes.
    pub fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_le_bytes)
    }

    /// Four bytes.
    pub fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_le_bytes)
    }

    /// Eight bytes.
    pub fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_le_bytes)
    }

    /// A size of this process.
    pub fn size(&mut self) -> Result<usize, Malformed> {
        let number = self.u64()?;
        usize::try_from(number).map_err(|_| {
            Malformed::new(format!("size {number} is more than this machine addresses"))
        })
    }

    /// A byte that is 0 or 1.
    pub fn bool(&mut self) -> Result<bool, Malformed> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(Malformed::new(format!("expected 0 or 1, got {other}"))),
        }
    }

    /// An item of a table, by its position. `what` names it in the error.
    pub fn item<T: Copy>(&mut self, table: &[T], what: &str) -> Result<T, Malformed> {
        let number = self.u8()?;
        let item = table.get(usize::from(number)).copied();
        item.ok_or_else(|| Malformed::new(format!("{what} {number} is unknown")))
    }

    /// A datatype.
    pub fn datatype(&mut self) -> Result<DataType, Malformed> {
        self.item(&DataType::ALL, "datatype")
    }

    /// A value that may be missing.
    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        self.bool()?.then(|| read(self)).transpose()
    }

    /// Bytes behind their length.
    pub fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.raw(usize::try_from(length).unwrap_or(usize::MAX))
    }

    /// A text behind its length.
    pub fn text(&mut self) -> Result<&'a str, Malformed> {
        text(self.bytes()?)
    }

    /// A list behind its length. It takes memory only for items that were read.
    pub fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let length = self.u32()?;
        let mut items = Vec::new();
        for _ in 0..length {
            items.push(read(self)?);
        }
        Ok(items)
    }

    /// A list of at most `most` items, behind its length of two bytes. `what` names the items in the error.
    pub fn short_list<T>(
        &mut self,
        most: usize,
        what: &str,
        read: impl Fn(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.count(most, what)?;
        (0..count).map(|_| read(self)).collect()
    }

    /// A text of at most `most` bytes, behind its length of two bytes.
    pub fn short_text(&mut self, most: usize) -> Result<&'a str, Malformed> {
        let length = self.count(most, "bytes of a text")?;
        text(self.raw(length)?)
    }

    fn count(&mut self, most: usize, what: &str) -> Result<usize, Malformed> {
        let count = usize::from(self.u16()?);
        if count > most {
            return Err(Malformed::new(format!(
                "{count} {what}, expected at most {most}"
            )));
        }
        Ok(count)
    }
}

fn text(bytes: &[u8]) -> Result<&str, Malformed> {
    str::from_utf8(bytes).map_err(|_| Malformed::new("a text that is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_written_reads_back() {
        let mut writer = MessageWriter::default();
        writer.u16(7);
        writer.size(9);
        writer.option(Some("a"), |writer, text| writer.bytes(text.as_bytes()));
        writer.option(None, MessageWriter::u64);
        writer.datatype(DataType::Fp16);
        writer.list([1, 2].iter(), |writer, number| writer.u32(*number));
        writer.short_list(&[3], |writer, number| writer.u64(*number));
        writer.short_text("ä");
        let mut reader = MessageReader::new(writer.as_bytes());
        assert_eq!(reader.u16(), Ok(7));
        assert_eq!(reader.size(), Ok(9));
        assert_eq!(reader.option(MessageReader::text), Ok(Some("a")));
        assert_eq!(reader.option(MessageReader::u64), Ok(None));
        assert_eq!(reader.datatype(), Ok(DataType::Fp16));
        assert_eq!(reader.list(MessageReader::u32), Ok(vec![1, 2]));
        assert_eq!(
            reader.short_list(1, "numbers", MessageReader::u64),
            Ok(vec![3])
        );
        assert_eq!(reader.short_text(2), Ok("ä"));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn a_list_longer_than_its_bytes_is_malformed() {
        // Four billion items, of which one is there.
        let bytes = [255, 255, 255, 255, 1, 0, 0, 0];
        let read = MessageReader::new(&bytes).list(MessageReader::u32);
        assert_eq!(
            read.expect_err("cut off").to_string(),
            "it ends early: expected 4 more bytes, got 0"
        );
    }
}
