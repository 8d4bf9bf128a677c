//! Improvement by eviction: what lies above a ceiling is moved below it, and what is in its way moves in turn.
//!
//! Each try takes one buffer without a place and puts it where the buffers in its way weigh least; they lose their
//! places. A buffer that has been in need of this becomes heavier, so that in the long run those that are hard to place
//! stay where they are. Between the tries neighbours slide to other gaps, which keeps the search from going in circles.
//! It proves nothing, but where there is some room it finds plans that a search in order of addresses misses.

use crate::{
    budget::{Budget, WorkMeter},
    exact::BoundedPiece,
    neighbours::Neighbours,
    problem::{Buffer, Problem},
    splitmix::SplitMix,
};

/// The weight of a buffer that must not move: more than all others together.
const IMMOVABLE: u64 = 1 << 40;
/// Tries for each buffer before the ceiling comes nearer to the plan; twice as many after each round of failures.
const TRIES: u64 = 64;
/// A first ceiling takes this part of the gap between plan and goal, as a power of two.
const FIRST_SHARE: u32 = 2;

/// Neighbours that are looked at in the time of a node.
const NEIGHBOURS_A_NODE: usize = 64;

/// Where a buffer has no place.
const NOWHERE: u64 = u64::MAX;

/// A placed buffer as another one meets it.
#[derive(Clone, Copy)]
struct Obstacle {
    /// Its lower or upper end.
    at: u64,
    weight: u64,
}

/// The search for one piece, in turns.
pub(crate) struct Eviction<'p> {
    problem: &'p Problem,
    members: Vec<usize>,
    neighbours: &'p Neighbours,
    offsets: Vec<u64>,
    weights: Vec<u64>,
    homeless: Vec<usize>,
    ceiling: u64,
    /// Where the highest fixed buffer ends: no ceiling is below.
    lowest_ceiling: u64,
    /// The ceiling takes `2^-share` of the gap.
    share: u32,
    tries_left: u64,
    patience: u64,
    random: SplitMix,
    nodes: u64,
    starts: Vec<Obstacle>,
    ends: Vec<Obstacle>,
    candidates: Vec<u64>,
}

impl<'p> Eviction<'p> {
    pub(crate) fn new(
        problem: &'p Problem,
        neighbours: &'p Neighbours,
        known: &BoundedPiece,
    ) -> Self {
        let members: Vec<usize> = known.offsets.iter().map(|(buffer, _)| *buffer).collect();
        let mut weights = vec![1; problem.len()];
        let mut lowest_ceiling = 0;
        for &member in &members {
            let buffer = &problem.buffers()[member];
            if let Some(offset) = buffer.fixed {
                weights[member] = IMMOVABLE;
                lowest_ceiling = lowest_ceiling.max(offset + buffer.size);
            }
        }
        Self {
            problem,
            patience: TRIES * members.len() as u64,
            members,
            neighbours,
            offsets: vec![NOWHERE; problem.len()],
            weights,
            homeless: Vec::new(),
            ceiling: u64::MAX,
            lowest_ceiling,
            share: FIRST_SHARE,
            tries_left: 0,
            random: SplitMix(0x9E37_79B9_7F4A_7C15),
            nodes: 0,
            starts: Vec::new(),
            ends: Vec::new(),
            candidates: Vec::new(),
        }
    }

    /// Nodes so far: one for each try.
    pub(crate) fn nodes(&self) -> u64 {
        self.nodes
    }

    /// Tries until the plan needs at most `goal` bytes, or `nodes` have been spent.
    pub(crate) fn turn(
        &mut self,
        known: &mut BoundedPiece,
        goal: u64,
        nodes: u64,
        budget: &Budget<'_>,
    ) {
        // A bound of a problem that is not searched may lie below what is fixed.
        let goal = goal.max(self.lowest_ceiling);
        let mut meter = WorkMeter::new(budget.should_stop);
        let last = self.nodes.saturating_add(nodes);
        while known.size > goal && self.nodes < last && !meter.is_over() {
            if known.size <= self.ceiling {
                self.begin(known, goal);
            }
            if self.homeless.is_empty() {
                self.finish(known);
                continue;
            }
            let fits = self.place_one(&mut meter);
            self.nodes += 1 + (self.starts.len() / NEIGHBOURS_A_NODE) as u64;
            if !fits || self.tries_left == 0 {
                self.come_nearer(known, goal);
            } else {
                self.tries_left -= 1;
            }
        }
    }

    /// Starts from the known plan under a new ceiling.
    fn begin(&mut self, known: &BoundedPiece, goal: u64) {
        let gap = known.size - goal;
        self.ceiling = known.size - (gap >> self.share).max(1);
        self.tries_left = self.patience;
        self.homeless.clear();
        for &(buffer, offset) in &known.offsets {
            let is_below = offset + self.problem.buffers()[buffer].size <= self.ceiling;
            self.offsets[buffer] = if is_below { offset } else { NOWHERE };
            if !is_below {
                self.homeless.push(buffer);
            }
        }
    }

    /// Takes over a plan in which everything has a place.
    fn finish(&mut self, known: &mut BoundedPiece) {
        known.offsets = self
            .members
            .iter()
            .map(|&member| (member, self.offsets[member]))
            .collect();
        known.size = crate::exact::size(self.problem, &known.offsets);
        known.order = None;
        self.share = self.share.saturating_sub(1).max(1);
    }

    /// Gives up this ceiling for one that is nearer to the plan, or all of them for more patience.
    fn come_nearer(&mut self, known: &BoundedPiece, goal: u64) {
        self.share += 1;
        if self.share >= 64 || (known.size - goal) >> self.share == 0 {
            self.share = FIRST_SHARE;
            // A gap of one byte is given up once a turn.
            self.patience = self.patience.saturating_mul(2);
        }
        self.begin(known, goal);
    }

    /// Puts one buffer below the ceiling; false if what is fixed leaves no room there.
    fn place_one(&mut self, meter: &mut WorkMeter<'_>) -> bool {
        let Some(buffer) = self.homeless.pop() else {
            return true;
        };
        let Some((offset, weight)) = self.lightest(buffer) else {
            return false;
        };
        let problem = self.problem;
        let end = offset + problem.buffers()[buffer].size;
        if weight > 0 {
            self.weights[buffer] += 1;
            for other in self.neighbours.of(buffer) {
                let at = self.offsets[other];
                if at != NOWHERE && at < end && offset < at + problem.buffers()[other].size {
                    self.offsets[other] = NOWHERE;
                    self.homeless.push(other);
                }
            }
        }
        self.offsets[buffer] = offset;
        meter.spend(8 * self.starts.len());
        true
    }

    /// Where what is in the way of `buffer` weighs least, and how much that is.
    fn lightest(&mut self, buffer: usize) -> Option<(u64, u64)> {
        let Buffer {
            size, alignment, ..
        } = self.problem.buffers()[buffer];
        let highest = self.ceiling.checked_sub(size)?;
        self.look_around(buffer);
        self.candidates.clear();
        self.candidates.push(0);
        for end in &self.ends {
            let above = end.at.checked_next_multiple_of(alignment);
            self.candidates.extend(above);
        }
        for start in &self.starts {
            if let Some(below) = start.at.checked_sub(size) {
                self.candidates.push(below / alignment * alignment);
            }
        }
        self.candidates.sort_unstable();
        self.candidates.dedup();
        let (mut begun, mut ended) = (0, 0);
        let (mut starts, mut ends) = (self.starts.iter().peekable(), self.ends.iter().peekable());
        let (mut best, mut least, mut ties) = (0, u64::MAX, 0);
        for &candidate in self.candidates.iter().take_while(|at| **at <= highest) {
            while let Some(start) = starts.next_if(|start| start.at < candidate + size) {
                begun += start.weight;
            }
            while let Some(end) = ends.next_if(|end| end.at <= candidate) {
                ended += end.weight;
            }
            let weight = begun - ended;
            if weight < least {
                (best, least, ties) = (candidate, weight, 1);
            } else if weight == least && weight > 0 {
                ties += 1;
                if self.random.below(ties) == 0 {
                    best = candidate;
                }
            }
        }
        (least < IMMOVABLE).then_some((best, least))
    }

    /// Lists the ends of placed buffers that are live together with `buffer`.
    fn look_around(&mut self, buffer: usize) {
        self.starts.clear();
        self.ends.clear();
        for other in self.neighbours.of(buffer) {
            let (at, weight) = (self.offsets[other], self.weights[other]);
            if at != NOWHERE {
                let end = at + self.problem.buffers()[other].size;
                self.starts.push(Obstacle { at, weight });
                self.ends.push(Obstacle { at: end, weight });
            }
        }
        self.starts.sort_unstable_by_key(|start| start.at);
        self.ends.sort_unstable_by_key(|end| end.at);
    }
}
