//! The protocol's encoding of `BYTES` elements.

/// Iterates over the elements of an encoded `BYTES` tensor: each a length (u32, little-endian) and that many bytes.
///
/// Ends early at an element that is cut off; [`StringElements::rest`] is then not empty.
#[derive(Debug, Clone)]
pub struct StringElements<'a> {
    rest: &'a [u8],
}

impl<'a> StringElements<'a> {
    /// Starts at the first element.
    #[must_use]
    pub const fn new(encoded: &'a [u8]) -> Self {
        Self { rest: encoded }
    }

    /// The bytes that have not been read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

impl<'a> Iterator for StringElements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let (length, tail) = self.rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (element, rest) = tail.split_at_checked(length)?;
        self.rest = rest;
        Some(element)
    }
}

/// Encodes elements as a `BYTES` tensor's data.
///
/// # Panics
/// If an element is longer than `u32::MAX` bytes; callers bound their input far below that.
#[must_use]
pub fn encode_strings<'a>(elements: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut encoded = Vec::new();
    for element in elements {
        let length = u32::try_from(element.len()).expect("an element is shorter than 4 GiB");
        encoded.extend_from_slice(&length.to_le_bytes());
        encoded.extend_from_slice(element);
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_read_back_and_a_cut_one_ends_the_iteration() {
        let encoded = encode_strings([b"ab".as_slice(), b"", b"xyz"]);
        let all: Vec<&[u8]> = StringElements::new(&encoded).collect();
        assert_eq!(all, [b"ab".as_slice(), b"", b"xyz"]);
        let mut cut = StringElements::new(&encoded[..encoded.len() - 1]);
        assert_eq!(cut.by_ref().count(), 2);
        assert_eq!(cut.rest().len(), 6);
    }
}
