//! Sequences: requests that belong together and run one after the other.
//!
//! Source: Triton, "Sequence Extension".

use std::{fmt, sync::Arc};

/// The name that a client gives a sequence.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CorrelationId {
    /// A number; not 0, which stands for no sequence.
    Number(u64),
    /// A text; not empty, which stands for no sequence.
    Text(Arc<str>),
}

impl CorrelationId {
    /// A numeric id; `None` for 0.
    #[must_use]
    pub fn number(number: u64) -> Option<Self> {
        (number != 0).then_some(Self::Number(number))
    }

    /// A textual id; `None` for an empty one.
    #[must_use]
    pub fn text(text: &str) -> Option<Self> {
        (!text.is_empty()).then(|| Self::Text(text.into()))
    }
}

impl fmt::Display for CorrelationId {
    /// The number or the text, as a client wrote it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

/// A request's place in a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SequenceStep {
    /// The sequence.
    pub id: CorrelationId,
    /// Whether it is the first request.
    pub start: bool,
    /// Whether it is the last request.
    pub end: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_and_the_empty_text_name_no_sequence() {
        assert_eq!(CorrelationId::number(0), None);
        assert_eq!(CorrelationId::text(""), None);
        let shown = [CorrelationId::number(7), CorrelationId::text("a b")];
        let shown = shown.map(|id| id.map(|id| id.to_string()));
        assert_eq!(shown, [Some("7".to_owned()), Some("a b".to_owned())]);
    }
}
