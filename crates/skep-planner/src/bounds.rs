//! Bounds that no plan can beat.

use crate::{problem::Problem, timeline};

/// The largest load: bytes that are live at one moment. Every plan of offsets needs as many.
///
/// Where all offsets are multiples of some alignment, sizes count with their padding up to it, except that of the
/// buffer on top.
pub fn max_load(problem: &Problem) -> u64 {
    let buffers = problem.buffers();
    let common = problem
        .sized()
        .map(|buffer| {
            let fixed = buffers[buffer].fixed.filter(|fixed| *fixed > 0);
            let own = buffers[buffer].alignment;
            fixed.map_or(own, |fixed| own.min(1 << fixed.trailing_zeros()))
        })
        .min()
        .unwrap_or(1);
    let highest = |alignment: u64| {
        let sizes = problem.sized().map(|buffer| {
            let padded = buffers[buffer].size.next_multiple_of(alignment);
            (problem.span(buffer), padded)
        });
        let loads = timeline::loads(problem.timeline().sections(), sizes);
        loads.into_iter().max().unwrap_or(0)
    };
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
    highest(1).max(highest(common) - padding).max(fixed)
}
