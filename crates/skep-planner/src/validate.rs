//! Checks every plan by live ranges and bytes alone, whatever planner made it.

use std::collections::BTreeSet;

use crate::{
    plan::{ObjectPlan, OffsetPlan, Plan},
    problem::Problem,
};

/// What is wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidPlan {
    /// A plan for another number of buffers.
    #[error("the plan has {got} buffers, expected {expected}")]
    Count {
        /// In the plan.
        got: usize,
        /// In the problem.
        expected: usize,
    },
    /// An offset that is not a multiple of the alignment.
    #[error("buffer {buffer} lies at {offset}, expected a multiple of {alignment}")]
    Alignment {
        /// Position in the problem.
        buffer: usize,
        /// Where it lies.
        offset: u64,
        /// What its offset should be a multiple of.
        alignment: u64,
    },
    /// A fixed buffer that moved.
    #[error("buffer {buffer} lies at {got}, expected {expected}, where it is fixed")]
    Moved {
        /// Position in the problem.
        buffer: usize,
        /// Where it lies.
        got: u64,
        /// Where it should.
        expected: u64,
    },
    /// A buffer that ends beyond the plan's size.
    #[error("the plan says {got} bytes, its buffers need {expected}")]
    Size {
        /// What the plan says.
        got: u64,
        /// Where the highest buffer ends.
        expected: u64,
    },
    /// Two buffers that are live together and share bytes, or an object.
    #[error("buffers {first} and {second} are live together and share memory")]
    Overlap {
        /// Position of one.
        first: usize,
        /// Position of the other.
        second: usize,
    },
    /// An object that does not exist, or is smaller than a buffer in it.
    #[error("buffer {buffer} does not fit into object {object}")]
    Object {
        /// Position in the problem.
        buffer: usize,
        /// The object's index.
        object: usize,
    },
    /// Objects cannot say where a buffer lies.
    #[error("buffer {buffer} is fixed, which a plan of shared objects cannot express")]
    FixedInObject {
        /// Position in the problem.
        buffer: usize,
    },
}

/// Checks a plan of either kind against the problem that it is for.
///
/// # Errors
/// The first thing found wrong.
pub fn validate(problem: &Problem, plan: &Plan) -> Result<(), InvalidPlan> {
    match plan {
        Plan::Offsets(plan) => validate_offsets(problem, plan),
        Plan::Objects(plan) => validate_objects(problem, plan),
    }
}

/// Checks that buffers which are live together share no byte, that each lies where it may, and the plan's size.
///
/// # Errors
/// The first thing found wrong.
pub fn validate_offsets(problem: &Problem, plan: &OffsetPlan) -> Result<(), InvalidPlan> {
    count(problem, plan.offsets.len())?;
    let mut expected = 0;
    for (number, (buffer, &offset)) in problem.buffers().iter().zip(&plan.offsets).enumerate() {
        if buffer.size == 0 {
            continue;
        }
        if offset % buffer.alignment != 0 {
            return Err(InvalidPlan::Alignment {
                buffer: number,
                offset,
                alignment: buffer.alignment,
            });
        }
        if let Some(fixed) = buffer.fixed
            && fixed != offset
        {
            return Err(InvalidPlan::Moved {
                buffer: number,
                got: offset,
                expected: fixed,
            });
        }
        expected = expected.max(offset.saturating_add(buffer.size));
    }
    // An arena of shared objects may end with an object larger than what the plan puts into it last.
    if plan.size < expected {
        return Err(InvalidPlan::Size {
            got: plan.size,
            expected,
        });
    }
    let placed: Vec<(usize, u64)> = problem
        .sized()
        .map(|buffer| (buffer, plan.offsets[buffer]))
        .collect();
    match first_overlap(problem, &placed) {
        Some((first, second)) => Err(InvalidPlan::Overlap { first, second }),
        None => Ok(()),
    }
}

/// Checks that buffers which are live together have different objects, and that each fits into its object.
///
/// # Errors
/// The first thing found wrong.
pub fn validate_objects(problem: &Problem, plan: &ObjectPlan) -> Result<(), InvalidPlan> {
    count(problem, plan.objects.len())?;
    let mut tenants: Vec<Vec<usize>> = vec![Vec::new(); plan.sizes.len()];
    for (number, (buffer, &object)) in problem.buffers().iter().zip(&plan.objects).enumerate() {
        if plan
            .sizes
            .get(object)
            .is_none_or(|size| *size < buffer.size)
        {
            return Err(InvalidPlan::Object {
                buffer: number,
                object,
            });
        }
        if buffer.fixed.is_some() {
            return Err(InvalidPlan::FixedInObject { buffer: number });
        }
        tenants[object].push(number);
    }
    for tenants in &mut tenants {
        tenants.sort_by_key(|&tenant| problem.buffers()[tenant].start);
        for pair in tenants.windows(2) {
            if problem.buffers()[pair[0]].end > problem.buffers()[pair[1]].start {
                return Err(InvalidPlan::Overlap {
                    first: pair[0],
                    second: pair[1],
                });
            }
        }
    }
    Ok(())
}

fn count(problem: &Problem, got: usize) -> Result<(), InvalidPlan> {
    let expected = problem.len();
    if got == expected {
        Ok(())
    } else {
        Err(InvalidPlan::Count { got, expected })
    }
}

/// The first two of these placed buffers that share a byte while both are live, and may not.
///
/// A sweep over time that keeps the live buffers by offset; until a pair is found they are disjoint, so that only
/// neighbours can overlap.
pub(crate) fn first_overlap(problem: &Problem, placed: &[(usize, u64)]) -> Option<(usize, usize)> {
    // Ends before starts at one step: ranges are half-open.
    let mut events: Vec<(u64, bool, usize, u64)> = Vec::with_capacity(2 * placed.len());
    for &(number, offset) in placed {
        let buffer = &problem.buffers()[number];
        events.push((buffer.start, true, number, offset));
        events.push((buffer.end, false, number, offset));
    }
    events.sort_unstable();
    let mut live: BTreeSet<(u64, usize)> = BTreeSet::new();
    for (_, starts, number, offset) in events {
        if !starts {
            live.remove(&(offset, number));
            continue;
        }
        let end = offset.saturating_add(problem.buffers()[number].size);
        // Buffers in place of each other lie at one offset, so below there may be several of which one reaches up.
        let below = live.range(..(offset, 0)).next_back().map(|found| found.0);
        let below = below
            .into_iter()
            .flat_map(|at| live.range((at, 0)..=(at, usize::MAX)));
        for &(at, other) in below.chain(live.range((offset, 0)..(end, 0))) {
            let reaches = at.saturating_add(problem.buffers()[other].size) > offset;
            if reaches && !(at == offset && problem.may_share(number, other)) {
                return Some((other, number));
            }
        }
        live.insert((offset, number));
    }
    None
}
