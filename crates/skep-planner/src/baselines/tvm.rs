//! TVM's unified static memory planner: its algorithms over a conflict graph and memory pools.
//!
//! Conflicts are lists here, not derived from live ranges: each buffer's own list counts as given.

use std::cmp::Reverse;

use crate::{budget::Budget, plan::OffsetPlan, problem::Problem, timeline};

/// A buffer of TVM's planner. Where sizes do not decide, the one with the larger number comes first, as names do there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TvmBuffer {
    /// Bytes.
    pub size: u64,
    /// A power of two.
    pub alignment: u64,
    /// Buffers that it must not share memory with.
    pub conflicts: Vec<usize>,
}

/// A buffer's pool and its offset there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolPlace {
    /// Index of the pool.
    pub pool: usize,
    /// Bytes from its beginning.
    pub offset: u64,
}

/// TVM's algorithms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// By size, then by number of conflicts; each on top of what it conflicts with.
    GreedyBySize,
    /// By number of conflicts, then by size; each on top of what it conflicts with.
    GreedyByConflicts,
    /// From the order by size, with first fit into gaps; up to 500 exchanges of neighbours of what lies highest.
    HillClimb,
}

/// A pool is too small.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("buffer {buffer} of {size} bytes does not fit into any pool")]
pub struct PoolsExceeded {
    /// Position in the list.
    pub buffer: usize,
    /// Its bytes.
    pub size: u64,
}

/// Attempts of the hill climb.
const ATTEMPTS: u64 = 500;

/// Places each of `buffers` in the first of `pools`, whose sizes are in bytes, that has room.
///
/// The hill climb ends where it needs at most `memory_pressure` bytes in all.
///
/// # Errors
/// A buffer that fits into no pool.
///
/// # Panics
/// Where a conflict is not the number of a buffer.
pub fn plan(
    algorithm: Algorithm,
    buffers: &[TvmBuffer],
    pools: &[u64],
    memory_pressure: u64,
) -> Result<Vec<PoolPlace>, PoolsExceeded> {
    let no_limit = Budget::nodes(u64::MAX);
    match plan_within(algorithm, buffers, pools, memory_pressure, &no_limit) {
        Ok(places) => Ok(places),
        Err(TvmFailure::Pools(exceeded)) => Err(exceeded),
        Err(TvmFailure::Stopped) => unreachable!("this budget never ends"),
    }
}

/// Why no plan was found.
enum TvmFailure {
    Pools(PoolsExceeded),
    /// The budget is spent.
    Stopped,
}

/// [`plan`] under a budget of time. A hill climb that ends early is not TVM's, so there is no plan then.
fn plan_within(
    algorithm: Algorithm,
    buffers: &[TvmBuffer],
    pools: &[u64],
    memory_pressure: u64,
    budget: &Budget<'_>,
) -> Result<Vec<PoolPlace>, TvmFailure> {
    let conflicts = |buffer: usize| buffers[buffer].conflicts.len();
    let size = |buffer: usize| buffers[buffer].size;
    let mut order: Vec<usize> = (0..buffers.len()).collect();
    order.sort_by_key(|&buffer| {
        Reverse(match algorithm {
            Algorithm::GreedyBySize | Algorithm::HillClimb => {
                (size(buffer), conflicts(buffer) as u64, buffer)
            }
            Algorithm::GreedyByConflicts => (conflicts(buffer) as u64, size(buffer), buffer),
        })
    });
    if algorithm == Algorithm::HillClimb {
        hill_climb(buffers, pools, memory_pressure, order, budget)
    } else {
        place(buffers, pools, &order, on_top, budget)
    }
}

/// A problem without pools: conflicts are the pairs that are live together. `None` where the budget ended first.
///
/// The lists of conflicts take 8 bytes a pair and direction: see [`crate::Strategy::plan`] for the limit.
pub(crate) fn plan_problem(
    algorithm: Algorithm,
    problem: &Problem,
    budget: &Budget<'_>,
) -> Option<OffsetPlan> {
    let sized: Vec<usize> = problem.sized().collect();
    let mut buffers: Vec<TvmBuffer> = sized
        .iter()
        .map(|&buffer| TvmBuffer {
            size: problem.buffers()[buffer].size,
            alignment: problem.buffers()[buffer].alignment,
            conflicts: Vec::new(),
        })
        .collect();
    let mut by_start: Vec<usize> = (0..sized.len()).collect();
    by_start.sort_by_key(|&number| problem.span(sized[number]).start);
    let mut live: Vec<usize> = Vec::new();
    for (count, number) in by_start.into_iter().enumerate() {
        if count % 64 == 0 && budget.is_over() {
            return None;
        }
        let span = problem.span(sized[number]);
        live.retain(|&other| problem.span(sized[other]).end > span.start);
        for &other in &live {
            buffers[number].conflicts.push(other);
            buffers[other].conflicts.push(number);
        }
        live.push(number);
    }
    let load = timeline::loads(
        problem.timeline().sections(),
        sized
            .iter()
            .map(|&buffer| (problem.span(buffer), problem.buffers()[buffer].size)),
    );
    let pressure = load.into_iter().max().unwrap_or(0);
    // A pool without a limit has room.
    let places = plan_within(algorithm, &buffers, &[u64::MAX], pressure, budget).ok()?;
    let mut offsets = vec![0; problem.len()];
    for (&buffer, place) in sized.iter().zip(places) {
        offsets[buffer] = place.offset;
    }
    Some(OffsetPlan::new(problem, offsets))
}

/// Where a buffer goes in a pool, given the ranges there of what it conflicts with.
type PlacementRule = fn(&TvmBuffer, &mut [(u64, u64)]) -> u64;

fn on_top(buffer: &TvmBuffer, taken: &mut [(u64, u64)]) -> u64 {
    let ends = taken
        .iter()
        .map(|(_, end)| end.next_multiple_of(buffer.alignment));
    ends.max().unwrap_or(0)
}

fn first_fit(buffer: &TvmBuffer, taken: &mut [(u64, u64)]) -> u64 {
    taken.sort_unstable();
    let mut free = 0_u64;
    for &(offset, end) in taken.iter() {
        if free + buffer.size <= offset {
            break;
        }
        free = free.max(end.next_multiple_of(buffer.alignment));
    }
    free
}

fn place(
    buffers: &[TvmBuffer],
    pools: &[u64],
    order: &[usize],
    rule: PlacementRule,
    budget: &Budget<'_>,
) -> Result<Vec<PoolPlace>, TvmFailure> {
    let mut places: Vec<Option<PoolPlace>> = vec![None; buffers.len()];
    let mut taken = Vec::new();
    for (count, &number) in order.iter().enumerate() {
        if count % 64 == 0 && budget.is_over() {
            return Err(TvmFailure::Stopped);
        }
        let buffer = &buffers[number];
        places[number] = pools.iter().enumerate().find_map(|(pool, limit)| {
            taken.clear();
            for &other in &buffer.conflicts {
                if let Some(place) = places[other].filter(|place| place.pool == pool) {
                    taken.push((place.offset, place.offset + buffers[other].size));
                }
            }
            let offset = rule(buffer, &mut taken);
            (offset + buffer.size <= *limit).then_some(PoolPlace { pool, offset })
        });
        if places[number].is_none() {
            return Err(TvmFailure::Pools(PoolsExceeded {
                buffer: number,
                size: buffer.size,
            }));
        }
    }
    Ok(places.into_iter().flatten().collect())
}

/// Bytes of each pool.
pub fn pool_sizes(buffers: &[TvmBuffer], places: &[PoolPlace], pools: usize) -> Vec<u64> {
    let mut sizes = vec![0; pools];
    for (buffer, place) in buffers.iter().zip(places) {
        sizes[place.pool] = sizes[place.pool].max(place.offset + buffer.size);
    }
    sizes
}

fn hill_climb(
    buffers: &[TvmBuffer],
    pools: &[u64],
    memory_pressure: u64,
    mut order: Vec<usize>,
    budget: &Budget<'_>,
) -> Result<Vec<PoolPlace>, TvmFailure> {
    let total = |places: &[PoolPlace]| pool_sizes(buffers, places, pools.len()).iter().sum::<u64>();
    let mut best = place(buffers, pools, &order, first_fit, budget)?;
    let mut least = total(&best);
    let mut current = best.clone();
    let mut random = Rand(0);
    for attempt in 1..ATTEMPTS {
        if least <= memory_pressure {
            break;
        }
        let Some((first, second)) = exchange(buffers, pools, &order, &current, &mut random) else {
            break;
        };
        order.swap(first, second);
        let tried = match place(buffers, pools, &order, first_fit, budget) {
            Err(TvmFailure::Stopped) => return Err(TvmFailure::Stopped),
            tried => tried.ok(),
        };
        let accepted = tried.filter(|tried| {
            let size = total(tried);
            let excess = size.saturating_sub(least);
            size <= least || random.below(100) < 50 * excess / size / attempt
        });
        let Some(accepted) = accepted else {
            order.swap(first, second);
            continue;
        };
        if total(&accepted) < least {
            least = total(&accepted);
            best.clone_from(&accepted);
        }
        current = accepted;
    }
    Ok(best)
}

/// Two positions of the order: neighbours, of the first or second degree, of a buffer that touches the top of its pool.
fn exchange(
    buffers: &[TvmBuffer],
    pools: &[u64],
    order: &[usize],
    places: &[PoolPlace],
    random: &mut Rand,
) -> Option<(usize, usize)> {
    let mut turn = vec![0; order.len()];
    for (position, &buffer) in order.iter().enumerate() {
        turn[buffer] = position;
    }
    let sizes = pool_sizes(buffers, places, pools.len());
    let highest: Vec<usize> = (0..buffers.len())
        .filter(|&number| {
            places[number].offset + buffers[number].size == sizes[places[number].pool]
        })
        .collect();
    let node = *random.pick(&highest)?;
    let earlier = |of: usize| {
        let neighbours = buffers[of].conflicts.iter().copied();
        neighbours.filter(move |&other| other != of)
    };
    let first: Vec<usize> = earlier(node)
        .filter(|&other| turn[other] < turn[node])
        .collect();
    let mut second: Vec<usize> = first
        .iter()
        .flat_map(|&near| earlier(near).filter(|&other| other != node))
        .filter(|&other| turn[other] < turn[node])
        .collect();
    second.sort_unstable();
    second.dedup();
    let one = *random.pick(&first)?;
    let from = if random.below(100) < 75 && !second.is_empty() {
        &second
    } else {
        &first
    };
    let other = *random.pick(from)?;
    let other = if one == other { node } else { other };
    Some((turn[one], turn[other]))
}

/// The C library's `rand_r`, so that a run is the same everywhere.
struct Rand(u32);

impl Rand {
    fn step(&mut self, modulus: u32) -> u32 {
        self.0 = self.0.wrapping_mul(1_103_515_245).wrapping_add(12345);
        (self.0 >> 16) % modulus
    }

    fn below(&mut self, limit: u64) -> u64 {
        let high = self.step(2048) << 20;
        let middle = self.step(1024) << 10;
        u64::from(high ^ middle ^ self.step(1024)) % limit
    }

    fn pick<'l, T>(&mut self, list: &'l [T]) -> Option<&'l T> {
        let length = list.len() as u64;
        let chosen = if length == 0 { 0 } else { self.below(length) };
        list.get(usize::try_from(chosen).ok()?)
    }
}
