//! Plans: offsets in one arena, or tensors' assignment to shared objects.

use crate::problem::Problem;

/// Each buffer's place in one arena.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetPlan {
    /// For each buffer, bytes from the arena's start.
    pub offsets: Vec<u64>,
    /// Bytes of the arena: where the highest buffer ends.
    pub size: u64,
}

impl OffsetPlan {
    /// The plan with these offsets, and the arena that they need.
    pub(crate) fn new(problem: &Problem, offsets: Vec<u64>) -> Self {
        let size = problem
            .buffers()
            .iter()
            .zip(&offsets)
            .filter(|(buffer, _)| buffer.size > 0)
            .map(|(buffer, offset)| offset + buffer.size)
            .max()
            .unwrap_or(0);
        Self { offsets, size }
    }
}

/// Each buffer's shared object, and each object's size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectPlan {
    /// For each buffer, an index into `sizes`.
    pub objects: Vec<usize>,
    /// Bytes of each object.
    pub sizes: Vec<u64>,
}

impl ObjectPlan {
    /// Bytes of all objects together.
    pub fn size(&self) -> u64 {
        self.sizes.iter().sum()
    }

    /// The objects one behind the other in an arena, each at a multiple of its tensors' largest alignment.
    pub fn to_offsets(&self, problem: &Problem) -> OffsetPlan {
        let mut alignments = vec![1; self.sizes.len()];
        for (buffer, &object) in problem.buffers().iter().zip(&self.objects) {
            alignments[object] = buffer.alignment.max(alignments[object]);
        }
        let mut end = 0_u64;
        let objects = self.sizes.iter().zip(alignments);
        let starts: Vec<u64> = objects
            .map(|(size, alignment)| {
                let start = end.next_multiple_of(alignment);
                end = start + size;
                start
            })
            .collect();
        OffsetPlan {
            offsets: self.objects.iter().map(|&object| starts[object]).collect(),
            size: end,
        }
    }
}

/// A plan of either kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Places in one arena.
    Offsets(OffsetPlan),
    /// Shared objects.
    Objects(ObjectPlan),
}

impl Plan {
    /// Bytes that the plan needs.
    pub fn size(&self) -> u64 {
        match self {
            Self::Offsets(plan) => plan.size,
            Self::Objects(plan) => plan.size(),
        }
    }
}
