//! Sets of the machine's CPUs, in the syntax of `taskset`.

use std::{fmt, str::FromStr, sync::Arc};

/// One more than the largest number of a CPU: what the kernel's masks of fixed size hold.
const MAX_CPUS: u32 = 1024;

/// A set of CPUs by their numbers on the machine; never empty. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CpuSet(Arc<[u32]>);

/// Why a text names no set of CPUs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}`: {reason}, expected CPUs as in 0-3, 0,2,4-7 or 0-14:2, below {MAX_CPUS}")]
pub struct InvalidCpuSet {
    text: String,
    reason: &'static str,
}

impl CpuSet {
    /// The set of these numbers, in any order; `None` if the list is empty, or a number is 1024 or larger.
    #[must_use]
    pub fn new(numbers: impl IntoIterator<Item = u32>) -> Option<Self> {
        let mut numbers: Vec<u32> = numbers.into_iter().collect();
        numbers.sort_unstable();
        numbers.dedup();
        let is_sound = numbers.last().is_some_and(|last| *last < MAX_CPUS);
        is_sound.then(|| Self(numbers.into()))
    }

    /// The numbers, ascending.
    pub fn numbers(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// How many CPUs there are; at least 1.
    #[must_use]
    pub fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(u32::MAX)
    }

    /// Whether this CPU is one of them.
    #[must_use]
    pub fn has(&self, number: u32) -> bool {
        self.0.binary_search(&number).is_ok()
    }
}

impl FromStr for CpuSet {
    type Err = InvalidCpuSet;

    /// `0-3`, `0,2,4-7`, and with a stride `0-14:2`. A CPU that is named twice is a mistake.
    fn from_str(text: &str) -> Result<Self, InvalidCpuSet> {
        let wrong = |reason| InvalidCpuSet {
            text: text.to_owned(),
            reason,
        };
        let number = |text: &str| -> Result<u32, InvalidCpuSet> {
            let number = text.trim().parse().map_err(|_| wrong("not a number"))?;
            match number < MAX_CPUS {
                true => Ok(number),
                false => Err(wrong("too large a number")),
            }
        };
        let mut numbers = Vec::new();
        for part in text.split(',') {
            let (range, stride) = match part.split_once(':') {
                Some((range, stride)) => (range, number(stride)?),
                None => (part, 1),
            };
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last) = (number(first)?, number(last)?);
            if last < first || stride == 0 {
                return Err(wrong("an empty range"));
            }
            numbers.extend((first..=last).step_by(stride as usize));
        }
        let named = numbers.len();
        let set = Self::new(numbers).ok_or_else(|| wrong("no CPU"))?;
        match set.0.len() == named {
            true => Ok(set),
            false => Err(wrong("a CPU is named twice")),
        }
    }
}

impl fmt::Display for CpuSet {
    /// With ranges, as in `0-3,8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = &*self.0;
        let mut separator = "";
        while let Some(first) = left.first() {
            let run = left.iter().zip(*first..).take_while(|(a, b)| **a == *b);
            let length = run.count();
            write!(f, "{separator}{first}")?;
            if length > 1 {
                write!(f, "-{}", left[length - 1])?;
            }
            (left, separator) = (&left[length..], ",");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_those_of_taskset() {
        for (text, shown, count) in [
            ("0", "0", 1),
            ("0-3", "0-3", 4),
            ("4-7,0, 2", "0,2,4-7", 6),
            ("0-14:4,1", "0-1,4,8,12", 5),
            ("1023", "1023", 1),
        ] {
            let set: CpuSet = text.parse().expect(text);
            assert_eq!((set.to_string(), set.count()), (shown.to_owned(), count));
        }
        let set: CpuSet = "1,3".parse().expect("a set");
        assert_eq!(
            [0, 1, 2, 3].map(|cpu| set.has(cpu)),
            [false, true, false, true]
        );
        assert_eq!(set.numbers().collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn what_names_no_set_says_why() {
        for (text, reason) in [
            ("", "not a number"),
            ("a", "not a number"),
            ("-1", "not a number"),
            ("0-", "not a number"),
            ("0,,1", "not a number"),
            ("3-0", "an empty range"),
            ("0-3:0", "an empty range"),
            ("0-2,2", "a CPU is named twice"),
            ("1024", "too large a number"),
            ("0-4294967295", "too large a number"),
            ("0:9999", "too large a number"),
        ] {
            let error = text.parse::<CpuSet>().expect_err(text).to_string();
            assert!(
                error.starts_with(&format!("`{text}`: {reason}, ")),
                "{error}"
            );
        }
        assert_eq!(CpuSet::new([]), None);
        assert_eq!(CpuSet::new([0, 1024]), None);
    }
}
