//! Python's pickles, as far as they hold data: dicts, lists, tuples, texts, bytes and numbers. Nothing is executed;
//! an opcode that would make Python import or call something is refused by its name.
//!
//! What is kept is what a snapshot is read for: of texts which known one it is, of dicts the members with known names.
//! Nothing here recurses, so data may lie as deep as the pickle is long, or within itself.

mod machine;
mod opcode;

use std::io::Read;

use self::machine::PickleMachine;
use crate::{error::TraceError, input::Input};

/// Texts that a snapshot is read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KnownText {
    DeviceTraces,
    Action,
    Address,
    Size,
    Stream,
    Alloc,
    FreeCompleted,
}

impl KnownText {
    const ALL: [(&[u8], Self); 7] = [
        (b"device_traces", Self::DeviceTraces),
        (b"action", Self::Action),
        (b"addr", Self::Address),
        (b"size", Self::Size),
        (b"stream", Self::Stream),
        (b"alloc", Self::Alloc),
        (b"free_completed", Self::FreeCompleted),
    ];

    /// The longest of them.
    const MAX_BYTES: usize = 14;

    fn of(text: &[u8]) -> Option<Self> {
        let found = Self::ALL.iter().find(|(known, _)| *known == text);
        found.map(|(_, known)| *known)
    }
}

/// A value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PickleValue {
    /// From -2^63 to 2^63 - 1.
    Int(i64),
    /// From 2^63 to 2^64 - 1.
    LargeInt(u64),
    /// A text; `None` for one that is not known.
    Text(Option<KnownText>),
    /// A list or a tuple: its number among them.
    List(u32),
    /// A dict: its number among them.
    Dict(u32),
    /// Anything else: `None`, a truth value, a number that is broken or larger, bytes.
    Other,
}

/// A whole pickle.
#[derive(Default)]
pub(super) struct Pickle {
    lists: Vec<Vec<PickleValue>>,
    /// Members with known names, each name once.
    dicts: Vec<Vec<(KnownText, PickleValue)>>,
}

impl Pickle {
    /// Reads a pickle to its end, which has to be that of the input.
    pub(super) fn read<R: Read>(input: &mut Input<R>) -> Result<(Self, PickleValue), TraceError> {
        PickleMachine::default().read(input)
    }

    /// What is in a list or a tuple.
    pub(super) fn list(&self, value: PickleValue) -> Option<&[PickleValue]> {
        match value {
            PickleValue::List(list) => self.lists.get(list as usize).map(Vec::as_slice),
            _ => None,
        }
    }

    /// A member of a dict.
    pub(super) fn member(&self, value: PickleValue, name: KnownText) -> Option<PickleValue> {
        let PickleValue::Dict(dict) = value else {
            return None;
        };
        let members = self.dicts.get(dict as usize)?;
        let found = members.iter().find(|(known, _)| *known == name);
        found.map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_known_text_is_known() {
        let longest = KnownText::ALL.iter().map(|(text, _)| text.len()).max();
        assert_eq!(longest, Some(KnownText::MAX_BYTES));
    }
}
