//! In-place pairs: an output that may lie where its input lies.

use crate::{
    plan::OffsetPlan,
    problem::{Buffer, Problem},
};

/// A problem whose in-place pairs of equal size have become one buffer each.
pub(crate) struct Joined {
    pub(crate) problem: Problem,
    /// The original in which an input ends where its output begins: no plan that shares places is smaller than what
    /// this needs.
    pub(crate) relaxed: Problem,
    /// The joined buffer of each original one.
    joined: Vec<usize>,
}

/// Joins buffers of the same size that may share a place; `None` where there are none.
pub(crate) fn join(problem: &Problem) -> Option<Joined> {
    let buffers = problem.buffers();
    if buffers.iter().all(|buffer| buffer.in_place.is_none()) {
        return None;
    }
    // Inputs start before their outputs, so that in this order each input has been joined before its output asks.
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&buffer| buffers[buffer].start);
    let mut joined: Vec<usize> = vec![0; buffers.len()];
    let mut groups: Vec<Buffer> = Vec::new();
    // When all but the last member of a group have ended: the next one shares its place with the last alone.
    let mut others_end: Vec<u64> = Vec::new();
    let mut taken = vec![false; buffers.len()];
    let mut relaxed = buffers.to_vec();
    for number in order {
        let buffer = buffers[number];
        let input = buffer.in_place.filter(|&input| {
            relaxed[input].end = relaxed[input].end.min(buffer.start);
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
    for buffer in &mut relaxed {
        buffer.in_place = None;
    }
    let relaxed = Problem::new(relaxed).expect("ranges only became shorter, and not empty");
    // A joined buffer takes over its half's fixed offset for longer, where another fixed one may be, and what is fixed
    // where its input is no longer may be there: then none is joined.
    let (problem, joined) = match Problem::new(groups) {
        Ok(problem) => (problem, joined),
        Err(_) => (problem.clone(), (0..buffers.len()).collect()),
    };
    Some(Joined {
        problem,
        relaxed,
        joined,
    })
}

impl Joined {
    /// The plan of the original problem that a plan of the joined one stands for.
    pub(crate) fn expand(&self, problem: &Problem, plan: &OffsetPlan) -> OffsetPlan {
        let offsets = self.joined.iter().map(|&group| plan.offsets[group]);
        OffsetPlan::new(problem, offsets.collect())
    }
}
