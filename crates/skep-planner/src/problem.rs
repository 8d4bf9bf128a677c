//! What is to be planned: buffers with sizes and live ranges, and the invariants that every planner relies on.

use crate::timeline::{Span, Timeline};

/// One usage record: a tensor that needs memory for part of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// Bytes. Zero is allowed and takes no memory.
    pub size: u64,
    /// First step at which the buffer is live.
    pub start: u64,
    /// The step after the last one at which it is live: the range is half-open.
    pub end: u64,
    /// Its offset is a multiple of this power of two.
    pub alignment: u64,
    /// The offset that it must have: a buffer that must not move.
    pub fixed: Option<u64>,
    /// The buffer whose place this one may take while both are live, such as the input of an element-wise operator for
    /// its output. Sharing is all or nothing: the same offset, or no common byte.
    pub in_place: Option<usize>,
}

impl Buffer {
    /// `size` bytes, live in `start..end`, anywhere.
    pub const fn new(size: u64, start: u64, end: u64) -> Self {
        Self {
            size,
            start,
            end,
            alignment: 1,
            fixed: None,
            in_place: None,
        }
    }

    /// At a multiple of `alignment`, a power of two.
    #[must_use]
    pub const fn aligned(self, alignment: u64) -> Self {
        Self { alignment, ..self }
    }

    /// At this offset and no other.
    #[must_use]
    pub const fn at(self, offset: u64) -> Self {
        Self {
            fixed: Some(offset),
            ..self
        }
    }

    /// Allowed to lie exactly where buffer number `input` lies.
    #[must_use]
    pub const fn in_place_of(self, input: usize) -> Self {
        Self {
            in_place: Some(input),
            ..self
        }
    }
}

/// Why a list of buffers is not a problem that can be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProblemError {
    /// A live range without a step.
    #[error("buffer {buffer} has the empty live range {at}..{at}, expected at least one step")]
    EmptyRange {
        /// Position in the list.
        buffer: usize,
        /// Where it starts and ends.
        at: u64,
    },
    /// A live range that ends before it starts.
    #[error("buffer {buffer} has the live range {start}..{end}, expected an end after the start")]
    InvertedRange {
        /// Position in the list.
        buffer: usize,
        /// Its first step.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// An alignment that is not a power of two.
    #[error("buffer {buffer} has alignment {alignment}, expected a power of two")]
    Alignment {
        /// Position in the list.
        buffer: usize,
        /// What was asked for.
        alignment: u64,
    },
    /// Sizes so large that offsets could not be counted.
    #[error(
        "sizes up to buffer {buffer} add up to 2^62 bytes or more with their alignment, expected less"
    )]
    Overflow {
        /// The first buffer with which the sum is too large.
        buffer: usize,
    },
    /// A fixed offset that contradicts the buffer's alignment.
    #[error(
        "buffer {buffer} is fixed at {offset}, expected a multiple of its alignment {alignment}"
    )]
    FixedUnaligned {
        /// Position in the list.
        buffer: usize,
        /// Its offset.
        offset: u64,
        /// Its alignment.
        alignment: u64,
    },
    /// Two fixed buffers that are live together and share bytes.
    #[error("buffers {first} and {second} are live together, and fixed where they overlap")]
    FixedOverlap {
        /// Position of one.
        first: usize,
        /// Position of the other.
        second: usize,
    },
    /// An in-place pair whose second half does not come later.
    #[error(
        "buffer {buffer} may take the place of buffer {input}, expected one that starts before it"
    )]
    InPlace {
        /// Position of the output.
        buffer: usize,
        /// Position of its input, as given.
        input: usize,
    },
    /// More buffers than can be counted in 31 bits.
    #[error("{count} buffers, expected fewer than 2^31")]
    TooMany {
        /// How many there are.
        count: usize,
    },
}

/// Sums stay below this, so that no offset that a planner can reach overflows, signed or not.
const MAX_TOTAL: u64 = 1 << 62;

/// Buffers that can be planned: every invariant that [`ProblemError`] names holds.
#[derive(Clone, Debug)]
pub struct Problem {
    buffers: Vec<Buffer>,
    timeline: Timeline,
}

impl Problem {
    /// Checks `buffers`.
    ///
    /// # Errors
    /// Names the first buffer that breaks an invariant.
    pub fn new(buffers: Vec<Buffer>) -> Result<Self, ProblemError> {
        if u32::try_from(buffers.len()).is_ok_and(|count| count < 1 << 31) {
            check(&buffers)?;
            let timeline = Timeline::new(&buffers);
            let problem = Self { buffers, timeline };
            problem.check_fixed()?;
            Ok(problem)
        } else {
            Err(ProblemError::TooMany {
                count: buffers.len(),
            })
        }
    }

    /// The buffers, as given.
    pub fn buffers(&self) -> &[Buffer] {
        &self.buffers
    }

    /// Number of buffers.
    pub fn len(&self) -> usize {
        self.buffers.len()
    }

    /// Whether there is nothing to plan.
    pub fn is_empty(&self) -> bool {
        self.buffers.is_empty()
    }

    /// Live ranges as sections of the time axis.
    pub fn timeline(&self) -> &Timeline {
        &self.timeline
    }

    /// The live range of a buffer, in sections.
    pub(crate) fn span(&self, buffer: usize) -> Span {
        self.timeline.spans()[buffer]
    }

    /// Numbers of the buffers that take memory, in their order.
    pub(crate) fn sized(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        (0..self.len()).filter(|&buffer| self.buffers[buffer].size > 0)
    }

    /// Whether these two may lie at one offset although both are live.
    pub(crate) fn may_share(&self, first: usize, second: usize) -> bool {
        self.buffers[first].in_place == Some(second) || self.buffers[second].in_place == Some(first)
    }

    /// Fixed buffers must not contradict each other: a sweep over time keeps the live ones by offset.
    fn check_fixed(&self) -> Result<(), ProblemError> {
        let fixed: Vec<(usize, u64)> = self
            .sized()
            .filter_map(|buffer| Some((buffer, self.buffers[buffer].fixed?)))
            .collect();
        crate::validate::first_overlap(self, &fixed).map_or(Ok(()), |(first, second)| {
            Err(ProblemError::FixedOverlap { first, second })
        })
    }
}

fn check(buffers: &[Buffer]) -> Result<(), ProblemError> {
    let mut total = 0_u64;
    for (number, buffer) in buffers.iter().enumerate() {
        let &Buffer { start, end, .. } = buffer;
        if start == end {
            return Err(ProblemError::EmptyRange {
                buffer: number,
                at: start,
            });
        }
        if start > end {
            return Err(ProblemError::InvertedRange {
                buffer: number,
                start,
                end,
            });
        }
        if !buffer.alignment.is_power_of_two() {
            return Err(ProblemError::Alignment {
                buffer: number,
                alignment: buffer.alignment,
            });
        }
        let offset = buffer.fixed.unwrap_or(0);
        if offset % buffer.alignment != 0 {
            return Err(ProblemError::FixedUnaligned {
                buffer: number,
                offset,
                alignment: buffer.alignment,
            });
        }
        total = [buffer.size, buffer.alignment - 1, offset]
            .into_iter()
            .try_fold(total, u64::checked_add)
            .filter(|total| *total < MAX_TOTAL)
            .ok_or(ProblemError::Overflow { buffer: number })?;
        if let Some(input) = buffer.in_place
            && buffers.get(input).is_none_or(|input| input.start >= start)
        {
            return Err(ProblemError::InPlace {
                buffer: number,
                input,
            });
        }
    }
    Ok(())
}
