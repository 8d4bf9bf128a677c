//! Python's machine that builds the data: a stack, marks on it, and values that are numbered to be used again.

use std::io::Read;

use super::{KnownText, Pickle, PickleValue, opcode};
use crate::{
    error::TraceError,
    input::{END, Input},
};

/// The most containers, values on the stack and numbered values, each of 16 or 24 bytes. A snapshot has two or three for
/// each entry, and 100,000 entries where PyTorch's documentation has its way.
const MAX_VALUES: usize = 1 << 24;

/// The most values in lists, of 16 bytes: an entry's list of frames may have a hundred.
const MAX_LIST_VALUES: usize = 1 << 26;

/// Containers that are being filled at the same time, with a mark each. A snapshot goes some six deep.
const MAX_MARKS: usize = 1 << 10;

/// What an opcode has behind it.
const ARGUMENT: &str = "the argument of an opcode";

/// The state of the machine.
#[derive(Default)]
pub(super) struct PickleMachine {
    pickle: Pickle,
    stack: Vec<PickleValue>,
    /// How long the stack was at each mark.
    marks: Vec<usize>,
    memo: Vec<PickleValue>,
    /// How many values are in lists.
    list_values: usize,
}

impl PickleMachine {
    pub(super) fn read<R: Read>(
        mut self,
        input: &mut Input<R>,
    ) -> Result<(Pickle, PickleValue), TraceError> {
        loop {
            let at = input.at();
            let [code] = argument(input)?;
            if code == opcode::STOP {
                let value = self.pop(at)?;
                return match input.peek()? {
                    None => Ok((self.pickle, value)),
                    Some(byte) => Err(wrong(input.at(), END, format!("byte {byte:#04x}"))),
                };
            }
            self.run(code, at, input)?;
            self.check_limits()?;
        }
    }

    /// Carries out the opcode at `at`, and reads what belongs to it.
    fn run<R: Read>(&mut self, code: u8, at: u64, input: &mut Input<R>) -> Result<(), TraceError> {
        match code {
            opcode::PROTO => input.skip(1, ARGUMENT)?,
            opcode::FRAME => input.skip(8, ARGUMENT)?,
            opcode::MARK => self.marks.push(self.stack.len()),
            opcode::NONE | opcode::NEWTRUE | opcode::NEWFALSE => {
                self.stack.push(PickleValue::Other);
            }
            opcode::BINFLOAT => {
                input.skip(8, ARGUMENT)?;
                self.stack.push(PickleValue::Other);
            }
            opcode::BININT1 => {
                let [byte] = argument(input)?;
                self.stack.push(PickleValue::Int(byte.into()));
            }
            opcode::BININT2 => {
                let value = u16::from_le_bytes(argument(input)?);
                self.stack.push(PickleValue::Int(value.into()));
            }
            opcode::BININT => {
                let value = i32::from_le_bytes(argument(input)?);
                self.stack.push(PickleValue::Int(value.into()));
            }
            opcode::LONG1 => self.push_long(length::<1, R>(input)?, input)?,
            opcode::LONG4 => self.push_long(length::<4, R>(input)?, input)?,
            opcode::SHORT_BINUNICODE | opcode::SHORT_BINSTRING => {
                self.push_text(length::<1, R>(input)?, input)?;
            }
            opcode::BINUNICODE | opcode::BINSTRING => {
                self.push_text(length::<4, R>(input)?, input)?;
            }
            opcode::BINUNICODE8 => self.push_text(length::<8, R>(input)?, input)?,
            opcode::SHORT_BINBYTES => self.push_bytes(length::<1, R>(input)?, input)?,
            opcode::BINBYTES => self.push_bytes(length::<4, R>(input)?, input)?,
            opcode::BINBYTES8 | opcode::BYTEARRAY8 => {
                self.push_bytes(length::<8, R>(input)?, input)?;
            }
            opcode::BINPUT => self.remember(length::<1, R>(input)?, at)?,
            opcode::LONG_BINPUT => self.remember(length::<4, R>(input)?, at)?,
            opcode::MEMOIZE => self.remember(self.memo.len() as u64, at)?,
            opcode::BINGET => self.recall(length::<1, R>(input)?, at)?,
            opcode::LONG_BINGET => self.recall(length::<4, R>(input)?, at)?,
            _ => self.build(code, at)?,
        }
        Ok(())
    }

    /// Carries out an opcode that makes or fills a container.
    fn build(&mut self, code: u8, at: u64) -> Result<(), TraceError> {
        match code {
            opcode::EMPTY_LIST | opcode::EMPTY_TUPLE => self.push_list(Vec::new()),
            opcode::LIST | opcode::TUPLE => {
                let values = self.pop_to_mark(at)?;
                self.push_list(values);
            }
            opcode::TUPLE1 | opcode::TUPLE2 | opcode::TUPLE3 => {
                let mut values = Vec::new();
                for _ in opcode::TUPLE1..=code {
                    values.push(self.pop(at)?);
                }
                values.reverse();
                self.push_list(values);
            }
            opcode::APPEND => {
                let value = self.pop(at)?;
                self.append(&[value], at)?;
            }
            opcode::APPENDS => {
                let values = self.pop_to_mark(at)?;
                self.append(&values, at)?;
            }
            opcode::EMPTY_DICT => self.push_dict(),
            opcode::DICT => {
                let members = self.pop_to_mark(at)?;
                self.push_dict();
                self.set_members(&members, at)?;
            }
            opcode::SETITEM => {
                let value = self.pop(at)?;
                let name = self.pop(at)?;
                self.set_members(&[name, value], at)?;
            }
            opcode::SETITEMS => {
                let members = self.pop_to_mark(at)?;
                self.set_members(&members, at)?;
            }
            _ => {
                return Err(match opcode::refused(code) {
                    Some(name) => TraceError::Opcode { byte: at, name },
                    None => wrong(at, "an opcode", format!("byte {code:#04x}")),
                });
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), TraceError> {
        let Pickle { lists, dicts } = &self.pickle;
        for (what, count, limit) in [
            ("lists and tuples", lists.len(), MAX_VALUES),
            ("dicts", dicts.len(), MAX_VALUES),
            ("values in lists", self.list_values, MAX_LIST_VALUES),
            ("values on the pickle's stack", self.stack.len(), MAX_VALUES),
            ("values that are used again", self.memo.len(), MAX_VALUES),
            ("containers within each other", self.marks.len(), MAX_MARKS),
        ] {
            if count > limit {
                let limit = limit as u64;
                return Err(TraceError::TooMany { what, limit });
            }
        }
        Ok(())
    }

    /// Takes the topmost value above the last mark.
    fn pop(&mut self, at: u64) -> Result<PickleValue, TraceError> {
        let value = self.top(at)?;
        self.stack.pop();
        Ok(value)
    }

    /// Takes the values above the last mark, and the mark.
    fn pop_to_mark(&mut self, at: u64) -> Result<Vec<PickleValue>, TraceError> {
        let none = || wrong(at, "a mark before this opcode", "none".to_owned());
        let mark = self.marks.pop().ok_or_else(none)?;
        Ok(self.stack.split_off(mark))
    }

    /// The topmost value above the last mark, which stays.
    fn top(&self, at: u64) -> Result<PickleValue, TraceError> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let above = self.stack.get(floor..).and_then(<[_]>::last);
        above.copied().ok_or_else(|| nothing(at))
    }

    /// A whole number of this many bytes, the lowest first, the sign in the last.
    fn push_long<R: Read>(&mut self, length: u64, input: &mut Input<R>) -> Result<(), TraceError> {
        let value = match length {
            0 => PickleValue::Int(0),
            1..=9 => {
                let length = length as usize;
                let mut bytes = [0; 16];
                input.take(&mut bytes[..length], ARGUMENT)?;
                if bytes[length - 1] & 0x80 != 0 {
                    bytes[length..].fill(0xff);
                }
                let value = i128::from_le_bytes(bytes);
                let small = i64::try_from(value).map(PickleValue::Int);
                let large = || u64::try_from(value).map(PickleValue::LargeInt);
                small.or_else(|_| large()).unwrap_or(PickleValue::Other)
            }
            _ => {
                input.skip(length, ARGUMENT)?;
                PickleValue::Other
            }
        };
        self.stack.push(value);
        Ok(())
    }

    fn push_text<R: Read>(&mut self, length: u64, input: &mut Input<R>) -> Result<(), TraceError> {
        let mut text = [0; KnownText::MAX_BYTES];
        let known = match usize::try_from(length) {
            Ok(length) if length <= text.len() => {
                let text = &mut text[..length];
                input.take(text, ARGUMENT)?;
                KnownText::of(text)
            }
            _ => {
                input.skip(length, ARGUMENT)?;
                None
            }
        };
        self.stack.push(PickleValue::Text(known));
        Ok(())
    }

    fn push_bytes<R: Read>(&mut self, length: u64, input: &mut Input<R>) -> Result<(), TraceError> {
        input.skip(length, ARGUMENT)?;
        self.stack.push(PickleValue::Other);
        Ok(())
    }

    // Numbers of containers fit: `check_limits` has a lower bound.

    fn push_list(&mut self, values: Vec<PickleValue>) {
        let number = self.pickle.lists.len() as u32;
        self.list_values += values.len();
        self.pickle.lists.push(values);
        self.stack.push(PickleValue::List(number));
    }

    fn push_dict(&mut self) {
        let number = self.pickle.dicts.len() as u32;
        self.pickle.dicts.push(Vec::new());
        self.stack.push(PickleValue::Dict(number));
    }

    fn append(&mut self, values: &[PickleValue], at: u64) -> Result<(), TraceError> {
        let PickleValue::List(list) = self.top(at)? else {
            return Err(wrong(at, "a list to fill", "another value".to_owned()));
        };
        self.list_values += values.len();
        self.pickle.lists[list as usize].extend_from_slice(values);
        Ok(())
    }

    /// Sets members: names and values in turn. Of members with the same name the last one counts.
    fn set_members(&mut self, members: &[PickleValue], at: u64) -> Result<(), TraceError> {
        let PickleValue::Dict(dict) = self.top(at)? else {
            return Err(wrong(at, "a dict to fill", "another value".to_owned()));
        };
        let (pairs, []) = members.as_chunks::<2>() else {
            return Err(wrong(at, "a value for each name", "one less".to_owned()));
        };
        let dict = &mut self.pickle.dicts[dict as usize];
        for [name, value] in pairs {
            let PickleValue::Text(Some(name)) = name else {
                continue;
            };
            match dict.iter_mut().find(|(known, _)| known == name) {
                Some((_, earlier)) => *earlier = *value,
                None => dict.push((*name, *value)),
            }
        }
        Ok(())
    }

    /// Numbers the topmost value. Python's pickler counts up.
    fn remember(&mut self, number: u64, at: u64) -> Result<(), TraceError> {
        let value = self.top(at)?;
        let expected = "the next number for a value, or one that was given";
        match usize::try_from(number) {
            Ok(number) if number < self.memo.len() => self.memo[number] = value,
            Ok(number) if number == self.memo.len() => self.memo.push(value),
            _ => return Err(wrong(at, expected, number.to_string())),
        }
        Ok(())
    }

    /// Uses a numbered value again.
    fn recall(&mut self, number: u64, at: u64) -> Result<(), TraceError> {
        let value = usize::try_from(number)
            .ok()
            .and_then(|number| self.memo.get(number));
        let value = *value.ok_or_else(|| wrong(at, "the number of a value", number.to_string()))?;
        self.stack.push(value);
        Ok(())
    }
}

/// The next bytes.
fn argument<const N: usize, R: Read>(input: &mut Input<R>) -> Result<[u8; N], TraceError> {
    let mut bytes = [0; N];
    input.take(&mut bytes, ARGUMENT)?;
    Ok(bytes)
}

/// A number without a sign in the next `N` bytes, 8 at most, the lowest first.
fn length<const N: usize, R: Read>(input: &mut Input<R>) -> Result<u64, TraceError> {
    let mut bytes = [0; 8];
    input.take(&mut bytes[..N], ARGUMENT)?;
    Ok(u64::from_le_bytes(bytes))
}

fn nothing(at: u64) -> TraceError {
    wrong(at, "a value for an opcode", "none".to_owned())
}

fn wrong(byte: u64, expected: &'static str, got: String) -> TraceError {
    TraceError::Byte {
        byte,
        expected,
        got,
    }
}
