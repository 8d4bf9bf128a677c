//! Several searches in turns: what one preference never finds, another finds at once.
//!
//! Searches like these have heavy tails. So each preference gets a small node budget, and all get a budget twice as
//! large only after every one has failed; between the rounds they learn which sections the failures were in.

use std::{
    cmp::Reverse,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    failed::FailedStates,
    piece::{Piece, PieceBuffer},
    search::{PieceSearch, Preference, SearchEnd, SectionMeasure},
};
use crate::{
    budget::{Budget, JobRunner},
    timeline::RangeMaximum,
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

/// (sections, keys of buffers from the first to the last).
const PREFERENCES: [(SectionMeasure, [BufferMeasure; 3]); 8] = [
    (
        SectionMeasure::Slack,
        [
            BufferMeasure::Width,
            BufferMeasure::Area,
            BufferMeasure::Load,
        ],
    ),
    (
        SectionMeasure::Any,
        [
            BufferMeasure::Load,
            BufferMeasure::Width,
            BufferMeasure::Area,
        ],
    ),
    (
        SectionMeasure::Slack,
        [
            BufferMeasure::Failures,
            BufferMeasure::Width,
            BufferMeasure::Area,
        ],
    ),
    (
        SectionMeasure::Any,
        [
            BufferMeasure::Failures,
            BufferMeasure::Width,
            BufferMeasure::Area,
        ],
    ),
    (
        SectionMeasure::Slack,
        [
            BufferMeasure::Load,
            BufferMeasure::Width,
            BufferMeasure::Area,
        ],
    ),
    (
        SectionMeasure::Any,
        [
            BufferMeasure::Width,
            BufferMeasure::Area,
            BufferMeasure::Load,
        ],
    ),
    (
        SectionMeasure::Any,
        [
            BufferMeasure::Load,
            BufferMeasure::Area,
            BufferMeasure::Width,
        ],
    ),
    (
        SectionMeasure::Choices,
        [
            BufferMeasure::Width,
            BufferMeasure::Area,
            BufferMeasure::Load,
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
pub(crate) struct Portfolio {
    piece: Piece,
    widths: Vec<u64>,
    loads: RangeMaximum,
    failures: Vec<u64>,
    /// What each search has ruled out, by capacity, the last one first.
    ruled_out: Vec<RuledOut>,
    /// Nodes of all searches so far.
    pub(crate) nodes: u64,
}

/// States that do not fit under a capacity, for each preference: shared, they would make a plan depend on the threads.
struct RuledOut {
    capacity: i64,
    failed: [Mutex<FailedStates>; PREFERENCES.len()],
}

/// Capacities whose failed states are kept: searches take turns at two.
const KEPT_CAPACITIES: usize = 2;

impl Portfolio {
    /// Searches for `piece`, whose items are live for `widths` steps, and whose preparation took `nodes`.
    pub(crate) fn new(piece: Piece, widths: Vec<u64>, nodes: u64) -> Self {
        let loads = piece.loads.iter().map(|load| load.unsigned_abs());
        let loads = RangeMaximum::new(loads.collect());
        Self {
            failures: vec![0; piece.sections],
            piece,
            widths,
            loads,
            ruled_out: Vec::new(),
            nodes,
        }
    }

    /// The buffers, in the order of the offsets that a round finds.
    pub(crate) fn items(&self) -> &[PieceBuffer] {
        &self.piece.items
    }

    /// What is known of `capacity`, now the first.
    fn look_up(&mut self, capacity: i64) {
        let known = self
            .ruled_out
            .iter()
            .position(|known| known.capacity == capacity);
        let known = match known {
            Some(position) => self.ruled_out.remove(position),
            None => RuledOut {
                capacity,
                failed: Default::default(),
            },
        };
        self.ruled_out.insert(0, known);
        self.ruled_out.truncate(KEPT_CAPACITIES);
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
        let failures = RangeMaximum::new(self.failures.clone());
        let ranks: Vec<Vec<u32>> = PREFERENCES
            .iter()
            .map(|(_, keys)| self.rank(*keys, &failures))
            .collect();
        self.look_up(capacity);
        let (piece, ruled_out) = (&self.piece, &self.ruled_out[0]);
        workers.run(PREFERENCES.len(), &|number| {
            let is_over = || decided.load(Ordering::Relaxed) < number || budget.is_over();
            if is_over() {
                return;
            }
            let preference = Preference {
                section: PREFERENCES[number].0,
                rank: &ranks[number],
            };
            let mut known = ruled_out.failed[number]
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            let mut search = PieceSearch::new(
                piece,
                capacity,
                preference,
                std::mem::take(&mut known),
                &is_over,
            );
            let outcome = search.run(limit);
            if outcome != SearchEnd::Stopped {
                decided.fetch_min(number, Ordering::Relaxed);
            }
            let (offsets, failures) = (search.offsets().to_vec(), search.failures().to_vec());
            let result = (outcome, offsets, failures, search.nodes());
            *known = search.into_failed();
            results[number].set(result).expect("each job runs once");
        });
        let mut failures = vec![0; self.piece.sections];
        for result in results {
            let Some((outcome, offsets, found, nodes)) = result.into_inner() else {
                break;
            };
            // What is impossible at once counts too: turns must come to an end.
            self.nodes += nodes.max(1);
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

    fn rank(&self, keys: [BufferMeasure; 3], failures: &RangeMaximum) -> Vec<u32> {
        let items = &self.piece.items;
        let key = |measure: BufferMeasure, item: usize| {
            let PieceBuffer { size, .. } = items[item];
            let width = u128::from(self.widths[item]);
            match measure {
                BufferMeasure::Width => width,
                BufferMeasure::Area => width * u128::from(size.unsigned_abs()),
                BufferMeasure::Load => u128::from(self.loads.over(items[item].span())),
                BufferMeasure::Failures => u128::from(failures.over(items[item].span())),
            }
        };
        let mut keyed: Vec<(Reverse<[u128; 3]>, usize)> = (0..items.len())
            .map(|item| (Reverse(keys.map(|measure| key(measure, item))), item))
            .collect();
        keyed.sort_unstable();
        let mut rank = vec![0; items.len()];
        for (position, (_, item)) in (0..).zip(keyed) {
            rank[item] = position;
        }
        rank
    }
}
