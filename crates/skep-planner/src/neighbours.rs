//! Who is live together with whom, in linear memory: lists of all pairs would be quadratic.

use crate::{problem::Problem, timeline::Span};

/// Entries of all checkpoints together, a buffer.
const ENTRIES_A_BUFFER: usize = 16;
/// Checkpoints nearer to each other than this many sections save nothing more.
const NEAREST: usize = 8;

/// The buffers that take memory by their start, and at checkpoints of the time axis those that are live.
///
/// What is live together with a buffer is live at the checkpoint before its start, or begins after that checkpoint and
/// before its end.
pub(crate) struct Neighbours {
    spans: Vec<Span>,
    by_start: Vec<u32>,
    /// For each section, how many buffers start before it.
    started: Vec<u32>,
    /// Sections between two checkpoints.
    stride: usize,
    live: Vec<Vec<u32>>,
}

impl Neighbours {
    pub(crate) fn new(problem: &Problem) -> Self {
        let spans = problem.timeline().spans().to_vec();
        let sections = problem.timeline().sections();
        let mut by_start: Vec<u32> = problem
            .sized()
            .map(|buffer| u32::try_from(buffer).expect("fewer than 2^31 buffers"))
            .collect();
        by_start.sort_by_key(|&buffer| spans[buffer as usize].start);
        let mut started = vec![0_u32; sections + 2];
        for &buffer in &by_start {
            started[spans[buffer as usize].start as usize + 1] += 1;
        }
        for section in 1..started.len() {
            started[section] += started[section - 1];
        }
        let most = ENTRIES_A_BUFFER * problem.len();
        let mut stride = NEAREST;
        while entries(problem, stride) > most && stride < sections {
            stride *= 2;
        }
        let mut live = vec![Vec::new(); sections.div_ceil(stride).max(1)];
        for &buffer in &by_start {
            for checkpoint in checkpoints(spans[buffer as usize], stride) {
                live[checkpoint].push(buffer);
            }
        }
        Self {
            spans,
            by_start,
            started,
            stride,
            live,
        }
    }

    /// Each buffer that is live together with `buffer`, which takes memory.
    pub(crate) fn of(&self, buffer: usize) -> impl Iterator<Item = usize> + '_ {
        let span = self.spans[buffer];
        let checkpoint = span.start as usize / self.stride;
        // Those that start at the checkpoint are live there.
        let first = self.started[checkpoint * self.stride + 1] as usize;
        let last = self.started[span.end as usize] as usize;
        let begun = &self.by_start[first..last];
        self.live[checkpoint]
            .iter()
            .chain(begun)
            .map(|&other| other as usize)
            .filter(move |&other| other != buffer && self.spans[other].overlaps(span))
    }
}

/// The checkpoints at which a buffer is live.
fn checkpoints(span: Span, stride: usize) -> std::ops::Range<usize> {
    (span.start as usize).div_ceil(stride)..(span.end as usize).div_ceil(stride)
}

/// Entries of all checkpoints with this stride.
fn entries(problem: &Problem, stride: usize) -> usize {
    problem
        .sized()
        .map(|buffer| checkpoints(problem.span(buffer), stride).len())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{problem::Buffer, splitmix::SplitMix};

    #[test]
    fn each_neighbour_is_found_once() {
        let mut random = SplitMix(5);
        for longest in [1, 4, 40, 400] {
            let buffers = (0..300).map(|_| {
                let start = random.below(300);
                Buffer::new(random.below(4), start, start + 1 + random.below(longest))
            });
            let problem = Problem::new(buffers.collect()).expect("valid buffers");
            let neighbours = Neighbours::new(&problem);
            for buffer in problem.sized() {
                let mut found: Vec<usize> = neighbours.of(buffer).collect();
                found.sort_unstable();
                let expected: Vec<usize> = problem
                    .sized()
                    .filter(|&other| {
                        other != buffer && problem.span(other).overlaps(problem.span(buffer))
                    })
                    .collect();
                assert_eq!(found, expected);
            }
        }
    }
}
