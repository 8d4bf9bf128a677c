//! Several searches in turns: what one preference never finds, another finds at once.
//!
//! Searches like these have heavy tails. So each preference gets a small node budget, and all get a budget twice as
//! large only after every one has failed; between the rounds they learn which sections the failures were in.

use std::{
    cmp::Reverse,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    piece::Piece,
    search::{PieceSearch, Preference, SearchEnd},
};
use crate::{
    budget::{Budget, JobRunner},
    timeline,
};

/// The measure by which a search orders buffers; more comes first.
#[derive(Clone, Copy)]
enum BufferMeasure {
    /// Steps for which it is live.
    Width,
    /// Width times size.
    Area,
    /// The largest load of its sections.
    Load,
    /// The largest share of the failures so far in one of its sections.
    Failures,
}

/// (by slack, keys from the first to the last).
const PREFERENCES: [(bool, [BufferMeasure; 3]); 7] = [
    (
        true,
        [
            BufferMeasure::Width,
            BufferMeasure::Area,
            BufferMeasure::Load,
        ],
    ),
    (
        false,
        [
            BufferMeasure::Load,
            BufferMeasure::Width,
            BufferMeasure::Area,
        ],
    ),
    (
        true,
        [
            BufferMeasure::Failures,
            BufferMeasure::Width,
            BufferMeasure::Area,
        ],
    ),
    (
        false,
        [
            BufferMeasure::Failures,
            BufferMeasure::Width,
            BufferMeasure::Area,
        ],
    ),
    (
        true,
        [
            BufferMeasure::Load,
            BufferMeasure::Width,
            BufferMeasure::Area,
        ],
    ),
    (
        false,
        [
            BufferMeasure::Width,
            BufferMeasure::Area,
            BufferMeasure::Load,
        ],
    ),
    (
        false,
        [
            BufferMeasure::Load,
            BufferMeasure::Area,
            BufferMeasure::Width,
        ],
    ),
];

/// The share of the old weights that remains after a round, in tenths.
const MEMORY: u64 = 8;
/// A round's failures are weighed in parts of this.
const ROUND: u64 = 1 << 32;

/// The result of a round.
pub(crate) enum RoundResult {
    /// Each item's address.
    Fits(Vec<i64>),
    /// There is no plan of this capacity.
    Impossible,
    /// All searches ended at their limit.
    Stopped,
}

/// How a search ended: each item's address, each section's failures, and nodes.
type EndedSearch = (SearchEnd, Vec<i64>, Vec<u64>, u64);

/// The searches for one piece, and what they have learned.
pub(crate) struct Portfolio<'a> {
    piece: &'a Piece,
    widths: Vec<u64>,
    loads: Vec<u64>,
    failures: Vec<u64>,
    /// Nodes of all searches so far.
    pub(crate) nodes: u64,
}

impl<'a> Portfolio<'a> {
    /// Searches for `piece`, whose items are live for `widths` steps.
    pub(crate) fn new(piece: &'a Piece, widths: Vec<u64>) -> Self {
        let sizes = piece
            .items
            .iter()
            .map(|item| (item.span(), item.size.unsigned_abs()));
        Self {
            piece,
            widths,
            loads: timeline::loads(piece.sections, sizes),
            failures: vec![0; piece.sections],
            nodes: 0,
        }
    }

    /// Gives each preference `limit` nodes. The first in the table that finishes decides, whichever was faster.
    pub(crate) fn round(
        &mut self,
        capacity: i64,
        limit: u64,
        budget: &Budget<'_>,
        workers: &dyn JobRunner,
    ) -> RoundResult {
        let left = budget.nodes.saturating_sub(self.nodes);
        let limit = limit.min(left / PREFERENCES.len() as u64 + 1);
        let results: [OnceLock<EndedSearch>; PREFERENCES.len()] = Default::default();
        let decided = AtomicUsize::new(usize::MAX);
        let ranks: Vec<Vec<u32>> = PREFERENCES
            .iter()
            .map(|(_, keys)| self.rank(*keys))
            .collect();
        workers.run(PREFERENCES.len(), &|number| {
            let is_over = || decided.load(Ordering::Relaxed) < number || budget.is_over();
            if is_over() {
                return;
            }
            let preference = Preference {
                by_slack: PREFERENCES[number].0,
                rank: &ranks[number],
            };
            let mut search = PieceSearch::new(self.piece, capacity, preference);
            let outcome = search.run(limit, &is_over);
            if outcome != SearchEnd::Stopped {
                decided.fetch_min(number, Ordering::Relaxed);
            }
            let (offsets, failures) = (search.offsets().to_vec(), search.failures().to_vec());
            let result = (outcome, offsets, failures, search.nodes());
            results[number].set(result).expect("each job runs once");
        });
        let mut failures = vec![0; self.piece.sections];
        for result in results {
            let Some((outcome, offsets, found, nodes)) = result.into_inner() else {
                break;
            };
            self.nodes += nodes;
            match outcome {
                SearchEnd::Fits => return RoundResult::Fits(offsets),
                SearchEnd::Impossible => return RoundResult::Impossible,
                SearchEnd::Stopped => {
                    let total = found.iter().sum::<u64>().max(1);
                    for (sum, found) in failures.iter_mut().zip(&found) {
                        *sum += found * ROUND / total;
                    }
                }
            }
        }
        for (weight, found) in self.failures.iter_mut().zip(&failures) {
            *weight = *weight * MEMORY / 10 + found;
        }
        RoundResult::Stopped
    }

    fn rank(&self, keys: [BufferMeasure; 3]) -> Vec<u32> {
        let items = &self.piece.items;
        let mut keyed: Vec<(Reverse<[u128; 3]>, usize)> = (0..items.len())
            .map(|item| (Reverse(keys.map(|key| self.key(key, item))), item))
            .collect();
        keyed.sort_unstable();
        let mut rank = vec![0; items.len()];
        for (position, (_, item)) in (0..).zip(keyed) {
            rank[item] = position;
        }
        rank
    }

    fn key(&self, key: BufferMeasure, item: usize) -> u128 {
        let most = |of: &[u64]| {
            let sections = &of[self.piece.items[item].sections()];
            u128::from(sections.iter().copied().max().unwrap_or(0))
        };
        let width = u128::from(self.widths[item]);
        match key {
            BufferMeasure::Width => width,
            BufferMeasure::Area => width * self.piece.items[item].size.unsigned_abs() as u128,
            BufferMeasure::Load => most(&self.loads),
            BufferMeasure::Failures => most(&self.failures),
        }
    }
}
