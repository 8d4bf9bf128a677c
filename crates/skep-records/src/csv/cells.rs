//! Cells of a line, quoted or not.

use std::borrow::Cow;

use skep_planner::shortened_name;

use crate::error::RecordsError;

/// Calls `take` with the number and the text of each cell of a line, without the white space around it, and returns how
/// many there are. `number` is the line's, for errors.
///
/// # Errors
/// A quoted cell does not end, or `take` fails.
pub fn cells<'a>(
    line: &'a str,
    number: usize,
    mut take: impl FnMut(usize, Cow<'a, str>) -> Result<(), RecordsError>,
) -> Result<usize, RecordsError> {
    let mut rest = Some(line);
    let mut count = 0;
    while let Some(text) = rest {
        let cell;
        (cell, rest) = match text.trim_start().strip_prefix('"') {
            None => match text.split_once(',') {
                Some((cell, after)) => (Cow::Borrowed(cell.trim()), Some(after)),
                None => (Cow::Borrowed(text.trim()), None),
            },
            Some(inner) => {
                let (cell, after) = unquoted(inner).ok_or_else(|| RecordsError::Line {
                    line: number,
                    expected: "a quoted cell to end with a quote and a comma",
                    got: shortened_name(line.trim()),
                })?;
                (Cow::Owned(cell), after)
            }
        };
        take(count, cell)?;
        count += 1;
    }
    Ok(count)
}

/// A cell after its first quote, and what follows the comma after its last, if there is one.
fn unquoted(text: &str) -> Option<(String, Option<&str>)> {
    let mut cell = String::new();
    let mut rest = text;
    loop {
        let (part, after) = rest.split_once('"')?;
        cell.push_str(part);
        if let Some(after) = after.strip_prefix('"') {
            cell.push('"');
            rest = after;
            continue;
        }
        let after = after.trim_start();
        return match after.strip_prefix(',') {
            Some(next) => Some((cell, Some(next))),
            None if after.is_empty() => Some((cell, None)),
            None => None,
        };
    }
}

/// A cell in the form to write: in quotes where it could be read as something else. A line break, which would end the
/// line, becomes a space.
pub(super) fn quoted(text: &str) -> Cow<'_, str> {
    let breaks = text.contains(['\n', '\r']);
    let plain = !text.is_empty()
        && !text.contains(['"', ','])
        && text.trim() == text
        && !text.starts_with('#');
    match (plain, breaks) {
        (true, false) => Cow::Borrowed(text),
        _ => Cow::Owned(format!(
            "\"{}\"",
            text.replace('"', "\"\"").replace(['\n', '\r'], " ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Result<Vec<String>, String> {
        let mut all = Vec::new();
        let count = cells(line, 7, |index, cell| {
            assert_eq!(index, all.len());
            all.push(cell.into_owned());
            Ok(())
        });
        count.map_err(|error| error.to_string()).map(|count| {
            assert_eq!(count, all.len());
            all
        })
    }

    #[test]
    fn commas_and_quotes_separate_cells() {
        let cases: [(&str, &[&str]); 7] = [
            ("a,1, 2 ", &["a", "1", "2"]),
            ("a,", &["a", ""]),
            ("", &[""]),
            (r#""a,b" ,1"#, &["a,b", "1"]),
            (r#""say ""x""""#, &[r#"say "x""#]),
            (r#" "", "" "#, &["", ""]),
            (r#"a"b,1"#, &[r#"a"b"#, "1"]),
        ];
        for (line, expected) in cases {
            assert_eq!(split(line).expect(line), expected, "{line}");
        }
        for line in [r#""a"#, r#"1,"a""#.trim_end_matches('"'), r#""a"b,1"#] {
            let error = split(line).expect_err(line);
            assert!(
                error.starts_with("line 7: expected a quoted cell to end"),
                "{error}"
            );
        }
    }

    #[test]
    fn written_cells_are_read_back() {
        for name in ["a", "a,b", "say \"x\"", "", " a ", "#a", "\"", "ü,"] {
            let line = format!("{},1", quoted(name));
            assert_eq!(split(&line).expect("written"), [name, "1"], "{line}");
        }
        assert_eq!(quoted("a\nb"), "\"a b\"");
    }
}
