//! Several searches in turns: what one preference never finds, another finds at once.
//!
//! Searches like these have heavy tails. So each preference gets a small node budget, and they all begin again after
//! every one has failed: with a larger budget, or with their preferences a little disarranged. Between the rounds they
//! learn which sections the failures were in.

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
    splitmix::SplitMix,
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
const PREFERENCES: [(SectionMeasure, [BufferMeasure; 3]); 7] = [
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
];

/// How far the items of a disarranged order move at most, in 64ths of all items; in half of the orders only a quarter
/// as far.
const DISARRAY: u64 = 4;

/// Preferences that take part in every disarranged round.
const FAVOURITES: usize = 2;

/// The share of the old weights that remains after a round, in tenths.
const MEMORY: u64 = 8;
/// A round's failures are weighed in parts of this.
const ROUND: u64 = 1 << 32;

/// What a round may take.
#[derive(Clone, Copy)]
pub(crate) struct Effort {
    /// Nodes of each search.
    pub(crate) nodes: u64,
    /// The number that decides how preferences are disarranged; `None` leaves them as they are.
    pub(crate) disarray: Option<u32>,
}

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
    /// What they have learned.
    learned: Learned,
    /// What each search has ruled out, by capacity, the last one first.
    ruled_out: Vec<RuledOut>,
    /// Nodes of all searches so far.
    pub(crate) nodes: u64,
}

/// What searches have learned for later ones.
struct Learned {
    /// How much of the failures was in each section.
    failures: Vec<u64>,
    /// The preferences, those first that have found plans last.
    order: Vec<usize>,
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
            learned: Learned {
                failures: vec![0; piece.sections],
                order: (0..PREFERENCES.len()).collect(),
            },
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

    /// Gives each preference as many nodes. The first in the table that finishes decides, whichever was faster.
    pub(crate) fn round(
        &mut self,
        capacity: i64,
        effort: Effort,
        budget: &Budget<'_>,
        workers: &dyn JobRunner,
    ) -> RoundResult {
        let left = budget.nodes.saturating_sub(self.nodes);
        let limit = effort.nodes.min(left / PREFERENCES.len() as u64 + 1);
        let results: [OnceLock<EndedSearch>; PREFERENCES.len()] = Default::default();
        let decided = AtomicUsize::new(usize::MAX);
        let failures = RangeMaximum::new(self.learned.failures.clone());
        let ranks: Vec<Vec<u32>> = (0..)
            .zip(PREFERENCES)
            .map(|(number, (_, keys))| {
                let seed = effort.disarray.map(|turn| u64::from(turn) << 8 | number);
                self.rank(keys, &failures, seed)
            })
            .collect();
        let chosen = chosen(&self.learned.order, effort);
        self.look_up(capacity);
        let (piece, ruled_out) = (&self.piece, &self.ruled_out[0]);
        workers.run(chosen.len(), &|turn| {
            let number = chosen[turn];
            let is_over = || decided.load(Ordering::Relaxed) < turn || budget.is_over();
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
                decided.fetch_min(turn, Ordering::Relaxed);
            }
            let (offsets, failures) = (search.offsets().to_vec(), search.failures().to_vec());
            let result = (outcome, offsets, failures, search.nodes());
            *known = search.into_failed();
            results[turn].set(result).expect("each job runs once");
        });
        let mut failures = vec![0; self.piece.sections];
        for (result, number) in results.into_iter().zip(chosen) {
            let Some((outcome, offsets, found, nodes)) = result.into_inner() else {
                break;
            };
            // What is impossible at once counts too: turns must come to an end.
            self.nodes += nodes.max(1);
            match outcome {
                SearchEnd::Fits => {
                    let order = &mut self.learned.order;
                    order.retain(|other| *other != number);
                    order.insert(0, number);
                    return RoundResult::Fits(offsets);
                }
                SearchEnd::Impossible => return RoundResult::Impossible,
                SearchEnd::Stopped => {
                    let total = found.iter().sum::<u64>().max(1);
                    for (sum, found) in failures.iter_mut().zip(&found) {
                        *sum += found * ROUND / total;
                    }
                }
            }
        }
        for (weight, found) in self.learned.failures.iter_mut().zip(&failures) {
            *weight = *weight * MEMORY / 10 + found;
        }
        RoundResult::Stopped
    }

    /// Each item's place in the order of `keys`, a little disarranged if there is a seed for that.
    fn rank(
        &self,
        keys: [BufferMeasure; 3],
        failures: &RangeMaximum,
        seed: Option<u64>,
    ) -> Vec<u32> {
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
        let mut order: Vec<usize> = keyed.into_iter().map(|(_, item)| item).collect();
        if let Some(seed) = seed {
            let mut random = SplitMix(seed);
            let reach = (DISARRAY * items.len() as u64) >> (2 * random.below(2));
            let mut turns: Vec<(u64, usize)> = (0..).step_by(1 << 6).zip(order).collect();
            for (turn, _) in &mut turns {
                *turn += random.below(reach + 1);
            }
            turns.sort_unstable();
            order = turns.into_iter().map(|(_, item)| item).collect();
        }
        let mut rank = vec![0; items.len()];
        for (position, item) in (0..).zip(order) {
            rank[item] = position;
        }
        rank
    }
}

/// The preferences of a round: all, or of those that are disarranged the first and some of the others in turn.
fn chosen(order: &[usize], effort: Effort) -> Vec<usize> {
    let Some(turn) = effort.disarray else {
        return (0..PREFERENCES.len()).collect();
    };
    let (first, others) = order.split_at(FAVOURITES);
    let mut chosen = first.to_vec();
    chosen.push(others[turn as usize % others.len()]);
    chosen
}
