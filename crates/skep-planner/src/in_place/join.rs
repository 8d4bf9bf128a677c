//! Joining: as many in-place pairs of equal size as go together, each as one buffer.

use crate::{
    plan::OffsetPlan,
    problem::{Buffer, Problem},
};

/// A problem whose in-place pairs of equal size have become one buffer each.
pub(crate) struct Joined {
    pub(crate) problem: Problem,
    /// The joined buffer of each original one.
    joined: Vec<usize>,
}

/// Joins buffers of the same size that may share a place; `None` where that contradicts fixed ones.
pub(crate) fn join(problem: &Problem) -> Option<Joined> {
    let buffers = problem.buffers();
    // Inputs start before their outputs, so that in this order each input has been joined before its output asks.
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&buffer| buffers[buffer].start);
    let mut joined: Vec<usize> = vec![0; buffers.len()];
    let mut groups: Vec<Buffer> = Vec::new();
    // When all but the last member of a group have ended: the next one shares its place with the last alone.
    let mut others_end: Vec<u64> = Vec::new();
    let mut taken = vec![false; buffers.len()];
    for number in order {
        let buffer = buffers[number];
        let input = buffer.in_place.filter(|&input| {
            let group = &groups[joined[input]];
            // Not where a third one would be in the way: the input's place is taken, or lives on beyond the output.
            !taken[input]
                && buffers[input].size == buffer.size
                && buffers[input].end <= buffer.end
                && others_end[joined[input]] <= buffer.start
                && buffer.start < buffers[input].end
                && (group.fixed.is_none() || buffer.fixed.is_none() || group.fixed == buffer.fixed)
        });
        let Some(input) = input else {
            joined[number] = groups.len();
            others_end.push(0);
            groups.push(Buffer {
                in_place: None,
                ..buffer
            });
            continue;
        };
        taken[input] = true;
        joined[number] = joined[input];
        others_end[joined[input]] = others_end[joined[input]].max(buffers[input].end);
        let group = &mut groups[joined[input]];
        group.end = buffer.end;
        group.alignment = group.alignment.max(buffer.alignment);
        group.fixed = group.fixed.or(buffer.fixed);
    }
    // A joined buffer takes over its half's fixed offset for longer, where another fixed one may be, and what is fixed
    // where its input is no longer may be there: then none is joined.
    let problem = Problem::new(groups).ok()?;
    Some(Joined { problem, joined })
}

impl Joined {
    /// The plan of the original problem that a plan of the joined one stands for.
    pub(crate) fn expand(&self, problem: &Problem, plan: &OffsetPlan) -> OffsetPlan {
        let offsets = self.joined.iter().map(|&group| plan.offsets[group]);
        OffsetPlan::new(problem, offsets.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many buffers are left of an input and its output.
    fn left(input: Buffer, output: Buffer) -> usize {
        let problem = Problem::new(vec![input, output.in_place_of(0)]).expect("valid buffers");
        join(&problem).expect("no contradiction").problem.len()
    }

    #[test]
    fn halves_that_are_live_together_are_joined() {
        let input = Buffer::new(8, 0, 4);
        assert_eq!(left(input, Buffer::new(8, 3, 6)), 1);
        assert_eq!(left(input, Buffer::new(8, 4, 6)), 2, "no longer live");
        assert_eq!(left(input, Buffer::new(4, 3, 6)), 2, "of another size");
        assert_eq!(
            left(input, Buffer::new(8, 2, 3)),
            2,
            "over before its input"
        );
    }

    #[test]
    fn fixed_halves_are_joined_where_they_are_in_one_place() {
        let (input, output) = (Buffer::new(8, 0, 4), Buffer::new(8, 3, 6));
        assert_eq!(left(input.at(8), output), 1);
        assert_eq!(left(input, output.at(8)), 1);
        assert_eq!(left(input.at(8), output.at(8)), 1);
        assert_eq!(left(input.at(8), output.at(16)), 2);
    }
}
