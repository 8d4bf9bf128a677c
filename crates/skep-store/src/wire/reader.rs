//! Reading and writing of the fields of messages.

use std::borrow::Cow;

use skep_types::DataType;

use crate::{Description, Digest, MAX_DIMS, MAX_LAYOUT_BYTES, Wanted, wire::WireError};

/// What is left of a message.
#[derive(Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(super) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn end(&self) -> Result<(), WireError> {
        if self.0.is_empty() {
            Ok(())
        } else {
            Err(WireError::new(format!(
                "{} bytes behind its end",
                self.0.len()
            )))
        }
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or_else(|| {
            WireError::new(format!(
                "it ends early: expected {count} more bytes, got {}",
                self.0.len()
            ))
        })?;
        self.0 = rest;
        Ok(bytes)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let mut array = [0; N];
        array.copy_from_slice(self.bytes(N)?);
        Ok(array)
    }

    pub(super) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    pub(super) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count, of at most `most`.
    pub(super) fn count(&mut self, most: usize, what: &str) -> Result<usize, WireError> {
        let count = usize::from(self.u16()?);
        if count > most {
            return Err(WireError::new(format!(
                "{count} {what}, expected at most {most}"
            )));
        }
        Ok(count)
    }

    pub(super) fn list<T>(
        &mut self,
        most: usize,
        what: &str,
        item: impl Fn(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.count(most, what)?;
        (0..count).map(|_| item(self)).collect()
    }

    /// A value that may be left out, behind a byte that says so.
    pub(super) fn option<T>(
        &mut self,
        value: impl FnOnce(&mut Self) -> Result<T, WireError>,
    ) -> Result<Option<T>, WireError> {
        match self.u8()? {
            0 => Ok(None),
            1 => value(self).map(Some),
            other => Err(WireError::new(format!("expected 0 or 1, got {other}"))),
        }
    }

    pub(super) fn text(&mut self, most: usize) -> Result<&'a str, WireError> {
        let length = self.count(most, "bytes of a text")?;
        std::str::from_utf8(self.bytes(length)?)
            .map_err(|_| WireError::new("a text that is not UTF-8"))
    }

    pub(super) fn digest(&mut self) -> Result<Digest, WireError> {
        Ok(Digest(self.array()?))
    }

    pub(super) fn wanted(&mut self) -> Result<Wanted, WireError> {
        let digest = self.digest()?;
        let number = self.u8()?;
        let datatype = DataType::ALL
            .get(usize::from(number))
            .ok_or_else(|| WireError::new(format!("datatype {number} is unknown")))?;
        let dims = self.list(MAX_DIMS, "dims", Self::u64)?;
        let layout = self.text(MAX_LAYOUT_BYTES)?;
        Ok(Wanted {
            digest,
            description: Description {
                datatype: *datatype,
                dims,
                layout: Cow::Owned(layout.to_owned()),
            },
            length: self.u64()?,
        })
    }
}

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Writer(pub(super) Vec<u8>);

impl Writer {
    pub(super) fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    pub(super) fn u16(&mut self, value: u16) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }

    pub(super) fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) {
        // Callers keep to the counts that the reader takes.
        self.u16(u16::try_from(items.len()).unwrap_or(u16::MAX));
        for one in items {
            item(self, one);
        }
    }

    pub(super) fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
    }

    pub(super) fn text(&mut self, text: &str) {
        self.list(text.as_bytes(), |writer, byte| writer.u8(*byte));
    }

    pub(super) fn digest(&mut self, digest: Digest) {
        self.0.extend(digest.0);
    }

    pub(super) fn wanted(&mut self, wanted: &Wanted) {
        self.digest(wanted.digest);
        let datatype = wanted.description.datatype;
        let number = DataType::ALL.iter().position(|one| *one == datatype);
        self.u8(number.and_then(|n| u8::try_from(n).ok()).unwrap_or(u8::MAX));
        self.list(&wanted.description.dims, |writer, extent| {
            writer.u64(*extent);
        });
        self.text(&wanted.description.layout);
        self.u64(wanted.length);
    }
}
