//! Problems without pairs that stand for what has been decided about the pairs of another.

use crate::{
    plan::OffsetPlan,
    problem::{Buffer, Problem, ProblemError},
    validate,
};

/// What a pair does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// Either.
    Open,
    /// The output lies where its input lies.
    Shared,
    /// They share no byte.
    Apart,
}

/// The pairs whose halves are live together: input and output, in the order in which the outputs start.
pub(super) struct Pairs(Vec<(usize, usize)>);

/// What some decisions come to.
pub(super) enum Relaxation {
    /// No plan has these decisions.
    Impossible,
    /// No plan with these decisions is smaller than the plans of this problem.
    Problem(Relaxed),
    /// The sums of such a problem are too large to be counted.
    Unknown,
}

/// The problem for some decisions.
pub(super) struct Relaxed {
    pub(super) problem: Problem,
    /// For each original buffer the one that says where it lies.
    speaker: Vec<Option<usize>>,
}

/// Buffers that count as one: of one size, in one place.
#[derive(Clone)]
struct Group {
    buffer: Buffer,
    /// The ranges in which it counts.
    ranges: Vec<(u64, u64)>,
    /// The larger group at whose offset it lies if it counts nowhere.
    covered_by: usize,
}

impl Pairs {
    pub(super) fn of(problem: &Problem) -> Self {
        let buffers = problem.buffers();
        let mut pairs: Vec<(usize, usize)> = problem
            .sized()
            .filter_map(|output| Some((buffers[output].in_place?, output)))
            .filter(|&(input, output)| {
                buffers[input].size > 0 && buffers[input].end > buffers[output].start
            })
            .collect();
        pairs.sort_by_key(|&(_, output)| buffers[output].start);
        Self(pairs)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The open pair that has most to share.
    pub(super) fn next_open(&self, problem: &Problem, decisions: &[Decision]) -> Option<usize> {
        let size = |buffer: usize| problem.buffers()[buffer].size;
        let open = (0..self.len()).filter(|&pair| decisions[pair] == Decision::Open);
        open.max_by_key(|&pair| {
            let (input, output) = self.0[pair];
            (size(input).min(size(output)), std::cmp::Reverse(pair))
        })
    }

    /// The problem that a plan with these decisions solves as well.
    pub(super) fn relaxed(&self, problem: &Problem, decisions: &[Decision]) -> Relaxation {
        let buffers = problem.buffers();
        // Where inputs come first, an input has its place and its group before its output asks.
        let mut places: Vec<usize> = (0..buffers.len()).collect();
        let mut groups = places.clone();
        for (&(input, output), decision) in self.0.iter().zip(decisions) {
            if *decision == Decision::Shared {
                places[output] = places[input];
                if buffers[input].size == buffers[output].size {
                    groups[output] = groups[input];
                }
            }
        }
        let Some(placed) = placed(problem, &places) else {
            return Relaxation::Impossible;
        };
        let mut members: Vec<Option<Group>> = vec![None; buffers.len()];
        for (number, buffer) in buffers.iter().enumerate() {
            let (fixed, alignment) = placed[places[number]];
            let (start, end) = (buffer.start, buffer.end);
            let group = members[groups[number]].get_or_insert_with(|| Group {
                buffer: Buffer {
                    fixed,
                    alignment,
                    in_place: None,
                    ..*buffer
                },
                ranges: vec![(start, end)],
                covered_by: groups[number],
            });
            let (from, to) = group.ranges[0];
            group.ranges[0] = (from.min(start), to.max(end));
        }
        for (&(input, output), decision) in self.0.iter().zip(decisions) {
            let (larger, smaller) = if buffers[output].size < buffers[input].size {
                (groups[input], groups[output])
            } else {
                (groups[output], groups[input])
            };
            if *decision == Decision::Apart || larger == smaller {
                continue;
            }
            let start = buffers[output].start;
            let end = buffers[output].end.min(buffers[input].end);
            if let Some(group) = &mut members[smaller] {
                group.ranges = without(&group.ranges, start, end);
                group.covered_by = larger;
            }
        }
        assembled(&groups, &members)
    }
}

/// The fixed offset and the alignment of each place; `None` if what shares one cannot.
fn placed(problem: &Problem, places: &[usize]) -> Option<Vec<(Option<u64>, u64)>> {
    let buffers = problem.buffers();
    let mut members: Vec<Vec<usize>> = vec![Vec::new(); buffers.len()];
    let mut placed = vec![(None, 1); buffers.len()];
    for (number, buffer) in buffers.iter().enumerate() {
        let place = places[number];
        let (fixed, alignment) = &mut placed[place];
        if buffer.fixed.is_some() && fixed.is_some() && *fixed != buffer.fixed {
            return None;
        }
        *fixed = fixed.or(buffer.fixed);
        *alignment = buffer.alignment.max(*alignment);
        let is_in_the_way = |&other: &usize| {
            let both_live = buffers[other].start < buffer.end && buffer.start < buffers[other].end;
            both_live && !problem.may_share(number, other)
        };
        if members[place].iter().any(is_in_the_way) {
            return None;
        }
        members[place].push(number);
    }
    Some(placed)
}

fn assembled(groups: &[usize], members: &[Option<Group>]) -> Relaxation {
    let mut list = Vec::new();
    let mut first: Vec<Option<usize>> = vec![None; members.len()];
    for (number, group) in members.iter().enumerate() {
        let Some(group) = group else { continue };
        for &(start, end) in &group.ranges {
            first[number] = first[number].or(Some(list.len()));
            list.push(Buffer {
                start,
                end,
                ..group.buffer
            });
        }
    }
    let speaker = groups
        .iter()
        .map(|&group| {
            let own = members[group].as_ref();
            first[group].or_else(|| first[own?.covered_by])
        })
        .collect();
    match Problem::new(list) {
        Ok(problem) => Relaxation::Problem(Relaxed { problem, speaker }),
        // What is fixed in one place at one time, or where another one of its place cannot be.
        Err(ProblemError::FixedOverlap { .. } | ProblemError::FixedUnaligned { .. }) => {
            Relaxation::Impossible
        }
        Err(_) => Relaxation::Unknown,
    }
}

impl Relaxed {
    /// The plan of the original problem that this plan stands for, if it stands for one.
    pub(super) fn plan(&self, original: &Problem, plan: &OffsetPlan) -> Option<OffsetPlan> {
        let offsets = self.speaker.iter().zip(original.buffers());
        let offsets = offsets.map(|(speaker, buffer)| {
            let offset = speaker.map(|speaker| plan.offsets[speaker]);
            buffer.fixed.or(offset).unwrap_or(0)
        });
        let plan = OffsetPlan::new(original, offsets.collect());
        validate::validate_offsets(original, &plan)
            .is_ok()
            .then_some(plan)
    }
}

/// What is left of `ranges` outside `start..end`.
fn without(ranges: &[(u64, u64)], start: u64, end: u64) -> Vec<(u64, u64)> {
    ranges
        .iter()
        .flat_map(|&(from, to)| [(from, to.min(start)), (from.max(end), to)])
        .filter(|(from, to)| from < to)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_out_leaves_both_sides() {
        let ranges = [(0, 10), (20, 30)];
        assert_eq!(without(&ranges, 3, 5), [(0, 3), (5, 10), (20, 30)]);
        assert_eq!(without(&ranges, 0, 10), [(20, 30)]);
        assert_eq!(without(&ranges, 5, 25), [(0, 5), (25, 30)]);
        assert_eq!(without(&ranges, 10, 20), ranges);
    }
}
