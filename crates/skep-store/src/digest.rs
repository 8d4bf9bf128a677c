//! The identity of a tensor: a digest of its description and bytes.

use std::{
    borrow::Cow,
    fmt,
    fs::File,
    io::{self, Read as _},
};

use skep_types::DataType;

/// What a tensor's bytes mean. Equal bytes with different descriptions are different tensors.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Description {
    /// The datatype of the elements.
    pub datatype: DataType,
    /// Elements along each axis, outermost first; empty for a scalar. At most [`MAX_DIMS`].
    pub dims: Vec<u64>,
    /// How the elements lie: `plain`, or the name of a packed form. At most [`MAX_LAYOUT_BYTES`] bytes.
    pub layout: Cow<'static, str>,
}

/// Axes a tensor may have.
pub const MAX_DIMS: usize = 64;

/// Bytes that a layout's name may have.
pub const MAX_LAYOUT_BYTES: usize = 255;

/// BLAKE3 over a tensor's datatype, dims, layout and bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a tensor.
    ///
    /// Each field is preceded by its length (for dims, their count) as eight bytes, little-endian, so that two
    /// different tensors never hash the same input. The datatype is hashed by its protocol name, each of the dims as
    /// eight bytes.
    #[must_use]
    pub fn of(description: &Description, bytes: &[u8]) -> Self {
        let mut hasher = Self::before_bytes(description, bytes.len() as u64);
        hasher.update(bytes);
        Self(*hasher.finalize().as_bytes())
    }

    /// [`Digest::of`] for the first `length` bytes of a file, read piece by piece. A shorter file has another digest.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn of_file(description: &Description, file: &File, length: u64) -> io::Result<Self> {
        let mut hasher = Self::before_bytes(description, length);
        hasher.update_reader(file.take(length))?;
        Ok(Self(*hasher.finalize().as_bytes()))
    }

    /// A hasher that has hashed everything before a tensor's bytes.
    fn before_bytes(description: &Description, length: u64) -> blake3::Hasher {
        let mut hasher = blake3::Hasher::new();
        let mut field = |bytes: &[u8], length: usize| {
            hasher.update(&(length as u64).to_le_bytes());
            hasher.update(bytes);
        };
        let datatype = description.datatype.protocol_name();
        field(datatype.as_bytes(), datatype.len());
        let dims: Vec<u8> = description
            .dims
            .iter()
            .flat_map(|extent| extent.to_le_bytes())
            .collect();
        field(&dims, description.dims.len());
        field(description.layout.as_bytes(), description.layout.len());
        hasher.update(&length.to_le_bytes());
        hasher
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

impl fmt::Display for Description {
    /// `FP32[64,3,7,7] plain`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}[", self.datatype)?;
        for (axis, extent) in self.dims.iter().enumerate() {
            let comma = if axis == 0 { "" } else { "," };
            write!(f, "{comma}{extent}")?;
        }
        write!(f, "] {}", self.layout)
    }
}

/// A tensor that a holder asks for or a form consists of: its digest, description and length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The digest of its description and bytes.
    pub digest: Digest,
    /// What its bytes mean.
    pub description: Description,
    /// Bytes.
    pub length: u64,
}

impl Wanted {
    /// A tensor by its bytes.
    #[must_use]
    pub fn of(description: Description, bytes: &[u8]) -> Self {
        Self {
            digest: Digest::of(&description, bytes),
            description,
            length: bytes.len() as u64,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(datatype: DataType, dims: &[u64], layout: &'static str) -> Description {
        Description {
            datatype,
            dims: dims.to_vec(),
            layout: layout.into(),
        }
    }

    #[test]
    fn a_digest_depends_on_description_and_bytes() {
        let bytes = [0; 24];
        let base = Digest::of(&description(DataType::Fp32, &[2, 3], "plain"), &bytes);
        let others = [
            (description(DataType::Int32, &[2, 3], "plain"), &bytes[..]),
            (description(DataType::Fp32, &[3, 2], "plain"), &bytes),
            (description(DataType::Fp32, &[6], "plain"), &bytes),
            (description(DataType::Fp32, &[2, 3], "packed"), &bytes),
            (description(DataType::Fp32, &[2, 3], "plain"), &bytes[..20]),
        ];
        for (other, bytes) in others {
            assert_ne!(Digest::of(&other, bytes), base, "{other}");
        }
    }

    /// Digests are stored in caches on disk and compared between processes: they must never change.
    #[test]
    fn digests_are_stable() {
        let digest = Digest::of(&description(DataType::Fp32, &[2], "plain"), &[1; 8]);
        assert_eq!(
            digest.to_string(),
            "e3dd02a0486d65c6fd0b234b89aafb16e5edefb5f32c42acac0a93650860c94a"
        );
    }
}
