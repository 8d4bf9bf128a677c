//! A problem whose buffers have names.

use std::collections::HashMap;

use crate::{Buffer, Problem, ProblemError};

/// A problem, and the name of each of its buffers. Names differ.
#[derive(Clone, Debug)]
pub struct UsageRecords {
    names: Vec<String>,
    problem: Problem,
}

/// Why named buffers cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UsageRecordsError {
    /// Two buffers have the same name: a plan by name could not tell them apart.
    #[error("buffers {first} and {second} are both called `{name}`, expected names that differ")]
    Duplicate {
        /// The name, shortened where it is long.
        name: String,
        /// Position of the first, from 0.
        first: usize,
        /// Position of the second, from 0.
        second: usize,
    },
    /// A buffer breaks an invariant of [`Problem`].
    #[error("{text}")]
    Problem {
        /// The invariant, with names in place of numbers, shortened where they are long.
        text: String,
        /// The same; it numbers buffers from 0.
        reason: ProblemError,
    },
}

impl UsageRecordsError {
    /// Position of the buffer that the error is about, if it is about one.
    pub fn buffer(&self) -> Option<usize> {
        match *self {
            Self::Duplicate { second, .. } => Some(second),
            Self::Problem { ref reason, .. } => position(reason),
        }
    }
}

impl UsageRecords {
    /// Checks names and buffers.
    ///
    /// # Errors
    /// Two buffers have one name, or [`Problem::new`] refuses the buffers.
    pub fn new(named: Vec<(String, Buffer)>) -> Result<Self, UsageRecordsError> {
        let (names, buffers): (Vec<String>, Vec<Buffer>) = named.into_iter().unzip();
        if let Some((first, second)) = duplicate(&names) {
            return Err(UsageRecordsError::Duplicate {
                name: shortened_name(&names[second]),
                first,
                second,
            });
        }
        match Problem::new(buffers) {
            Ok(problem) => Ok(Self { names, problem }),
            Err(reason) => Err(UsageRecordsError::Problem {
                text: in_words(&reason, &names),
                reason,
            }),
        }
    }

    /// One name for each buffer, in the problem's order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The buffers to plan.
    pub fn problem(&self) -> &Problem {
        &self.problem
    }
}

/// The beginning of a buffer's name, as much as fits a line of an error.
pub fn shortened_name(name: &str) -> String {
    const MAX_CHARS: usize = 80;
    match name.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &name[..end]),
        None => name.to_owned(),
    }
}

/// Positions of the first two equal names.
fn duplicate(names: &[String]) -> Option<(usize, usize)> {
    let mut seen = HashMap::with_capacity(names.len());
    names
        .iter()
        .enumerate()
        .find_map(|(position, name)| Some((seen.insert(name, position)?, position)))
}

/// What is wrong, with names in place of numbers.
fn in_words(error: &ProblemError, names: &[String]) -> String {
    let name = |buffer: usize| format!("`{}`", shortened_name(&names[buffer]));
    match *error {
        ProblemError::EmptyRange { buffer, at } => format!(
            "buffer {} has the empty live range {at}..{at}, expected at least one step",
            name(buffer)
        ),
        ProblemError::InvertedRange { buffer, start, end } => format!(
            "buffer {} has the live range {start}..{end}, expected an end after the start",
            name(buffer)
        ),
        ProblemError::Alignment { buffer, alignment } => format!(
            "buffer {} has alignment {alignment}, expected a power of two",
            name(buffer)
        ),
        ProblemError::Overflow { buffer } => format!(
            "sizes up to buffer {} add up to 2^62 bytes or more with their alignment, expected less",
            name(buffer)
        ),
        ProblemError::FixedUnaligned {
            buffer,
            offset,
            alignment,
        } => format!(
            "buffer {} is fixed at {offset}, expected a multiple of its alignment {alignment}",
            name(buffer)
        ),
        ProblemError::FixedOverlap { first, second } => format!(
            "buffers {} and {} are live together, and fixed where they overlap",
            name(first),
            name(second)
        ),
        // The input's number need not be a buffer's.
        ProblemError::InPlace { buffer, input } => {
            let input = match names.get(input) {
                Some(_) => name(input),
                None => input.to_string(),
            };
            format!(
                "buffer {} may take the place of buffer {input}, expected one that starts before it",
                name(buffer)
            )
        }
        _ => error.to_string(),
    }
}

/// The buffer that an error is about.
fn position(error: &ProblemError) -> Option<usize> {
    match *error {
        ProblemError::EmptyRange { buffer, .. }
        | ProblemError::InvertedRange { buffer, .. }
        | ProblemError::Alignment { buffer, .. }
        | ProblemError::Overflow { buffer }
        | ProblemError::FixedUnaligned { buffer, .. }
        | ProblemError::InPlace { buffer, .. } => Some(buffer),
        ProblemError::FixedOverlap { second, .. } => Some(second),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records(named: &[(&str, Buffer)]) -> Result<UsageRecords, String> {
        let named = named
            .iter()
            .map(|(name, buffer)| ((*name).to_owned(), *buffer));
        UsageRecords::new(named.collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_stay_with_their_buffers() {
        let (first, second) = (Buffer::new(4, 0, 3), Buffer::new(8, 2, 9));
        let records = records(&[("b1", first), ("b2", second)]).expect("valid");
        assert_eq!(records.names(), ["b1", "b2"]);
        assert_eq!(records.problem().buffers(), [first, second]);
        assert!(
            UsageRecords::new(Vec::new())
                .expect("valid")
                .problem()
                .is_empty()
        );
    }

    #[test]
    fn errors_name_the_buffers() {
        let buffer = Buffer::new(4, 0, 3);
        assert_eq!(
            records(&[("a", buffer), ("b", buffer), ("a", buffer)]).expect_err("a twice"),
            "buffers 0 and 2 are both called `a`, expected names that differ"
        );
        assert_eq!(
            records(&[("a", buffer), ("b", Buffer::new(4, 3, 3))]).expect_err("no step"),
            "buffer `b` has the empty live range 3..3, expected at least one step"
        );
        let long = "x".repeat(100);
        let error = records(&[(&long, Buffer::new(1 << 62, 0, 1))]).expect_err("too large");
        assert!(
            error.starts_with(&format!(
                "sizes up to buffer `{}...` add up",
                "x".repeat(80)
            )),
            "{error}"
        );
    }
}
