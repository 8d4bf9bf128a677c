//! `*-live-range.txt`: from which instruction to which a value is live.

use std::collections::HashMap;

use super::LIVE_RANGE_HEADING;
use skep_planner::shortened_name;

use crate::error::{RecordsError, text};

/// What the ranges are below.
const SECTION: &str = "BufferLiveRange:";

/// The first and the last instruction, by value as a buffer assignment calls it.
pub(super) fn read(bytes: &[u8]) -> Result<HashMap<&str, (u64, u64)>, RecordsError> {
    let text = text(bytes)?;
    let mut lines = text.lines().enumerate();
    let heading = lines.next().map_or("", |(_, line)| line).trim();
    if !heading.starts_with(LIVE_RANGE_HEADING) {
        return Err(RecordsError::Line {
            line: 1,
            expected: "`HloLiveRange`, as a file of live ranges begins",
            got: shortened_name(heading),
        });
    }
    let mut ranges = HashMap::new();
    let in_section = lines.skip_while(|(_, line)| line.trim() != SECTION).skip(1);
    for (index, line) in in_section {
        // Ranges are indented further than what begins the next section.
        let Some(entry) = line.strip_prefix("    ") else {
            break;
        };
        let (name, range) = range(entry).ok_or_else(|| RecordsError::Line {
            line: index + 1,
            expected: "a live range as in `name{}:3-7`, its end not before its start",
            got: shortened_name(entry.trim()),
        })?;
        ranges.insert(name, range);
    }
    Ok(ranges)
}

/// `name{index}:start-end`.
fn range(entry: &str) -> Option<(&str, (u64, u64))> {
    let (name, range) = entry.trim().rsplit_once(':')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (start.parse().ok()?, end.parse().ok()?);
    (start <= end && end < u64::MAX).then_some((without_empty_index(name), (start, end)))
}

/// A value's name. Of an instruction with several values the whole has an empty index, which is written here and not
/// there.
pub(super) fn without_empty_index(name: &str) -> &str {
    name.strip_suffix("{}").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_by_name() {
        let text = "HloLiveRange (max 9):\n  InstructionSequence:\n    0:a\n  BufferLiveRange:\n    a{}:0-3\n    \
                    b:c{1}:2-2\n  Live ranges at 2 (peak):\n    a{}: 4 bytes\n";
        let ranges = read(text.as_bytes()).expect("valid");
        assert_eq!(ranges.len(), 2);
        assert_eq!((ranges["a"], ranges["b:c{1}"]), ((0, 3), (2, 2)));
        for (entry, line) in [
            ("a{}:3-2", 3),
            ("a", 3),
            ("a:1", 3),
            ("a:x-2", 3),
            ("a:1-18446744073709551615", 3),
        ] {
            let text = format!("HloLiveRange (max 9):\n  BufferLiveRange:\n    {entry}\n");
            let error = read(text.as_bytes()).expect_err(entry).to_string();
            assert_eq!(
                error,
                format!(
                    "line {line}: expected a live range as in `name{{}}:3-7`, its end not before its start, got `{entry}`"
                )
            );
        }
        assert!(read(b"BufferAssignment:\n").is_err());
    }
}
