//! Time in sections: between two events the same buffers are live.
//!
//! A section lies between two neighbouring steps at which some buffer starts or ends. However long a run is, there are
//! fewer than two sections per buffer, and everything below works on their numbers.

use crate::problem::Buffer;

/// Sections in which a buffer is live, half-open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First section.
    pub start: u32,
    /// The section after the last.
    pub end: u32,
}

impl Span {
    /// Whether the two are live in a common section.
    pub fn overlaps(self, other: Self) -> bool {
        self.start < other.end && other.start < self.end
    }

    /// The sections, as indices.
    pub fn sections(self) -> std::ops::Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// The sections of a problem, and where each buffer lies in them.
#[derive(Clone, Debug)]
pub struct Timeline {
    steps: Vec<u64>,
    spans: Vec<Span>,
}

impl Timeline {
    pub(crate) fn new(buffers: &[Buffer]) -> Self {
        let mut steps: Vec<u64> = buffers
            .iter()
            .flat_map(|buffer| [buffer.start, buffer.end])
            .collect();
        steps.sort_unstable();
        steps.dedup();
        let section = |step: u64| {
            let index = steps.partition_point(|other| *other < step);
            u32::try_from(index).expect("fewer than 2^31 buffers have fewer than 2^32 events")
        };
        let spans = buffers
            .iter()
            .map(|buffer| Span {
                start: section(buffer.start),
                end: section(buffer.end),
            })
            .collect();
        Self { steps, spans }
    }

    /// Number of sections.
    pub fn sections(&self) -> usize {
        self.steps.len().saturating_sub(1)
    }

    /// The steps at which sections begin, and the end of the last: one more than there are sections.
    pub fn steps(&self) -> &[u64] {
        &self.steps
    }

    /// Each buffer's sections.
    pub fn spans(&self) -> &[Span] {
        &self.spans
    }
}

/// The sum of `sizes` in each of `sections` sections.
pub(crate) fn loads(sections: usize, sizes: impl Iterator<Item = (Span, u64)>) -> Vec<u64> {
    let mut change = vec![0_u64; sections + 1];
    for (span, size) in sizes {
        let (start, end) = (span.start as usize, span.end as usize);
        change[start] = change[start].wrapping_add(size);
        change[end] = change[end].wrapping_sub(size);
    }
    let mut load = 0_u64;
    change
        .iter()
        .take(sections)
        .map(|change| {
            load = load.wrapping_add(*change);
            load
        })
        .collect()
}

/// Largest values of ranges, in constant time.
pub(crate) struct RangeMaximum(Vec<Vec<u64>>);

impl RangeMaximum {
    pub(crate) fn new(values: Vec<u64>) -> Self {
        // Level k holds the maximums of 2^k values from each one on.
        let mut step = 1;
        let mut levels = vec![values];
        while 2 * step <= levels[0].len() {
            let below = &levels[levels.len() - 1];
            let level = below.iter().zip(&below[step..]).map(|(a, b)| *a.max(b));
            levels.push(level.collect());
            step *= 2;
        }
        Self(levels)
    }

    /// The largest value in the sections of `span`.
    pub(crate) fn over(&self, span: Span) -> u64 {
        let (start, end) = (span.start as usize, span.end as usize);
        let level = (end - start).ilog2() as usize;
        self.0[level][start].max(self.0[level][end - (1 << level)])
    }
}

/// Splits `members` where no member is live on both sides: members of different pieces never meet.
///
/// Pieces come in the order of time, members of a piece by their start.
pub(crate) fn pieces(spans: &[Span], members: impl Iterator<Item = usize>) -> Vec<Vec<usize>> {
    let mut members: Vec<usize> = members.collect();
    members.sort_by_key(|&member| (spans[member].start, member));
    let mut pieces: Vec<Vec<usize>> = Vec::new();
    let mut end = 0;
    for member in members {
        let span = spans[member];
        match pieces.last_mut() {
            Some(piece) if span.start < end => piece.push(member),
            _ => pieces.push(vec![member]),
        }
        end = end.max(span.end);
    }
    pieces
}
