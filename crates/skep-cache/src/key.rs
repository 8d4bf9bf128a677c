//! The key of a form.

use std::fmt;

/// A digest of everything that a form depends on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FormKey([u8; 32]);

impl FormKey {
    /// The key of these parts in this order, such as a model's content, a runtime's version, options and a processor's
    /// features. Different lists have different keys.
    #[must_use]
    pub fn of(parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// A key from another process.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The key's bytes, to send to another process.
    #[must_use]
    pub const fn bytes(&self) -> [u8; 32] {
        self.0
    }
}

impl fmt::Display for FormKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for FormKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FormKey({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_lists_of_parts_have_different_keys() {
        assert_eq!(FormKey::of(&[b"ab", b"c"]), FormKey::of(&[b"ab", b"c"]));
        assert_ne!(FormKey::of(&[b"ab", b"c"]), FormKey::of(&[b"a", b"bc"]));
        assert_ne!(FormKey::of(&[b"ab"]), FormKey::of(&[b"ab", b""]));
    }
}
