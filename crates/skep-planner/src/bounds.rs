//! Bounds that no plan can beat.

use crate::{problem::Problem, timeline};

/// The largest load: bytes that are live at one moment. Every plan of offsets needs as many.
///
/// Of in-place pairs that are live at the moment, as many share their place as can, and the smaller half of a pair
/// that shares does not count. Where all offsets are multiples of some alignment, sizes count with their padding up to
/// it, except that of the buffer on top.
pub fn max_load(problem: &Problem) -> u64 {
    let buffers = problem.buffers();
    let common = problem
        .sized()
        .map(|buffer| buffers[buffer].alignment)
        .min()
        .unwrap_or(1);
    let padding = problem
        .sized()
        .map(|buffer| buffers[buffer].size.next_multiple_of(common) - buffers[buffer].size)
        .max()
        .unwrap_or(0);
    let fixed = problem
        .sized()
        .filter_map(|buffer| Some(buffers[buffer].fixed? + buffers[buffer].size))
        .max()
        .unwrap_or(0);
    let bare = highest(problem, 1);
    let padded = match padding {
        0 => bare,
        _ => highest(problem, common) - padding,
    };
    bare.max(padded).max(fixed)
}

/// The largest load, with sizes up to the next multiple of `alignment`.
fn highest(problem: &Problem, alignment: u64) -> u64 {
    let padded = |buffer: usize| problem.buffers()[buffer].size.next_multiple_of(alignment);
    let sizes = problem
        .sized()
        .map(|buffer| (problem.span(buffer), padded(buffer)));
    let mut loads = timeline::loads(problem.timeline().sections(), sizes);
    shared::subtract(problem, padded, &mut loads);
    loads.into_iter().max().unwrap_or(0)
}

/// What in-place pairs can share at each moment.
///
/// A buffer may lie where its input lies, and not where the input of its input lies while that is live too: of three in
/// a chain, or of two outputs of one input, that are live at once only two share a place. So the pairs that share at a
/// moment are a matching in a forest, and the largest one is found from the leaves up.
mod shared {
    use crate::{
        problem::Problem,
        timeline::{self, Span},
    };

    /// With more pairs of one forest at a moment than this, every one is taken to share: that bounds what they share.
    const MAX_PAIRS: usize = 64;

    /// A pair: its halves, when both are live, and what they share.
    #[derive(Clone, Copy)]
    struct Pair {
        input: usize,
        output: usize,
        span: Span,
        size: u64,
    }

    /// Subtracts from each section's load what its pairs share.
    pub(super) fn subtract(problem: &Problem, size: impl Fn(usize) -> u64, loads: &mut [u64]) {
        let mut trees = trees(problem, size);
        if trees.is_empty() {
            return;
        }
        let mut gains = vec![0; problem.len()];
        let mut shared: Vec<(Span, u64)> = Vec::new();
        for tree in &mut trees {
            if most_live(tree) > MAX_PAIRS {
                shared.extend(tree.iter().map(|pair| (pair.span, pair.size)));
                continue;
            }
            let mut live: Vec<Pair> = Vec::new();
            let mut events: Vec<u32> = tree
                .iter()
                .flat_map(|pair| [pair.span.start, pair.span.end])
                .collect();
            events.sort_unstable();
            events.dedup();
            tree.sort_by_key(|pair| (pair.span.start, pair.output));
            let mut next = 0;
            for bounds in events.windows(2) {
                live.retain(|pair| pair.span.end > bounds[0]);
                while let Some(pair) = tree.get(next).filter(|pair| pair.span.start == bounds[0]) {
                    live.push(*pair);
                    next += 1;
                }
                let span = Span {
                    start: bounds[0],
                    end: bounds[1],
                };
                if !live.is_empty() {
                    shared.push((span, largest_matching(&live, &mut gains)));
                }
            }
        }
        let shared = timeline::loads(loads.len(), shared.into_iter());
        for (load, shared) in loads.iter_mut().zip(shared) {
            *load -= shared;
        }
    }

    /// How many pairs are live at once.
    fn most_live(tree: &[Pair]) -> usize {
        let starts = tree.iter().map(|pair| (pair.span.start, 1));
        let mut events: Vec<(u32, i32)> = starts
            .chain(tree.iter().map(|pair| (pair.span.end, -1)))
            .collect();
        events.sort_unstable();
        let mut live = 0;
        let counts = events.into_iter().map(|(_, change)| {
            live += change;
            live
        });
        counts.max().unwrap_or(0).unsigned_abs() as usize
    }

    /// The pairs with a common buffer, directly or through others.
    fn trees(problem: &Problem, size: impl Fn(usize) -> u64) -> Vec<Vec<Pair>> {
        let buffers = problem.buffers();
        let mut order: Vec<usize> = problem
            .sized()
            .filter(|&buffer| buffers[buffer].in_place.is_some())
            .collect();
        // Inputs before their outputs.
        order.sort_by_key(|&buffer| buffers[buffer].start);
        let mut tree_of: Vec<Option<usize>> = vec![None; buffers.len()];
        let mut trees: Vec<Vec<Pair>> = Vec::new();
        for output in order {
            let Some(input) = buffers[output]
                .in_place
                .filter(|&input| buffers[input].size > 0)
            else {
                continue;
            };
            let span = Span {
                start: problem.span(output).start,
                end: problem.span(input).end.min(problem.span(output).end),
            };
            if span.start >= span.end {
                continue;
            }
            let tree = *tree_of[input].get_or_insert_with(|| {
                trees.push(Vec::new());
                trees.len() - 1
            });
            tree_of[output] = Some(tree);
            trees[tree].push(Pair {
                input,
                output,
                span,
                size: size(input).min(size(output)),
            });
        }
        trees
    }

    /// The most that pairs without a common half can share. `live` is in the order in which outputs start; `gains` is
    /// zero, and so it stays; meanwhile it holds what each buffer's pairs with its outputs add to the pairs further on.
    fn largest_matching(live: &[Pair], gains: &mut [u64]) -> u64 {
        let mut total = 0;
        for pair in live.iter().rev() {
            let gain = std::mem::take(&mut gains[pair.output]);
            total += gain;
            // To share with its input, the output gives up what it would share with an output of its own.
            gains[pair.input] = pair.size.saturating_sub(gain).max(gains[pair.input]);
        }
        let roots = live
            .iter()
            .map(|pair| std::mem::take(&mut gains[pair.input]));
        total + roots.sum::<u64>()
    }
}
