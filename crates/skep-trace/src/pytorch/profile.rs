//! Chrome traces of PyTorch's profiler: events `[memory]`, each with an address and a size whose sign tells an
//! allocation from a free.
//!
//! The file has them in any order; they count by time, and by `Ev Idx` at the same time. A window puts them in order:
//! an event that comes later than the window is long is passed on where it is, and counted.

use std::{cmp::Reverse, collections::BinaryHeap, io::Read};

use super::json::{JsonReader, JsonToken};
use crate::{MAX_BLOCK_BYTES, blocks::LiveBlocks, error::TraceError, input::Input};

/// How many events are kept to be put in order, some 10 MB: enough for files that have one thread's events behind
/// another's, as long as the threads are short.
const WINDOW_EVENTS: usize = 1 << 16;

/// Digits of a time behind the point: PyTorch writes three, of microseconds.
const TIME_DIGITS: usize = 6;

/// An event, by which the window is ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct MemoryEvent {
    /// In units of 10^-[`TIME_DIGITS`] microseconds.
    time: i128,
    index: i128,
    /// Position among the file's events: files without `Ev Idx` are in order.
    order: u64,
    bytes: i128,
    block: ProfiledBlock,
}

/// What the profile calls a block. Devices have addresses of their own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct ProfiledBlock {
    device_type: i128,
    device: i128,
    address: i128,
}

impl ProfiledBlock {
    fn key(self) -> Vec<u8> {
        [self.device_type, self.device, self.address]
            .map(i128::to_ne_bytes)
            .concat()
    }
}

/// Where in the file the reader is.
#[derive(Default)]
enum ProfilePlace {
    #[default]
    Start,
    /// Among the members of the whole.
    Members,
    /// In the array `traceEvents`.
    Events,
    /// Behind everything: what is in the window is passed on.
    End,
}

/// Reads a profile event by event.
#[derive(Default)]
pub(crate) struct ProfileReader {
    json: JsonReader,
    place: ProfilePlace,
    window: BinaryHeap<Reverse<MemoryEvent>>,
    /// How many events were found.
    count: u64,
    /// The time of the latest event that was passed on.
    latest: Option<(i128, i128)>,
}

impl ProfileReader {
    pub(crate) fn advance<R: Read>(
        &mut self,
        input: &mut Input<R>,
        blocks: &mut LiveBlocks,
    ) -> Result<bool, TraceError> {
        match self.place {
            ProfilePlace::Start => {
                let first = self.json.piece(input)?;
                debug_assert_eq!(first, JsonToken::ObjectStart, "so it was recognised");
                self.place = ProfilePlace::Members;
            }
            ProfilePlace::Members => self.member(input)?,
            ProfilePlace::Events => match self.json.piece(input)? {
                JsonToken::ArrayEnd => self.place = ProfilePlace::Members,
                JsonToken::ObjectStart => {
                    if let Some(event) = self.event(input)? {
                        self.count += 1;
                        self.window.push(Reverse(event));
                    }
                    if self.window.len() > WINDOW_EVENTS {
                        self.pass_on(blocks)?;
                    }
                }
                first => self.json.skip(first, input)?,
            },
            ProfilePlace::End => return self.pass_on(blocks),
        }
        Ok(true)
    }

    /// Takes a member of the whole, or its end.
    fn member<R: Read>(&mut self, input: &mut Input<R>) -> Result<(), TraceError> {
        if self.json.piece(input)? == JsonToken::ObjectEnd {
            // Behind which nothing may be.
            self.json.next(input)?;
            if self.count == 0 {
                return Err(TraceError::NothingFound {
                    expected: "an event `[memory]` in `traceEvents` (PyTorch's profiler writes them with \
                               `profile_memory=True`)",
                });
            }
            self.place = ProfilePlace::End;
            return Ok(());
        }
        let is_events = matches!(self.json.text(), Some(b"traceEvents"));
        match self.json.piece(input)? {
            JsonToken::ArrayStart if is_events => self.place = ProfilePlace::Events,
            first => self.json.skip(first, input)?,
        }
        Ok(())
    }

    /// Passes on the earliest event of the window; `false` if it is empty.
    fn pass_on(&mut self, blocks: &mut LiveBlocks) -> Result<bool, TraceError> {
        let Some(Reverse(event)) = self.window.pop() else {
            return Ok(false);
        };
        let time = Some((event.time, event.index));
        if time < self.latest {
            blocks.unmatched.late += 1;
        }
        self.latest = self.latest.max(time);
        let key = event.block.key();
        match event.bytes {
            0 => blocks.unmatched.zero_bytes += 1,
            ..0 => blocks.free(&key),
            bytes => blocks.malloc(&key, bytes.unsigned_abs() as u64, 0)?,
        }
        Ok(true)
    }

    /// Takes an event behind its brace; `None` for one of another kind.
    fn event<R: Read>(&mut self, input: &mut Input<R>) -> Result<Option<MemoryEvent>, TraceError> {
        let at = input.at() - 1;
        let mut is_memory = false;
        let mut time = None;
        let mut arguments = Arguments::default();
        while self.json.piece(input)? == JsonToken::Key {
            let member = match self.json.text() {
                Some(b"name") => EventMember::Name,
                Some(b"ts") => EventMember::Time,
                Some(b"args") => EventMember::Arguments,
                _ => EventMember::Other,
            };
            match (member, self.json.piece(input)?) {
                (EventMember::Name, JsonToken::Text) => {
                    is_memory = matches!(self.json.text(), Some(b"[memory]"));
                }
                (EventMember::Time, JsonToken::Number) => {
                    time = self.json.text().and_then(fixed_point);
                }
                (EventMember::Arguments, JsonToken::ObjectStart) => {
                    arguments = self.arguments(input)?;
                }
                (_, first) => self.json.skip(first, input)?,
            }
        }
        if !is_memory {
            return Ok(None);
        }
        let needed = |value: Option<i128>, expected| {
            value.ok_or_else(|| TraceError::Byte {
                byte: at,
                expected,
                got: "one without".to_owned(),
            })
        };
        Ok(Some(MemoryEvent {
            time: needed(time, "an event `[memory]` with a number `ts`")?,
            index: arguments.index.unwrap_or(0),
            order: self.count,
            bytes: needed(
                arguments
                    .bytes
                    .filter(|bytes| *bytes <= i128::from(MAX_BLOCK_BYTES)),
                "an event `[memory]` with `Bytes`, a whole number from -2^63 to 2^63",
            )?,
            block: ProfiledBlock {
                device_type: arguments.device_type.unwrap_or(0),
                device: arguments.device.unwrap_or(0),
                address: needed(
                    arguments.address,
                    "an event `[memory]` with `Addr`, a whole number of 64 bits",
                )?,
            },
        }))
    }

    /// Takes the arguments of an event behind their brace.
    fn arguments<R: Read>(&mut self, input: &mut Input<R>) -> Result<Arguments, TraceError> {
        let mut arguments = Arguments::default();
        while self.json.piece(input)? == JsonToken::Key {
            let mut other = None;
            let argument = match self.json.text() {
                Some(b"Bytes") => &mut arguments.bytes,
                Some(b"Addr") => &mut arguments.address,
                Some(b"Device Type") => &mut arguments.device_type,
                Some(b"Device Id") => &mut arguments.device,
                Some(b"Ev Idx") => &mut arguments.index,
                _ => &mut other,
            };
            match self.json.piece(input)? {
                JsonToken::Number => *argument = self.json.text().and_then(whole),
                first => self.json.skip(first, input)?,
            }
        }
        Ok(arguments)
    }
}

/// Members of an event.
enum EventMember {
    Name,
    Time,
    Arguments,
    Other,
}

/// What an event says; `None` where it is missing or not what it should be.
#[derive(Default)]
struct Arguments {
    bytes: Option<i128>,
    address: Option<i128>,
    device_type: Option<i128>,
    device: Option<i128>,
    index: Option<i128>,
}

/// A whole number of 64 bits, with or without a sign.
fn whole(text: &[u8]) -> Option<i128> {
    let number: i128 = std::str::from_utf8(text).ok()?.parse().ok()?;
    (i128::from(i64::MIN)..=i128::from(u64::MAX))
        .contains(&number)
        .then_some(number)
}

/// A time in units of 10^-[`TIME_DIGITS`]. Exact: an `f64` has not enough bits for nanoseconds since 1970.
fn fixed_point(text: &[u8]) -> Option<i128> {
    let text = std::str::from_utf8(text).ok()?;
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let is_number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
    let unit = 10_i128.pow(TIME_DIGITS as u32);
    if whole.is_empty() || !is_number(whole) || !is_number(fraction) {
        // With an exponent: such a time is rounded already.
        let time: f64 = text.parse().ok()?;
        return Some((time * unit as f64) as i128);
    }
    let fraction = &fraction[..fraction.len().min(TIME_DIGITS)];
    let shift = 10_i128.pow((TIME_DIGITS - fraction.len()) as u32);
    let whole: i128 = whole.parse().ok()?;
    let fraction: i128 = if fraction.is_empty() {
        0
    } else {
        fraction.parse().ok()?
    };
    let time = whole.checked_mul(unit)?.checked_add(fraction * shift)?;
    Some(if negative { -time } else { time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_exact() {
        for (text, expected) in [
            ("0", 0),
            ("4323826158574.472", 4_323_826_158_574_472_000),
            ("1790857026000000.001", 1_790_857_026_000_000_001_000),
            ("1.0000009", 1_000_000),
            ("-1.5", -1_500_000),
            ("1.5e3", 1_500_000_000),
            ("12.", 12_000_000),
            (".5", 500_000),
        ] {
            assert_eq!(fixed_point(text.as_bytes()), Some(expected), "{text}");
        }
        for text in ["", "-", ".", "1x", "1.2.3", "9".repeat(40).as_str()] {
            assert_eq!(fixed_point(text.as_bytes()), None, "{text}");
        }
    }
}
