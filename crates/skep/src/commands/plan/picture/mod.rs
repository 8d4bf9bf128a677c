//! Plans as pictures: time by address, a rectangle a buffer.

mod curve;
mod page;
mod svg;

use skep_planner::{Plan, Problem};

pub(super) use page::html;
pub(super) use svg::svg;

use super::compare::StrategyRow;

/// Fills of buffers, in turn: hues that are told apart beside each other, light enough for dark words and strong enough
/// for either background. The page has the same.
const FILLS: [&str; 10] = [
    "#6b9bd1", "#f2a14e", "#6fbf63", "#ef7577", "#c496b8", "#e6c84a", "#76c2bd", "#b8927c",
    "#f29ac0", "#9aa5b1",
];

/// Where a plan puts each buffer; shared objects lie one behind the other.
fn offsets(problem: &Problem, row: &StrategyRow) -> Vec<u64> {
    match &row.plan {
        Plan::Offsets(plan) => plan.offsets.clone(),
        Plan::Objects(plan) => plan.to_offsets(problem).offsets,
    }
}
